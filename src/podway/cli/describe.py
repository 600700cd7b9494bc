"""`podway describe`: everything about an object, and what belongs to it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
import msgspec

from podway.api.addresses import Address
from podway.api.columns import Cluster, age_of
from podway.api.encode import to_builtins, without_secrets
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.kinds.service import Service
from podway.api.meta import LabelSelector
from podway.api.resource import Resource, key, subject
from podway.cli.get import everything, find
from podway.cli.help import examples
from podway.cli.kinds import DEFAULT_NAMESPACE, complete_words, kind_of, namespace_option, read_requests
from podway.cli.options import GlobalOptions, cluster_options
from podway.cli.views import View

SHOWN = 10
"""Of how many pods or blocks that belong to an object the names are told."""

GAP = "  "


@click.command(
    epilog=examples(
        "podway describe node node1",
        "podway describe pod web                     # or: pod/web, pod shop/web",
        "podway describe pools",
    )
)
@click.argument(
    "words", metavar="KIND [NAME]... | KIND/NAME...", nargs=-1, required=True, shell_complete=complete_words
)
@namespace_option
@cluster_options
@click.pass_obj
def describe(options: GlobalOptions, *, words: tuple[str, ...], namespace: str | None) -> None:
    """Tell everything about objects: all fields, what belongs to them, and where to look on."""
    requests = read_requests(words, namespace)
    for request in requests:
        kind_of(request.view)
    cluster = Cluster(options.run(everything), time.time())
    found = [
        obj for one in requests for obj in find(cluster, one, namespace or DEFAULT_NAMESPACE, LabelSelector())
    ]
    for position, obj in enumerate(found):
        click.echo("\n" * bool(position) + "\n".join(describe_lines(obj, cluster)))
    if not found:
        click.echo(f"no {requests[0].view.names[0]} found", err=True)


def describe_lines(obj: Resource, cluster: Cluster) -> Iterator[str]:
    """Yield the page of one object: its fields, what belongs to it, and the commands that tell more."""
    shape = to_builtins(obj)
    meta = shape.pop("metadata")
    del shape["apiVersion"], shape["kind"]
    if spec := getattr(without_secrets(obj), "spec", None):
        shape["spec"] = _whole(spec)
    facts: dict[str, Any] = {name: meta.pop(name) for name in ("labels", "annotations") if name in meta}
    created = meta.get("creationTimestamp", "")
    yield click.style(subject(key(obj)), bold=True)
    yield from _fields(
        {
            "created": f"{created}, {age_of(created, now=cluster.now)} ago" if created else "unknown",
            **facts,
            **shape,
        },
        1,
    )
    for title, lines in _belonging(obj, cluster):
        yield from _list(title, lines)
    name = f"{obj.metadata.namespace}/{obj.metadata.name}" if obj.NAMESPACED else obj.metadata.name
    yield from _list("more", [*_more(obj), f"podway get {View.of(type(obj)).names[0]} {name} -o yaml"])


def _belonging(obj: Resource, cluster: Cluster) -> Iterator[tuple[str, list[str]]]:
    match obj:
        case Node():
            name = obj.metadata.name
            yield "blocks", [_block(block) for block in cluster.of(AddressBlock) if block.spec.node == name]
            yield "pods", [_pod(pod) for pod in cluster.of(Pod) if pod.spec.node_name == name]
        case IPPool() if obj.for_services:
            yield "services", [_address(one, obj) for one in cluster.of(Service) if _address(one, obj)]
        case IPPool():
            yield (
                "blocks",
                [_block(block) for block in cluster.of(AddressBlock) if block.spec.pool == obj.metadata.name],
            )
        case AddressBlock():
            yield (
                "pods",
                [_pod(pod) for pod in cluster.of(Pod) if any(one in obj.network for one in pod.addresses)],
            )
        case Pod():
            yield "blocks", [_block(block) for block in cluster.of(AddressBlock) if _any_in(obj.addresses, block)]
        case Service():
            from podway.services import advertising
            from podway.services.explain import Explainer, lines, lines_from_outside

            explained = cluster.kept(Explainer).explain(obj)
            yield f"served{f': {explained.why_none}' if explained.why_none else ''}", list(lines(explained))
            yield "served to clients outside", list(lines_from_outside(explained))
            yield "outside", list(advertising.lines(cluster.kept(advertising.Told).of(obj)))
        case Namespace():
            here = obj.metadata.name
            yield "pods", [_pod(pod) for pod in cluster.of(Pod) if pod.metadata.namespace == here]


def _more(obj: Resource) -> Iterator[str]:
    match obj:
        case Node():
            name = obj.metadata.name
            yield from (f"podway status {name}", f"podway get routes {name}", f"podway doctor {name}")
        case Pod():
            yield f"podway trace {obj.metadata.namespace}/{obj.metadata.name} TO"
        case Service():
            yield f"podway trace POD service/{obj.metadata.namespace}/{obj.metadata.name}"
        case AddressBlock():
            yield f"podway describe node {obj.spec.node}"


def _address(service: Service, pool: IPPool) -> str:
    """Return which addresses of a pool a Service has; empty if it has none."""
    found = [address for address in service.load_balancer_addresses if address in pool.network]
    name = f"{service.metadata.namespace}/{service.metadata.name}"
    return f"{', '.join(map(str, found))} {name}" if found else ""


def _any_in(addresses: Sequence[Address], block: AddressBlock) -> bool:
    return any(address in block.network for address in addresses)


def _block(block: AddressBlock) -> str:
    return f"{block.spec.cidr} of {block.spec.node}, pool {block.spec.pool}"


def _pod(pod: Pod) -> str:
    addresses = " ".join(map(str, pod.addresses)) or "no address"
    return f"{pod.metadata.namespace}/{pod.metadata.name} on {pod.spec.node_name or 'no node'}, {addresses}"


def _list(title: str, lines: Sequence[str]) -> Iterator[str]:
    if not lines:
        yield f"{GAP}{title}: none"
        return
    yield f"{GAP}{title}:"
    yield from (f"{GAP * 2}{line}" for line in lines[:SHOWN])
    if len(lines) > SHOWN:
        yield f"{GAP * 2}and {len(lines) - SHOWN} more"


def _fields(shape: Mapping[str, Any], depth: int) -> Iterator[str]:
    for name, value in shape.items():
        match value:
            case dict() if value:
                yield f"{GAP * depth}{name}:"
                yield from _fields(value, depth + 1)
            case list() | tuple() if any(isinstance(one, dict | list | tuple) for one in value):
                yield f"{GAP * depth}{name}:"
                for one in value:
                    yield f"{GAP * (depth + 1)}{_short(one)}"
            case list() | tuple():
                yield f"{GAP * depth}{name}: {', '.join(map(str, value)) or 'none'}"
            case bool():
                yield f"{GAP * depth}{name}: {str(value).lower()}"
            case _:
                yield f"{GAP * depth}{name}: {'not set' if value in ('', None, {}) else value}"


def _whole(value: Any) -> Any:
    """Return a Struct as plain values by their names on the wire, those that are the defaults included."""
    if not isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    return {field.encode_name: _whole(getattr(value, field.name)) for field in msgspec.structs.fields(value)}


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(one)}" for name, one in value.items())
    return ", ".join(map(_short, value)) if isinstance(value, list | tuple) else str(value)
