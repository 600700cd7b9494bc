"""Hears the answers of DNS that pods get whose policies name domains, before they get them.

An answer waits for what it teaches to be in the maps (podway/bpf/flow/names.h): so a pod never knows an address
that its rules do not know. While the agent is away answers pass; what is still in the ring teaches the next one.
"""

import asyncio
import contextlib
from collections import deque

import structlog

from podway.errors import KernelError
from podway.kernel.dns_answers import DnsAnswers, Heard
from podway.kernel.node import Kernel
from podway.reconcile.naming import LISTENS, addresses_of
from podway.reconcile.reconciler import Reconciler
from podway.reconcile.state import NodeState

log = structlog.get_logger(__name__)

BEAT = 1.0
"""Seconds between two times that it says that it listens."""

SLICE = 0.004
"""Seconds of reading answers after which others go first."""

LATE = 10.0
"""Seconds after which nobody waits for an answer any more: it was held by an agent that is gone."""


class NameListener:
    """Has the policies of one node's pods know the addresses that DNS tells them."""

    def __init__(self, state: NodeState, kernel: Kernel, reconciler: Reconciler) -> None:
        self._state = state
        self._kernel = kernel
        self._reconciler = reconciler
        self._answers: DnsAnswers | None = None
        self._opening: object = None
        self._waiting: deque[Heard] = deque()

    async def run(self) -> None:
        """Listen whenever the engine is at work, for ever."""
        try:
            while True:
                self._follow()
                try:
                    self._reconciler.enforcement.listen(self._state.now())
                    await self._fade()
                except KernelError as error:
                    log.warning("answers of DNS cannot be heard", problem=error.message)
                await asyncio.sleep(BEAT)
        finally:
            self._leave()
            with contextlib.suppress(KernelError):  # then they wait in vain for some seconds, as without an end
                self._reconciler.enforcement.listen(self._state.now() - LISTENS)

    def _follow(self) -> None:
        """Read what the engine tells that is at work now."""
        if self._kernel.flow.opening is self._opening:
            return
        self._leave()
        self._answers = self._kernel.flow.answers()
        self._opening = self._kernel.flow.opening
        if self._answers is not None:
            asyncio.get_running_loop().add_reader(self._answers.fd, self._read)

    def _leave(self) -> None:
        if self._answers is not None:
            asyncio.get_running_loop().remove_reader(self._answers.fd)
            self._answers.close()
        self._answers = self._opening = None
        self._waiting.clear()

    def _read(self) -> None:
        """Take what waits in the ring, if nothing waits here; there is room for no more than the ring has."""
        if self._answers is not None and not self._waiting:
            self._waiting.extend(self._answers.read())
            self._take()

    def _take(self) -> None:
        """Learn from some of what waits, bring it into the maps, and let pods have it; then others go first.

        A long answer takes milliseconds to read, and a pod may ask for very many.
        """
        from podway.policy.dns_messages import read_answer  # 3 MiB that most agents never need

        enforcement, begun = self._reconciler.enforcement, self._state.now()
        taken: list[Heard] = []
        while self._waiting and (not taken or self._state.now() - begun < SLICE):
            one = self._waiting.popleft()
            taken.append(one)
            enforcement.naming.missed += not one.held
            answer = read_answer(one.message) if one.message is not None else None
            if answer is not None:
                enforcement.hear(answer, one.at)
        if enforcement.busy:
            enforcement.bring()
        for one in taken:
            if one.held and self._state.now() - one.at < LATE:
                self._give(one)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._take)

    def _give(self, one: Heard) -> None:
        """Let a pod have an answer, unless it is gone."""
        lease = next((lease for lease in self._state.leases.values() if one.pod in lease.addresses), None)
        if lease is None or self._answers is None:
            return
        try:
            self._answers.give(one, lease.attachment.link, lease.attachment.mac)
        except KernelError as error:
            log.warning("an answer of DNS did not reach its pod", pod=lease.pod, problem=error.message)

    async def _fade(self) -> None:
        """Forget what is over, but for addresses to which connections are open."""
        now, enforcement, answers = self._state.now(), self._reconciler.enforcement, self._answers
        due = enforcement.names_due(now)
        if not due or answers is None:
            return
        used = await asyncio.to_thread(answers.in_use, addresses_of(due.keys()))
        if self._answers is answers:
            kept = frozenset(bearer for bearer in due if bearer.address in used)
            if enforcement.fade(due, kept, self._state.now()):
                self._reconciler.wake()
