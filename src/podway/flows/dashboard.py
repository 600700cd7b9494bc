"""Counters under the names that dashboards made for Hubble ask for, as far as records tell what those mean. Pure.

Every label has few values: protocols and reasons are of lists; the first `PORTS` ports that are called have series
of their own, all others are `other`. None names a pod: Hubble's optional labels (`source`, `destination` and so
on) are left out. Why, and what differs: docs/metrics.md.
"""

from collections import Counter
from ipaddress import IPv4Address
from itertools import compress
from typing import TypeAlias

from podway.flows import reasons
from podway.flows.block import PLACES, rows_of
from podway.kernel.flow_events import EVENT_SIZE, EventKind, FlowFlag, FlowState, Reason, pack_address

PORTS = 64
"""Called ports with a series of their own."""
OTHER = "other"

_TCP, _UDP = 6, 17
_DNS = (53).to_bytes(2, "big")
_NAMES = {_TCP: "TCP", _UDP: "UDP", 132: "SCTP", 1: "ICMPv4", 58: "ICMPv6"}
_WITH_PORTS = frozenset({"TCP", "UDP", "SCTP"})
_FLAGS = {FlowState.CLOSED: "FIN", FlowState.RESET: "RST"}
_ENDS = frozenset({EventKind.FLOW_END, EventKind.FLOW_EVICTED})
_ARE_NEW, _ARE_DROPS = (
    bytes(kind == wanted for kind in range(256)) for wanted in (EventKind.FLOW_NEW, EventKind.PACKET_DROPPED)
)
_MAPPED = pack_address(IPv4Address(0))[:12]
_NOT_ZERO = bytes(1) + b"\1" * 255

Labels: TypeAlias = tuple[str, ...]


class Dashboard:
    """Counts by the values of labels, whose names are in podway.agent.metrics."""

    def __init__(self) -> None:
        self.processed: Counter[Labels] = Counter()
        """By protocol, type, subtype, verdict: flows that began or were judged anew, dropped packets."""
        self.drops: Counter[Labels] = Counter()
        """Packets by reason, protocol."""
        self.verdicts: Counter[Labels] = Counter()
        """By direction, match, action: flows that a rule allowed or would deny, packets that one denied."""
        self.flags: Counter[Labels] = Counter()
        """By flag, family: connections of TCP that began, were closed, were reset."""
        self.ports: Counter[Labels] = Counter()
        """Flows that began, by protocol, port."""
        self.queries = 0
        """Datagrams to port 53, of flows that ended."""
        self._ports: set[int] = set()

    def take(self, events: bytes) -> None:
        """Count records, as the engine told them."""
        # What one byte tells is cut out by steps of C alone, and counted once for all that are alike.
        places = (PLACES[name][0] for name in ("kind", "protocol", "reason", "state"))
        kinds, *more = (events[at::EVENT_SIZE] for at in places)
        alike = Counter(zip(kinds, *more, _are_six(events, len(kinds)), strict=True))
        for (kind, protocol, reason, state, is_six), count in alike.items():
            self._count(kind, protocol, reason, _FLAGS.get(state, ""), "IPv6" if is_six else "IPv4", count)
        if EventKind.FLOW_NEW in kinds:
            fields = compress(
                rows_of(events, "destination_port", "protocol", "rule", "flags"), kinds.translate(_ARE_NEW)
            )
            for (port, protocol, *rules, flags), count in Counter(fields).items():
                self._begin(_name(protocol), 0 if flags & FlowFlag.REPLY else int.from_bytes(port, "big"), count)
                for direction, rule in zip(("egress", "ingress"), rules, strict=True):
                    if rule:
                        self.verdicts[direction, "rule", "forwarded"] += count
        if EventKind.PACKET_DROPPED in kinds:
            fields = compress(rows_of(events, "protocol", "packets", "reason"), kinds.translate(_ARE_DROPS))
            for (protocol, packets, reason), count in Counter(fields).items():
                self._drop(_name(protocol), reason, packets * count)
        if any(kind in _ENDS and protocol == _UDP for kind, protocol, *_ in alike):
            for port, protocol, packets, kind, flags in rows_of(
                events, "destination_port", "protocol", "packets", "kind", "flags"
            ):
                if kind in _ENDS and protocol == _UDP and port == _DNS and not flags & FlowFlag.REPLY:
                    self.queries += packets

    def _count(self, kind: int, protocol: int, reason: int, flag: str, family: str, count: int) -> None:
        """Count what needs nothing else of events: drops do need how many packets they stand for."""
        name = _name(protocol)
        if kind == EventKind.FLOW_NEW:
            self.processed[name, "Trace", "", "FORWARDED"] += count
            if protocol == _TCP:
                self.flags["SYN", family] += count
        elif kind == EventKind.FLOW_AUDITED:
            self.processed[name, "PolicyVerdict", "", "AUDIT"] += count
            self.verdicts[_direction(reason), "rule", "audit"] += count
        elif kind == EventKind.FLOW_REJUDGED:
            verdict = "FORWARDED" if reason == Reason.KEPT else "DROPPED"
            self.processed[name, "PolicyVerdict", "", verdict] += count
        elif kind in _ENDS and protocol == _TCP and flag:
            self.flags[flag, family] += count

    def _drop(self, name: str, reason: int, packets: int) -> None:
        self.processed[name, "Drop", "", "DROPPED"] += packets
        denied = reason in reasons.DENIALS
        self.drops["POLICY_DENIED" if denied else reasons.name_of(reason), name] += packets
        if denied:
            self.verdicts[_direction(reason), "rule", "dropped"] += packets

    def _begin(self, name: str, port: int, count: int) -> None:
        if name not in _WITH_PORTS or not port:
            return
        if port not in self._ports and len(self._ports) < PORTS:
            self._ports.add(port)
        self.ports[name, str(port) if port in self._ports else OTHER] += count


def _are_six(events: bytes, count: int) -> bytes:
    """Return of each event whether its source is of IPv6: one whose first bytes are not those of mapped addresses.

    By numbers that have a byte of each event, as one look at all twelve bytes of each takes many times as long.
    """
    unlike = 0
    for at, wanted in enumerate(_MAPPED, PLACES["source"][0]):
        unlike |= int.from_bytes(events[at::EVENT_SIZE]) ^ int.from_bytes(bytes((wanted,)) * count)
    return unlike.to_bytes(count).translate(_NOT_ZERO)


def _direction(reason: int) -> str:
    return "egress" if reason == Reason.DENIED_EGRESS else "ingress"


def _name(protocol: int) -> str:
    return _NAMES.get(protocol, OTHER)
