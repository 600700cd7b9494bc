"""Which device and addresses a node speaks to the other nodes with: a choice among what the kernel has. Pure.

A node's address is stable: while a registered address is valid (RFC 4862, section 2: preferred or deprecated), it
stays, whatever others come beside it, and the device is the one that has it. A new one is chosen only for want of
it, and never one that the node is about to lose (deprecated, temporary), may not have (tentative, a duplicate), or
that another node has. An agent that starts and one that runs ask the same question, so they get the same answer.
"""

from collections.abc import Collection, Iterable, Sequence

import msgspec

from podway.api.addresses import Address, Family, Interface
from podway.errors import AgentError
from podway.plan.uplink import Uplink

LOOPBACK = "lo"

TAKING_OVER = frozenset({"bridge", "bond", "team", "openvswitch"})
"""Kinds of devices that take for themselves what comes in by a device that is enslaved to them."""


NOWHERE = (float("inf"), float("inf"))
"""The metrics of a device without default routes."""


class Link(msgspec.Struct, frozen=True):
    """A device that is not ours. `master` is the number of the device that it is enslaved to, 0 for none."""

    index: int
    name: str
    mtu: int = 1500
    up: bool = True
    kind: str = ""
    master: int = 0
    altnames: tuple[str, ...] = ()


class LinkAddress(msgspec.Struct, frozen=True):
    """An address of a device, numbered `index`, and what the kernel says of it (IFA_F_*, if_addr.h).

    `created` is when, in hundredths of a second since the machine started; `forever`, that it does not expire.
    """

    index: int
    address: Interface
    created: int = 0
    forever: bool = True
    tentative: bool = False
    duplicate: bool = False
    """Duplicate-address detection failed: another machine has it (IFA_F_DADFAILED)."""
    deprecated: bool = False
    temporary: bool = False
    """For connections that the machine opens, and replaced every day (RFC 8981)."""


class DefaultRoute(msgspec.Struct, frozen=True):
    """A default route of the main table: over one device, or several equally good ones."""

    family: Family
    metric: int
    indexes: frozenset[int]
    gateways: tuple[Address, ...] = ()


class HostInterfaces(msgspec.Struct, frozen=True):
    """What the kernel has, as far as the choice depends on it."""

    links: tuple[Link, ...] = ()
    addresses: tuple[LinkAddress, ...] = ()
    defaults: tuple[DefaultRoute, ...] = ()


class Choice(msgspec.Struct, frozen=True):
    """The uplink, and in words why it is not the one that was asked for; empty if it is."""

    uplink: Uplink
    note: str = ""


class _Candidate(msgspec.Struct, frozen=True):
    link: Link
    addresses: tuple[Interface, ...]
    """At most one a family, IPv4 first."""
    kept: int
    """How many of them are registered ones."""
    port: bool
    metrics: tuple[float, float]
    """The best metrics of its default routes, by family; infinite without one."""
    near: bool
    """Whether other nodes, or the addresses that this node had, are in its subnets."""

    @property
    def leads_out(self) -> bool:
        return self.metrics != NOWHERE


def choose_uplink(
    found: HostInterfaces,
    wanted: str = "",
    *,
    registered: Collection[Interface] = (),
    others: Collection[Address] = (),
) -> Choice:
    """Return the node's uplink: the device with its registered addresses; or `wanted`; or the one that is meant.

    `registered` are the addresses that the node is known by, `others` those of the other nodes. Without a
    registered address that is valid, default routes decide by their metrics, then subnets that hold other nodes.
    Raises AgentError if no device has a usable address, or several do and only a person can choose.
    """
    candidates = [each for link in found.links if (each := _candidate(found, link, registered, others))]
    if wanted:
        return _wanted(found, candidates, wanted)
    return _as_it_is(found, _one_of(candidates, registered))


def lost(uplink: Uplink, registered: Iterable[Interface]) -> tuple[Interface, ...]:
    """Return the registered addresses that an uplink has not."""
    return tuple(address for address in registered if address.ip not in uplink.node_addresses)


def unsettled(found: HostInterfaces, registered: Collection[Interface]) -> bool:
    """Tell whether duplicate-address detection will soon decide about a registered address, or any other.

    The kernel begins it when a link comes up, and ends it within seconds (dad_transmits, ip-sysctl.rst).
    """
    known = {address.ip for address in registered}
    names = {link.index for link in found.links if link.up}
    pending = [each for each in found.addresses if each.tentative and not each.duplicate and each.index in names]
    return any(each.address.ip in known or not each.address.ip.is_link_local for each in pending)


def _wanted(found: HostInterfaces, candidates: Sequence[_Candidate], wanted: str) -> Choice:
    named = next((link for link in found.links if wanted == link.name or wanted in link.altnames), None)
    by_index = {candidate.link.index: candidate for candidate in candidates}
    own = by_index.get(named.index) if named else None
    if own and not own.port:
        return _as_it_is(found, own)
    master = by_index.get(named.master) if named else None
    if named and master and named.master in _takers(found):
        return _as_it_is(found, master)
    if own:
        return _as_it_is(found, own)
    holders = sorted((each for each in candidates if each.kept), key=_preference)
    if holders:
        uplink = _uplink(holders[0])
        note = f"{wanted}, which --interface names, has no usable address: the node's is on {uplink.device}"
        return Choice(uplink, note)
    raise AgentError(
        f"device {wanted} does not exist, is down or has no address that other nodes can reach",
        hint=f"usable devices: {_names(candidates)}",
    )


def _one_of(candidates: Sequence[_Candidate], registered: Collection[Interface]) -> _Candidate:
    holders = sorted((each for each in candidates if each.kept), key=_preference)
    if holders:
        return holders[0]
    if registered:
        # Better none than one that only happens to have an address, say a bridge of containers.
        candidates = [each for each in candidates if each.leads_out or each.near]
        if not candidates:
            had = ", ".join(str(each.ip) for each in registered)
            raise AgentError(
                f"none of the node's addresses ({had}) is valid any more, and no device has a default route or "
                "other nodes in its subnet",
                hint="give the node its address back, or name another device with --interface",
            )
    chosen = [each for each in candidates if not each.port] or list(candidates)
    best = min((each.metrics for each in chosen), default=NOWHERE)
    chosen = [each for each in chosen if each.metrics == best]
    chosen = [each for each in chosen if each.near] or chosen
    if len(chosen) != 1:
        raise AgentError(
            f"cannot tell which device reaches the other nodes: {_names(chosen)}",
            hint="name it with --interface",
        )
    return chosen[0]


def _preference(candidate: _Candidate) -> tuple[object, ...]:
    family = min(Family.of(address) for address in candidate.addresses)
    return (candidate.port, -candidate.kept, candidate.metrics, family, candidate.link.index)


def _as_it_is(found: HostInterfaces, chosen: _Candidate) -> Choice:
    if not chosen.port:
        return Choice(_uplink(chosen))
    master = next(link.name for link in found.links if link.index == chosen.link.master)
    note = f"{chosen.link.name} belongs to {master}, which takes its packets, and still has the node's address"
    return Choice(_uplink(chosen), note)


def _uplink(candidate: _Candidate) -> Uplink:
    return Uplink(candidate.link.name, candidate.link.mtu, candidate.addresses)


def _names(candidates: Iterable[_Candidate]) -> str:
    return ", ".join(sorted(candidate.link.name for candidate in candidates)) or "none"


def _takers(found: HostInterfaces) -> frozenset[int]:
    return frozenset(link.index for link in found.links if link.kind in TAKING_OVER)


def _candidate(
    found: HostInterfaces, link: Link, registered: Collection[Interface], others: Collection[Address]
) -> _Candidate | None:
    """Return what a device can be as the uplink; None if it cannot be."""
    if not link.up or link.name == LOOPBACK:
        return None
    addresses = []
    for family in Family:
        address = _address(found, link, family, registered, others)
        if address is not None:
            addresses.append(address)
    if not addresses:
        return None
    known = {each.ip for each in registered}
    return _Candidate(
        link,
        tuple(addresses),
        kept=sum(address.ip in known for address in addresses),
        port=link.master in _takers(found),
        metrics=(_metric(found, link, Family.IPV4), _metric(found, link, Family.IPV6)),
        near=any(_holds(address, (*others, *known)) for address in addresses),
    )


def _metric(found: HostInterfaces, link: Link, family: Family) -> float:
    routes = [each for each in found.defaults if each.family is family and link.index in each.indexes]
    return min((float(each.metric) for each in routes), default=float("inf"))


def _address(
    found: HostInterfaces,
    link: Link,
    family: Family,
    registered: Collection[Interface],
    others: Collection[Address],
) -> Interface | None:
    """Return a device's address of a family that the node is to be known by; None if it has none.

    An address of full length that others put beside those of the machine floats between machines (VRRP). But
    clouds lease just such addresses, with a default route: it is taken where the node had none with a subnet, and
    it is leased, or the `first` that the node gets.
    """
    had = [each for each in registered if each.version == family]
    first = not registered
    here = [each for each in found.addresses if each.index == link.index and each.address.version == family]
    known = {each.ip for each in registered}
    kept = [each for each in here if each.address.ip in known and not each.duplicate]
    if kept:
        return min(kept, key=_age).address
    led_out = _metric(found, link, family) < float("inf") and all(_full_length(each) for each in had)
    gateways = [gateway for each in found.defaults if link.index in each.indexes for gateway in each.gateways]
    new = [
        each
        for each in here
        if not (each.tentative or each.duplicate or each.deprecated or each.temporary)
        and not (each.address.is_link_local or each.address.is_loopback or each.address.is_multicast)
        and each.address.ip not in others
        and (not _full_length(each.address) or (led_out and (first or not each.forever)))
    ]
    return min(
        (each.address for each in sorted(new, key=_age)),
        key=lambda address: (not _holds(address, others), not _holds(address, gateways), _full_length(address)),
        default=None,
    )


def _age(address: LinkAddress) -> tuple[bool, int, int]:
    """Order addresses: those that stay first, then the oldest; the kernel has the newest IPv6 address first."""
    return (not address.forever, address.created, int(address.address.ip))


def _full_length(address: Interface) -> bool:
    return address.network.prefixlen == Family.of(address).bits


def _holds(address: Interface, others: Iterable[Address]) -> bool:
    """Tell whether others are in an address' subnet."""
    return not _full_length(address) and any(
        other.version == address.version and other in address.network for other in others
    )
