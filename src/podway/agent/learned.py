"""Routes that BIRD learned and somebody else removed or altered in the kernel.

BIRD looks after its routes itself, but only notices at its next scan (10 s). So kernel events make us compare
what it knows with what the kernel has, and where they differ it is told to look at once.
"""

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from podway.agent.state import NodeState
from podway.api.addresses import Family, Network
from podway.bgp.speaker import BgpSpeaker
from podway.errors import KernelError, RoutingError
from podway.kernel import links, routes
from podway.kernel.netlink import constants as c
from podway.kernel.node import Kernel
from podway.plan.changes import Change
from podway.plan.learned import METRIC
from podway.plan.objects import Route

log = structlog.get_logger(__name__)

SETTLE = 0.1
"""Seconds between event and look, and between first and second look: BIRD itself may be at work."""

RETRY = 5.0
"""Seconds between looks while something could not be mended."""


class LearnedRoutes:
    """Keeps the kernel's copy of the routes that BIRD learned. `repaired` is told in words what was mended."""

    def __init__(
        self, kernel: Kernel, speaker: BgpSpeaker, state: NodeState, repaired: Callable[[str], None]
    ) -> None:
        self._kernel = kernel
        self._speaker = speaker
        self._state = state
        self._repaired = repaired
        self._wanted = asyncio.Event()
        self.failures: tuple[str, ...] = ()
        """What BIRD could not mend at the last attempt: somebody else's route is in the place."""

    def soon(self) -> None:
        """Ask for a comparison: BIRD, or somebody else, changed a route of BIRD's."""
        self._wanted.set()

    async def run(self) -> None:
        """Compare and mend when asked, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                # Nothing tells when a route of somebody else's gives the place free.
                async with asyncio.timeout(RETRY if self.failures else None):
                    await self._wanted.wait()
            await asyncio.sleep(SETTLE)
            self._wanted.clear()
            try:
                await self._mend()
            except (RoutingError, KernelError) as error:
                # A BIRD that starts writes them all anyway.
                log.info("learned routes not compared", reason=error.message)

    async def _mend(self) -> None:
        wrong = await self._differences()
        if wrong:
            await asyncio.sleep(SETTLE)
            wrong = [change for change in await self._differences() if change in wrong]
        if wrong:
            await self._speaker.mend_kernel_routes()
            await asyncio.sleep(SETTLE)
        left = {change.key for change in await self._differences()} if wrong else set()
        for change in wrong:
            if change.key not in left:
                self._repaired(str(change))
        self._note_failures(
            tuple(f"{change.difference}, and another's is in its place" for change in wrong if change.key in left)
        )

    def _note_failures(self, failures: tuple[str, ...]) -> None:
        for failure in failures:
            if failure not in self.failures:
                log.error("learned route cannot be mended", problem=failure)
        self.failures = failures

    async def _differences(self) -> list[Change]:
        """Return which routes the kernel lacks or has otherwise; more than BIRD knows is BIRD's business."""
        want = await self._wanted_routes()
        have = self._kernel_routes()
        return [
            Change("route", key, have.get(key), route) for key, route in want.items() if have.get(key) != route
        ]

    async def _wanted_routes(self) -> dict[Network, Route]:
        source = {Family.of(address): address for address in self._state.uplink.node_addresses}
        return {
            route.network: Route(
                route.network,
                device=route.next_hops[0].device,
                gateway=route.next_hops[0].gateway,
                source=source.get(Family.of(route.network)),
                metric=METRIC,
            )
            for route in await self._speaker.routes()
            if route.best and len(route.next_hops) == 1
        }

    def _kernel_routes(self) -> dict[Network, Route | None]:
        names = {link.index: link.name for link in links.dump(self._kernel.connection)}
        return {
            record.destination: record.planned(names.get(record.index, ""))
            for family in Family
            for record in routes.dump(self._kernel.connection, family, protocol=c.RTPROT_BIRD)
        }
