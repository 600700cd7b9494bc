"""The node's BGP speaker as the agent sees it: takes plans, gives states."""

import asyncio
from pathlib import Path

from podway.bgp.daemon import Bird
from podway.bgp.liveness import LivenessArbiter
from podway.bgp.render import render
from podway.bgp.status import BirdRoute, PeerStatus, read_peers, read_routes
from podway.plan.bgp import BgpPlan


class BgpSpeaker:
    """BIRD and what keeps it well. Its methods raise RoutingError and UnsupportedSystem.

    `start` first; then `run` as a task for as long as the agent lives. Ending the task leaves BIRD running.
    """

    def __init__(self, run_dir: Path) -> None:
        self.bird = Bird(run_dir)
        self._arbiter = LivenessArbiter(self.bird)
        self._plan: BgpPlan | None = None

    async def start(self, plan: BgpPlan) -> None:
        """Adopt the running BIRD or start one, with this plan."""
        await self.bird.start(render(plan, self.bird.log))
        self._take(plan)

    async def apply(self, plan: BgpPlan) -> bool:
        """Go over to another plan; return False if nothing had to be done.

        If BIRD rejects it, the former plan stays in force and RoutingError says why.
        """
        changed = await self.bird.load(render(plan, self.bird.log))
        self._take(plan)
        return changed

    async def run(self) -> None:
        """Keep BIRD alive and forget dead nodes' routes, for ever."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.bird.keep_alive())
                tasks.create_task(self._arbiter.run())
        finally:
            self.bird.release()

    async def peers(self) -> tuple[PeerStatus, ...]:
        """Return the state of the sessions."""
        async with self.bird.control() as control:
            return await read_peers(control)

    async def routes(self) -> tuple[BirdRoute, ...]:
        """Return the routes that BIRD knows: own blocks and what peers tell."""
        async with self.bird.control() as control:
            return await read_routes(control)

    async def mend_kernel_routes(self) -> None:
        """Let BIRD compare the kernel's routes with its own now, instead of at its next scan.

        BIRD does not notice by itself that someone altered or removed a route that it wrote.
        """
        if self._plan:
            async with self.bird.control() as control:
                for family in self._plan.families:
                    await control.command(f"reload in kernel_{family.label.lower()}")

    async def restart(self) -> None:
        """Replace the BIRD process, say after an upgrade, without losing a route."""
        await self.bird.restart()

    async def stop(self) -> None:
        """Stop BIRD for good; peers forget this node's routes."""
        await self.bird.stop()

    async def retire(self) -> bool:
        """Stop a BIRD that runs here, after it took its routes out of the kernel; tell whether there was one."""
        return await self.bird.retire()

    def _take(self, plan: BgpPlan) -> None:
        self._plan = plan
        self._arbiter.sessions = {peer.address: peer.name for peer in plan.peers} if plan.bfd else {}
