"""What nodes decided of packets that were captured, found in their records of flows. Pure."""

from collections.abc import Iterable
from typing import TypeAlias

from podway.flows.reasons import words_of
from podway.flows.record import FlowRecord, Rule
from podway.probe.packet import Echo, Packet, Tcp, Udp, parse_ethernet, parse_ip

Flow: TypeAlias = tuple[str, str, int, str, int]
"""Protocol, and address and port of who sent it and of who was sent it."""

REMEMBERED = 100_000
"""Flows of which it is known what was said of them already."""


class Verdicts:
    """Knows what nodes recorded, and says of each packet what is worth a comment."""

    def __init__(self) -> None:
        self._decided: dict[tuple[str, Flow], tuple[bool, str]] = {}
        self._said: set[tuple[int, Flow]] = set()

    def learn(self, records: Iterable[FlowRecord]) -> None:
        """Take records, oldest first: what came later holds."""
        if len(self._decided) > REMEMBERED:
            self._decided.clear()
        for record in records:
            source, destination = record.source, record.destination
            flow = (record.protocol, source.address, source.port, destination.address, destination.port)
            if record.reply:
                flow = _reversed(flow)
            self._decided[record.node, flow] = record.verdict != "allowed", _words(record)

    def of(self, node: str, interface: int, data: bytes, *, ethernet: bool) -> list[str]:
        """Return what its node decided of a packet.

        An allowed flow's packets are told once at each interface, each packet of others.
        """
        parsed = parse_ethernet(data) if ethernet else parse_ip(data)
        flow = _flow(parsed) if parsed else None
        if flow is None:
            return []
        for direction in (flow, _reversed(flow)):
            found = self._decided.get((node, direction))
            if found is None:
                continue
            refused, words = found
            if refused and direction == flow:
                return [words]
            if refused:
                continue
            if (interface, direction) in self._said:
                return []
            if len(self._said) > REMEMBERED:
                self._said.clear()
            self._said.add((interface, direction))
            return [words]
        return []


def _flow(packet: Packet) -> Flow | None:
    source, destination = str(packet.source), str(packet.destination)
    match packet.transport:
        case Tcp(source_port, destination_port):
            return "tcp", source, source_port, destination, destination_port
        case Udp(source_port, destination_port):
            return "udp", source, source_port, destination, destination_port
        case Echo():
            return "icmp" if packet.family == 4 else "icmpv6", source, 0, destination, 0
    return None


def _reversed(flow: Flow) -> Flow:
    protocol, source, source_port, destination, destination_port = flow
    return protocol, destination, destination_port, source, source_port


def _words(record: FlowRecord) -> str:
    words = [f"{record.node}: {record.verdict}"]
    if record.reason:
        words.append(f"{record.reason} ({words_of(record.reason)})")
    rules = (("egress", record.egress), ("ingress", record.ingress))
    words += [f"{name}: {_rule(rule)}" for name, rule in rules if rule]
    if record.path:
        words.append(f"path: {record.path}")
    return ", ".join(words)


def _rule(rule: Rule) -> str:
    if rule.isolates:
        return f"isolated by {' and '.join(rule.isolates)}, and no rule allows it"
    return f"{rule.rule} of {rule.policy}" if rule.rule else rule.policy
