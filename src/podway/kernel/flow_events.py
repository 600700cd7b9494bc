"""What a node's flow engine tells, for who records it: its ring of events, and its table of flows.

All of it may be used beside the loop, by one thread at a time, whatever becomes of the engine meanwhile: the maps
are held open here once more.
"""

import os
from collections.abc import Generator, Mapping
from typing import NamedTuple

from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.drops import DropTracer, enum_of_kernel
from podway.kernel.bpf.flow_events import Events
from podway.kernel.bpf.flow_layout import (
    EVENT,
    FLOW_KEY,
    Counter,
    EventKind,
    FlowFlag,
    FlowState,
    Hook,
    Reason,
    Way,
    pack_address,
    picker,
    unpack_address,
)
from podway.kernel.bpf.flow_survey import SURVEYOR, Survey

__all__ = [
    "EVENT_FIELDS",
    "EVENT_SIZE",
    "SURVEYOR",
    "Counted",
    "DropTracer",
    "EventKind",
    "FlowEvents",
    "FlowFlag",
    "FlowState",
    "Hook",
    "Reason",
    "Way",
    "drop_reasons",
    "pack_address",
    "picker",
    "unpack_address",
]

EVENT_FIELDS: tuple[tuple[str, str], ...] = tuple(
    (name, form)
    for field, kind in EVENT.fields.items()
    for name, form in (FLOW_KEY.fields.items() if field == "key" else [(field, kind)])
)
"""The fields of an event in their order, those of its key among them, each with its format (module `struct`).

`unused` is room without meaning, of the key and of the event.
"""

EVENT_SIZE = EVENT.size
"""How long an event is, in bytes."""


_REASON = "SKB_DROP_REASON_"


def drop_reasons() -> dict[str, int]:
    """Return why this kernel may drop a packet: its numbers by their names, without what all begin with.

    Raises KernelError and UnsupportedSystem.
    """
    found = enum_of_kernel("skb_drop_reason")
    return {name.removeprefix(_REASON): number for name, number in found.items() if name.startswith(_REASON)}


class Counted(NamedTuple):
    """What the engine counted since it began: flows that it made, packets that it dropped, events that did not fit
    into the ring, and packets that the kernel itself dropped, where there were too many to tell of each."""

    made: int = 0
    dropped: int = 0
    lost: int = 0
    withheld: int = 0


class FlowEvents:
    """Reads what one engine tells. Methods raise KernelError."""

    def __init__(self, maps: Mapping[str, int]) -> None:
        """Take the maps of an engine, by their descriptors, which stay the caller's."""
        self._maps = {name: os.dup(maps[name]) for name in ("events", "flows", "quotas", "counters")}
        try:
            self._ring = Events(self._maps["events"])
        except BaseException:
            self._close_maps()
            raise
        self._survey = Survey(self._maps)

    @property
    def fd(self) -> int:
        """A descriptor that is readable when so much waits that somebody should look."""
        return self._ring.fd

    @property
    def unreadable(self) -> int:
        """How many events were of another build, and passed over."""
        return self._ring.unreadable

    @property
    def entries(self) -> int:
        """How many entries the table had at the last survey, two for each flow."""
        return self._survey.entries

    def peek(self) -> bytes:
        """Return the events that wait, one after the other; they wait until `advance`."""
        return self._ring.peek()

    def advance(self) -> None:
        """Give back the room of what `peek` returned last."""
        self._ring.advance()

    def survey(self, now: int) -> Generator[None, bool | None, bytes]:
        """Look at all flows, as of a time (CLOCK_MONOTONIC, ns), and return events; yields now and then, and ends
        early if it is sent True (podway.kernel.bpf.flow_survey)."""
        return self._survey.look(now)

    def counted(self) -> Counted:
        """Return what the engine counted so far, on all processors."""
        own = [one for one in Reason if one not in (Reason.KEPT, Reason.DROPPED_BY_KERNEL)]
        names = [Counter.FLOWS_MADE, Counter.EVENTS_LOST, Counter.DROPS_WITHHELD, *own]
        made, lost, withheld, *dropped = bpf.per_cpu_sums(self._maps["counters"], names)
        return Counted(made, sum(dropped), lost, withheld)

    def close(self) -> None:
        """Let go of the maps."""
        self._ring.close()
        self._close_maps()

    def _close_maps(self) -> None:
        for fd in self._maps.values():
            os.close(fd)
