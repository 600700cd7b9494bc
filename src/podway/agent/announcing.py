"""What an agent tells operators in Events: looked at every few seconds, away from everything that serves pods.

All of it is about the agent's own Node, so that in a large cluster not every node tells what befalls one object:
of objects that do not hold the controller tells.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence

import msgspec

from podway.agent.components import Components
from podway.api.kinds.node import Node
from podway.bgp.status import PeerStatus
from podway.cni.server import CniServer
from podway.errors import RoutingError
from podway.reconcile.repairs import Repair
from podway.store.announcements import Announcer, Notice

COMPONENT = "podway.io/agent"
INTERVAL = 20.0
"""Seconds between looks: BIRD is asked for all its sessions."""
REPAIRS_WITHIN, REPAIRS = 300.0, 5
"""Somebody changes things again and again: so many repairs within so many seconds."""
DOWN_LOOKS = 2
"""Looks that a session is down before it is told: BIRD itself tries every few seconds."""
NAMED = 3


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent knows at one moment that operators may have to know. Times are seconds since 1970."""

    refused: int = 0
    """ADDs that were refused so far."""
    refusal: str = ""
    repairs: tuple[Repair, ...] = ()
    repaired: int = 0
    starved: frozenset[str] = frozenset()
    """Pools of which a pod got no address here lately."""
    sessions: tuple[PeerStatus, ...] = ()


def notices(node: str, before: Seen, now: Seen, down: frozenset[str], at: float) -> Iterator[Notice]:
    """Yield what is to be said of a node; `down` are the sessions that have been down for a while."""

    def about(reason: str, action: str, note: str, times: int = 1) -> Notice:
        return Notice(Node.KIND, node, reason, action, note, uid=node, times=times)

    if (refused := now.refused - before.refused) > 0:
        yield about("PodsRefused", "AttachPod", f"pods get no network here; the last: {now.refusal}", refused)
    if now.starved:
        pools = ", ".join(sorted(now.starved))
        yield about("PoolFull", "LeaseAddress", f"no address is left here in {pools}: add a pool, or end pods")
    recent = [repair for repair in now.repairs if at - repair.at < REPAIRS_WITHIN]
    repaired = now.repaired - before.repaired
    if repaired > 0 and len(recent) >= REPAIRS:
        minutes = f"{REPAIRS_WITHIN / 60:g} minutes"
        note = f"somebody changes again and again what is Podway's: {len(recent)} repairs in {minutes}, the last: "
        yield about("RepairedAgain", "Repair", note + recent[-1].what, repaired)
    if told := about_sessions(now.sessions, down):
        yield about("BGPSessionsDown", "Peer", told)


def about_sessions(sessions: Sequence[PeerStatus], down: frozenset[str]) -> str:
    """Return in words which sessions are down; empty if nobody has to know.

    Sessions with outside peers count, and those with nodes only if all are down: a node that dies is down for
    every other one, and its Node object tells.
    """
    lost = [one for one in sessions if one.name in down]
    inside = [one for one in sessions if one.node]
    outside = [one for one in lost if not one.node]
    alone = inside and all(one.name in down for one in inside)
    blamed = [*outside, *(inside if alone else ())]
    if not blamed:
        return ""
    words = [f"{one.peer or one.node} ({one.address}): {one.last_error or one.state}" for one in blamed[:NAMED]]
    more = f", and {len(blamed) - NAMED} more" if len(blamed) > NAMED else ""
    return f"{len(blamed)} of {len(sessions)} BGP sessions are down: {'; '.join(words)}{more}"


class Announcing:
    """Looks, and has it written."""

    def __init__(self, components: Components, requests: CniServer) -> None:
        self._components, self._requests = components, requests
        self._node = components.options.node
        self._announcer = Announcer(components.store, COMPONENT, self._node, time.time)
        self._before = self._look(())
        self._down: dict[str, int] = {}

    async def run(self) -> None:
        """Look and write, for ever; where nobody can be told, not at all."""
        while self._announcer.useful:
            await asyncio.sleep(INTERVAL)
            try:
                sessions = await self._components.speaker.peers()
            except RoutingError:
                sessions = ()  # that BIRD does not answer is told by status and metrics
            self._down = {one.name: self._down.get(one.name, 0) + 1 for one in sessions if not one.established}
            down = frozenset(name for name, looks in self._down.items() if looks >= DOWN_LOOKS)
            now = self._look(sessions)
            self._announcer.say(*notices(self._node, self._before, now, down, time.time()))
            self._before = now
            await self._announcer.write()

    def _look(self, sessions: tuple[PeerStatus, ...]) -> Seen:
        parts = self._components
        own = parts.state.view.nodes.get(self._node)
        refused = self._requests.times.get(("ADD", "refused"))
        return Seen(
            refused=sum(refused.counts) if refused else 0,
            refusal=self._requests.refusal,
            repairs=tuple(parts.reconciler.repairs),
            repaired=parts.reconciler.repairs.total,
            starved=own.starved if own else frozenset(),
            sessions=sessions,
        )
