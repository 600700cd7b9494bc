"""Whom people mean: a pod, a node or an address, by the name that they typed. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from types import MappingProxyType
from typing import TypeAlias

import msgspec

from podway.api.addresses import Address, Family
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.resource import Resource
from podway.errors import InvalidInput
from podway.plan.path import End
from podway.suggestion import did_you_mean

DEFAULT_NAMESPACE = "default"
_NAMES_SHOWN = 3


class Subject(msgspec.Struct, frozen=True):
    """An end of a trace. `node` is empty for an address outside the cluster, `pod` is `<namespace>/<name>`.

    `free` says that the address lies in a block of `node`, but that no pod has it. `host` is the name of a host
    beside the cluster that can be asked.
    """

    label: str
    node: str
    pod: str
    addresses: tuple[Address, ...]
    free: bool = False
    host: str = ""

    @property
    def ours(self) -> bool:
        """Whether it is a pod, a node or a known host: packets can be sent from there, and seen there."""
        return bool(self.pod or self.host or (self.node and not self.free))

    @property
    def asked(self) -> str:
        """Who is asked about it: its node's agent, or the host."""
        return self.node or self.host

    def end(self, family: Family) -> End | None:
        """Return it as an end of a path of this family, None if it has no address of it."""
        address = next((address for address in self.addresses if address.version == family), None)
        return End(address, self.node, self.pod) if address else None


Hosts: TypeAlias = Mapping[str, Sequence[Address]]
"""The addresses of the hosts beside a cluster that can be asked, by name."""
NO_HOSTS: Hosts = MappingProxyType({})


def resolve(text: str, resources: Iterable[Resource], hosts: Hosts = NO_HOSTS) -> Subject:
    """Return whom a text names: `web`, `shop/web`, `pod/shop/web`, `node1`, `node/node1`, `10.244.1.2`.

    Of several pods of one name the one in the namespace `default` is meant; `hosts` come last. Raises InvalidInput
    if nobody has this name (with the nearest ones), if several have it, or if the one who has it has no address.
    """
    resources = tuple(resources)
    try:
        return _by_address(ip_address(text), resources, hosts)
    except ValueError:
        pass
    pods = [
        one
        for one in resources
        if isinstance(one, Pod) and _as_typed(text, "pod") & {one.metadata.name, _name(one)}
    ]
    pods = [one for one in pods if one.metadata.namespace == DEFAULT_NAMESPACE] or pods
    nodes = [one for one in resources if isinstance(one, Node) and one.metadata.name in _as_typed(text, "node")]
    found = [*pods, *nodes]
    if len(found) == 1:
        return _of_pod(pods[0]) if pods else _of_node(nodes[0])
    for name in _as_typed(text, "host") if not found else ():
        if name in hosts:
            return Subject(f"host {name}", "", "", tuple(hosts[name]), host=name)
    if not found:
        raise InvalidInput(f"no pod or node is called {text!r}", hint=_nearest(text, resources))
    meanings = " or ".join([*(f"pod {_name(pod)}" for pod in pods), *(f"node {text}" for _ in nodes)])
    ways = " or ".join([*map(_name, pods), *(f"{_first(node)} for the node" for node in nodes)])
    raise InvalidInput(f"{text!r} can mean {meanings}", hint=f"write {ways}")


def _as_typed(text: str, kind: str) -> set[str]:
    """Return the names that a text may be of this kind: with the kind before them, or without."""
    return {text, text.removeprefix(f"{kind}/")}


def _by_address(address: Address, resources: Sequence[Resource], hosts: Hosts) -> Subject:
    for one in resources:
        if isinstance(one, Pod) and address in one.addresses and _runs(one) and not one.spec.host_network:
            return Subject(f"pod {_name(one)}", one.spec.node_name, _name(one), (address,))
        if isinstance(one, Node) and address in one.internal_addresses:
            return Subject(f"node {one.metadata.name}", one.metadata.name, "", (address,))
    for one in resources:
        if isinstance(one, AddressBlock) and address in one.network:
            return Subject(f"{address} (in {one.spec.node}'s block)", one.spec.node, "", (address,), free=True)
    for name, addresses in hosts.items():
        if address in addresses:
            return Subject(f"host {name}", "", "", (address,), host=name)
    return Subject(str(address), "", "", (address,))


def _of_pod(pod: Pod) -> Subject:
    name = _name(pod)
    if not _runs(pod):
        raise InvalidInput(f"pod {name} has ended ({pod.status.phase}): it has no network any more")
    if not pod.spec.node_name or not pod.addresses:
        raise InvalidInput(f"pod {name} has no address yet ({pod.status.phase})", hint="see `podway get pods`")
    if pod.spec.host_network:
        return Subject(f"pod {name} (its node's network)", pod.spec.node_name, "", pod.addresses)
    return Subject(f"pod {name}", pod.spec.node_name, name, pod.addresses)


def _of_node(node: Node) -> Subject:
    name = node.metadata.name
    if not node.internal_addresses:
        raise InvalidInput(f"node {name} has told no address yet", hint="is its agent running?")
    return Subject(f"node {name}", name, "", node.internal_addresses)


def _nearest(text: str, resources: Iterable[Resource]) -> str:
    names = [
        name
        for one in resources
        if isinstance(one, Pod | Node)
        for name in ({one.metadata.name, _name(one)} if isinstance(one, Pod) else {one.metadata.name})
    ]
    otherwise = "see `podway get pods -A` and `podway get nodes`"
    return did_you_mean(text, names, otherwise=otherwise, most=_NAMES_SHOWN, cutoff=0.5)


def _runs(pod: Pod) -> bool:
    return pod.status.phase not in ("Succeeded", "Failed")


def _name(pod: Pod) -> str:
    return f"{pod.metadata.namespace}/{pod.metadata.name}"


def _first(node: Node) -> str:
    return str(next(iter(node.internal_addresses), node.metadata.name))
