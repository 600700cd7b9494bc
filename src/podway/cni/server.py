"""The agent's end of the CNI plugin: takes requests from shims, and has a Network carry them out.

A request is served in the event loop without a hop to a thread, many at once. The netns that comes along
is closed whatever happens. A failure of one request becomes that request's error answer.
"""

import asyncio
import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Protocol

from podway.cni.answers import cni_error, netns_error, render_error, unexpected
from podway.cni.frames import FrameError, RequestFrame, decode_request, encode_answer, request_length
from podway.cni.request import Add, Check, Delete, GarbageCollect, Request, answer_version, parse
from podway.cni.result import render, result_of
from podway.cni.spec import SOCKET, SPOOL, Code
from podway.cni.spool import forget, replay
from podway.errors import AgentError, CniError, PodwayError
from podway.metrics.exposition import Histogram
from podway.plan.objects import PodWiring

log = logging.getLogger(__name__)

COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
BACKLOG = 1024
READ_SECONDS = 10
"""A shim sends its request in one go; one that has not by then never will."""
_READ_BYTES = 256 * 1024
_NS_GET_NSTYPE = 0xB703
"""ioctl_ns(2)."""
_CLONE_NEWNET = 0x40000000


class Network(Protocol):
    """What the requests are about. Every method may raise PodwayError; `podway.cni.answers` has the codes.

    `netns` is an open network namespace that belongs to the server: whoever keeps it must duplicate it.
    """

    async def add(self, request: Add, netns: int) -> PodWiring:
        """Attach a container, or find it attached already just so; return its wiring."""
        ...

    async def delete(self, request: Delete) -> None:
        """Detach a container; what is gone already is no error."""
        ...

    async def check(self, request: Check, netns: int) -> None:
        """Raise CniError if the attachment is not as ADD left it."""
        ...

    async def collect_garbage(self, request: GarbageCollect) -> None:
        """Detach every container of the network that the request does not list."""
        ...

    async def status(self) -> None:
        """Raise CniError (50 or 51) if an ADD could not be served now."""
        ...


class CniServer:
    """Serves shims on a Unix socket that only its owner may use.

    `socket_path` and `spool` are where the shim looks, too (podway.cni.spec). Whatever `under_way` returns is
    entered while a request is served.
    """

    def __init__(
        self,
        network: Network,
        *,
        socket_path: Path = Path(SOCKET),
        spool: Path = Path(SPOOL),
        under_way: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._network = network
        self._path = socket_path
        self._spool = spool
        self._under_way = under_way
        self._listener: socket.socket | None = None
        self._connections: set[_Connection] = set()
        self._requests: set[asyncio.Task[None]] = set()
        self.times: dict[tuple[str, ...], Histogram] = {}
        """How long requests took, by command and what became of them: done or refused."""
        self.refusal = ""
        """Why an ADD was refused last, in words."""

    async def start(self) -> None:
        """Listen, carry out the DELs that wait in the spool, then serve.

        In this order: a shim that finds nobody listening has its DEL in the spool before we read it. What
        arrives meanwhile waits in the backlog. A socket file left by a dead agent is replaced.

        Raises AgentError if another agent listens there, OSError if the socket cannot be made.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._listener = _listen(self._path)
        await self.replay()
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    async def replay(self) -> None:
        """Carry out the DELs in the spool: those that failed, or that shims gave up waiting for."""
        waiting = await replay(self._spool, self._network)
        if waiting:
            log.warning("%d DELs wait in %s", waiting, self._spool)

    async def close(self) -> None:
        """Take no more requests, finish those under way, remove the socket file."""
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        asyncio.get_running_loop().remove_reader(listener)
        # First the file, then the socket: a shim in between finds nobody, rather than a closed connection.
        self._path.unlink(missing_ok=True)
        listener.close()
        for connection in tuple(self._connections):
            connection.close()
        await asyncio.gather(*self._requests)

    def _accept(self, listener: socket.socket) -> None:
        try:
            peer, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors or memory: the shim waits in the backlog and we are called again.
            log.error("cannot accept a CNI request: %s", error)
            return
        connection = _Connection(peer, self)
        self._connections.add(connection)
        connection.read()  # a shim connects and sends at once: most likely it is all there

    def received(self, connection: "_Connection", frame: RequestFrame, netns: int | None) -> None:
        """Serve a request that has come in whole."""
        self._connections.discard(connection)
        under_way = ExitStack()
        under_way.enter_context(self._under_way())
        task = asyncio.get_running_loop().create_task(self._serve(connection, frame, netns))
        task.add_done_callback(lambda _: under_way.close())
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    def dropped(self, connection: "_Connection") -> None:
        """Forget a connection that brought no request."""
        self._connections.discard(connection)

    async def _serve(self, connection: "_Connection", frame: RequestFrame, netns: int | None) -> None:
        try:
            began = time.perf_counter()
            status, stdout = await self._answer(frame, netns)
            self._note(frame.environment.get("CNI_COMMAND", ""), status, time.perf_counter() - began)
            await asyncio.get_running_loop().sock_sendall(connection.peer, encode_answer(status, stdout))
        except OSError as error:
            log.warning("a shim went away before its answer: %s", error)
        finally:
            if netns is not None:
                os.close(netns)
            connection.peer.close()

    def _note(self, command: str, status: int, took: float) -> None:
        about = (command if command in COMMANDS else "other", "refused" if status else "done")
        self.times.setdefault(about, Histogram()).observe(took)

    async def _answer(self, frame: RequestFrame, netns: int | None) -> tuple[int, bytes]:
        """Return exit status and stdout."""
        try:
            request = parse(frame.environment, frame.stdin)
            return 0, await self._carry_out(request, frame, netns)
        except PodwayError as error:
            failure = cni_error(error)
            log.info("%s refused: %s", frame.environment.get("CNI_COMMAND"), failure.message)
        except Exception as error:
            failure = unexpected(error)
            log.exception("%s failed", frame.environment.get("CNI_COMMAND"))
        if frame.environment.get("CNI_COMMAND") == "ADD":
            self.refusal = failure.message
        return 1, render_error(failure, answer_version(frame.stdin))

    async def _carry_out(self, request: Request, frame: RequestFrame, netns: int | None) -> bytes:
        match request:
            case Add():
                namespace = _require_netns(request.netns, frame, netns)
                forget(self._spool, request.attachment)
                wiring = await self._network.add(request, namespace)
                result = result_of(wiring, sandbox=request.netns, dns=request.dns)
                return render(result.after(request.previous), request.version)
            case Delete():
                await self._network.delete(request)
            case Check():
                await self._network.check(request, _require_netns(request.netns, frame, netns))
            case GarbageCollect():
                await self._network.collect_garbage(request)
            case _:
                await self._network.status()
        return b""


class _Connection:
    """One shim, from connect to its whole request."""

    def __init__(self, peer: socket.socket, server: CniServer) -> None:
        self.peer = peer
        self._server = server
        self._received = bytearray()
        self._netns: int | None = None
        self._loop = asyncio.get_running_loop()
        peer.setblocking(False)
        self._loop.add_reader(peer, self.read)
        self._deadline = self._loop.call_later(READ_SECONDS, self.close)

    def close(self) -> None:
        """Drop the shim before its request is whole."""
        self._stop_reading()
        if self._netns is not None:
            os.close(self._netns)
        self.peer.close()
        self._server.dropped(self)

    def read(self) -> None:
        """Take what has come, if anything has."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self.peer, _READ_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("CNI request lost: %s", error)
            self.close()
            return
        if not data and not self._received:
            self.close()  # somebody only looked whether an agent listens
            return
        for descriptor in descriptors:
            if self._netns is not None:
                os.close(self._netns)
            self._netns = descriptor
        self._received += data
        try:
            length = request_length(self._received)
            if not data or (length is not None and len(self._received) > length):
                raise FrameError("the frame is cut short or too long")
            if length is not None and len(self._received) == length:
                self._stop_reading()
                self._server.received(self, decode_request(self._received), self._netns)
        except FrameError as error:
            log.warning("CNI request refused: %s", error)
            self.close()

    def _stop_reading(self) -> None:
        self._loop.remove_reader(self.peer)
        self._deadline.cancel()


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if _somebody_listens(path):
            raise AgentError(
                f"another agent already serves {path}", hint="stop it, or give this one a socket of its own"
            )
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)  # nobody can have connected yet
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            pass  # its backlog is full
    return True


def _require_netns(path: str, frame: RequestFrame, netns: int | None) -> int:
    """Return the open network namespace of the pod. Raises CniError."""
    if netns is None:
        raise netns_error(path, frame.netns_errno or errno.EBADF)
    try:
        kind = fcntl.ioctl(netns, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != _CLONE_NEWNET:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_NETNS: {path} is no network namespace",
            hint="pass a path such as /run/netns/pod, or /proc/PID/ns/net of a process in it",
        )
    if os.path.samestat(os.fstat(netns), os.stat("/proc/self/ns/net")):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_NETNS: {path} is the node's own network namespace",
            hint="a pod on the node's network needs no CNI plugin",
        )
    return netns
