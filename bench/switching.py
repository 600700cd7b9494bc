"""Settings changed under load: packets lost and connections broken while a cluster switches encapsulation."""

import itertools
import time
from collections.abc import Sequence

import msgspec

from bench.connections import Connections, Talk
from bench.flow import Count, Flows
from bench.labs import lab
from bench.report import Row, Section
from bench.samples import ms
from bench.settings import Settings, switch

NODES = 3
RATE = 1000
CONNECTIONS = 200
BEFORE, AFTER = 0.5, 1.0
"""Seconds of traffic before the change, and after it was carried out."""

STEPS: Sequence[tuple[str, Settings]] = (
    ("none → vxlan", Settings(encapsulation="vxlan")),
    ("vxlan → ipip", Settings(encapsulation="ipip")),
    ("ipip → vxlan, cross-subnet", Settings(encapsulation="vxlan", when="cross-subnet")),
    ("vxlan, cross-subnet → none", Settings()),
    ("bgp → store", Settings(distribution="store")),
    ("store → bgp", Settings()),
    ("mesh → reflectors", Settings(reflectors=1)),
    ("reflectors → mesh", Settings()),
)


class _Step(msgspec.Struct, frozen=True):
    """What a change cost; `took` is in seconds."""

    packets: Count
    talk: Talk
    took: float


def measure() -> Section:
    with lab(nodes=NODES) as cluster:
        pods = [cluster.run_pod(f"pod-{node}", node) for node in cluster.nodes]
        pairs = list(itertools.permutations(pods, 2))
        found: dict[str, _Step] = {}
        with Connections(pairs, CONNECTIONS) as connections:
            for words, settings in STEPS:
                connections.report()
                with Flows(pairs, rate=RATE) as flows:
                    time.sleep(BEFORE)
                    took = switch(cluster, settings)
                    time.sleep(AFTER)
                found[words] = _Step(flows.count, connections.report(), took)
    total = sum((step.packets for step in found.values()), Count())
    broken = max(step.talk.broken for step in found.values())
    return Section(
        "Settings changed under load",
        f"A pod on each of {NODES} nodes, {RATE} numbered UDP packets a second from each to each other "
        f"({RATE * len(pairs)} in all) and {CONNECTIONS} TCP connections, on which a number goes one way and back "
        "five times a second. `podway apply` changes a setting; the time is from its call until every node's "
        "kernel has the routes and devices that the new setting asks for, and its BGP sessions, and no others. "
        "One reflector of three nodes, so that sessions do end.",
        (
            *(_row(words, step) for words, step in found.items()),
            Row("packets lost in all", f"{total.lost} of {total.sent}", "0", total.lost == 0),
            Row("connections broken in all", f"{broken} of {CONNECTIONS}", "0", broken == 0),
        ),
    )


def _row(words: str, step: _Step) -> Row:
    packets, talk = step.packets, step.talk
    return Row(
        words,
        f"{packets.lost} of {packets.sent} packets lost, {packets.late} out of order, {packets.doubled} doubled; "
        f"longest silence {ms(packets.silence)}; longest wait for an answer {ms(talk.longest)}; "
        f"carried out after {step.took:.1f} s",
    )
