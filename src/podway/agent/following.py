"""Keeps a node's uplink and addresses true: chooses them at the start, and whenever they may have changed."""

import asyncio
import contextlib
from collections.abc import Iterable

import msgspec
import structlog

from podway.agent.options import AgentOptions
from podway.agent.uplink import host_interfaces
from podway.api.addresses import Address
from podway.api.kinds.node import Node
from podway.api.resource import Resource
from podway.errors import AgentError, KernelError
from podway.kernel.network import Connection
from podway.plan.uplink_choice import Choice, choose_uplink, lost, unsettled
from podway.reconcile.reconciler import Reconciler
from podway.reconcile.state import NodeState

log = structlog.get_logger(__name__)

SETTLE = 0.05
"""Seconds to wait after a kernel event before looking: changes come in bursts."""

GRACE = 0.4
"""Seconds that a registered address may be away, as while it is leased anew, before the node takes another one."""

REST = 5.0
"""After a look, rest so many times as long as it took: others' devices may come and go all the time."""

AGAIN = 1.0
"""Seconds between looks while something is wrong."""

PATIENCE, PAUSE = 5.0, 0.2
"""Seconds that a starting agent waits for addresses that are about to come, and between looks: machines boot."""


async def first_uplink(connection: Connection, options: AgentOptions, resources: Iterable[Resource]) -> Choice:
    """Return what an agent begins with.

    `resources` are the store's: the node keeps the addresses that it is registered with. Raises AgentError.
    """
    nodes = {node.metadata.name: node for node in resources if isinstance(node, Node)}
    own = nodes.pop(options.node, None)
    registered = own.interface_addresses if own else ()
    others = _addresses(nodes.values())
    clock = asyncio.get_running_loop().time
    end = clock() + PATIENCE
    while True:
        found = host_interfaces(connection)
        over = clock() >= end
        try:
            choice = choose_uplink(found, options.interface, registered=registered, others=others)
        except AgentError:
            if over:
                raise
        else:
            if over or not (lost(choice.uplink, registered) or unsettled(found, registered)):
                return choice
        await asyncio.sleep(PAUSE)


class UplinkFollower:
    """Follows the uplink. `changed` is set after `state` got another one."""

    def __init__(
        self,
        connection: Connection,
        state: NodeState,
        options: AgentOptions,
        reconciler: Reconciler,
        problem: str = "",
    ) -> None:
        self._connection = connection
        self._state = state
        self._options = options
        self._reconciler = reconciler
        self.changed = asyncio.Event()
        self._wanted = asyncio.Event()
        self.problem = ""
        """What is wrong with the uplink, in words; empty if nothing."""
        self.note(problem)

    def trigger(self) -> None:
        """Ask for a look: devices, addresses or default routes changed."""
        self._wanted.set()
        self._reconciler.hold()

    def note(self, problem: str) -> None:
        """Take down, and log once, what is wrong."""
        if problem and problem != self.problem:
            log.warning("uplink", problem=problem)
        self.problem = problem

    async def run(self) -> None:
        """Look when asked, and now and then unasked, for ever."""
        clock = asyncio.get_running_loop().time
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN if self.problem else self._options.resync_interval):
                    await self._wanted.wait()
            await asyncio.sleep(SETTLE)
            self._wanted.clear()
            began = clock()
            try:
                await self._follow()
            except AgentError as error:
                self.note(f"{error.message}; until then {self._state.uplink.device} counts as it was")
            except KernelError as error:
                self.note(error.message)
            if not self._wanted.is_set():
                self._reconciler.release()
            await asyncio.sleep(REST * min(SETTLE, clock() - began))

    async def _follow(self) -> None:
        choice = self._look()
        if gone := lost(choice.uplink, self._state.uplink.addresses):
            self.note(f"{', '.join(str(address.ip) for address in gone)} is gone from {self._state.uplink.device}")
            await asyncio.sleep(GRACE)
            choice = self._look()
        self.note(choice.note)
        if choice.uplink != self._state.uplink:
            log.warning("uplink changed", before=self._state.uplink, now=choice.uplink)
            self._state.uplink = choice.uplink
            self._reconciler.wake()
            self.changed.set()

    def _look(self) -> Choice:
        """Return what is chosen now. Raises AgentError, KernelError."""
        state = self._state
        registered = state.uplink.addresses
        others = _addresses(node for name, node in state.view.nodes.items() if name != state.node)
        found = host_interfaces(self._connection)
        absent = frozenset(state.uplink.node_addresses) - {each.address.ip for each in found.addresses}
        if absent != state.uplink.absent:
            # Pods of this node reach each other also while the node has no address to send from itself.
            state.uplink = msgspec.structs.replace(state.uplink, absent=absent)
            self._reconciler.wake()
        return choose_uplink(found, self._options.interface, registered=registered, others=others)


def _addresses(nodes: Iterable[Node]) -> tuple[Address, ...]:
    return tuple(address for node in nodes for address in node.internal_addresses)
