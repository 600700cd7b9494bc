"""Goes through the table of flows: tells what goes on, and what has ended without a word.

The engine itself tells an end that a packet shows (TCP's FIN and RST). Everything else ends because nothing comes
any more, which only somebody who looks can notice: a flow is over when its time has passed (`lifetime`), or when
the table, which is full, gave its place to another one. Connections that ended so also leave their quota here.

A survey costs what there is in the table, some tenths of a microsecond for each entry, whether flows are busy or
not; packets wait for nothing.
"""

import contextlib
import struct
from collections import Counter as Counts
from collections.abc import Generator, Mapping, Set
from typing import Any

from podway.errors import KernelError
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_layout import (
    EVENT,
    FLOW,
    FLOW_KEY,
    QUOTA,
    QUOTA_KEY,
    EventKind,
    FlowFlag,
    FlowState,
    Hook,
    lifetime,
)

BATCH = 1024
"""Entries that are looked at before others go first: less than a millisecond."""

REMEMBERED = 32768
"""Flows of which the next survey knows that they were there: what the table gives up is told of them only."""

LONG = 10 * 10**9
"""How old a flow is, in ns, before its life is told."""

SURVEYOR = 0xFFFF
"""The processor of events that are told here."""

_SECOND = 10**9
_TCP = 6
_USED = FLOW.picker(
    "seen",
    "packets",
    "bytes",
    "from",
    "ifindex",
    "way",
    "state",
    "reason",
    "flags",
    "counted",
    "owner",
    "identity",
    "rule",
    "made",
    "service",
    "service_port",
    "rtt",
    "retransmitted",
)
_BACK = FLOW.picker("seen", "packets", "bytes", "rtt", "retransmitted")
_LIFE = FLOW.picker("seen", "state", "reason")
_NOT_THERE = (0, 0, 0, 0, 0)
_ENDS = struct.Struct("=16s16s2s2s4s")
_LIFETIMES = {
    (protocol, int(state)): lifetime(protocol, state) * _SECOND for protocol in range(256) for state in FlowState
}
_OPEN = {(_TCP, int(FlowState.OPEN)), (_TCP, int(FlowState.CLOSING))}
_REPLY, _INCOMING = int(FlowFlag.REPLY), int(FlowFlag.INCOMING)


class Survey:
    """Looks through an engine's table again and again, and knows what was there the last time."""

    def __init__(self, maps: Mapping[str, int]) -> None:
        """Take the descriptors of `flows` and `quotas`, which stay the caller's."""
        self._flows, self._quotas = maps["flows"], maps["quotas"]
        self._known: dict[bytes, bytes] = {}
        """What would be told of flows that go on, by their keys."""
        self._last = 0
        self.entries = 0
        """How many entries the last survey saw."""

    def look(self, now: int) -> Generator[None, bool | None, bytes]:
        """Look at all flows, as of a time (CLOCK_MONOTONIC, ns); yields after each batch, and ends early if it is
        sent True: what left the table by then is told, all else is left for who looks next.

        Returns events, as records of EVENT: FLOW_LIVES of those older than ten seconds that had packets since the
        last look, FLOW_END of those that are over, which leave the table, and FLOW_EVICTED. Raises KernelError.
        """
        told: list[bytes] = []
        known: dict[bytes, bytes] = {}
        counted = self._counted()
        open_now: Counts[tuple[int, int]] = Counts()
        entries = 0
        for keys, values in bpf.batches(self._flows, BATCH):
            entries += len(keys) // FLOW_KEY.size
            for at, flow in enumerate(_USED.iter_unpack(values)):
                seen, state, flags, made = flow[0], flow[6], flow[8], flow[15]
                if flags & _REPLY:
                    continue
                key = keys[at * FLOW_KEY.size : (at + 1) * FLOW_KEY.size]
                protocol = key[36]
                former = self._known.pop(key, None)
                if now - seen > _LIFETIMES[protocol, state]:
                    back = self._back(key)
                    if now - max(seen, back[0]) > _LIFETIMES[protocol, state]:
                        if self._take_out(key, seen) and state < FlowState.CLOSED:
                            told.append(_event(EventKind.FLOW_END, now, key, flow, back))
                        continue
                if (protocol, state) in _OPEN and flow[10]:
                    open_now[flow[10], int(bool(flags & _INCOMING))] += 1
                if state >= FlowState.CLOSED or now - made < LONG:
                    continue
                back = self._back(key)
                event = former or b""
                if not former or max(seen, back[0]) > self._last:
                    event = _event(EventKind.FLOW_LIVES, now, key, flow, back)
                if max(seen, back[0]) > self._last:
                    told.append(event)
                if len(known) < REMEMBERED:
                    known[key] = event
            if (yield):
                self._known |= known
                return b"".join(told)
        told += self._evicted(now)
        self._correct(counted, open_now)
        self._known, self._last, self.entries = known, now, entries
        return b"".join(told)

    def _evicted(self, now: int) -> list[bytes]:
        """Return what is to be told of flows that were there the last time, and were not met again."""
        return [
            _as_evicted(event, now)
            for key, event in self._known.items()
            if not bpf.lookup(self._flows, key) and not bpf.lookup(self._flows, _reversed(key))
        ]

    def _back(self, key: bytes) -> tuple[int, ...]:
        """Return when the other direction was seen last, its packets and bytes, round trip and retransmissions."""
        value = bpf.lookup(self._flows, _reversed(key))
        return _BACK.unpack(value) if value else _NOT_THERE

    def _take_out(self, key: bytes, seen: int) -> bool:
        """Remove both entries, unless a packet came since."""
        value = bpf.lookup(self._flows, key)
        if value is None or _BACK.unpack(value)[0] != seen:
            return False
        for one in (_reversed(key), key):
            with contextlib.suppress(KernelError):  # the table gave it up
                bpf.delete(self._flows, one)
        return True

    def _counted(self) -> dict[tuple[int, int], tuple[int, int, int]]:
        return {QUOTA_KEY.unpack(place): QUOTA.unpack(value) for place, value in bpf.items(self._quotas).items()}

    def _correct(
        self, before: Mapping[tuple[int, int], tuple[int, int, int]], right: Mapping[tuple[int, int], int]
    ) -> None:
        """Take connections off their quotas that ended in silence, where more are counted than came meanwhile."""
        for place, (half_open, replied, counted) in self._counted().items():
            former = before.get(place, (0, 0, counted))[2]
            found = right.get(place, 0)
            if abs(counted - found) > abs(counted - former):
                bpf.insert(self._quotas, QUOTA_KEY.pack(*place), QUOTA.pack(half_open, replied, found))


def busy(flows: int, addresses: Set[bytes], now: int) -> set[bytes]:
    """Return those of some addresses (16 bytes) that are an end of a flow that lives, and may be, as of a time
    (CLOCK_MONOTONIC, ns). `flows` is the table's descriptor. Raises KernelError."""
    found: set[bytes] = set()
    for keys, values in bpf.batches(flows, BATCH):
        for at, (seen, state, reason) in enumerate(_LIFE.iter_unpack(values)):
            start = at * FLOW_KEY.size
            ends = addresses & {keys[start : start + 16], keys[start + 16 : start + 32]}
            if ends and not reason and now - seen <= _LIFETIMES[keys[start + 36], state]:
                found |= ends
    return found


def _reversed(key: bytes) -> bytes:
    source, destination, source_port, destination_port, rest = _ENDS.unpack(key)
    return _ENDS.pack(destination, source, destination_port, source_port, rest)


def _event(kind: EventKind, now: int, key: bytes, flow: tuple[Any, ...], back: tuple[int, ...]) -> bytes:
    _, packets, octets, device, out, way, state, reason, flags, counted, _, i0, i1, r0, r1, made, *more = flow
    service, service_port, rtt_back, retransmitted = more
    _, packets_back, octets_back, rtt, retransmitted_back = back
    return EVENT.pack(
        now,
        key,
        packets,
        octets,
        packets_back,
        octets_back,
        made,
        *(r0, r1, i0, i1),
        device if counted == Hook.FROM_POD else 0,
        out if way else 0,
        0,
        SURVEYOR,
        kind,
        reason,
        counted,
        flags,
        state,
        way,
        0,
        *(rtt, rtt_back, retransmitted, retransmitted_back),
        service,
        service_port,
    )


_KIND_AT = EVENT.offsets["kind"]


def _as_evicted(event: bytes, now: int) -> bytes:
    return b"".join(
        (now.to_bytes(8, "little"), event[8:_KIND_AT], bytes([EventKind.FLOW_EVICTED]), event[_KIND_AT + 1 :])
    )
