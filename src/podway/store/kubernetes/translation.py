"""What Podway's kinds are in Kubernetes: where they are served, and what differs between there and here. Pure.

Podway's types have Kubernetes' shape, so most need nothing but a path. What has to be told apart stands in _TABLE.
"""

from collections.abc import Callable, Mapping
from ipaddress import ip_address
from types import MappingProxyType
from typing import Any

import msgspec

from podway.api.kinds import KINDS
from podway.api.kinds.cluster_network_policy import ClusterNetworkPolicy
from podway.api.kinds.node import Node
from podway.api.kinds.node_lease import LEASES, NodeLease
from podway.api.kinds.pod import Pod
from podway.api.kinds.secret import Secret
from podway.api.merge_patch import Document
from podway.api.resource import GROUP, Resource, api_version, has_status

Alteration = Callable[[Document], Document]


def _same(document: Document) -> Document:
    return document


class Translation(msgspec.Struct, frozen=True):
    """A kind in Kubernetes.

    `versions` are the apiVersions under which it may be served, the best first. `space` is the namespace that all
    objects of a kind are looked for in, "" if everywhere. A kind that is `optional` may be unknown to a server.
    `reading` makes of a stored document what Podway's type can be read of, `writing` of Podway's what is sent,
    and `creating` what is sent of a new object besides.
    """

    kind: type[Resource]
    versions: tuple[str, ...]
    space: str = ""
    optional: bool = False
    reading: Alteration = _same
    writing: Alteration = _same
    creating: Alteration = _same

    @property
    def own(self) -> bool:
        """Whether the kind is Podway's own: nobody else has a part of its objects, but for the status."""
        return self.versions[0].partition("/")[0] == GROUP

    def path(self, version: str, namespace: str = "", name: str = "") -> str:
        """Return where the objects of a kind are, or one of them."""
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        within = f"/namespaces/{namespace}" if self.kind.NAMESPACED and namespace else ""
        return f"{root}{within}/{self.kind.NAMES.plural}{f'/{name}' if name else ''}"


def _without_status(document: Document) -> Document:
    """Leave out what the controller says of an object: Podway's type has no such field."""
    return {name: value for name, value in document.items() if name != "status"}


def _first_addresses(document: Document) -> Document:
    """Keep of a node's InternalIPs the first of each family: the node's own, where a cloud gives several."""
    status = document.get("status")
    addresses = status.get("addresses") if isinstance(status, dict) else None
    if not isinstance(addresses, list):
        return document
    kept: list[Any] = []
    families: set[int] = set()
    for entry in addresses:
        if isinstance(entry, dict) and entry.get("type") == "InternalIP":
            family = _family(entry.get("address"))
            if family in families:
                continue
            families.add(family)
        kept.append(entry)
    return {**document, "status": {**document["status"], "addresses": kept}}


def _family(text: Any) -> int:
    try:
        return ip_address(text).version
    except ValueError:
        return 0  # what is no address is told by the rules


def _with_containers(document: Document) -> Document:
    """Give a pod that Podway makes what Kubernetes wants of one: a container with an image.

    A lab's pods are network namespaces, and nobody runs their containers.
    """
    spec: dict[str, Any] = document.get("spec", {})
    named = [{"name": f"c{number}", **one} for number, one in enumerate(spec.get("containers") or [{}])]
    return {**document, "spec": {**spec, "containers": [{"image": "none", **one} for one in named]}}


def _with_selectors(document: Document) -> Document:
    """Write out the selectors that select everything: the API wants both where pods are meant."""

    def complete(value: Any) -> Any:
        if isinstance(value, list):
            return [complete(one) for one in value]
        if not isinstance(value, dict):
            return value
        whole = {name: complete(one) for name, one in value.items()}
        if isinstance(whole.get("pods"), dict):
            whole["pods"] = {"namespaceSelector": {}, "podSelector": {}, **whole["pods"]}
        return whole

    return {**document, "spec": complete(document["spec"])}


_TABLE: Mapping[str, Translation] = MappingProxyType(
    {
        Node.KIND: Translation(Node, ("v1",), reading=_first_addresses),
        Pod.KIND: Translation(Pod, ("v1",), creating=_with_containers),
        # The kubelets' leases have the nodes' names, too, in a namespace of theirs.
        NodeLease.KIND: Translation(NodeLease, ("coordination.k8s.io/v1",), space=LEASES),
        # Podway reads passwords of BGP peers, and is to see no other secret.
        Secret.KIND: Translation(Secret, ("v1",), space=LEASES),
        ClusterNetworkPolicy.KIND: Translation(
            ClusterNetworkPolicy,
            ("policy.networking.k8s.io/v1beta1", "policy.networking.k8s.io/v1alpha2"),
            optional=True,
            writing=_with_selectors,
        ),
    }
)


def translation(kind: type[Resource]) -> Translation:
    """Return what a kind is in Kubernetes."""
    stated = _TABLE.get(kind.KIND)
    if stated is not None:
        return stated
    own = api_version(kind).partition("/")[0] == GROUP
    reading = _without_status if own and not has_status(kind) else _same
    return Translation(kind, (api_version(kind),), reading=reading)


TRANSLATIONS: Mapping[str, Translation] = MappingProxyType(
    {name: translation(kind) for name, kind in KINDS.items()}
)
"""Every kind, by its name."""
