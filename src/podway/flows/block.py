"""Many events in columns, with what names meant at their time; to bytes and back. Pure.

A block is whole by itself: whose an address was, what a rule's number meant and how far the node's clock was from
its monotonic one stand in it, each from the record on from which it held. So a block can be deleted without a look
at the others, and pods and policies that are gone keep their names.

On disk each column is cut into planes (all first bytes, all second bytes, ...) and deflated: what does not change
from one event to the next takes next to nothing then. Times are differences, in microseconds.
"""

import struct
import sys
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from itertools import accumulate, chain, pairwise
from operator import sub
from typing import Any, Generic, TypeVar

import msgspec

from podway.errors import PodwayError
from podway.flows import reasons
from podway.flows.record import PROTOCOLS, Called, End, Event, FlowRecord, Frontend, Rule, Verdict, Who
from podway.kernel.flow_events import (
    EVENT_FIELDS,
    EVENT_SIZE,
    EventKind,
    FlowFlag,
    FlowState,
    Hook,
    Reason,
    Way,
    picker,
    unpack_address,
)

T = TypeVar("T")

MAGIC = b"podway flows 1\n"

_SIZES = {"Q": 8, "2I": 8, "I": 4, "H": 2, "2s": 2, "B": 1}
_CODES = {"Q": "Q", "2I": "I", "I": "I", "H": "H", "2s": "H", "B": "B"}
_LEVEL = 3
"""Of zlib: 6 takes nearly twice the time to seal a block, and saves a twentieth of its bytes."""
_TUNNELS = {"podway-vxlan": "vxlan", "podway-vxlan6": "vxlan", "podway-ipip": "ipip"}
_ICMP = {1, 58}
_TCP = (("rtt", "rtt_back"), ("retransmitted", "retransmitted_back"))
_EVENTS: dict[int, Event] = {
    EventKind.FLOW_NEW: "new",
    EventKind.FLOW_LIVES: "lives",
    EventKind.FLOW_END: "end",
    EventKind.FLOW_EVICTED: "end",
    EventKind.PACKET_DROPPED: "drop",
    EventKind.FLOW_REJUDGED: "changed",
    EventKind.FLOW_AUDITED: "audit",
}
_ENDS: dict[int, str] = {FlowState.CLOSED: "closed", FlowState.RESET: "reset", FlowState.HALF_OPEN: "unanswered"}


class DamagedBlock(PodwayError):
    """A block's bytes are not what was written."""


class Names(msgspec.Struct):
    """What the events of a block need to be read; each list is in the order in which it was learned.

    `clock` are nanoseconds to be added to the monotonic clock for the time since 1970. `losses` say which
    processor had lost how many events before a record, `details` what the kernel's reasons are called, `services`
    which ports of Services an address has.
    """

    clock: list[tuple[int, int]] = []
    addresses: list[tuple[int, str, Who]] = []
    rules: list[tuple[int, int, Rule]] = []
    devices: list[tuple[int, int, str]] = []
    losses: list[tuple[int, int]] = []
    details: list[tuple[int, int, str]] = []
    services: list[tuple[int, str, tuple[Frontend, ...]]] = []

    @property
    def empty(self) -> bool:
        """Whether nothing is said."""
        return not any(getattr(self, field) for field in self.__struct_fields__)

    def copy(self) -> "Names":
        """Return what is said now."""
        return Names(*(list(getattr(self, field)) for field in self.__struct_fields__))

    def extend(self, other: "Names") -> None:
        """Take what was learned later."""
        for field in self.__struct_fields__:
            getattr(self, field).extend(getattr(other, field))


class Meaning(Generic[T]):
    """Finds what a key meant at a record."""

    def __init__(self, spans: Iterable[tuple[int, Any, T]]) -> None:
        self._spans: dict[Any, tuple[list[int], list[T]]] = {}
        for first, key, value in spans:
            firsts, values = self._spans.setdefault(key, ([], []))
            firsts.append(first)
            values.append(value)

    def at(self, key: Any, record: int, default: T) -> T:
        """Return what a key meant when a record was made."""
        found = self._spans.get(key)
        if found is None:
            return default
        firsts, values = found
        return values[max(0, bisect_right(firsts, record) - 1)]


class Block:
    """Events of one node, in the order in which they were taken, `first` being the number of the first one."""

    def __init__(
        self, node: str, first: int, count: int, names: Names, column: Callable[[str], "array[int] | bytes"]
    ) -> None:
        """Take what `column` gives by a field's name: 16 bytes for each address, numbers for all else."""
        self.node = node
        self.first = first
        self.count = count
        self.names = names
        self._column = column
        self._columns: dict[str, array[int] | bytes] = {}

    @classmethod
    def of(cls, node: str, first: int, events: bytes, names: Names) -> "Block":
        """Make a block of events as the engine told them."""
        count = len(events) // EVENT_SIZE
        return cls(node, first, count, names, lambda name: numbers(name, contiguous(events, name, count)))

    def column(self, name: str) -> "array[int]":
        """Return a field of all events, as numbers; of `rule` two for each."""
        found = self._get(name)
        assert isinstance(found, array)
        return found

    def addresses(self, name: str) -> bytes:
        """Return `source`, `destination` or `service` of all events, 16 bytes for each."""
        found = self._get(name)
        assert isinstance(found, bytes)
        return found

    def _get(self, name: str) -> "array[int] | bytes":
        if name not in self._columns:
            self._columns[name] = self._column(name)
        return self._columns[name]

    @property
    def end(self) -> int:
        """The number that follows the last one."""
        return self.first + self.count

    @cached_property
    def span(self) -> tuple[float, float]:
        """The times of the earliest and the latest event, in seconds since 1970."""
        times = self.column("time")
        if not times:
            return 0.0, 0.0
        clock = self.names.clock or [(0, 0)]
        # The monotonic clock begins anew with each boot, so each offset is for its own records only.
        starts = [0, *(first for first, _ in clock[1:]), len(times)]
        parts = [
            (min(part) + offset, max(part) + offset)
            for (_, offset), (start, end) in zip(clock, pairwise(starts), strict=True)
            if (part := times[start:end])
        ]
        return min(begin for begin, _ in parts) / 1e9, max(end for _, end in parts) / 1e9

    @cached_property
    def _who(self) -> Meaning[Who]:
        return Meaning(self.names.addresses)

    @cached_property
    def _rules(self) -> Meaning[Rule]:
        return Meaning(self.names.rules)

    @cached_property
    def _devices(self) -> Meaning[str]:
        return Meaning(self.names.devices)

    @cached_property
    def _details(self) -> Meaning[str]:
        return Meaning(self.names.details)

    @cached_property
    def _services(self) -> Meaning[tuple[Frontend, ...]]:
        return Meaning(self.names.services)

    @cached_property
    def _clock(self) -> Meaning[int]:
        return Meaning((first, 0, offset) for first, offset in self.names.clock)

    @cached_property
    def _losses(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for at, lost in self.names.losses:
            found[at] = found.get(at, 0) + lost
        return found

    @cached_property
    def _texts(self) -> dict[bytes, str]:
        return {}

    def time(self, at: int) -> float:
        """Return when an event was, in seconds since 1970."""
        return (self.column("time")[at] + self._clock.at(0, at, 0)) / 1e9

    def text(self, address: bytes) -> str:
        """Return an address as text."""
        found = self._texts.get(address)
        if found is None:
            found = self._texts[address] = str(unpack_address(address))
        return found

    def record(self, at: int) -> FlowRecord:
        """Return an event with its names, in the direction of who called."""
        kind, reason, flags = (self.column(name)[at] for name in ("kind", "reason", "flags"))
        protocol, state = self.column("protocol")[at], self.column("state")[at]
        ends = [self._end(at, "source"), self._end(at, "destination")]
        counts = [self.column(name)[at] for name in ("packets", "bytes", "packets_back", "bytes_back")]
        rtt, again = ([self.column(name)[at] for name in pair] for pair in _TCP)
        backwards = bool(flags & FlowFlag.REPLY)
        if backwards:
            ends.reverse()
            rtt.reverse()
            again.reverse()
            if kind != EventKind.PACKET_DROPPED:
                counts = counts[2:] + counts[:2]
        message = ""
        if protocol in _ICMP:
            message = f"{ends[1].port >> 8}/{ends[1].port & 255}"
            ends = [msgspec.structs.replace(end, port=0) for end in ends]
        began, rules = self.column("made")[at], self.column("rule")[2 * at : 2 * at + 2]
        path, device = self._path(at, ends)
        return FlowRecord(
            time=self.time(at),
            node=self.node,
            sequence=self.first + at,
            event=event_of(kind),
            verdict=verdict_of(kind, reason),
            source=ends[0],
            destination=ends[1],
            protocol=PROTOCOLS.get(protocol, str(protocol)),
            direction=self._direction(ends),
            reason=self._reason(at, reason),
            egress=self._rule(at, rules[0]),
            ingress=self._rule(at, rules[1]),
            message=message,
            packets=counts[0],
            octets=counts[1],
            packets_back=counts[2],
            octets_back=counts[3],
            began=(began + self._clock.at(0, at, 0)) / 1e9 if began else 0.0,
            how=_how(kind, state),
            path=path,
            device=device,
            reply=backwards and kind == EventKind.PACKET_DROPPED,
            rtt=rtt[0],
            rtt_back=rtt[1],
            retransmitted=again[0],
            retransmitted_back=again[1],
            lost=self._losses.get(at, 0),
            service=self._called(at, flags, PROTOCOLS.get(protocol, ""), ends[1]),
        )

    def _called(self, at: int, flags: int, protocol: str, destination: End) -> Called | None:
        """Return the Service that was called: by its address, or, if it has one, by that of its destination.

        None where it is not known, as in blocks of a version that told only that there was one.
        """
        text, port = destination.address, destination.port
        if flags & FlowFlag.SERVICE:
            address = self.addresses("service")[16 * at : 16 * at + 16]
            if not any(address):
                return None
            text, port = self.text(address), self.column("service_port")[at]
        fronts = self._services.at(text, at, ())
        for one in fronts:
            if (one.protocol, one.port) == (protocol, port):
                return Called(text, port, one.namespace, one.name, one.port_name)
        if len({(one.namespace, one.name) for one in fronts}) == 1:  # it has no such port
            return Called(text, port, fronts[0].namespace, fronts[0].name)
        return Called(text, port) if fronts or flags & FlowFlag.SERVICE else None

    def _reason(self, at: int, number: int) -> str:
        if number == Reason.DROPPED_BY_KERNEL and (name := self._details.at(self.column("detail")[at], at, "")):
            return f"{reasons.KERNEL}{name}"
        return reasons.name_of(number)

    def _end(self, at: int, name: str) -> End:
        text = self.text(self.addresses(name)[16 * at : 16 * at + 16])
        return End(text, self.column(f"{name}_port")[at], self._who.at(text, at, _NOBODY))

    def _rule(self, at: int, number: int) -> Rule | None:
        return self._rules.at(number, at, Rule(f"rule {number:#010x}")) if number else None

    def _direction(self, ends: Sequence[End]) -> str:
        here = [end.who.kind == "pod" and end.who.node == self.node for end in ends]
        if all(here):
            return "local"
        return "egress" if here[0] else "ingress" if here[1] else ""

    def _path(self, at: int, ends: Sequence[End]) -> tuple[str, str]:
        """Return how packets go on, and by which device, or came from, as far as it is known."""
        if self.column("reason")[at] == Reason.DROPPED_BY_KERNEL:
            number = self.column("ifindex")[at]
            return "", self._devices.at(number, at, "") if number else ""
        if self._direction(ends) == "local":
            return "local", ""
        hook, way = self.column("hook")[at], self.column("way")[at]
        number = self.column("ifindex" if hook == Hook.FROM_WIRE else "out")[at]
        device = self._devices.at(number, at, "") if number else ""
        if device in _TUNNELS:
            return _TUNNELS[device], device
        if hook == Hook.FROM_WIRE or way == Way.WIRE:
            return "routed", device
        goes_on = self.column("kind")[at] in (EventKind.FLOW_LIVES, EventKind.FLOW_END, EventKind.FLOW_EVICTED)
        return "stack" if goes_on and way == Way.STACK else "", device

    # To bytes, and back.

    def seal(self) -> bytes:
        """Return the block as bytes."""
        parts: list[bytes] = []
        lengths: list[tuple[str, str, int]] = []
        for name, form in _stored(EVENT_FIELDS):
            data = self._raw(name)
            size = 16 if form == "16s" else _SIZES[form]
            part = zlib.compress(b"".join(data[plane::size] for plane in range(size)), _LEVEL)
            parts.append(part)
            lengths.append((name, form, len(part)))
        body = b"".join(parts)
        head = _Head(self.node, self.first, self.count, lengths, zlib.crc32(body), self.names)
        packed = zlib.compress(msgspec.json.encode(head), _LEVEL)
        return b"".join(
            (MAGIC, len(packed).to_bytes(4, "big"), zlib.crc32(packed).to_bytes(4, "big"), packed, body)
        )

    def _raw(self, name: str) -> bytes:
        if PLACES[name][2] == "16s":
            return self.addresses(name)
        column = self.column(name)
        if name == "time":
            column = _differences(column)
        elif name == "made":
            column = _ages(column, self.column("time"))
        return column.tobytes()

    @classmethod
    def unseal(cls, data: bytes, span: tuple[float, float] | None = None) -> "Block":
        """Read a block that `seal` made, of this or of another version. Raises DamagedBlock.

        `span` is the block's, where it is known already: to find it out takes the times of all events.
        """
        try:
            if not data.startswith(MAGIC):
                raise ValueError("it does not begin as one")
            at = len(MAGIC) + 8
            start = at + int.from_bytes(data[at - 8 : at - 4], "big")
            packed = data[at:start]
            if zlib.crc32(packed) != int.from_bytes(data[at - 4 : at], "big"):
                raise ValueError("the check sum of its head is wrong")
            head = msgspec.json.decode(zlib.decompress(packed), type=_Head)
            if zlib.crc32(memoryview(data)[start:]) != head.check:
                raise ValueError("its check sum is wrong")
        except (ValueError, zlib.error, msgspec.MsgspecError) as error:
            raise DamagedBlock(f"not a block of flows: {error}") from error
        places: dict[str, tuple[str, bytes]] = {}
        for name, form, length in head.columns:
            places[name] = form, data[start : start + length]
            start += length
        block = cls(head.node, head.first, head.count, head.names, _Sealed(head.count, places))
        if span is not None:
            block.span = span
        return block


class _Head(msgspec.Struct):
    """What a sealed block begins with: of each column its name, format and length, and the check sum of all."""

    node: str
    first: int
    count: int
    columns: list[tuple[str, str, int]]
    check: int
    names: Names


class _Sealed:
    """Gives the columns of a sealed block."""

    def __init__(self, count: int, places: Mapping[str, tuple[str, bytes]]) -> None:
        self._count, self._places = count, places

    def __call__(self, name: str) -> "array[int] | bytes":
        known = dict(_stored(EVENT_FIELDS))
        if name not in self._places:  # written before there was such a field
            return bytes(16 * self._count) if known[name] == "16s" else _zeros(known[name], self._count)
        form, packed = self._places[name]
        planes = zlib.decompress(packed)
        size = 16 if form == "16s" else _SIZES[form]
        data = bytearray(len(planes))
        for plane in range(size):
            data[plane::size] = planes[plane * self._count : (plane + 1) * self._count]
        if form == "16s":
            return bytes(data)
        if name == "time":
            return array("Q", [1000 * time for time in accumulate(array("q", bytes(data)))])
        if name == "made":
            times = self("time")
            assert isinstance(times, array)
            return _moments(array("q", bytes(data)), times)
        return array(_CODES[form], bytes(data))


_NOBODY = Who()


def _zeros(form: str, count: int) -> "array[int]":
    return array(_CODES[form], bytes(_SIZES[form] * count))


def _stored(fields: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    return ((name, form) for name, form in fields if name != "unused")


def _places() -> dict[str, tuple[int, int, str]]:
    """Return where each field stands in an event, how long it is, and its format."""
    found, at = {}, 0
    for name, form in EVENT_FIELDS:
        size = int(form[:-1]) if form.endswith(("s", "x")) else _SIZES[form]
        if name != "unused":
            found[name] = (at, size, form)
        at += size
    assert at == EVENT_SIZE
    return found


PLACES = _places()
"""Where each field stands in an event, how long it is in bytes, and its format."""


def contiguous(events: bytes, name: str, count: int) -> bytes:
    """Return one field of all events."""
    start, size, _ = PLACES[name]
    data = bytearray(size * count)
    for plane in range(size):
        data[plane::size] = events[start + plane :: EVENT_SIZE]
    return bytes(data)


def numbers(name: str, data: bytes) -> "array[int] | bytes":
    """Return a field of all events as numbers, of addresses as it is."""
    form = PLACES[name][2]
    if form == "16s":
        return data
    column = array(_CODES[form], data)
    if form == "2s" and sys.byteorder == "little":  # ports, as they stand in packets
        column.byteswap()
    return column


def rows_of(events: bytes, *names: str) -> Iterator[tuple[Any, ...]]:
    """Yield some fields of each event, in the order of the event; of `rule` two, of addresses and ports bytes.

    That is the quick way to all that many events differ by: `set` of it is one step of C for each event.
    """
    return _picker(names).iter_unpack(events)


@cache
def _picker(names: tuple[str, ...]) -> struct.Struct:
    return picker(EVENT_FIELDS, names)


def event_of(kind: int) -> Event:
    """Return what an event is called, by its number in the engine."""
    return _EVENTS.get(kind, "changed")


def _differences(times: "array[int]") -> "array[int]":
    micros = [time // 1000 for time in times]
    return array("q", map(sub, micros, chain((0,), micros)))


def _ages(made: "array[int]", times: "array[int]") -> "array[int]":
    """Return how old each flow was, in microseconds and never 0; 0 if there was none."""
    ages = [time // 1000 - began // 1000 for began, time in zip(made, times, strict=True)]
    return array("q", [age + (age >= 0) if began else 0 for age, began in zip(ages, made, strict=True)])


def _moments(ages: "array[int]", times: "array[int]") -> "array[int]":
    """Return when flows began, of their ages (see `_ages`)."""
    both = zip(ages, times, strict=True)
    return array("Q", [max(1, time - 1000 * (age - (age > 0))) if age else 0 for age, time in both])


def verdict_of(kind: int, reason: int) -> Verdict:
    """Return what was decided, by the numbers of an event and of its reason in the engine."""
    if kind == EventKind.FLOW_AUDITED:
        return "audited"
    if reason == Reason.KEPT:
        return "allowed"
    return "denied" if reason in reasons.DENIALS else "dropped"


def _how(kind: int, state: int) -> str:
    if kind == EventKind.FLOW_EVICTED:
        return "evicted"
    return _ENDS.get(state, "idle") if kind == EventKind.FLOW_END else ""
