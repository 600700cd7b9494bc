"""Packets from several nodes in one stream, in order of time, with what the nodes decided of them."""

import contextlib
import heapq
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import msgspec

from podway import __version__
from podway.capture import pcapng
from podway.capture.verdicts import Verdicts
from podway.errors import AgentError
from podway.flows.query import MOST as MOST_RECORDS
from podway.flows.query import AgentAnswer
from podway.probe.capture import ETHERNET_KINDS

Ask: TypeAlias = Callable[..., Any]
"""Calls a method of one agent by its name, with its parameters; returns the result. Raises AgentError."""

MOST_NODES = 32
"""Nodes that one capture asks."""

PAUSE = 0.4
"""Seconds between questions."""

HELD = 1.2
"""Seconds that packets wait for those of other nodes, and for what was decided of them."""

SETTLING = 0.5
"""Seconds that nodes have in the end to record what they decided of the last packets."""

PAST = 3600.0
"""Seconds of history in which flows that go on were decided."""


class _Frame(msgspec.Struct, array_like=True, frozen=True):
    """A packet as agents tell it (podway.agent.capturing)."""

    link: str
    device: str
    hardware: int
    outgoing: bool
    time: int
    length: int
    data: bytes


class _Taken(msgspec.Struct, frozen=True):
    frames: list[_Frame]
    lost: int
    more: bool


class _Begun(msgspec.Struct, frozen=True):
    node: str
    links: dict[str, str]


class Limits(msgspec.Struct, frozen=True):
    """When a capture ends: after so many seconds, packets, bytes of the file; 0: no matter after how many."""

    seconds: float
    packets: int
    size: int


class Collection:
    """One capture on the agents that `asked` tells how to ask, by node.

    `expression` and `snap` are those of podway.agent.capturing, `pod` and `addresses` whose packets are wanted.
    `tell` is given what a person should know meanwhile.
    """

    def __init__(
        self,
        asked: Mapping[str, Ask],
        expression: str,
        *,
        pod: str,
        addresses: Sequence[str],
        snap: int,
        tell: Callable[[str], None],
    ) -> None:
        self._asked = dict(asked)
        self._expression, self._snap = expression, snap
        self._pod, self._addresses = pod, list(addresses)
        self._tell = tell
        self._name = secrets.token_hex(8)
        self._verdicts = Verdicts()
        self._following: dict[str, int] = {}
        self._begun: dict[str, _Begun] = {}
        self._interfaces: dict[tuple[str, str, str, int], int] = {}
        self._waiting: list[tuple[int, int, str, _Frame]] = []
        """Packets by when they were seen, but of a node whose clock is ahead by when they came here."""
        self._start = time.time_ns() - time.monotonic_ns()
        self._unsaid: dict[str, int] = {}
        self._number = 0
        self._stopped = threading.Event()
        self.lost: dict[str, int] = {}
        """How many packets each node's kernel had no room for."""
        self.packets = 0
        self.failed = False
        """Whether a node did not do its part."""

    def run(self, limits: Limits) -> Generator[bytes]:
        """Capture within limits; yield the file, piece by piece. May be closed at any time.

        Raises AgentError if no node captures.
        """
        with ThreadPoolExecutor(len(self._asked)) as threads:
            self._threads = threads
            try:
                self._begin()
                yield from self._pieces(limits)
            finally:
                for _ in self._answers("capture.end", lambda _: {"capture": self._name}):
                    pass

    def stop(self) -> None:
        """Have the capture end as if its time were over; a signal handler may call this, too."""
        self._stopped.set()

    def _answers(self, method: str, params: Callable[[str], Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
        """Ask all at once; yield by node what each answered, or its AgentError."""

        def ask(node: str) -> Any:
            try:
                return self._asked[node](method, **params(node))
            except AgentError as error:
                return error

        nodes = list(self._asked)
        return zip(nodes, self._threads.map(ask, nodes), strict=True)

    def _begin(self) -> None:
        params = {
            "capture": self._name,
            "expression": self._expression,
            "snap": self._snap,
            "pods": [self._pod],
        }
        answers = dict(self._answers("capture.begin", lambda _: params))
        refused = [answer for answer in answers.values() if isinstance(answer, AgentError)]
        if len(refused) == len(answers):
            raise refused[0]
        for node, answer in answers.items():
            if isinstance(answer, AgentError):
                self._leave_out(node, answer)
            else:
                self._begun[node] = msgspec.convert(answer, _Begun)
        self._decisions()

    def _pieces(self, limits: Limits) -> Iterator[bytes]:
        began = time.monotonic()
        first = pcapng.section(f"Podway {__version__}")
        yield first
        size, over = len(first), False
        while True:
            more = self._take()
            self._decisions()
            horizon = self._now() - int(HELD * 1e9)
            while self._waiting and (over or self._waiting[0][0] <= horizon):
                _, _, node, frame = heapq.heappop(self._waiting)
                piece = self._written(node, frame)
                size += len(piece)
                yield piece
                if (limits.packets and self.packets >= limits.packets) or (limits.size and size >= limits.size):
                    return
            if over:
                return
            yield b""  # whoever reads may have gone: a good moment to notice
            left = began + limits.seconds - time.monotonic() if limits.seconds else PAUSE
            if not more:
                self._stopped.wait(max(0.0, min(PAUSE, left)))
            over = left <= 0 or self._stopped.is_set()
            if over:
                time.sleep(SETTLING)

    def _take(self) -> bool:
        """Have all nodes tell what they captured; return whether one has more."""
        more = False
        for node, answer in self._answers("capture.take", lambda _: {"capture": self._name}):
            if isinstance(answer, AgentError):
                self._leave_out(node, answer)
                continue
            taken = msgspec.convert(answer, _Taken)
            more = more or taken.more
            if taken.lost:
                self.lost[node] = self.lost.get(node, 0) + taken.lost
                self._unsaid[node] = self._unsaid.get(node, 0) + taken.lost
            came = self._now()
            for frame in taken.frames:
                self._number += 1
                heapq.heappush(self._waiting, (min(frame.time, came), self._number, node, frame))
        return more

    def _decisions(self) -> None:
        """Learn what nodes decided of the pod's flows; a node without flow engine knows of none."""

        def params(node: str) -> Mapping[str, Any]:
            known = self._following.get(node)
            begin = {"since": time.time() - PAST} if known is None else {"after": known - 1}
            return {"pods": self._addresses, "limit": MOST_RECORDS, **begin}

        for node, answer in self._answers("flows.find", params):
            if not isinstance(answer, AgentError):
                with contextlib.suppress(msgspec.ValidationError):  # another version's: packets go without it
                    found = msgspec.convert(answer, AgentAnswer)
                    self._verdicts.learn(found.records)
                    self._following[node] = found.next

    def _now(self) -> int:
        """Return the time, in nanoseconds since 1970, by a clock that nobody sets while this captures."""
        return self._start + time.monotonic_ns()

    def _written(self, node: str, frame: _Frame) -> bytes:
        ethernet = frame.hardware in ETHERNET_KINDS
        key, block = (node, frame.link, frame.device, frame.hardware), b""
        if key not in self._interfaces:
            self._interfaces[key] = len(self._interfaces)
            link_type = pcapng.ETHERNET if ethernet else pcapng.RAW_IP
            block = pcapng.interface(*self._interface(node, frame), link_type, self._snap)
        number, name = self._interfaces[key], self._begun[node].node
        comments = self._verdicts.of(name, number, frame.data, ethernet=ethernet)
        if lost := self._unsaid.pop(node, 0):
            comments.append(f"{name} lost {lost} packets about here: more came than its buffer holds")
        self.packets += 1
        return block + pcapng.packet(
            number, frame.time, frame.data, frame.length, outgoing=frame.outgoing, comments=comments
        )

    def _interface(self, node: str, frame: _Frame) -> tuple[str, str]:
        """Return the name and the description of where a packet was seen."""
        links, name = self._begun[node].links, self._begun[node].node
        if frame.link:
            return f"{links.get(frame.link, self._pod)} {frame.device}", f"in the pod, on {name}"
        pod = links.get(frame.device, "")
        return f"{name} {frame.device}", f"link of pod {pod}" if pod else ""

    def _leave_out(self, node: str, error: AgentError) -> None:
        """Do without a node from now on."""
        self.failed = True
        del self._asked[node]
        self._tell(error.message)
