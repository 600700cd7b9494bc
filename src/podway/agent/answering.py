"""Answers on the node's segment for Services' addresses whose turn it is to have here.

Who answers for an address follows from what all nodes know (podway.services.advertising): the first in its order
that lives. Who is dead, BFD and an echo tell within a second (podway.bgp.liveness). The kernel answers
(podway.plan.segment), so addresses stay here while the agent is away; one that comes here is announced, since
hosts remember where it was.
"""

import asyncio
import contextlib

import structlog

from podway.agent.routing import Routing
from podway.api.addresses import Address
from podway.bgp.liveness import LivenessArbiter
from podway.errors import KernelError
from podway.kernel.node import Kernel
from podway.plan.bgp import partner_address
from podway.reconcile.reconciler import Reconciler
from podway.reconcile.state import NodeState

log = structlog.get_logger(__name__)

REPEATS = (0.0, 0.5, 2.0)
"""Seconds after which an address is announced again: nobody acknowledges it, and frames are lost."""


HANDOVER = 2.0
"""Seconds for which a node goes on to answer for an address that is another's by now, which may have to hear of it
first. Either leads packets to an endpoint."""


class Answering:
    """Keeps the node's answers in step with whose turn it is."""

    def __init__(
        self, state: NodeState, kernel: Kernel, reconciler: Reconciler, routing: Routing, liveness: LivenessArbiter
    ) -> None:
        self._state = state
        self._kernel = kernel
        self._reconciler = reconciler
        self._routing = routing
        self._liveness = liveness
        self._leaving: dict[Address, float] = {}
        """Addresses that are another node's by now, and until when this one answers for them."""
        liveness.tell(routing.advertised)

    async def run(self) -> None:
        """Follow for ever."""
        changed = self._routing.advertised
        changed.set()
        async with asyncio.TaskGroup() as tasks:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HANDOVER if self._leaving else None):
                        await changed.wait()
                changed.clear()
                if not (self._routing.advertising.known and self._knows_partners()):
                    continue  # what is answered stays so
                wanted, before = self._wanted(), self._state.answered
                if wanted == before:
                    continue
                self._state.answered = wanted
                log.info("answers on the segment", addresses=sorted(map(str, wanted)))
                await self._reconciler.settled()
                if came := wanted - before:
                    tasks.create_task(self._announce(came))

    def _wanted(self) -> frozenset[Address]:
        advertising, node, now = self._routing.advertising, self._state.node, self._state.now()
        mine = advertising.answered(node, self._dead())
        others = (self._state.answered & advertising.answerable(node)) - mine
        self._leaving = {address: self._leaving.get(address, now + HANDOVER) for address in others}
        self._leaving = {address: until for address, until in self._leaving.items() if now < until}
        return mine | self._leaving.keys()

    def _knows_partners(self) -> bool:
        """Tell whether it was found out of each node that takes turns with this one whether it lives."""
        node, view = self._state.node, self._state.view
        partners = self._routing.advertising.partners(node)
        addresses = {partner_address(view, node, partner) for partner in partners} - {None}
        return addresses <= self._liveness.known

    def _dead(self) -> frozenset[str]:
        """Return the nodes that are dead at each of their addresses that is watched."""
        watched, dead = self._liveness.watched, self._liveness.dead
        nodes = self._state.view.nodes
        found = {node for address in dead & watched for node in nodes.names("address", str(address))}
        return frozenset(name for name in found if watched & set(nodes[name].internal_addresses) <= dead)

    async def _announce(self, addresses: frozenset[Address]) -> None:
        for pause in REPEATS:
            await asyncio.sleep(pause)
            here = addresses & self._state.answered
            try:
                await asyncio.to_thread(self._kernel.announce, self._state.uplink.device, here)
            except KernelError as error:
                log.warning("addresses are not announced", problem=error.message)
