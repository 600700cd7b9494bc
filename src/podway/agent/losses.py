"""Says with which route reflectors a node has no session any more, so that others are chosen."""

import asyncio
from collections.abc import Mapping

import structlog

from podway.agent.membership import Membership
from podway.api.kinds.node import BGP_LOST
from podway.bgp.speaker import BgpSpeaker
from podway.errors import RoutingError, StoreError
from podway.reconcile.state import NodeState

log = structlog.get_logger(__name__)

LOOK = 1.0
"""Seconds between looks at the sessions with reflectors."""

LOST_AFTER = 5.0
"""Seconds without a session after which a reflector is lost. A BIRD that is started again is back before."""

BACK_AFTER = 60.0
"""Seconds that the sessions with a lost reflector must stand until it counts again: it may die again and again."""


class Losses:
    """Which reflectors are lost: pure bookkeeping over successive looks. `said` are those from before."""

    def __init__(self, said: frozenset[str] = frozenset()) -> None:
        self.lost = said
        self._states: dict[str, tuple[bool, float]] = {}

    def see(self, stands: Mapping[str, bool], now: float) -> frozenset[str]:
        """Take the reflectors that the node is to have sessions with, and if all stand at `now`; return the lost.

        What is no reflector any more is forgotten: nobody would notice if it came back.
        """
        self._states = {
            name: before if (before := self._states.get(name, (up, now)))[0] == up else (up, now)
            for name, up in stands.items()
        }
        self.lost = frozenset(
            name
            for name, (up, since) in self._states.items()
            if (
                now - since < BACK_AFTER and name in self.lost
                if up
                else now - since >= LOST_AFTER or name in self.lost
            )
        )
        return self.lost


class ReflectorWatch:
    """Keeps BGP_LOST of a node's object true (podway.plan.reflectors)."""

    def __init__(self, state: NodeState, speaker: BgpSpeaker, membership: Membership) -> None:
        self._state = state
        self._speaker = speaker
        self._membership = membership
        here = state.view.nodes.get(state.node)
        self._losses = Losses(here.lost if here else frozenset())

    async def run(self) -> None:
        """Look and say, for ever."""
        clock = asyncio.get_running_loop().time
        while True:
            try:
                # A BIRD that is away, or does not answer, is no loss of others.
                lost = self._losses.see(await self._speaker.reflectors(), clock())
                await self._say(lost)
            except (RoutingError, StoreError) as error:
                log.debug("not known, or not said, which reflectors are lost", reason=error.message)
            await asyncio.sleep(LOOK)

    async def _say(self, lost: frozenset[str]) -> None:
        here = self._state.view.nodes.get(self._state.node)
        if here is None or here.lost == lost:
            return
        for name in lost - here.lost:
            log.warning("no session with this route reflector any more", node=name)
        for name in here.lost - lost:
            log.info("the session with this route reflector stands again", node=name)
        await self._membership.announce({BGP_LOST: ",".join(sorted(lost))})
