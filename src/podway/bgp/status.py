"""What BIRD says of its sessions and routes, as records.

The parsers take the replies of podway.bgp.control, and raise RoutingError for what they cannot read. The formats
are those of BIRD 2.0 (proto_cmd_show in nest/proto.c, bgp_show_proto_info in proto/bgp/bgp.c, bfd_show_sessions in
proto/bfd/bfd.c, rt_show_rte in nest/rt-show.c), with the time format that podway.bgp.render sets.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from ipaddress import ip_address, ip_network
from typing import TypeVar

import msgspec

from podway.api.addresses import Address, Family, Network
from podway.bgp.control import BirdControl, Line
from podway.bgp.outside import AGGREGATE
from podway.bgp.render import OWN
from podway.errors import RoutingError
from podway.plan.outside import PREFIX

Found = TypeVar("Found")

PROTOCOL, DETAIL, BFD, ROUTE = 1002, 1006, 1020, 1007
"""Reply codes of the lines that matter here."""


class BfdSession(msgspec.Struct, frozen=True):
    """A BFD session. `state` is AdminDown, Down, Init or Up (RFC 5880, section 4.1)."""

    address: Address
    device: str
    state: str
    since: datetime


class PeerStatus(msgspec.Struct, frozen=True):
    """A BGP session with a node, or with an outside `peer`, of which `node` is empty then.

    `port` is the TCP port of the other side, 0 where only BIRD was asked, which does not tell.
    `state` is Idle, Connect, Active, OpenSent, OpenConfirm, Established, or Close and Down as BIRD has them;
    `last_error` is in BIRD's words, `bfd` the state of the address' BFD session; either may be empty. `limit` is
    how many routes are taken at most if that was reached since the session came up, else 0.
    """

    name: str
    node: str
    address: Address
    asn: int
    state: str
    since: datetime
    last_error: str = ""
    bfd: str = ""
    imported: int = 0
    exported: int = 0
    peer: str = ""
    port: int = 0
    limit: int = 0

    @property
    def family(self) -> Family:
        """The session's family."""
        return Family.of(self.address)

    @property
    def established(self) -> bool:
        """Whether routes are exchanged."""
        return self.state == "Established"


class NextHop(msgspec.Struct, frozen=True):
    """Where a route leads."""

    gateway: Address
    device: str


class BirdRoute(msgspec.Struct, frozen=True):
    """A route in BIRD's tables. `protocol` is the session or kernel protocol that it came from."""

    network: Network
    type: str
    protocol: str
    since: datetime
    best: bool
    next_hops: tuple[NextHop, ...] = ()


async def read_peers(control: BirdControl) -> tuple[PeerStatus, ...]:
    """Return the state of all BGP sessions, in the order of the configuration. Raises RoutingError."""
    protocols = await control.command("show protocols all")
    with_bfd = any(line.code == PROTOCOL and line.text.split()[1:2] == ["BFD"] for line in protocols)
    bfd = {session.address: session.state for session in await read_bfd(control)} if with_bfd else {}
    return tuple(msgspec.structs.replace(peer, bfd=bfd.get(peer.address, "")) for peer in parse_peers(protocols))


async def read_peer(control: BirdControl, name: str) -> tuple[PeerStatus, ...]:
    """Return the state of one BGP session, without its BFD. Raises RoutingError, also if there is none."""
    return parse_peers(await control.command(f"show protocols all '{name}'"))


async def read_bfd(control: BirdControl) -> tuple[BfdSession, ...]:
    """Return all BFD sessions. Raises RoutingError, also if no BFD is configured."""
    return parse_bfd(await control.command("show bfd sessions"))


async def read_routes(control: BirdControl) -> tuple[BirdRoute, ...]:
    """Return the routes that BIRD knows, but for those by which it finds next hops. Raises RoutingError."""
    return parse_routes(
        await control.command(f"show route where source = RTS_BGP || {AGGREGATE} || preference = {OWN}")
    )


async def read_kernel_routes(control: BirdControl, family: Family) -> tuple[BirdRoute, ...]:
    """Return the routes to blocks that BIRD means the kernel to have, as its filter rewrites them.

    Only blocks are asked for: of other networks an outside peer may tell tens of thousands. Raises RoutingError.
    """
    name = family.label.lower()
    return parse_routes(await control.command(f"show route where is_block_{name}() export kernel_{name}"))


async def read_unreachable(control: BirdControl, family: Family) -> tuple[BirdRoute, ...]:
    """Return the best routes to blocks that peers advertised and to whose next hops BIRD knows no way.

    Raises RoutingError.
    """
    wanted = f"is_block_{family.label.lower()}() && source = RTS_BGP && dest = RTD_UNREACHABLE"
    return parse_routes(await control.command(f"show route table master{int(family)} primary where {wanted}"))


def _understood(parse: Callable[[Iterable[Line]], Found]) -> Callable[[Iterable[Line]], Found]:
    """Let a parser raise RoutingError for a reply that it cannot read."""

    @functools.wraps(parse)
    def understood(reply: Iterable[Line]) -> Found:
        try:
            return parse(reply)
        except (ValueError, KeyError, IndexError) as error:
            raise RoutingError(
                f"a reply of BIRD's cannot be read: {type(error).__name__}: {error}",
                hint="see `bird --version`: Podway knows BIRD 2; if it is one, kill the process named in bird.pid",
            ) from error

    return understood


@_understood
def parse_bfd(reply: Iterable[Line]) -> tuple[BfdSession, ...]:
    """Parse the reply to `show bfd sessions`."""
    return tuple(
        BfdSession(ip_address(columns[0]), columns[1], columns[2], datetime.fromisoformat(columns[3]))
        for line in reply
        if line.code == BFD and len(columns := line.text.split()) == 6
    )


@_understood
def parse_peers(reply: Iterable[Line]) -> tuple[PeerStatus, ...]:
    """Parse the reply to `show protocols all`: the BGP sessions among the protocols."""
    return tuple(
        _peer(head.split(None, 6), details) for head, details in _protocols(reply) if head.split()[1:2] == ["BGP"]
    )


NO_NEIGHBOUR = "no device of the node is on its subnet: set multihop, or choose the nodes that are"
"""Why a session stays idle without an error: BIRD only logs that it waits for its neighbor."""

_LIMIT = re.compile(r"(\d+) \[HIT\]")
_ROUTES = re.compile(r"(\d+) imported, (?:\d+ filtered, )?(\d+) exported")


def _peer(head: list[str], details: dict[str, str]) -> PeerStatus:
    counts = _ROUTES.match(details.get("Routes", ""))
    limit = _LIMIT.match(details.get("Import limit", ""))
    outside, described = head[0].startswith(PREFIX), details.get("Description", "")
    error, state = details.get("Last error", ""), details["BGP state"]
    if outside and state == "Idle" and not error:
        error = NO_NEIGHBOUR
    if limit and state == "Established":
        error = f"tells more than the {limit[1]} routes that are taken of it"
    return PeerStatus(
        name=head[0],
        node="" if outside else described,
        peer=described if outside else "",
        address=ip_address(details["Neighbor address"].partition("%")[0]),
        asn=int(details["Neighbor AS"]),
        state=state,
        since=datetime.fromisoformat(head[4]),
        last_error=error,
        imported=int(counts[1]) if counts else 0,
        exported=int(counts[2]) if counts else 0,
        limit=int(limit[1]) if limit else 0,
    )


def _protocols(reply: Iterable[Line]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each protocol's line of the table and its details; a name that comes twice counts once."""
    head, details = "", dict[str, str]()
    for line in reply:
        if line.code == PROTOCOL:
            if head:
                yield head, details
            head, details = line.text, {}
        elif line.code == DETAIL:
            name, colon, value = line.text.strip().partition(":")
            if colon:
                details.setdefault(name, value.strip())
    if head:
        yield head, details


# `!` marks the best route, too, if the kernel refused it.
_ROUTE = re.compile(
    r"(?P<network>\S*)\s+(?P<type>\S+) \[(?P<protocol>\S+) (?P<since>\S+)(?: from \S+)?\](?P<best> [*!])?"
)
_NEXT_HOP = re.compile(r"\tvia (?P<gateway>\S+) on (?P<device>\S+)")


@_understood
def parse_routes(reply: Iterable[Line]) -> tuple[BirdRoute, ...]:
    """Parse the reply to `show route`."""
    routes: list[BirdRoute] = []
    for line in reply:
        if line.code != ROUTE:
            continue
        if hop := _NEXT_HOP.match(line.text):
            via = NextHop(ip_address(hop["gateway"]), hop["device"])
            routes[-1] = msgspec.structs.replace(routes[-1], next_hops=(*routes[-1].next_hops, via))
        elif route := _ROUTE.match(line.text):
            routes.append(
                BirdRoute(
                    # BIRD leaves the network out where it is the line before's.
                    network=ip_network(route["network"]) if route["network"] else routes[-1].network,
                    type=route["type"],
                    protocol=route["protocol"],
                    since=datetime.fromisoformat(route["since"]),
                    best=bool(route["best"]),
                )
            )
    return tuple(routes)
