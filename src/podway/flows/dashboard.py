"""Counters under the names that dashboards made for Hubble ask for, as far as records tell what those mean. Pure.

Every label has few values: protocols and reasons are of lists; the first `PORTS` ports that are called have series
of their own, all others are `other`. None names a pod: Hubble's optional labels (`source`, `destination` and so
on) are left out. Why, and what differs: docs/metrics.md.
"""

from collections import Counter
from typing import TypeAlias

from podway.flows import reasons
from podway.flows.block import PLACES, rows_of
from podway.flows.record import PROTOCOLS
from podway.kernel.flow_events import EVENT_SIZE, EventKind, FlowFlag, FlowState, Reason

PORTS = 64
"""Called ports with a series of their own."""
OTHER = "other"

_TCP, _UDP, _DNS = 6, 17, 53
_NAMES = {number: PROTOCOLS[number].upper() for number in (_TCP, _UDP, 132)} | {1: "ICMPv4", 58: "ICMPv6"}
_PROTOCOLS_WITH_PORTS = frozenset({_TCP, _UDP, 132})
_FLAGS = {FlowState.CLOSED: "FIN", FlowState.RESET: "RST"}
_ALLOWED = (EventKind.FLOW_NEW, EventKind.FLOW_AUDITED)

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
        fields = rows_of(
            events, "destination_port", "protocol", "packets", "rule", "kind", "reason", "flags", "state"
        )
        # The eleventh byte of an address tells its family: all of IPv4 are mapped (::ffff:0:0/96).
        families = events[PLACES["source"][0] + 10 :: EVENT_SIZE]
        counts = Counter(zip(fields, families, strict=True))
        for (
            (port, protocol, packets, egress, ingress, kind, reason, flags, state),
            mapped,
        ), count in counts.items():
            name = _NAMES.get(protocol, OTHER)
            if kind == EventKind.PACKET_DROPPED:
                self._drop(name, reason, packets * count)
            elif kind in _ALLOWED:
                audited = kind == EventKind.FLOW_AUDITED
                verdict = "AUDIT" if audited else "FORWARDED"
                self.processed[name, "PolicyVerdict" if audited else "Trace", "", verdict] += count
                if audited:
                    self.verdicts[_direction(reason), "rule", "audit"] += count
                    continue
                for direction, rule in (("egress", egress), ("ingress", ingress)):
                    if rule:
                        self.verdicts[direction, "rule", "forwarded"] += count
                if not flags & FlowFlag.REPLY:
                    self._begin(name, protocol, int.from_bytes(port, "big"), count)
                if protocol == _TCP:
                    self.flags["SYN", _family(mapped)] += count
            elif kind == EventKind.FLOW_REJUDGED:
                verdict = "FORWARDED" if reason == Reason.KEPT else "DROPPED"
                self.processed[name, "PolicyVerdict", "", verdict] += count
            elif kind in (EventKind.FLOW_END, EventKind.FLOW_EVICTED):
                if protocol == _TCP and state in _FLAGS:
                    self.flags[_FLAGS[state], _family(mapped)] += count
                if protocol == _UDP and not flags & FlowFlag.REPLY and int.from_bytes(port, "big") == _DNS:
                    self.queries += packets * count

    def _drop(self, name: str, reason: int, packets: int) -> None:
        self.processed[name, "Drop", "", "DROPPED"] += packets
        denied = reason in reasons.DENIALS
        self.drops["POLICY_DENIED" if denied else reasons.name_of(reason), name] += packets
        if denied:
            self.verdicts[_direction(reason), "rule", "dropped"] += packets

    def _begin(self, name: str, protocol: int, port: int, count: int) -> None:
        if protocol not in _PROTOCOLS_WITH_PORTS:
            return
        if port not in self._ports and len(self._ports) < PORTS:
            self._ports.add(port)
        self.ports[name, str(port) if port in self._ports else OTHER] += count


def _direction(reason: int) -> str:
    return "egress" if reason == Reason.DENIED_EGRESS else "ingress"


def _family(mapped: int) -> str:
    return "IPv4" if mapped == 0xFF else "IPv6"
