"""Says that a node has the sessions that the cluster's topology needs, so that those of a former one may end."""

import asyncio

import structlog

from podway.agent.encapsulation import EncapsulationSwitch
from podway.agent.membership import Membership
from podway.api.kinds.node import BGP_READY
from podway.bgp.speaker import BgpSpeaker
from podway.errors import KernelError, RoutingError, StoreError
from podway.reconcile.state import NodeState

log = structlog.get_logger(__name__)

LOOK = 0.5
"""Seconds between looks at the sessions while some are missing."""


class Readiness:
    """Keeps BGP_READY of a node's object true (podway.plan.topology)."""

    def __init__(
        self, state: NodeState, speaker: BgpSpeaker, encapsulation: EncapsulationSwitch, membership: Membership
    ) -> None:
        self._state = state
        self._speaker = speaker
        self._encapsulation = encapsulation
        self._membership = membership
        self._wanted = asyncio.Event()
        self._wanted.set()

    def trigger(self) -> None:
        """Ask for a look: BIRD took another plan."""
        self._wanted.set()

    async def run(self) -> None:
        """Say when the node is ready, each time that it was asked for, for ever."""
        while True:
            await self._wanted.wait()
            try:
                ready = await self._is_ready()
            except (KernelError, RoutingError, StoreError) as error:
                log.debug("not known whether all sessions stand", reason=error.message)
                ready = False
            if ready:
                self._wanted.clear()
            await asyncio.sleep(LOOK)

    async def _is_ready(self) -> bool:
        """Tell whether the node is ready for the topology of its plan, and has said so."""
        here = self._state.view.nodes.get(self._state.node)
        target = self._speaker.topology
        if here is None or here.metadata.annotations.get(BGP_READY) == target:
            return True
        # A pool that BGP is to tell no more has to be distributed by the store before.
        if await self._speaker.ready() != target or not self._encapsulation.has_store_routes:
            return False
        await self._membership.announce({BGP_READY: target})
        return True
