"""Names for tab completion: of objects in the store, and of labs. No cluster, no names, no complaint."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

import click

from podway.cli.options import GlobalOptions
from podway.errors import PodwayError
from podway.lab.paths import DEFAULT_LAB

if TYPE_CHECKING:  # completing a command's name does without msgspec
    from podway.api.resource import Resource

R = TypeVar("R", bound="Resource")


def objects(ctx: click.Context, kind: type[R], *, namespace: str | None = None) -> tuple[R, ...]:
    """Return a kind's objects, of one namespace or of all; none where no store can be read."""
    options = ctx.find_object(GlobalOptions) or GlobalOptions(None, DEFAULT_LAB)
    try:
        return options.run(lambda store: store.list(kind, namespace=namespace)).items
    except (PodwayError, OSError):
        return ()


def complete_nodes(ctx: click.Context, param: click.Parameter | None, incomplete: str) -> list[str]:
    """Complete a node's name."""
    from podway.api.kinds.node import Node

    return _starting(incomplete, objects(ctx, Node))


def complete_pods(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete a pod's name in the namespace that was given, or NAMESPACE/NAME."""
    from podway.api.kinds.pod import Pod

    stated, slash, name = incomplete.rpartition("/")
    found = _starting(name, objects(ctx, Pod, namespace=stated or ctx.params.get("namespace") or "default"))
    return [f"{stated}{slash}{one}" for one in found]


def complete_namespaces(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete a namespace's name; there is always the default one."""
    from podway.api.kinds.namespace import Namespace

    return sorted(
        {*_starting(incomplete, objects(ctx, Namespace)), *["default"] * "default".startswith(incomplete)}
    )


def _starting(incomplete: str, found: "Iterable[Resource]") -> list[str]:
    return [obj.metadata.name for obj in found if obj.metadata.name.startswith(incomplete)]


def complete_policies(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a policy, NAMESPACE/NAME or NAME."""
    from podway.api.kinds.cluster_network_policy import ClusterNetworkPolicy
    from podway.api.kinds.network_policy import NetworkPolicy

    names = [f"{one.metadata.namespace}/{one.metadata.name}" for one in objects(ctx, NetworkPolicy)]
    names += [one.metadata.name for one in objects(ctx, ClusterNetworkPolicy)]
    return sorted(name for name in names if name.startswith(incomplete))
