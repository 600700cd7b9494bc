"""The loop that holds conversations: sends probes, answers them, and collects what was captured.

One process, one selector, sockets in many namespaces. Probes are sent with a bounded number in flight, so
that no queue of a healthy network overflows; each has a time limit of its own.
"""

import errno
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from ipaddress import ip_address

import msgspec

from podway.api.addresses import Family
from podway.probe.build import Protocol
from podway.probe.capture import Capture, Frame, Sighting, sighting
from podway.probe.packet import ECHO_REQUEST, IP_HEADER, internet_checksum
from podway.prove.probe import TAG_BYTES, Probe, Result, Step, Tag, payload, read_tag
from podway.verify.endpoint import Ends, ProbeEndpoint

_IN_FLIGHT = 128
_LARGEST = 65535
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""struct linger: the connection ends at once and leaves no TIME_WAIT in a pod."""
_ECHO_HEADER = struct.Struct("!BBHHH")


class _Stream(msgspec.Struct):
    """One end of a TCP connection and what it has received."""

    sock: socket.socket
    endpoint: ProbeEndpoint
    received: bytearray = msgspec.field(default_factory=bytearray)


class _Call(msgspec.Struct):
    """A conversation that goes on."""

    result: Result
    deadline: float
    stream: _Stream | None = None


class Engine:
    """Holds conversations between endpoints. `timeout` is how long an answer may take, in seconds."""

    def __init__(
        self, endpoints: Mapping[str, ProbeEndpoint], *, magic: bytes, port: int, echo_id: int, timeout: float
    ) -> None:
        self._endpoints = endpoints
        self._magic = magic
        self._port = port
        self._echo_id = echo_id
        self._timeout = timeout
        self._selector = selectors.DefaultSelector()
        self._calls: dict[int, _Call] = {}
        self._served: set[socket.socket] = set()
        self._frames: list[tuple[ProbeEndpoint, Frame]] = []
        for endpoint in endpoints.values():
            self._serve(endpoint)

    def close(self) -> None:
        """Stop serving; the endpoints stay open."""
        for sock in tuple(self._served):
            self._end(sock)
        self._selector.close()

    def hold(self, probes: Iterable[Probe]) -> tuple[list[Result], list[Sighting]]:
        """Hold these conversations; return how each went, and every packet of theirs that was seen."""
        queue = deque(Result(probe) for probe in probes)
        results = list(queue)
        sockets = self._tcp_sockets(results)
        while queue or self._calls:
            while queue and len(self._calls) < _IN_FLIGHT:
                self._start(queue.popleft(), sockets)
            self._turn()
        self._turn(0)
        for sock in tuple(self._served):
            self._end(sock)
        for endpoint in self._endpoints.values():
            self._capture(endpoint)
        seen = [one for endpoint, frame in self._frames if (one := sighting(frame, endpoint.point.label))]
        self._frames.clear()
        seen.sort(key=lambda one: one.time)
        return results, seen

    # What goes on in the loop.

    def _turn(self, wait: float = 0.05) -> None:
        for key, _ in self._selector.select(wait if self._calls else 0):
            serve: Callable[[], None] = key.data
            serve()
        now = time.monotonic()
        for number, call in tuple(self._calls.items()):
            if call.deadline < now:
                self._finish(number)

    def _serve(self, endpoint: ProbeEndpoint) -> None:
        self._on(endpoint.capture, partial(self._capture, endpoint))
        for family, ends in endpoint.ends.items():
            self._on(ends.server, partial(self._answer, ends, endpoint))
            self._on(ends.client, partial(self._hear, ends.client, 0))
            header = 8 + (IP_HEADER[family] if family is Family.IPV4 else 0)
            self._on(ends.echo, partial(self._hear, ends.echo, header))
            self._on(ends.listener, partial(self._accept, ends, endpoint))

    def _on(
        self, sock: socket.socket | Capture, serve: Callable[[], None], events: int = selectors.EVENT_READ
    ) -> None:
        self._selector.register(sock, events, serve)

    def _capture(self, endpoint: ProbeEndpoint) -> None:
        self._frames.extend((endpoint, frame) for frame in endpoint.capture.frames(_LARGEST))

    def _finish(self, number: int) -> None:
        call = self._calls.pop(number)
        if call.stream is not None:
            self._end(call.stream.sock)

    def _end(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        self._served.discard(sock)
        _reset(sock)

    def _fail(self, result: Result, error: OSError) -> None:
        result.errno = error.errno or errno.EIO
        self._finish(result.probe.number)

    # The sender's side.

    def _tcp_sockets(self, results: Iterable[Result]) -> dict[tuple[str, Family], list[socket.socket]]:
        counts: dict[tuple[str, Family], int] = {}
        for probe in (result.probe for result in results):
            if probe.protocol is Protocol.TCP:
                key = probe.sender.label, probe.family
                counts[key] = counts.get(key, 0) + 1
        return {
            (label, family): self._endpoints[label].tcp_sockets(family, count)
            for (label, family), count in counts.items()
        }

    def _start(self, result: Result, sockets: Mapping[tuple[str, Family], list[socket.socket]]) -> None:
        probe = result.probe
        endpoint = self._endpoints[probe.sender.label]
        call = self._calls[probe.number] = _Call(result, time.monotonic() + self._timeout)
        ends = endpoint.ends[probe.family]
        data = payload(self._magic, Tag(probe.number, Step.REQUEST, probe.payload_size))
        try:
            match probe.protocol:
                case Protocol.UDP:
                    result.port = ends.port
                    ends.client.sendto(data, (str(probe.destination), self._port))
                case Protocol.ICMP:
                    ends.echo.sendto(self._echo(probe, data), (str(probe.destination), 0))
                case Protocol.TCP:
                    stream = _Stream(sockets[probe.sender.label, probe.family].pop(), endpoint)
                    self._connect(stream, call)
        except OSError as error:
            self._fail(result, error)

    def _echo(self, probe: Probe, data: bytes) -> bytes:
        kind, sequence = ECHO_REQUEST[probe.family], probe.number & 0xFFFF
        # ICMPv6's checksum covers addresses that are not known here: the kernel writes it (RFC 3542, 3.1).
        checksum = 0
        if probe.family is Family.IPV4:
            checksum = internet_checksum(_ECHO_HEADER.pack(kind, 0, 0, self._echo_id, sequence) + data)
        return _ECHO_HEADER.pack(kind, 0, checksum, self._echo_id, sequence) + data

    def _hear(self, sock: socket.socket, header: int) -> None:
        """Take the answers that a datagram socket has."""
        for data, _ in _datagrams(sock):
            tag = read_tag(self._magic, data[header:])
            call = self._calls.get(tag.number) if tag else None
            if call is None or tag is None:
                continue
            # An echo reply carries the request's tag back.
            expected = Step.REQUEST if header else Step.REPLY
            if tag.step is not expected or data[header:] != payload(self._magic, tag):
                call.result.damaged = True
            else:
                call.result.reached.add(Step.REPLY)
            self._finish(tag.number)

    def _connect(self, stream: _Stream, call: _Call) -> None:
        probe = call.result.probe
        code = stream.sock.connect_ex((str(probe.destination), self._port))
        if code not in (0, errno.EINPROGRESS):
            stream.sock.close()
            raise OSError(code, "connect")
        name = stream.sock.getsockname()
        call.result.source, call.result.port = ip_address(name[0]), name[1]
        call.stream = stream
        self._on(stream.sock, partial(self._connected, stream, call), selectors.EVENT_WRITE)

    def _connected(self, stream: _Stream, call: _Call) -> None:
        result = call.result
        if code := stream.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._fail(result, OSError(code, "connect"))
            return
        result.reached |= {Step.SYN, Step.SYN_ACK}
        # One whole segment, as large as the connection allows.
        size = max(stream.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG), TAG_BYTES)
        self._selector.modify(stream.sock, selectors.EVENT_READ, partial(self._read_answer, stream, call))
        try:
            stream.sock.send(payload(self._magic, Tag(result.probe.number, Step.REQUEST, size)))
        except OSError as error:
            self._fail(result, error)

    def _read_answer(self, stream: _Stream, call: _Call) -> None:
        try:
            tag = self._receive(stream)
        except OSError as error:
            self._fail(call.result, error)
            return
        if tag is not None:
            expected = Tag(call.result.probe.number, Step.REPLY, tag.size)
            call.result.damaged = stream.received != payload(self._magic, expected)
            if not call.result.damaged:
                call.result.reached.add(Step.REPLY)
            self._finish(call.result.probe.number)

    # The receiver's side.

    def _answer(self, ends: Ends, endpoint: ProbeEndpoint) -> None:
        for data, peer in _datagrams(ends.server):
            tag = read_tag(self._magic, data)
            call = self._requested(tag, endpoint, data, peer)
            if call is None or tag is None:
                continue
            try:
                ends.server.sendto(payload(self._magic, Tag(tag.number, Step.REPLY, tag.size)), peer)
            except OSError as error:
                self._fail(call.result, error)

    def _requested(
        self, tag: Tag | None, endpoint: ProbeEndpoint, data: bytes, peer: tuple[str, int]
    ) -> _Call | None:
        """Note that a request was taken; return its call if it is to be answered."""
        call = self._calls.get(tag.number) if tag and tag.step is Step.REQUEST else None
        if call is None or tag is None or call.result.probe.receiver.label != endpoint.point.label:
            return None
        call.result.peer = ip_address(peer[0]), peer[1]
        if data != payload(self._magic, tag):
            call.result.damaged = True
            return None
        call.result.reached.add(Step.REQUEST)
        return call

    def _accept(self, ends: Ends, endpoint: ProbeEndpoint) -> None:
        while True:
            try:
                sock, peer = ends.listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # reset before it was accepted
            sock.setblocking(False)
            stream = _Stream(sock, endpoint)
            self._served.add(sock)
            self._on(sock, partial(self._read_request, stream, peer[:2]))

    def _read_request(self, stream: _Stream, peer: tuple[str, int]) -> None:
        try:
            tag = self._receive(stream)
        except OSError:
            self._end(stream.sock)  # the client has gone: its own end tells how it went
            return
        if tag is None:
            return
        call = self._requested(tag, stream.endpoint, bytes(stream.received), peer)
        stream.received.clear()
        if call is not None:
            try:
                stream.sock.send(payload(self._magic, Tag(tag.number, Step.REPLY, tag.size)))
            except OSError as error:
                self._fail(call.result, error)

    def _receive(self, stream: _Stream) -> Tag | None:
        """Take what has come; return the tag once all that it announces is there. Raises OSError."""
        try:
            data = stream.sock.recv(_LARGEST)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "the other end closed the connection")
        stream.received += data
        tag = read_tag(self._magic, bytes(stream.received[:TAG_BYTES]))
        if tag is None and len(stream.received) >= TAG_BYTES:
            raise ConnectionAbortedError(errno.EPROTO, "what arrived is not what was sent")
        return tag if tag is not None and len(stream.received) >= tag.size else None


def _datagrams(sock: socket.socket) -> Iterable[tuple[bytes, tuple[str, int]]]:
    while True:
        try:
            data, peer = sock.recvfrom(_LARGEST)
        except BlockingIOError:
            return
        except OSError:
            continue  # an ICMP error for an earlier probe, reported once; the captures show it in full
        yield data, peer[:2]


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()
