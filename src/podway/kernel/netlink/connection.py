"""A connection to rtnetlink, or to nfnetlink, in one network namespace.

A batch costs one `sendmsg` and, if nothing fails, one `recv`: the kernel answers a failed message whether
or not it was asked to (netlink_rcv_skb in net/netlink/af_netlink.c), so only the last message of a batch
asks for an acknowledgement. Still every message is checked, and each failure belongs to its message.
The kernel goes on with the rest of a batch after a failure; who must not do so sends two batches. Only nfnetlink
knows transactions, of which all or nothing is done (nfnetlink_rcv_batch in net/netfilter/nfnetlink.c).
"""

import errno
import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Self, TypeVar

from podway.errors import KernelError
from podway.kernel import netns
from podway.kernel.netlink import constants as c
from podway.kernel.netlink.codec import NLMSGHDR, S32, Request, parse, string

SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
_SIOCGSKNS = 0x894C
"""Open the namespace of a socket (include/uapi/linux/sockios.h)."""

_T = TypeVar("_T")

_BATCH = 256
"""Messages in one sendmsg: far below the send buffer, and their failures fit the receive buffer."""
_RECEIVE_BUFFER = 4 << 20
_DATAGRAM = 1 << 16
_DUMP_ATTEMPTS = 5
"""As many as containernetworking's pkg/netlinksafe allows a dump that others keep interrupting."""


class Message(NamedTuple):
    """One message from the kernel; `port` is the id of the socket that caused it, 0 for the kernel."""

    type: int
    flags: int
    sequence: int
    port: int
    body: bytes


def messages(datagram: bytes) -> Iterator[Message]:
    """Yield the messages of one datagram."""
    offset = 0
    while offset + NLMSGHDR.size <= len(datagram):
        size, kind, flags, sequence, port = NLMSGHDR.unpack_from(datagram, offset)
        yield Message(kind, flags, sequence, port, datagram[offset + NLMSGHDR.size : offset + size])
        offset += (size + 3) & ~3


def open_socket(protocol: int, netns_fd: int | None = None, receive_buffer: int = 0) -> socket.socket:
    """Open and bind a netlink socket in a namespace (None: the calling thread's).

    `receive_buffer` in bytes is forced past net.core.rmem_max where the privilege allows.
    Raises KernelError.
    """

    def create() -> socket.socket:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        sock.bind((0, 0))
        return sock

    try:
        sock = create() if netns_fd is None else netns.run(netns_fd, create)
    except OSError as error:
        raise KernelError("open a netlink socket", error.errno or errno.EIO) from error
    if receive_buffer:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_buffer)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    return sock


class Connection:
    """Requests and answers over one netlink socket. Threads may share it; they take turns.

    `writes` counts what was sent so far that could have changed the kernel: messages, or whole transactions.
    """

    def __init__(self, netns_fd: int | None = None, *, protocol: int = c.NETLINK_ROUTE) -> None:
        self._socket = open_socket(protocol, netns_fd, _RECEIVE_BUFFER)
        strict = (c.NETLINK_GET_STRICT_CHK,) if protocol == c.NETLINK_ROUTE else ()
        for option in (c.NETLINK_EXT_ACK, c.NETLINK_CAP_ACK, *strict):
            self._socket.setsockopt(c.SOL_NETLINK, option, 1)
        self._lock = threading.Lock()
        self._sequence = 0
        self.writes = 0
        self.port: int = self._socket.getsockname()[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def inside(self, function: Callable[[], _T]) -> _T:
        """Run a function in the connection's namespace; return or raise what it does. Raises KernelError."""
        try:
            fd = fcntl.ioctl(self._socket, _SIOCGSKNS)
        except OSError as error:
            raise KernelError("open the namespace of a netlink socket", error.errno or errno.EIO) from error
        try:
            return function() if netns.identity(fd) == netns.identity() else netns.run(fd, function)
        finally:
            os.close(fd)

    def transact(self, requests: Sequence[Request]) -> list[Message]:
        """Send all the requests, return the answers to those that get something.

        Raises KernelError for the first that failed; the others were carried out where they could be.
        """
        answers, failures = self._exchange(requests)
        if failures:
            raise failures[min(failures)]
        return answers

    def attempt(self, requests: Sequence[Request]) -> dict[int, KernelError]:
        """Send all the requests, return the failures by the request's position."""
        return self._exchange(requests)[1]

    def get(self, request: Request) -> Message:
        """Send one request that gets one answer, return that. Raises KernelError."""
        answers = self.transact([request])
        if not answers:
            raise KernelError(request.words, errno.ENOMSG)
        return answers[0]

    def dump(self, request: Request) -> list[Message]:
        """Return all the objects that a dump yields, as they were at one moment.

        A dump that a change interrupted is taken again, a few times. Raises KernelError.
        """
        for _ in range(_DUMP_ATTEMPTS):
            found, whole = self._dump(request)
            if whole:
                return found
        raise KernelError(request.words, errno.EINTR, hint="others change these objects without pause; try again")

    def transaction(self, requests: Sequence[Request], begin: Request, end: Request) -> None:
        """Send requests between these two messages: all of them are carried out, or none. Raises KernelError.

        An end is not acknowledged, so the last request asks for it; a transaction that fails as a whole is
        told of by its beginning.
        """
        with self._lock:
            self.writes += 1
            first = self._sequence + 1
            last = first + len(requests)
            self._sequence = last + 1
            numbered = [begin.encode(first, 0)]
            numbered += [request.encode(first + n, 0) for n, request in enumerate(requests[:-1], start=1)]
            numbered += [requests[-1].encode(last, c.NLM_F_ACK), end.encode(last + 1, 0)]
            self._send(b"".join(numbered), requests[0])
            failure: KernelError | None = None
            while True:
                for message in messages(self._receive(requests[0])):
                    if not first <= message.sequence <= last or message.type != c.NLMSG_ERROR:
                        continue
                    about = requests[max(0, message.sequence - first - 1)]
                    failure = failure or _failure(message, about)
                    if message.sequence == last or (message.sequence == first and failure):
                        if failure:
                            raise failure
                        return

    def _exchange(self, requests: Sequence[Request]) -> tuple[list[Message], dict[int, KernelError]]:
        answers: list[Message] = []
        failures: dict[int, KernelError] = {}
        with self._lock:
            for start in range(0, len(requests), _BATCH):
                self._exchange_batch(requests, start, answers, failures)
        return answers, failures

    def _exchange_batch(
        self,
        requests: Sequence[Request],
        start: int,
        answers: list[Message],
        failures: dict[int, KernelError],
    ) -> None:
        batch = requests[start : start + _BATCH]
        first = self._sequence + 1
        last = self._sequence = self._sequence + len(batch)
        self.writes += sum(request.writes for request in batch)
        parts = [request.encode(first + i, 0) for i, request in enumerate(batch[:-1])]
        parts.append(batch[-1].encode(last, c.NLM_F_ACK))
        self._send(b"".join(parts), batch[0])
        while True:
            for message in messages(self._receive(batch[0])):
                if not first <= message.sequence <= last:
                    continue  # left over from an exchange that an exception cut short
                if message.type != c.NLMSG_ERROR:
                    answers.append(message)
                    continue
                position = message.sequence - first
                failure = _failure(message, batch[position])
                if failure:
                    failures[start + position] = failure
                if message.sequence == last:
                    return

    def _dump(self, request: Request) -> tuple[list[Message], bool]:
        found: list[Message] = []
        whole = True
        with self._lock:
            self._sequence += 1
            sequence = self._sequence
            self._send(request.encode(sequence, c.NLM_F_DUMP), request)
            while True:
                for message in messages(self._receive(request)):
                    if message.sequence != sequence:
                        continue
                    whole = whole and not message.flags & c.NLM_F_DUMP_INTR
                    if message.type in {c.NLMSG_ERROR, c.NLMSG_DONE}:
                        failure = _failure(message, request)
                        if failure:
                            raise failure
                        return found, whole
                    found.append(message)

    def _send(self, data: bytes, request: Request) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise KernelError(request.words, error.errno or errno.EIO) from error

    def _receive(self, request: Request) -> bytes:
        try:
            return self._socket.recv(_DATAGRAM)
        except OSError as error:
            raise KernelError(request.words, error.errno or errno.EIO) from error


def _failure(message: Message, request: Request) -> KernelError | None:
    """Read an NLMSG_ERROR or NLMSG_DONE: both begin with 0 or a negative errno."""
    code = S32.unpack_from(message.body)[0] if len(message.body) >= S32.size else 0
    if code >= 0:
        return None
    says = ""
    if message.flags & c.NLM_F_ACK_TLVS:
        # Behind the errno an error repeats the request's header; NLM_F_CAPPED says: and nothing of its body.
        offset = S32.size
        if message.type == c.NLMSG_ERROR:
            repeated = NLMSGHDR.unpack_from(message.body, offset)[0]
            offset += NLMSGHDR.size if message.flags & c.NLM_F_CAPPED else (repeated + 3) & ~3
        says = string(parse(message.body, offset).get(c.NLMSGERR_ATTR_MSG))
    return KernelError(request.words, -code, says)
