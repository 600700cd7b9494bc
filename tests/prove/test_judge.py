"""What is wrong with a conversation, judged by where its packets were seen."""

from ipaddress import ip_address

import pytest

from podway.api.addresses import Family
from podway.api.kinds.node import Node
from podway.api.meta import Metadata
from podway.cluster.view import ClusterView
from podway.probe.build import Protocol
from podway.probe.capture import Sighting
from podway.probe.packet import TCP_ACK, TCP_PSH, TCP_SYN, Packet, Tcp
from podway.prove.judge import Code, judge
from podway.prove.path import Leg, Stage, planned_path
from podway.prove.probe import Probe, Result, Step
from podway.prove.world import NodePoint, PodPoint, World
from tests.builders import node_status

NODES = tuple(NodePoint(n, f"/ns/{n}", (ip_address(f"192.0.2.{i}"),), "eth0") for i, n in enumerate("ab", 1))
A, B = (
    PodPoint(f"default/{n}", n, f"/ns/p{n}", (ip_address(f"10.0.{i}.2"),), host_link=f"pway{n}")
    for i, n in enumerate("ab", 1)
)
VIEW = ClusterView.of(
    [Node(metadata=Metadata(name=n), status=node_status(f"192.0.2.{i}")) for i, n in enumerate("ab", 1)]
)
WORLD = World(NODES, (A, B), (), view=VIEW)
SENT = {
    Step.SYN: (TCP_SYN, 60),
    Step.SYN_ACK: (TCP_SYN | TCP_ACK, 60),
    Step.REQUEST: (TCP_ACK | TCP_PSH, 1500),
    Step.REPLY: (TCP_ACK | TCP_PSH, 1500),
}


def path(step: Step) -> tuple[Stage, ...]:
    return planned_path(WORLD, A, B) if step.forward else planned_path(WORLD, B, A)


def seen(step: Step, stages: tuple[Stage, ...]) -> Leg:
    """The packet of this step, at these devices."""
    flags, length = SENT[step]
    origin, target = (A, B) if step.forward else (B, A)
    source_port, destination_port = (40000, 61000) if step.forward else (61000, 40000)
    transport = Tcp(source_port, destination_port, 1, 1, flags)
    packet = Packet(origin.addresses[0], target.addresses[0], 64, length, True, False, transport, b"")
    return Leg([Sighting(n, s.point, s.interface, s.outgoing, False, packet, None) for n, s in enumerate(stages)])


def conversation() -> tuple[Result, dict[Step, Leg]]:
    """A conversation between two pods by TCP, all of whose packets were seen all the way."""
    result = Result(Probe(1, A, B, Family.IPV4, Protocol.TCP, 1500), port=40000)
    result.peer = A.addresses[0], 40000
    result.reached |= set(SENT)
    return result, {step: seen(step, path(step)) for step in SENT}


def test_a_conversation_that_was_seen_all_the_way_is_right() -> None:
    assert judge(WORLD, *conversation()) is None


@pytest.mark.parametrize("step", [Step.REQUEST, Step.REPLY])
@pytest.mark.parametrize("stages", range(1, 6))
def test_a_segment_that_tcp_sent_again_in_parts_was_lost(step: Step, stages: int) -> None:
    """Its bytes came, and it did not: no packet has gone another way because of that."""
    result, legs = conversation()
    legs[step] = seen(step, path(step)[:stages])
    fault = judge(WORLD, result, legs)
    assert fault is not None
    assert (fault.code, fault.step, fault.next) == (Code.LOST, step, path(step)[stages])


def test_a_packet_that_arrives_and_was_not_on_the_wire_went_another_way() -> None:
    result, legs = conversation()
    way = path(Step.REQUEST)
    legs[Step.REQUEST] = seen(Step.REQUEST, (*way[:2], *way[-2:]))
    fault = judge(WORLD, result, legs)
    assert fault is not None
    assert (fault.code, fault.next) == (Code.OFF_WIRE, way[2])
