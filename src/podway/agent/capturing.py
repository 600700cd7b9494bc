"""What an agent does for `podway capture`: it takes packets of its node's devices, and hands them out when asked.

Packets wait in the kernel, in the buffers of packet sockets, until whoever captures takes them: so they cost the
agent nothing meanwhile, and what does not fit there is the only loss, which the kernel counts. A capture that
nobody asks for any more ends by itself.
"""

import asyncio
import base64
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import msgspec
import structlog

from podway.api.lease import Lease
from podway.channel.admin import Method
from podway.errors import AgentError, InvalidInput
from podway.kernel import netns
from podway.probe.capture import Capture, await_stamps
from podway.probe.expression import LARGEST_SNAP, compiled, parse
from podway.probe.facts import namespace
from podway.reconcile.state import NodeState

log = structlog.get_logger(__name__)

LIFETIME = 10.0
"""Seconds after which a capture ends that nobody asked for what it took."""

MOST = 4
"""Captures at a time."""

MOST_LINKS = 8
"""Pods' namespaces in which one capture looks."""

BUFFER = 16 << 20
"""Bytes of packets that may wait in the kernel, in each namespace, the kernel's own account of them included."""

ANSWER = 2 << 20
"""Bytes of packets in one answer, about: encoding it takes some milliseconds, in a thread."""


class _Session:
    """One capture: packet sockets by the pod's link in whose namespace they are, empty for the node's own."""

    def __init__(self, captures: Mapping[str, Capture], timer: asyncio.TimerHandle) -> None:
        self.captures = captures
        self.timer = timer
        self.turn = asyncio.Lock()


class Capturing:
    """Answers the `capture.` methods of the agent's socket."""

    def __init__(self, state: NodeState) -> None:
        self._state = state
        self._sessions: dict[str, _Session] = {}
        self._opening = 0
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def methods(self) -> Mapping[str, Method]:
        """The methods by name; no other node may listen to what this one's pods say."""
        calls: Mapping[str, Callable[..., Awaitable[Any]]] = {
            "begin": self.begin,
            "take": self.take,
            "end": self.end,
        }
        return {f"capture.{name}": Method(call, remote=True, operators=True) for name, call in calls.items()}

    async def begin(
        self, capture: str, expression: str, snap: int = LARGEST_SNAP, pods: Iterable[str] = ()
    ) -> dict[str, Any]:
        """Begin to capture on all devices of the node, and in the namespaces of these pods that are here.

        `capture` is its name from now on, `expression` a filter (podway.probe.expression), `snap` how many bytes
        of a packet are kept. Returns the node's name, and by link the pods of this node.
        """
        if not isinstance(snap, int) or not 0 < snap <= LARGEST_SNAP:
            raise InvalidInput(f"--snaplen: {snap} is out of range", hint=f"from 1 to {LARGEST_SNAP}")
        if capture in self._sessions or len(self._sessions) + self._opening >= MOST:
            raise AgentError(
                f"{MOST} captures run on this node already", hint="end one, or wait until one has ended"
            )
        program = compiled(parse(expression), snap)
        wanted = set(pods)
        leases = [lease for lease in self._state.leases.values() if lease.pod in wanted][:MOST_LINKS]
        self._opening += 1
        try:
            captures = await asyncio.to_thread(_open, program, leases)
        finally:
            self._opening -= 1
        self._sessions[capture] = _Session(captures, self._timer(capture))
        log.info("capture begun", capture=capture, filter=expression, pods=sorted(wanted))
        pods_here = {lease.attachment.link: lease.pod for lease in self._state.leases.values()}
        return {"node": self._state.node, "links": pods_here}

    async def take(self, capture: str) -> dict[str, Any]:
        """Return what was captured since this was last asked, and how many packets the kernel had no room for.

        A packet is a list: the pod's link in whose namespace it was seen (empty: the node's own), the device, its
        kind (ARPHRD_), whether it left by it, the time in ns since 1970, its length, and what was kept of it.
        `more` says that more waits.
        """
        session = self._known(capture)
        session.timer.cancel()
        session.timer = self._timer(capture)
        async with session.turn:
            return await asyncio.to_thread(_take, self._known(capture).captures)

    async def end(self, capture: str) -> None:
        """End a capture. What it still holds is lost: take it first."""
        session = self._sessions.pop(capture, None)
        if session is not None:
            session.timer.cancel()
            async with session.turn:
                await asyncio.to_thread(_close, session.captures)
            log.info("capture ended", capture=capture)

    def _known(self, capture: str) -> _Session:
        if capture not in self._sessions:
            raise AgentError(
                f"capture {capture} has ended", hint=f"it does if nobody takes what it has for {LIFETIME:g} s"
            )
        return self._sessions[capture]

    def _timer(self, capture: str) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(LIFETIME, self._expire, capture)

    def _expire(self, capture: str) -> None:
        log.warning("nobody asks for a capture any more", capture=capture)
        task = asyncio.ensure_future(self.end(capture))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


# What follows runs in threads: packet sockets are opened and closed after an RCU grace period.


def _open(program: bytes, leases: Iterable[Lease]) -> dict[str, Capture]:
    captures: dict[str, Capture] = {}
    places = [("", ""), *((lease.attachment.link, lease.netns) for lease in leases)]
    try:
        for key, path in places:
            with namespace(path) as descriptor:
                captures[key] = netns.run(descriptor, lambda: Capture(program, buffer=BUFFER))
    except OSError as error:
        _close(captures)
        raise AgentError(f"cannot capture at {key or 'the node'}: {error.strerror}") from error
    except BaseException:
        _close(captures)
        raise
    await_stamps()
    return captures


def _take(captures: Mapping[str, Capture]) -> dict[str, Any]:
    frames, more = [], False
    for key, capture in captures.items():
        room = ANSWER // len(captures)  # each has its share, so that none waits for another's end
        for frame in capture.frames(LARGEST_SNAP):
            outgoing, data = frame.outgoing, base64.b64encode(frame.data).decode()
            frames.append((key, frame.interface, frame.hardware, outgoing, frame.time, frame.length, data))
            room -= len(data) + 100
            if room <= 0:
                more = True
                break
    # Encoded here: the loop has other things to do.
    told = msgspec.Raw(msgspec.json.encode(frames))
    return {"frames": told, "lost": sum(one.dropped() for one in captures.values()), "more": more}


def _close(captures: Mapping[str, Capture]) -> None:
    for capture in captures.values():
        capture.close()
