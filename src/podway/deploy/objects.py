"""The objects that make Podway the network of a cluster: those of deploy/, of which all else is made. Pure.

The definitions of Podway's own kinds are made of its types; the rest is in manifests/, the files of deploy/.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, TypeAlias

import msgspec
import yaml

from podway import __version__
from podway.api.crd import manifest

Object: TypeAlias = Mapping[str, Any]
"""An object as Kubernetes reads it."""

IMAGE = f"podway.io/podway:{__version__}"
"""What the image of this Podway is called, unless it is fetched from elsewhere."""
CRDS = "crds.yaml"
NAMESPACE = "podway"
AGENT, CONTROLLER = "podway-agent", "podway-controller"
SERVER = ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")
"""Variables that say where the API server is; kubelets set them to the Service kubernetes in all containers."""
POOLS = "pools"
"""Key in the ConfigMap `podway`: the networks of a cluster that has no pools yet."""


MANIFESTS: Traversable = files("podway.deploy") / "manifests"


class Choices(msgspec.Struct, frozen=True, kw_only=True):
    """What may be chosen; what is empty is as the manifests say."""

    image: str = ""
    pools: tuple[str, ...] = ()
    server: tuple[str, str] | None = None
    """Host and port at which agents ask the API server, in place of the Service kubernetes."""


_USUAL = Choices()


def texts(manifests: Traversable = MANIFESTS) -> dict[str, str]:
    """Return the manifests of a directory by name, in the order in which they are applied."""
    names = yaml.safe_load((manifests / "kustomization.yaml").read_text())["resources"]
    return {name: manifest() if name == CRDS else (manifests / name).read_text() for name in names}


def objects(choices: Choices = _USUAL) -> tuple[dict[str, Any], ...]:
    """Return all objects of Podway, in the order in which they are applied."""
    found = [one for text in texts().values() for one in yaml.safe_load_all(text) if one]
    return tuple(chosen(one, choices) for one in found)


def chosen(obj: Object, choices: Choices) -> dict[str, Any]:
    """Return an object with what was chosen."""
    changed: dict[str, Any] = deepcopy(dict(obj))
    if choices.pools and obj["kind"] == "ConfigMap":
        changed["data"][POOLS] = ",".join(choices.pools)
    for container in containers(changed) if choices.image else ():
        container["image"] = choices.image
    if choices.server and obj["kind"] == "DaemonSet":
        told = [{"name": name, "value": value} for name, value in zip(SERVER, choices.server, strict=True)]
        for container in containers(changed):
            others = [one for one in container.get("env", ()) if one["name"] not in SERVER]
            container["env"] = [*others, *told]
    return changed


def server_of(agent: Object | None) -> tuple[str, str] | None:
    """Return where the agents of a DaemonSet were told that the API server is, None if they were not."""
    told = {one["name"]: one.get("value", "") for one in next(containers(agent or {}), {}).get("env", ())}
    host, port = (told.get(name, "") for name in SERVER)
    return (host, port or "443") if host else None


def containers(obj: Object) -> Iterator[dict[str, Any]]:
    """Yield the containers of a workload, those of other objects being none."""
    pod = obj.get("spec", {}).get("template", {}).get("spec", {})
    yield from (*pod.get("initContainers", ()), *pod.get("containers", ()))


def workload(made: Sequence[Object], name: str) -> Object:
    """Return the DaemonSet or Deployment of a name."""
    return next(
        one for one in made if one["kind"] in {"DaemonSet", "Deployment"} and one["metadata"]["name"] == name
    )


def image_of(obj: Object) -> str:
    """Return the image of a workload's first container."""
    return str(next(containers(obj))["image"])


def version_of(image: str) -> str:
    """Return what stands behind an image's name: its tag, or its digest."""
    name, at, digest = image.partition("@")
    if at:
        return digest
    _, colon, tag = name.rpartition("/")[2].partition(":")
    return tag if colon else "latest"


def subject(obj: Object) -> str:
    """Return what an object is called in words: Kind/name, or Kind/namespace/name."""
    metadata = obj["metadata"]
    return "/".join(filter(None, (obj["kind"], metadata.get("namespace", ""), metadata["name"])))
