"""Probes: who sends what to whom, and how a probe is known again wherever it turns up.

A probe is one conversation: a request as large as the pod link allows, and its answer. Every packet of it
that has a payload starts with a tag: a random number of the run, the probe's number and the step, so that a
packet is recognised though addresses and ports were rewritten or another packet was wrapped around it.
"""

import enum
import random
import struct
from collections.abc import Iterable, Sequence
from itertools import permutations, product

import msgspec

from podway.api.addresses import Address, Family
from podway.probe.build import Protocol
from podway.probe.packet import IP_HEADER
from podway.prove.world import NodePoint, Point, World

_TAG = struct.Struct("!8sIBI")
TAG_BYTES = _TAG.size
_PATTERN = bytes(range(251))
"""What fills a probe. A prime length makes a shifted or repeated part show."""

_UDP_OR_ICMP_HEADER = 8


class Step(enum.IntEnum):
    """The packets of a conversation, in order. Only TCP has the first two."""

    SYN = 0
    SYN_ACK = 1
    REQUEST = 2
    REPLY = 3

    @property
    def forward(self) -> bool:
        """Whether it goes from the sender to the receiver."""
        return self in (Step.SYN, Step.REQUEST)

    @property
    def words(self) -> str:
        """What people call it."""
        return ("connection request (SYN)", "connection answer (SYN-ACK)", "request", "reply")[self]


STEPS: dict[Protocol, tuple[Step, ...]] = {
    Protocol.TCP: tuple(Step),
    Protocol.UDP: (Step.REQUEST, Step.REPLY),
    Protocol.ICMP: (Step.REQUEST, Step.REPLY),
}


class Probe(msgspec.Struct, frozen=True):
    """One conversation to hold. `size` is the request's and the reply's whole IP packet, in bytes."""

    number: int
    sender: Point
    receiver: Point
    family: Family
    protocol: Protocol
    size: int
    attempt: int = 1

    @property
    def source(self) -> Address:
        """The address that the sender is known by."""
        return _must(self.sender.address(self.family))

    @property
    def destination(self) -> Address:
        """The address that the receiver is known by."""
        return _must(self.receiver.address(self.family))

    @property
    def payload_size(self) -> int:
        """Bytes of payload that make a UDP or ICMP packet of `size`."""
        return self.size - IP_HEADER[self.family] - _UDP_OR_ICMP_HEADER

    @property
    def rule(self) -> int:
        """Which rule of the network model it proves: 2 between pods, 3 between a node and a pod."""
        return rule_of(self.sender, self.receiver)

    @property
    def words(self) -> str:
        """What people call it."""
        return f"{self.protocol} from {self.sender.label} to {self.receiver.label}"


class Result(msgspec.Struct):
    """How a probe went, as the sockets at its two ends saw it.

    `peer` is whom the receiver's socket heard the request from. `reached` lists the steps known to be done:
    a packet of that step was taken by the socket that it was meant for. `errno` is the sender's socket
    error, if any.
    """

    probe: Probe
    port: int = 0
    """The sender's own port; 0 with ICMP."""
    source: Address | None = None
    """The sender's own address, where its socket tells."""
    peer: tuple[Address, int] | None = None
    reached: set[Step] = msgspec.field(default_factory=set)
    errno: int = 0
    damaged: bool = False
    """A packet of it arrived with another content."""

    @property
    def answered(self) -> bool:
        """Whether the whole conversation took place."""
        return Step.REPLY in self.reached


class Tag(msgspec.Struct, frozen=True):
    """What every payload starts with; `size` is the payload's, in bytes."""

    number: int
    step: Step
    size: int


def payload(magic: bytes, tag: Tag) -> bytes:
    """Return the payload of a tag, of `tag.size` bytes; `magic` is the run's 8 bytes."""
    head = _TAG.pack(magic, tag.number, tag.step, tag.size)
    return (head + _PATTERN * (tag.size // len(_PATTERN) + 1))[: max(tag.size, TAG_BYTES)]


def read_tag(magic: bytes, data: bytes) -> Tag | None:
    """Return the tag of a payload, None if it is not one of this run's."""
    if len(data) < TAG_BYTES or not data.startswith(magic):
        return None
    _, number, step, size = _TAG.unpack_from(data)
    return Tag(number, Step(step), size) if step in (Step.REQUEST, Step.REPLY) else None


class Pair(msgspec.Struct, frozen=True):
    """An ordered pair of points and the family in which one is to reach the other."""

    sender: Point
    receiver: Point
    family: Family

    @property
    def rule(self) -> int:
        """Which rule of the network model it is about: 2 between pods, 3 between a node and a pod."""
        return rule_of(self.sender, self.receiver)


def rule_of(sender: Point, receiver: Point) -> int:
    """Return the rule that speaks of two points: 2 of two pods, 3 of a node and a pod."""
    return 3 if isinstance(sender, NodePoint) or isinstance(receiver, NodePoint) else 2


def pod_pairs(world: World, family: Family) -> list[Pair]:
    """Return every ordered pair of pods that both have an address of the family."""
    pods = [pod for pod in world.pods if pod.address(family)]
    return [Pair(one, other, family) for one, other in permutations(pods, 2)]


def node_pairs(world: World, family: Family) -> list[Pair]:
    """Return every node with every pod, both ways."""
    nodes = [node for node in world.nodes if node.address(family)]
    pods = [pod for pod in world.pods if pod.address(family)]
    return [
        pair for node, pod in product(nodes, pods) for pair in (Pair(node, pod, family), Pair(pod, node, family))
    ]


def sample(pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
    """Choose `count` of the pairs, the same ones for the same seed.

    As far as the count allows, everyone sends at least once and receives at least once.
    """
    shuffled = list(pairs)
    random.Random(seed).shuffle(shuffled)
    if count >= len(shuffled):
        return shuffled
    senders: set[str] = set()
    receivers: set[str] = set()
    first: list[Pair] = []
    rest: list[Pair] = []
    for pair in shuffled:
        if pair.sender.label in senders and pair.receiver.label in receivers:
            rest.append(pair)
        else:
            senders.add(pair.sender.label)
            receivers.add(pair.receiver.label)
            first.append(pair)
    return (first + rest)[:count]


def plan_probes(
    pairs: Iterable[Pair], mtu: dict[str, int], protocols: Iterable[Protocol] = tuple(Protocol)
) -> list[Probe]:
    """Return the probes that prove these pairs, numbered from 1.

    `mtu` is the link MTU of every point by its label; a probe is as large as both its ends allow.
    """
    wanted = tuple(protocols)
    return [
        Probe(
            number,
            pair.sender,
            pair.receiver,
            pair.family,
            protocol,
            min(mtu[pair.sender.label], mtu[pair.receiver.label]),
        )
        for number, (pair, protocol) in enumerate(product(pairs, wanted), 1)
    ]


def _must(address: Address | None) -> Address:
    if address is None:
        raise ValueError("a probe was planned for a point that has no address of its family")
    return address
