"""Routes that BIRD learned, and that the kernel has not, or not so.

Somebody else removed or altered them: BIRD looks after its routes itself, but only notices at its next scan (10
s). So kernel events make us compare what it knows of blocks with what the kernel has, and where they differ it is
told to look at once. Of other networks it may know tens of thousands, and looks after these alone. Or BIRD lost
the way to their next hops, and took them out of the kernel itself: it is told to find out anew which subnets the
machine is in.
"""

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import msgspec
import structlog

from podway.api.addresses import Address, Family, Network
from podway.bgp.speaker import BgpSpeaker
from podway.errors import KernelError, RoutingError
from podway.kernel.network import RTPROT_BIRD, Connection, NextHop, RouteRecord, dump_links, dump_routes
from podway.plan.changes import Change
from podway.plan.learned import METRIC
from podway.reconcile.repairs import Repairs
from podway.reconcile.state import NodeState

log = structlog.get_logger(__name__)

SETTLE = 0.1
"""Seconds between event and look, and between first and second look: BIRD itself may be at work."""

RETRY = 5.0
"""Seconds between looks while something could not be repaired."""

REST = 3.0
"""After a look, rest so many times as long as it took: requests come first, and routes may flap."""

LOOK_ANYWAY = 30.0
"""Seconds after which to look though nothing was heard: a route that never came into the kernel makes no event."""


class LearnedRoute(msgspec.Struct, frozen=True):
    """A route of BIRD's, over one way or several equally good ones: pairs of device and gateway."""

    destination: Network
    type: str
    next_hops: frozenset[tuple[str, Address | None]]
    source: Address | None

    def __str__(self) -> str:
        next_hops = sorted(f"via {gateway} dev {device}" for device, gateway in self.next_hops)
        return f"route {self.destination} {' and '.join(next_hops)}"


class LearnedRoutes:
    """Keeps the kernel's copy of the routes that BIRD learned."""

    def __init__(self, speaker: BgpSpeaker, state: NodeState, repairs: Repairs) -> None:
        self._speaker = speaker
        self._state = state
        self._repairs = repairs
        self._wanted = asyncio.Event()
        self.failures: tuple[str, ...] = ()
        """What BIRD could not write into the kernel at the last attempt, in words."""
        self.lost: tuple[str, ...] = ()
        """Routes to whose next hops BIRD knew no way at the last attempt, in words."""

    def trigger(self) -> None:
        """Ask for a comparison: BIRD, or somebody else, changed a route of BIRD's."""
        self._wanted.set()

    async def run(self) -> None:
        """Compare and repair when asked, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                # Nothing tells when a route of somebody else's gives the place free.
                async with asyncio.timeout(RETRY if self.failures or self.lost else LOOK_ANYWAY):
                    await self._wanted.wait()
            await asyncio.sleep(SETTLE)
            self._wanted.clear()
            begun = asyncio.get_running_loop().time()
            try:
                await self._repair()
            except (RoutingError, KernelError) as error:
                # A BIRD that starts writes them all anyway.
                log.info("learned routes not compared", reason=error.message)
            await asyncio.sleep(REST * (asyncio.get_running_loop().time() - begun))

    async def _repair(self) -> None:
        wrong, lost = await self._differences(), await self._unreachable()
        if wrong or lost:
            await asyncio.sleep(SETTLE)
            wrong = [change for change in await self._differences() if change in wrong]
            lost = {key: words for key, words in (await self._unreachable()).items() if key in lost}
        if lost:
            await self._speaker.look_for_subnets({Family.of(network) for network in lost})
        if wrong or lost:
            await self._speaker.repair_kernel_routes()
            await asyncio.sleep(SETTLE)
        left: set[Network] = {change.key for change in await self._differences()} if wrong else set()
        if left and not await self._taken(left):  # BIRD would write over what others put there
            await self._speaker.export_again()
            await asyncio.sleep(SETTLE)
            left = {change.key for change in await self._differences()}
        for change in wrong:
            if change.key not in left:
                self._repairs.note(str(change))
        still = await self._unreachable() if lost else {}
        for network, words in lost.items():
            if network not in still:
                self._repairs.note(f"{words}, and found it again")
        taken = await self._taken(left) if left else set()
        self.lost = tuple(words for network, words in lost.items() if network in still)
        self._note_failures(
            tuple(
                f"{change.difference}, and "
                + ("another's is in its place" if change.key in taken else "BIRD cannot write it")
                for change in wrong
                if change.key in left
            )
        )

    def _note_failures(self, failures: tuple[str, ...]) -> None:
        for failure in failures:
            if failure not in self.failures:
                log.error("learned route cannot be repaired", problem=failure)
        self.failures = failures

    async def _unreachable(self) -> dict[Network, str]:
        """Return the destinations to which BIRD has lost the way, with words that say so."""
        return {
            route.network: f"route {route.network}, learned from {route.protocol}: BIRD lost the way "
            "to its next hop"
            for route in await self._speaker.unreachable()
        }

    async def _differences(self) -> list[Change]:
        """Return which routes the kernel lacks or has otherwise; more than BIRD knows is BIRD's business.

        What BIRD knows is taken as its filters rewrite it for the kernel, with all equal-cost next hops.
        """
        want = await self._wanted_routes()
        have = await self._kernel_routes(want)
        return [
            Change("route", key, have.get(key), route) for key, route in want.items() if have.get(key) != route
        ]

    async def _wanted_routes(self) -> dict[Network, LearnedRoute]:
        source = {Family.of(address): address for address in self._state.uplink.node_addresses}
        return {
            route.network: LearnedRoute(
                route.network,
                "unicast",
                frozenset((hop.device, hop.gateway) for hop in route.next_hops),
                source.get(Family.of(route.network)),
            )
            for route in await self._speaker.kernel_routes()
            if route.next_hops
        }

    async def _taken(self, among: Collection[Network]) -> set[Network]:
        """Return those of the destinations for which somebody else's route stands where BIRD's would."""
        found = await asyncio.to_thread(_records, _lengths(among), 0)
        return {record.destination for record in found.routes if record.protocol != RTPROT_BIRD} & set(among)

    async def _kernel_routes(self, among: Collection[Network]) -> dict[Network, LearnedRoute]:
        found = await asyncio.to_thread(_records, _lengths(among), RTPROT_BIRD)
        return {
            record.destination: LearnedRoute(
                record.destination,
                record.type,
                frozenset(
                    (found.names.get(hop.index, ""), hop.gateway)
                    for hop in record.next_hops or (NextHop(record.index, record.gateway, 1),)
                ),
                record.source,
            )
            for record in found.routes
        }


class _Records(NamedTuple):
    routes: list[RouteRecord]
    names: dict[int, str]
    """Of devices, by number."""


def _records(lengths: Mapping[Family, Collection[int]], protocol: int) -> _Records:
    """Read routes of these lengths and of BIRD's metric; in a thread, since there may be very many of others."""
    with Connection() as connection:
        return _Records(
            [
                record
                for family, wanted in lengths.items()
                for record in dump_routes(connection, family, protocol=protocol, lengths=wanted)
                if record.metric == METRIC
            ],
            {link.index: link.name for link in dump_links(connection)},
        )


def _lengths(networks: Iterable[Network]) -> Mapping[Family, Collection[int]]:
    found: dict[Family, set[int]] = {}
    for network in networks:
        found.setdefault(Family.of(network), set()).add(network.prefixlen)
    return found
