"""Node: a machine that runs pods, and what agents write on its object for each other."""

from collections.abc import Hashable, Iterable, Iterator
from functools import lru_cache
from ipaddress import ip_network
from typing import ClassVar, Literal

import msgspec

from podway.api.addresses import Address, Family, Interface, Network
from podway.api.columns import AGE, LABELS, NAME, Cluster, Column, age
from podway.api.fields import (
    Problem,
    check_address,
    check_asn_text,
    check_usable,
    parse_address,
    parse_cidr,
    parse_interface,
)
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.node_lease import LEASES, LeaseSpec, NodeLease, micro_time
from podway.api.meta import Metadata, Record
from podway.api.resource import Names, Resource
from podway.cached import cached_property

INTERFACE_ADDRESSES = "podway.io/interface-addresses"
"""Annotation: the uplink's addresses with their prefix lengths, comma-separated."""

ACCEPTS = "podway.io/accepts"
"""Annotation: the encapsulations that the node takes off, comma-separated; `none` goes without saying."""

SENDS = "podway.io/sends"
"""Annotation: the encapsulations that the node may still put on."""

ANNOUNCEMENT = "podway.io/announcement"
"""Annotation: another text each time the node's agent writes what it accepts and sends, so that it knows its last
words when it reads them."""

ASN = "podway.io/asn"
"""Annotation: the node's own AS number, in place of the cluster's."""

NAT_ADDRESSES = "podway.io/nat-addresses"
"""Annotation: the addresses, comma-separated and at most one a family, that pods' packets have as their source
when they leave the cluster from this node, in place of that of the route."""

BGP_READY = "podway.io/bgp-ready"
"""Annotation: the topology for which the node has all the sessions that it needs."""

STARVED = "podway.io/starved-pools"
"""Annotation: pools, comma-separated, of which a pod got no address here lately."""

BGP_LOST = "podway.io/bgp-lost"
"""Annotation: the route reflectors with which the node has no session any more, comma-separated."""

FORMER_INSTANCE, FORMER_SEEN = "podway.io/agent-instance", "podway.io/agent-seen"
"""Annotations: on which kernel an agent runs that knows no leases yet, and when it lived last, in seconds since
1970."""

RACK = "podway.io/rack"
"""Label: what fails together with the node; without it, the node's subnet says so."""

SILENT_AFTER = 30.0
"""Seconds without a sign after which it is doubtful that a node's agent lives: three heartbeats."""


class NodeAddress(Record, frozen=True, kw_only=True):
    """One of a node's addresses; `type` is InternalIP, Hostname and so on."""

    type: str
    address: str


class NodeInfo(Record, frozen=True, kw_only=True):
    """What runs on a node."""

    kubelet_version: str = ""


class Taint(Record, frozen=True, kw_only=True):
    """Why pods should keep away from a node."""

    key: str
    value: str = ""
    effect: str = ""


class NodeSpec(Record, frozen=True, kw_only=True):
    """What is asked of a node: its taints, and the ranges of pod addresses that it was given, one a family."""

    pod_cidrs: tuple[str, ...] = msgspec.field(default=(), name="podCIDRs")
    taints: tuple[Taint, ...] = ()


class NodeStatus(Record, frozen=True, kw_only=True):
    """What is observed of a node: by its kubelet, where there is one."""

    addresses: tuple[NodeAddress, ...] = ()
    node_info: NodeInfo = NodeInfo()


def _blocks(node: "Node", cluster: Cluster) -> str:
    return ",".join(block.spec.cidr for block in cluster.of(AddressBlock) if block.spec.node == node.metadata.name)


def _agent(node: "Node", cluster: Cluster) -> str:
    name = node.metadata.name
    lease = cluster.named(NodeLease, LEASES).get(name)
    alive = node.alive_at(lease.renewed if lease else None)
    if alive is None:
        return "never seen"
    if doubt := cluster.doubts.get(name):
        return doubt
    silence = cluster.now - alive
    return "alive" if silence < SILENT_AFTER else f"silent for {age(silence)}"


def _sends(node: "Node") -> Iterable[Hashable]:
    # Plain: it is asked of thousands of nodes.
    return node.sends if SENDS in node.metadata.annotations else ()


_FAMILIES = {
    (four, six): frozenset(family for family, has in ((Family.IPV4, four), (Family.IPV6, six)) if has)
    for four in (False, True)
    for six in (False, True)
}
"""Sets of families, each once: by whether IPv4 is in it, and IPv6."""


class Node(Resource, frozen=True, kw_only=True, dict=True):
    """A machine that runs pods."""

    KIND: ClassVar = "Node"
    NAMESPACED: ClassVar = False
    NAMES: ClassVar = Names("nodes", short=("no",))
    READ_ONLY: ClassVar = ("podCIDRs", "taints")
    COLUMNS: ClassVar = (
        NAME,
        Column("ADDRESSES", lambda node, _: ",".join(map(str, node.internal_addresses))),
        Column("BLOCKS", _blocks),
        Column("AGENT", _agent),
        AGE,
        Column(
            "SUBNETS", lambda node, _: ",".join(str(one.network) for one in node.interface_addresses), wide=True
        ),
        Column("ACCEPTS", lambda node, _: ",".join(sorted(node.accepts)) or "none", wide=True),
        Column("SENDS", lambda node, _: ",".join(sorted(node.sends)) or "none", wide=True),
        LABELS,
    )
    IN_VIEW: ClassVar = True
    INDICES: ClassVar = {
        "sends": _sends,
        "address": lambda node: (entry.address for entry in node.status.addresses),
        "families": lambda node: (node.families,),
        "starved": lambda node: node.starved if STARVED in node.metadata.annotations else (),
        # By the notes' text: of most nodes there is none.
        "asn": lambda node: filter(None, (node.metadata.annotations.get(ASN),)),
        "ready": lambda node: filter(None, (node.metadata.annotations.get(BGP_READY),)),
        "lost": lambda node: node.lost if BGP_LOST in node.metadata.annotations else (),
        "subnet": lambda node: (interface.network for interface in node.interface_addresses),
    }
    SETTABLE: ClassVar = {
        "asn": ("annotations", ASN),
        "rack": ("labels", RACK),
        "nat-addresses": ("annotations", NAT_ADDRESSES),
    }

    api_version: Literal["v1"] = "v1"
    kind: Literal["Node"] = "Node"
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()

    @cached_property
    def internal_addresses(self) -> tuple[Address, ...]:
        """The node's own addresses, at most one a family."""
        return tuple(parse_address(a.address) for a in self.status.addresses if a.type == "InternalIP")

    def internal_address(self, family: Family) -> Address | None:
        """Return the node's address of this family, None if it has none."""
        for address in self.internal_addresses:  # plain: a planner asks it of thousands of nodes
            if address.version == family:
                return address
        return None

    @cached_property
    def families(self) -> frozenset[Family]:
        """The families of `internal_addresses`."""
        # By the text: it is asked at each change of each of thousands of nodes.
        own = [":" in entry.address for entry in self.status.addresses if entry.type == "InternalIP"]
        return _FAMILIES[False in own, True in own]

    def pod_network(self, family: Family) -> Network | None:
        """Return the range of a family that Kubernetes gave the node, None if it gave none."""
        return next((one for one in map(ip_network, self.spec.pod_cidrs) if one.version == family), None)

    @cached_property
    def interface_addresses(self) -> tuple[Interface, ...]:
        """The uplink's addresses with their subnets."""
        text = self.metadata.annotations.get(INTERFACE_ADDRESSES, "")
        return tuple(parse_interface(part) for part in text.split(",") if part)

    @cached_property
    def own_addresses(self) -> tuple[Address, ...]:
        """All addresses that the node says are its own, each once: those of most nodes are said twice."""
        # Of interface addresses the text: their subnets take time to make, and are asked of few nodes.
        own = self.internal_addresses
        stated = {entry.address for entry in self.status.addresses if entry.type == "InternalIP"}
        texts = self.metadata.annotations.get(INTERFACE_ADDRESSES, "").split(",")
        there = [address for text in texts if text and (address := text.partition("/")[0]) not in stated]
        return tuple(dict.fromkeys((*own, *map(parse_address, there)))) if there else own

    @property
    def rack(self) -> str:
        """What fails together with the node: its rack label, else its first subnet; empty if neither is known."""
        label = self.metadata.labels.get(RACK)
        if label is not None:
            return label
        return str(self.interface_addresses[0].network) if self.interface_addresses else ""

    @property
    def rack_key(self) -> Hashable:
        """The same for all nodes of one `rack`, and much sooner found."""
        label = self.metadata.labels.get(RACK)
        if label is not None:
            return label
        first = self.metadata.annotations.get(INTERFACE_ADDRESSES, "").partition(",")[0]
        if not first:
            return None
        # By numbers, without interface address and subnet: it is asked of thousands of nodes.
        text, _, length = first.partition("/")
        address = parse_address(text)
        bits = int(length) if length.isdecimal() else parse_interface(first).network.prefixlen
        return address.version, int(address) >> address.max_prefixlen - bits, bits

    @property
    def asn(self) -> int | None:
        """The node's own AS number, None if it has the cluster's. Raises ValueError for what is no number."""
        text = self.metadata.annotations.get(ASN)
        return int(text) if text else None

    @cached_property
    def nat_addresses(self) -> tuple[Address, ...]:
        """What pods' packets that leave the cluster from here have as their source, at most one a family."""
        text = self.metadata.annotations.get(NAT_ADDRESSES, "")
        return tuple(parse_address(part.strip()) for part in text.split(",") if part.strip())

    def nat_address(self, family: Family) -> Address | None:
        """Return the one of a family, None if it is that of the route."""
        return next((address for address in self.nat_addresses if address.version == family), None)

    @property
    def accepts(self) -> frozenset[str]:
        """The encapsulations that the node says it takes off."""
        return _words(self.metadata.annotations.get(ACCEPTS, ""))

    @property
    def sends(self) -> frozenset[str]:
        """The encapsulations that the node says it may still put on."""
        return _words(self.metadata.annotations.get(SENDS, ""))

    @property
    def lost(self) -> frozenset[str]:
        """The route reflectors that the node says it has lost."""
        return _words(self.metadata.annotations.get(BGP_LOST, ""))

    @property
    def starved(self) -> frozenset[str]:
        """The pools of which the node says that a pod got no address lately."""
        return _words(self.metadata.annotations.get(STARVED, ""))

    @property
    def former_lease(self) -> NodeLease | None:
        """What the node's agent says of its life on this object, as agents did before they had leases."""
        notes = self.metadata.annotations
        seen = notes.get(FORMER_SEEN, "")
        if not (seen.isascii() and seen.isdecimal() and len(seen) < 12):
            return None
        spec = LeaseSpec(
            holder_identity=notes.get(FORMER_INSTANCE, ""),
            lease_duration_seconds=int(SILENT_AFTER),
            renew_time=micro_time(int(seen)),
        )
        return NodeLease(metadata=Metadata(name=self.metadata.name, namespace=LEASES), spec=spec)

    def alive_at(self, renewed: float | None) -> float | None:
        """Return when the node's agent lived last, if ever; its lease was renewed last at the given time, if ever.

        Times are in seconds since 1970.
        """
        former = self.former_lease
        return max((at for at in (renewed, former.renewed if former else None) if at is not None), default=None)

    def problems(self) -> Iterator[Problem]:
        """Yield what cannot be right in the addresses and in what agents write."""
        yield from self._wrong_addresses()
        for index, text in enumerate(self.spec.pod_cidrs):
            try:
                parse_cidr(text)
            except ValueError as error:
                yield f"spec.podCIDRs[{index}]", str(error), "write a network such as 10.244.3.0/24"
        notes = self.metadata.annotations
        field = f"metadata.annotations[{INTERFACE_ADDRESSES}]"
        for text in filter(None, notes.get(INTERFACE_ADDRESSES, "").split(",")):
            try:
                parse_interface(text)
            except ValueError:
                yield field, f"{text!r} is not an interface address", "write ADDRESS/LENGTH,ADDRESS/LENGTH"
        if notes.get(ASN):
            yield from check_asn_text(f"metadata.annotations[{ASN}]", notes[ASN])
        yield from _wrong_nat_addresses(notes.get(NAT_ADDRESSES, ""))

    def _wrong_addresses(self) -> Iterator[Problem]:
        families = []
        for index, entry in enumerate(self.status.addresses):
            if entry.type != "InternalIP":
                continue
            where = f"status.addresses[{index}].address"
            wrong = tuple(check_address(where, entry.address))
            yield from wrong
            if not wrong:
                address = parse_address(entry.address)
                families.append(Family.of(address))
                yield from check_usable(where, address, "write the address that the other nodes reach it by")
        for family in Family:
            if families.count(family) > 1:
                yield (
                    "status.addresses",
                    f"has more than one InternalIP of {family.label}",
                    "keep the one that the other nodes reach it by",
                )


def _wrong_nat_addresses(text: str) -> Iterator[Problem]:
    field = f"metadata.annotations[{NAT_ADDRESSES}]"
    families = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        wrong = tuple(check_address(field, part))
        yield from wrong
        if not wrong:
            families.append(Family.of(parse_address(part)))
            yield from check_usable(
                field, parse_address(part), "write an address of the node that others can answer"
            )
    for family in Family:
        if families.count(family) > 1:
            yield (
                field,
                f"has more than one address of {family.label}",
                "keep the one that packets shall come from",
            )


@lru_cache(maxsize=1024)  # most nodes say the same
def _words(text: str) -> frozenset[str]:
    return frozenset(part.strip() for part in text.split(",") if part.strip())
