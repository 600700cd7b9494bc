"""Which of verify's conversations policies deny: those must not take place. Pure."""

from collections.abc import Iterable, Iterator, Mapping

from podway.api.addresses import Address
from podway.api.kinds.cluster_network_policy import ClusterNetworkPolicy
from podway.api.kinds.network_policy import NetworkPolicy
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.resource import subject
from podway.errors import InvalidInput
from podway.policy.explain import End, Judge
from podway.policy.maps import Direction
from podway.probe.build import Protocol
from podway.probe.packet import ECHO_REQUEST, ICMP
from podway.prove.probe import Probe
from podway.prove.world import Absent, PodPoint, Point, World


class Denials:
    """What the policies of a cluster deny; nothing where its settings say that nobody enforces them.

    Nor on nodes that do without the flow engine, as settings let them.
    """

    def __init__(self, world: World, port: int) -> None:
        """`port` is the one to which probes of TCP and UDP are sent."""
        view = self._view = world.view
        self._port = port
        self._fallbacks = world.fallbacks
        self._unheld: set[str] = set()
        there_are = any(view.tables[kind.KIND] for kind in (NetworkPolicy, ClusterNetworkPolicy))
        self._enforced = there_are and view.config.data_path != "kernel"
        objects = (obj for table in view.tables.values() for obj in table.values())
        self._judge = Judge(objects if self._enforced else ())

    def reason(self, probe: Probe) -> str:
        """Return in words what denies a conversation; empty if nothing does."""
        return self.of(probe.sender, probe.receiver, (probe.source, probe.destination), *_asked(probe, self._port))

    def of(
        self, sender: Point, receiver: Point, addresses: tuple[Address, Address], protocol: int, port: int
    ) -> str:
        """Return in words what denies a connection between two addresses; empty if nothing does."""
        if not self._enforced:
            return ""
        reasons = self._judge.reasons(self._end(sender), self._end(receiver), addresses, protocol, port)
        denying = [one for one in reasons if not one.allowed]
        for one in denying:
            node = receiver.node if one.direction == Direction.INGRESS else sender.node
            if node not in self._fallbacks:
                return f"{one.direction} of {one.pod}: {one.reason}"
            self._unheld.add(node)
        return ""

    @property
    def unheld(self) -> Iterator[Absent]:
        """Where nobody stops what was asked about and should be stopped."""
        return unheld(self._unheld, self._fallbacks)

    def _end(self, point: Point) -> End:
        if isinstance(point, PodPoint):
            namespace, _, name = point.name.partition("/")
            wanted = (Pod.KIND, namespace, name)
            found = self._view.find(wanted)
            if not isinstance(found, Pod):
                raise InvalidInput(f"{subject(wanted)} is gone", hint="try again")
            return End(subject(wanted), point.addresses, found, point.node)
        return End(subject((Node.KIND, "", point.node)), point.addresses, None, point.node)


def unheld(nodes: Iterable[str], fallbacks: Mapping[str, str]) -> Iterator[Absent]:
    """Yield that policies of these nodes are not proved, which do without the flow engine for these reasons."""
    for node in sorted(nodes):
        yield Absent(f"policies on node {node}", f"nothing enforces them there: {fallbacks[node]}")


def _asked(probe: Probe, port: int) -> tuple[int, int]:
    """Return protocol and port by which rules know a conversation: of ICMP that is type and code."""
    if probe.protocol is Protocol.ICMP:
        return ICMP[probe.family], ECHO_REQUEST[probe.family] << 8
    return {Protocol.TCP: 6, Protocol.UDP: 17}[probe.protocol], port
