"""Records by IPFIX (RFC 7011), both directions in one (RFC 5103), over UDP or TCP.

Addresses, ports and counters: names of pods and policies have no information element of IANA's, and we have no
enterprise number. The one library on PyPI that writes IPFIX (ipfix) had its last release in 2014.
"""

import socket
import struct
import time
import zlib
from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from podway.export.target import SECONDS, Target
from podway.flows.record import PROTOCOLS, Called, End, FlowRecord

_VERSION, _TEMPLATE_SET = 10, 2
_HEADER = struct.Struct("!HHIII")
_SET = struct.Struct("!HH")
_REVERSE = 29305
"""The enterprise number of RFC 5103: the same element of the other direction."""
_MOST = {"udp": 1400, "tcp": 60000}
"""Bytes of a message: a datagram that no path cuts into fragments."""
_TEMPLATES_AGAIN = 30.0
"""Seconds after which templates are sent again over UDP, where a receiver may have missed them."""

# Information elements (IANA): number, length, and of which direction.
_ENDS = {4: ((8, 4), (12, 4), (226, 4)), 6: ((27, 16), (28, 16), (282, 16))}
"""Who called, who was called, and, where that was a Service's address, the backend (RFC 8158)."""
_TYPE_CODE = {4: 32, 6: 139}
_COMMON = ((7, 2), (11, 2), (228, 2), (4, 1), (152, 8), (153, 8), (86, 8), (85, 8))
_BACK = ((86, 8), (85, 8))
_LAST = ((233, 1), (136, 1), (61, 1))
_ICMP_LENGTH = 2
_FIELDS = struct.Struct("!HHHBQQQQQQBBBH")
_TEMPLATES = {4: 256, 6: 257}

_FIREWALL = {"new": 1, "end": 2, "drop": 3, "audit": 4, "lives": 5, "changed": 5}
"""firewallEvent: created, deleted, denied, alert, updated."""
_END_REASONS = {"idle": 1, "unanswered": 1, "closed": 3, "reset": 3, "evicted": 5}
_ACTIVE, _DETECTED = 2, 3
"""flowEndReason: it goes on; its end was seen."""
_INGRESS, _EGRESS = 0, 1
_NUMBERS = {name: number for number, name in PROTOCOLS.items()}


class Ipfix:
    """Sends to a collector. Over UDP nobody says whether anything arrives."""

    def __init__(self, target: Target, node: str) -> None:
        self._target = target
        self._domain = zlib.crc32(node.encode())
        self._sequence = 0
        self._sock: socket.socket | None = None
        self._templates_at = 0.0

    def send(self, records: Sequence[FlowRecord]) -> int:
        """Send records; see Sink."""
        try:
            sock = self._opened()
            for message in self.messages(records):
                sock.sendall(message)
        except OSError:
            self.close()
            raise
        return 0

    def close(self) -> None:
        """Close the socket."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _opened(self) -> socket.socket:
        target = self._target
        if self._sock is None:
            kind = socket.SOCK_STREAM if target.transport == "tcp" else socket.SOCK_DGRAM
            [(family, _, _, _, address), *_] = socket.getaddrinfo(target.host, target.port, type=kind)
            sock = socket.socket(family, kind)
            sock.settimeout(SECONDS)
            try:
                sock.connect(address)
            except OSError:
                sock.close()
                raise
            self._sock, self._templates_at, self._sequence = sock, 0.0, 0
        return self._sock

    def messages(self, records: Iterable[FlowRecord]) -> Iterable[bytes]:
        """Yield messages with records, and with templates where the receiver needs them."""
        most, now = _MOST[self._target.transport], time.monotonic()
        again = self._target.transport == "udp" and now - self._templates_at > _TEMPLATES_AGAIN
        if not self._templates_at or again:
            self._templates_at = now
            yield self._message(_set(_TEMPLATE_SET, [_template(4), _template(6)]), 0)
        waiting: dict[int, list[bytes]] = {4: [], 6: []}
        for record in records:
            version: int = ip_address(record.source.address).version
            one, kept = _data(record, version), waiting[version]
            if (len(kept) + 1) * len(one) + _HEADER.size + _SET.size > most:
                yield self._message(_set(_TEMPLATES[version], kept), len(kept))
                kept.clear()
            kept.append(one)
        for number, kept in waiting.items():
            if kept:
                yield self._message(_set(_TEMPLATES[number], kept), len(kept))

    def _message(self, body: bytes, records: int) -> bytes:
        length, moment = _HEADER.size + len(body), int(time.time())
        head = _HEADER.pack(_VERSION, length, moment, self._sequence, self._domain)
        self._sequence = (self._sequence + records) & 0xFFFFFFFF
        return head + body


def _set(number: int, pieces: Iterable[bytes]) -> bytes:
    body = b"".join(pieces)
    return _SET.pack(number, _SET.size + len(body)) + body


def _template(version: int) -> bytes:
    plain = (*_ENDS[version], *_COMMON)
    fields = [struct.pack("!HH", *field) for field in plain]
    fields += [struct.pack("!HHI", number | 0x8000, length, _REVERSE) for number, length in _BACK]
    fields += [struct.pack("!HH", *field) for field in (*_LAST, (_TYPE_CODE[version], _ICMP_LENGTH))]
    return struct.pack("!HH", _TEMPLATES[version], len(fields)) + b"".join(fields)


def _data(record: FlowRecord, version: int) -> bytes:
    called: Called | End = record.destination
    if record.service and ip_address(record.service.address).version == version:  # else the record has no room
        called = record.service
    ends = b"".join(ip_address(end.address).packed for end in (record.source, called, record.destination))
    number = _NUMBERS.get(record.protocol)
    kind, _, code = record.message.partition("/")
    end = _END_REASONS.get(record.how, _DETECTED) if record.event in ("end", "drop") else _ACTIVE
    return ends + _FIELDS.pack(
        record.source.port,
        called.port,
        record.destination.port,
        int(record.protocol) if number is None else number,
        round((record.began or record.time) * 1000),
        round(record.time * 1000),
        record.packets,
        record.octets,
        record.packets_back,
        record.octets_back,
        _FIREWALL[record.event],
        end,
        _EGRESS if record.direction == "egress" else _INGRESS,
        (int(kind) << 8 | int(code)) if kind and code else 0,
    )
