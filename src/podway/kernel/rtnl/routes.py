"""Routes: requests, records, and the question which way one exact packet would go.

Sources: rtnetlink(7), net/ipv4/fib_frontend.c, net/ipv6/route.c. Where the families differ, records show
what the plan means, not what the kernel stores: an IPv6 blackhole route has no device (the kernel says `lo`)
and IPv6 routes have no scope.
"""

import errno
import struct
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from socket import AF_INET6
from typing import cast, get_args

import msgspec

from podway.api.addresses import Address, Family, Network, host_network
from podway.errors import KernelError
from podway.kernel.netlink import Connection, Message, Request
from podway.kernel.netlink import constants as c
from podway.kernel.netlink.codec import RTMSG, attribute, nested, number, parse, u32
from podway.kernel.rtnl import links
from podway.kernel.rtnl.addresses import SCOPE_NUMBERS, SCOPES, unpack
from podway.plan.objects import MAIN_TABLE, ROUTE_PROTOCOL, Route, RouteType, Scope

TYPES = {
    0: "unspec",
    1: "unicast",
    2: "local",
    3: "broadcast",
    4: "anycast",
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
    9: "throw",
}
"""rtm_type by number; the names are iproute2's."""

_TYPE_NUMBERS = {name: kind for kind, name in TYPES.items()}
_NOT_IN_PLANS = (c.RTA_MULTIPATH, c.RTA_ENCAP_TYPE, c.RTA_NH_ID)
_RTNEXTHOP = struct.Struct("=HBBi")
"""struct rtnexthop: length, flags, weight less one, device."""
_AF = struct.Struct("=H")
"""The first field of struct rtvia; the address follows."""

_NO_WAY = {
    errno.ENETUNREACH: "no route",
    errno.EHOSTUNREACH: "unreachable",
    errno.EACCES: "prohibit",
    errno.EINVAL: "blackhole",
    errno.EAGAIN: "throw",
}
"""What a lookup's errno means (fib_props in net/ipv4/fib_semantics.c)."""


class NextHop(msgspec.Struct, frozen=True):
    """One of several next hops that share a route's traffic by weight (RFC 2992); `index` is its device."""

    index: int
    gateway: Address | None
    weight: int


class RouteRecord(msgspec.Struct, frozen=True):
    """A route as the kernel has it; `index` is its device, 0 if it has none or several.

    A route over several next hops has no gateway of its own, but `next_hops`.
    """

    destination: Network
    type: str
    index: int
    gateway: Address | None
    source: Address | None
    scope: str
    metric: int
    table: int
    protocol: int
    tos: int
    plain: bool
    """It carries nothing that a plan's Route cannot express: other metrics, several next hops or encapsulation."""
    next_hops: tuple[NextHop, ...] = ()
    mtu: int = 0

    def planned(self, device: str) -> Route | None:
        """Return the same as a plan's Route through this device; None if that cannot express it."""
        if not self.plain or self.tos or self.type not in get_args(RouteType):
            return None
        return Route(
            self.destination,
            cast(RouteType, self.type),
            device,
            self.gateway,
            self.source,
            cast(Scope, self.scope),
            self.metric,
            self.table,
            self.mtu,
        )


class Lookup(msgspec.Struct, frozen=True):
    """Which way a packet would go.

    A `type` that goes nowhere (`no route`, `blackhole`, `unreachable`, `prohibit`, `throw`) comes with the
    `errno` that a sender gets; the kernel then does not tell which route decided, and `matched` is None.
    `next_hops` are all next hops of a route that has several, of which `device` and `gateway` are the one taken.
    """

    type: str
    device: str
    gateway: Address | None
    source: Address | None
    protocol: int
    table: int
    metric: int
    matched: Network | None
    errno: int = 0
    next_hops: tuple[NextHop, ...] = ()


def add(route: Route, index: int, protocol: int = ROUTE_PROTOCOL) -> Request:
    """Build a request for a route through the device of this number (0: none).

    It fails with EEXIST where a route of the same destination, metric and table is, whoever's it is.
    """
    body = _body(route, index, protocol)
    return Request(c.RTM_NEWROUTE, body, "add", route, c.NLM_F_CREATE | c.NLM_F_EXCL)


def replace(route: Route, index: int, protocol: int = ROUTE_PROTOCOL) -> Request:
    """Build a request for a route in place of that of the same destination, metric and table."""
    body = _body(route, index, protocol)
    return Request(c.RTM_NEWROUTE, body, "replace", route, c.NLM_F_CREATE | c.NLM_F_REPLACE)


def remove(route: Route, index: int, protocol: int = ROUTE_PROTOCOL) -> Request:
    """Build a request that removes a route, only if it is of this protocol."""
    return Request(c.RTM_DELROUTE, _body(route, index, protocol), "remove", route)


def remove_record(record: RouteRecord) -> Request:
    """Build a request that removes just this route, whatever it carries."""
    body = RTMSG.pack(
        Family.of(record.destination).af,
        record.destination.prefixlen,
        0,
        record.tos,
        _short_table(record.table),
        record.protocol,
        0 if record.destination.version == 6 else SCOPE_NUMBERS.get(record.scope, 0),
        _TYPE_NUMBERS[record.type],
        0,
    ) + b"".join(
        (
            attribute(c.RTA_DST, record.destination.network_address.packed),
            u32(c.RTA_TABLE, record.table),
            u32(c.RTA_PRIORITY, record.metric),
            u32(c.RTA_OIF, record.index) if record.index else b"",
            _gateway(record.destination, record.gateway),
        )
    )
    return Request(c.RTM_DELROUTE, body, "remove", f"route {record.destination} metric {record.metric}")


def gateways(
    connection: Connection, family: Family, *, protocol: int, lengths: Collection[int]
) -> Iterator[tuple[Network, int]]:
    """Yield the destination and the device's index of each route of a protocol that leads to a gateway.

    Of several equal ways it is the first one's. Nothing else of them is read: there may be thousands. Raises
    KernelError.
    """
    for message in _dump(connection, family, protocol=protocol, table=MAIN_TABLE, lengths=lengths):
        found = parse(message.body, RTMSG.size)
        hops = _read_next_hops(found[c.RTA_MULTIPATH]) if c.RTA_MULTIPATH in found else ()
        if hops or c.RTA_GATEWAY in found or c.RTA_VIA in found:
            destination = _destination(message.body[0], found.get(c.RTA_DST, b""), message.body[1])
            yield destination, hops[0].index if hops else number(found.get(c.RTA_OIF))


@lru_cache(maxsize=65536)
def _destination(af: int, packed: bytes, prefix: int) -> Network:
    address = int.from_bytes(packed, "big")
    return IPv6Network((address, prefix)) if af == AF_INET6 else IPv4Network((address, prefix))


def read(message: Message) -> RouteRecord:
    """Read an RTM_NEWROUTE or RTM_DELROUTE message."""
    af, prefix, _, tos, table, protocol, scope, kind, _ = RTMSG.unpack_from(message.body)
    found = parse(message.body, RTMSG.size)
    ipv6 = af == AF_INET6
    name = TYPES.get(kind, str(kind))
    goes_nowhere = name in {"blackhole", "unreachable", "prohibit", "throw"}
    source = found.get(c.RTA_PREFSRC)
    metrics = parse(found.get(c.RTA_METRICS, b""))
    return RouteRecord(
        destination=_destination(af, found.get(c.RTA_DST, b""), prefix),
        type=name,
        index=0 if goes_nowhere else number(found.get(c.RTA_OIF)),
        gateway=_read_gateway(found),
        source=unpack(source) if source else None,
        scope="global" if ipv6 else SCOPES.get(scope, str(scope)),
        metric=number(found.get(c.RTA_PRIORITY)),
        table=number(found.get(c.RTA_TABLE), table),
        protocol=protocol,
        tos=tos,
        plain=metrics.keys() <= {c.RTAX_MTU} and not any(kind in found for kind in _NOT_IN_PLANS),
        next_hops=_read_next_hops(found.get(c.RTA_MULTIPATH, b"")),
        mtu=number(metrics.get(c.RTAX_MTU)),
    )


def is_of(message: Message, protocol: int, *, elsewhere_than: Iterable[tuple[Network, int]]) -> bool:
    """Tell, without reading all of it, if a message is of a protocol's route that is none of these.

    They are ranges, and the prefix length of the routes that are meant in each.
    """
    if message.body[5] != protocol:
        return False
    family, length = (6 if message.body[0] == AF_INET6 else 4), message.body[1]
    among = [network for network, wanted in elsewhere_than if wanted == length and network.version == family]
    if not among:
        return True
    packed = int.from_bytes(parse(message.body, RTMSG.size).get(c.RTA_DST, b""), "big")
    return not any(packed & int(network.netmask) == int(network.network_address) for network in among)


def normal(route: Route) -> Route:
    """Return a plan's route as it reads when it comes back from the kernel.

    The metric is stated; IPv6 has no scope, and what goes nowhere has no device.
    """
    metric = route.key[1]
    scope = route.scope if route.family is Family.IPV4 else "global"
    device = route.device if route.type == "unicast" else ""
    if (metric, scope, device) == (route.metric, route.scope, route.device):
        return route  # most are, and there may be thousands
    return msgspec.structs.replace(route, metric=metric, scope=scope, device=device)


def dump(
    connection: Connection,
    family: Family,
    *,
    protocol: int = 0,
    table: int = MAIN_TABLE,
    lengths: Collection[int] | None = None,
) -> list[RouteRecord]:
    """Return the routes of a family, those of one protocol and table only; 0 is any.

    The kernel does the choosing (NETLINK_GET_STRICT_CHK), so BIRD's routes cost nothing. It cannot choose by the
    length of the prefix: with `lengths` those of other lengths are left out before they are read, at a tenth of
    the price. Raises KernelError.
    """
    return list(scan(connection, family, protocol=protocol, table=table, lengths=lengths))


def scan(
    connection: Connection,
    family: Family,
    *,
    protocol: int = 0,
    table: int = MAIN_TABLE,
    lengths: Collection[int] | None = None,
) -> Iterator[RouteRecord]:
    """Yield what `dump` returns, read one by one. Raises KernelError."""
    return map(read, _dump(connection, family, protocol=protocol, table=table, lengths=lengths))


def _dump(
    connection: Connection, family: Family, *, protocol: int, table: int, lengths: Collection[int] | None
) -> Iterator[Message]:
    body = RTMSG.pack(family.af, 0, 0, 0, _short_table(table), protocol, 0, 0, 0)
    body += u32(c.RTA_TABLE, table) if table else b""
    try:
        found = connection.dump(Request(c.RTM_GETROUTE, body, "list", f"{family.label} routes"))
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return  # a table is made with its first route
        raise
    # Dumps of IPv6 without a protocol, say, also bring what is cached: clones of routes.
    yield from (
        message
        for message in found
        if (lengths is None or message.body[1] in lengths) and not _flags(message) & c.RTM_F_CLONED
    )


def lookup(
    connection: Connection,
    destination: Address,
    *,
    source: Address | None = None,
    iif: str = "",
    mark: int = 0,
) -> Lookup:
    """Ask which way a packet would go: one sent from here, or with `iif` one that comes in there.

    Raises KernelError if the question cannot be asked (`iif` unknown, source of another family).
    """
    index = links.find(connection, iif).index if iif else 0

    def ask(flags: int) -> Message | KernelError:
        try:
            return connection.get(_question(destination, source, index, mark, flags))
        except KernelError as error:
            if error.errno not in _NO_WAY or error.kernel_says:
                raise  # what has words for it is a mistake in the question
            return error

    way = ask(0)
    # A plain lookup yields the way, but not whose route it was; this one yields the route.
    # IPv4 tells its table only if asked to, and IPv6, which always does, refuses that question.
    matched = ask(c.RTM_F_FIB_MATCH | (c.RTM_F_LOOKUP_TABLE if destination.version == 4 else 0))
    rule = None if isinstance(matched, KernelError) else read(matched)
    found = None if isinstance(way, KernelError) else read(way)
    if isinstance(way, KernelError):
        kind, code = rule.type if rule and rule.type != "unicast" else _NO_WAY[way.errno], way.errno
    else:
        kind, code = found.type if found else "", 0
    return Lookup(
        type=kind,
        device=links.find(connection, found.index).name if found and found.index else "",
        gateway=found.gateway if found else None,
        source=found.source if found else None,
        protocol=rule.protocol if rule else 0,
        table=rule.table if rule else 0,
        metric=rule.metric if rule else 0,
        matched=rule.destination if rule else None,
        errno=code,
        next_hops=rule.next_hops if rule else (),
    )


def is_local(connection: Connection, address: Address) -> bool:
    """Tell whether packets to an address are delivered here. Raises KernelError."""
    try:
        return read(connection.get(_question(address, None, 0, 0, 0))).type == "local"
    except KernelError as error:
        if error.errno in _NO_WAY and not error.kernel_says:
            return False
        raise


def _question(destination: Address, source: Address | None, iif: int, mark: int, flags: int) -> Request:
    family = Family.of(destination)
    body = RTMSG.pack(family.af, family.bits, family.bits if source else 0, 0, 0, 0, 0, 0, flags)
    body += attribute(c.RTA_DST, destination.packed)
    body += attribute(c.RTA_SRC, source.packed) if source else b""
    body += u32(c.RTA_IIF, iif) if iif else b""
    body += u32(c.RTA_MARK, mark) if mark else b""
    return Request(c.RTM_GETROUTE, body, "look up", f"the route to {host_network(destination)}")


def _body(route: Route, index: int, protocol: int) -> bytes:
    family = route.family
    scope = SCOPE_NUMBERS[route.scope] if family is Family.IPV4 else 0
    return b"".join(
        (
            RTMSG.pack(
                family.af,
                route.destination.prefixlen,
                0,
                0,
                _short_table(route.table),
                protocol,
                scope,
                _TYPE_NUMBERS[route.type],
                0,
            ),
            attribute(c.RTA_DST, route.destination.network_address.packed),
            u32(c.RTA_TABLE, route.table),
            u32(c.RTA_OIF, index) if index else b"",
            _gateway(route.destination, route.gateway),
            attribute(c.RTA_PREFSRC, route.source.packed) if route.source else b"",
            b"" if route.metric is None else u32(c.RTA_PRIORITY, route.metric),
            nested(c.RTA_METRICS, u32(c.RTAX_MTU, route.mtu)) if route.mtu else b"",
        )
    )


def _gateway(destination: Network, gateway: Address | None) -> bytes:
    """Return the gateway's attribute: RTA_VIA where it is of another family than the destination."""
    if gateway is None:
        return b""
    if gateway.version == destination.version:
        return attribute(c.RTA_GATEWAY, gateway.packed)
    return attribute(c.RTA_VIA, _AF.pack(Family.of(gateway).af) + gateway.packed)


def _read_gateway(found: dict[int, bytes]) -> Address | None:
    if gateway := found.get(c.RTA_GATEWAY):
        return unpack(gateway)
    via = found.get(c.RTA_VIA)
    return unpack(via[_AF.size :]) if via else None


def _read_next_hops(data: bytes) -> tuple[NextHop, ...]:
    found = []
    while len(data) >= _RTNEXTHOP.size:
        size, _, weight, index = _RTNEXTHOP.unpack_from(data)
        found.append(NextHop(index, _read_gateway(parse(data[:size], _RTNEXTHOP.size)), weight + 1))
        data = data[(size + 3) & ~3 :]
    return tuple(found)


def _short_table(table: int) -> int:
    """Return what rtm_table, one byte, says of a table; RTA_TABLE holds its number in full."""
    return table if table < 256 else c.RT_TABLE_COMPAT


def _flags(message: Message) -> int:
    return int(RTMSG.unpack_from(message.body)[-1])
