"""The node's BGP speaker as the agent sees it: takes plans, gives states."""

import asyncio
import time
from collections.abc import Collection
from pathlib import Path

import msgspec
import structlog

from podway.api.addresses import Family
from podway.bgp.daemon import Bird
from podway.bgp.liveness import LivenessArbiter
from podway.bgp.passwords import Passwords, Secrets, read_passwords
from podway.bgp.render import Renderer, running
from podway.bgp.status import (
    BirdRoute,
    PeerStatus,
    read_kernel_routes,
    read_peer,
    read_peers,
    read_routes,
    read_unreachable,
)
from podway.errors import RoutingError
from podway.plan.bgp import BgpPlan
from podway.plan.topology import RunningTopology

log = structlog.get_logger(__name__)

REFILL = 30.0
"""Seconds between looks at sessions that told more routes than are taken."""

SETTLE = 2.0
"""Seconds that sessions stand before others are given up for them: what they advertise must have arrived."""


class BgpSpeaker:
    """BIRD and what keeps it well. Its methods raise RoutingError and UnsupportedSystem.

    `start` first; then `run` as a task for as long as the agent lives. Ending the task leaves BIRD running.
    """

    def __init__(self, run_dir: Path) -> None:
        self.bird = Bird(run_dir)
        self.liveness = LivenessArbiter(self.bird)
        self._renderer = Renderer(self.bird.log)
        self._running: tuple[tuple[int, ...], RunningTopology] | None = None
        """What the configuration file says, and what file that was."""
        self._plan: BgpPlan | None = None
        self._secrets: Secrets = {}
        self._passwords = Passwords()
        self._taken = 0.0

    async def start(self, plan: BgpPlan, secrets: Secrets | None = None, *, as_before: bool = False) -> None:
        """Adopt the running BIRD or start one, with this plan. `secrets` are those that passwords may be in.

        With `as_before` the configuration of the last one stays in force, if there is one, until `apply`.
        """
        passwords = read_passwords(plan.outside, secrets or {})
        kept = as_before and self.bird.conf.exists()
        written = self.bird.conf.read_text() if kept else self._renderer.render(plan, passwords.known)
        await self.bird.start(written)
        self._take(plan, secrets or {}, passwords)

    async def apply(self, plan: BgpPlan, secrets: Secrets | None = None) -> bool:
        """Switch to another plan; return False if nothing had to be done.

        If BIRD rejects it, the former plan stays in force and RoutingError says why.
        """
        passwords = read_passwords(plan.outside, secrets or {})
        changed = await self.bird.load(self._renderer.render(plan, passwords.known))
        before = {peer.name: peer.max_prefixes for peer in self._plan.outside} if self._plan else {}
        self._take(plan, secrets or {}, passwords)
        raised = [
            peer.name for peer in plan.outside if peer.max_prefixes > before.get(peer.name, peer.max_prefixes)
        ]
        if raised:  # what was refused is not told again by itself
            async with self.bird.control() as control:
                for name in raised:
                    await control.command(f"reload in '{name}'")
        return changed

    async def reread_passwords(self) -> None:
        """Take over passwords that were changed in files."""
        if self._plan and read_passwords(self._plan.outside, self._secrets) != self._passwords:
            await self.apply(self._plan, self._secrets)

    @property
    def running(self) -> RunningTopology:
        """What BIRD does, by the configuration that it took last; nothing if there is none, or it is damaged."""
        try:
            found = self.bird.conf.stat()
            file = (found.st_ino, found.st_mtime_ns, found.st_size)
            if self._running is None or self._running[0] != file:
                # Of thousands of nodes it takes a while, and is asked at each plan.
                self._running = file, running(self.bird.conf.read_text())
            return self._running[1]
        except (FileNotFoundError, ValueError):
            return RunningTopology()

    @property
    def topology(self) -> str:
        """The name of the topology that the plan in force is made for; empty before there is one."""
        return self._plan.topology if self._plan else ""

    @property
    def waits_for(self) -> tuple[str, ...]:
        """The nodes that are to be ready before what a former topology needed may end; none if nothing is kept."""
        return self._plan.waits_for if self._plan else ()

    async def ready(self) -> str:
        """Return the name of the topology for which all needed sessions stand long enough; else nothing.

        Not needed are those with reflectors that the node has lost, while it has others. Where nodes have none
        with each other, those with outside peers are needed.
        """
        plan = self._plan
        if plan is None:
            return ""
        wanted = [peer for peer in plan.peers if not peer.kept]
        needed = {peer.name for peer in wanted if not peer.lost} or {peer.name for peer in wanted or plan.outside}
        since = [peer.since.timestamp() for peer in await self.peers() if peer.established and peer.name in needed]
        ripe = time.time() - max((self._taken, *since)) >= SETTLE
        return plan.topology if ripe and len(since) == len(needed) else ""

    async def run(self) -> None:
        """Keep BIRD alive and forget dead nodes' routes, for ever."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.bird.keep_alive())
                tasks.create_task(self.liveness.run())
                tasks.create_task(self._keep_filled())
        finally:
            self.bird.release()

    async def _keep_filled(self) -> None:
        while True:
            await asyncio.sleep(REFILL)
            try:
                await self.refill()
            except RoutingError as error:
                log.debug("not known whether limits are reached", reason=error.message)

    async def peers(self) -> tuple[PeerStatus, ...]:
        """Return the state of the sessions."""
        async with self.bird.control() as control:
            peers = await read_peers(control)
        plan, missing = self._plan, self._passwords.missing
        ports = {peer.name: peer.port for peer in plan.outside} if plan else {}
        return tuple(
            msgspec.structs.replace(
                peer,
                last_error=missing.get(peer.name, peer.last_error),
                port=ports.get(peer.name, plan.port if plan else 0),
            )
            for peer in peers
        )

    async def reflectors(self) -> dict[str, bool]:
        """Return the route reflectors that the node is to have sessions with, and if all of these stand."""
        stands: dict[str, bool] = {}
        wanted = [peer for peer in self._plan.peers if peer.node in self._plan.reflectors] if self._plan else []
        if wanted:
            async with self.bird.control() as control:
                for peer in wanted:
                    up = all(status.established for status in await read_peer(control, peer.name))
                    stands[peer.node] = stands.get(peer.node, True) and up
        return stands

    async def routes(self) -> tuple[BirdRoute, ...]:
        """Return the routes that BIRD knows: own blocks and what peers advertise."""
        async with self.bird.control() as control:
            return await read_routes(control)

    async def kernel_routes(self) -> tuple[BirdRoute, ...]:
        """Return the routes to blocks that BIRD means the kernel to have, as its filters rewrite them."""
        if self._plan is None:
            return ()
        async with self.bird.control() as control:
            found = [await read_kernel_routes(control, family) for family in self._plan.families]
        return tuple(route for routes in found for route in routes)

    async def unreachable(self) -> tuple[BirdRoute, ...]:
        """Return the best routes to blocks that peers advertised and to whose next hops BIRD knows no way."""
        if self._plan is None:
            return ()
        async with self.bird.control() as control:
            found = [await read_unreachable(control, family) for family in self._plan.families]
        return tuple(route for routes in found for route in routes)

    async def look_for_subnets(self, families: Collection[Family]) -> None:
        """Let BIRD find out anew which subnets the machine's devices are in.

        It forgets a subnet of two addresses with the first that goes (podway.bgp.render); the uplink's it has
        twice for that reason, and those of other devices once.
        """
        async with self.bird.control() as control:
            for family in families:
                await control.restart_protocol(f"direct_{family.label.lower()}")

    async def refill(self) -> None:
        """Take routes again of peers that told more than is taken of them, if there is room now.

        BIRD refuses every new route from then on, even in the place of one that went, until it asks for all anew
        (channel_notify_limit and channel_reset_limit in nest/proto.c).
        """
        async with self.bird.control() as control:
            for peer in await read_peers(control):
                if peer.established and peer.imported < peer.limit:
                    await control.command(f"reload in '{peer.name}'")

    async def repair_kernel_routes(self) -> None:
        """Let BIRD compare the kernel's routes with its own now, instead of at its next scan.

        BIRD does not notice by itself that someone altered or removed a route that it wrote.
        """
        if self._plan:
            async with self.bird.control() as control:
                for family in self._plan.families:
                    await control.command(f"reload in kernel_{family.label.lower()}")

    async def export_again(self) -> None:
        """Let BIRD put all its routes through the kernel's filter again, and write them.

        For those whose encapsulated way led by a device that BIRD did not know yet when it was told of it: its
        filter then fails ("Invalid gw address"), and nothing has BIRD try again when the device is there.
        """
        if self._plan:
            async with self.bird.control() as control:
                for family in self._plan.families:
                    await control.command(f"reload out kernel_{family.label.lower()}")

    async def restart(self) -> None:
        """Replace the BIRD process, say after an upgrade, without losing a route."""
        await self.bird.restart()

    async def stop(self) -> None:
        """Stop BIRD for good; peers forget this node's routes."""
        await self.bird.stop()

    async def retire(self) -> bool:
        """Stop a BIRD that runs here, after it took its routes out of the kernel; tell whether there was one."""
        return await self.bird.retire()

    def _take(self, plan: BgpPlan, secrets: Secrets, passwords: Passwords) -> None:
        if self._plan is None or plan.topology != self._plan.topology or plan.reflects != self._plan.reflects:
            self._taken = time.time()
        self._plan, self._secrets, self._passwords = plan, secrets, passwords
        # Outside peers are not asked by ICMP: BFD with them is bound to BGP.
        sessions = {peer.address: peer.name for peer in plan.peers} if plan.nodes_bfd else {}
        self.liveness.watch(sessions, plan.partners)
