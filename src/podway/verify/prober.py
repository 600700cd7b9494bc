"""The prober: endpoints in every node and pod, and conversations held between them."""

import os
import random
import resource
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import msgspec

from podway.errors import InvalidInput
from podway.probe.capture import await_stamps
from podway.probe.facts import KernelState
from podway.prove.encapsulation import ObservedEncapsulation, observed_encapsulations
from podway.prove.inspector import Inspector
from podway.prove.judge import Fault, judge
from podway.prove.path import Leg, legs_of
from podway.prove.probe import Pair, Probe, Step
from podway.prove.world import Absent, PodPoint, World
from podway.verify.endpoint import PortTaken, ProbeEndpoint
from podway.verify.engine import Engine

_PORTS = range(61000, 65000)
"""Above Linux's ephemeral ports (net.ipv4.ip_local_port_range)."""
_PORT_TRIES = 20
_DEFAULT_MTU = 1500
_CLOSERS = 16


class Trial(msgspec.Struct, frozen=True):
    """One conversation that was held: what is wrong with it, where its packets were seen, and how they crossed."""

    probe: Probe
    fault: Fault | None
    legs: dict[Step, Leg]
    observed: frozenset[ObservedEncapsulation] = frozenset()
    arrived: bool = False
    """Whether anything of it was taken by the socket that it was meant for."""


class Prober:
    """Open endpoints in all points of an entered world; `timeout` is that of one conversation, in seconds.

    Raises InvalidInput if a namespace has gone since, PortTaken if no port is free in all of them, OSError.
    """

    def __init__(self, world: World, timeout: float) -> None:
        self.world = world
        self.packets = 0
        self.missed = 0
        self._magic = os.urandom(8)
        _raise_file_limit()
        self.port, echo_id = self._open(world)
        """To which probes of TCP and UDP are sent."""
        self._engine = Engine(self._endpoints, magic=self._magic, port=self.port, echo_id=echo_id, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.close()
        self._close()

    @property
    def unusable(self) -> tuple[Absent, ...]:
        """Points that have no socket in a family, and why."""
        return tuple(
            Absent(label, reason)
            for label, endpoint in self._endpoints.items()
            for reason in endpoint.unusable.values()
        )

    def usable(self, pair: Pair) -> bool:
        """Tell whether both ends of a pair have sockets."""
        return all(pair.family in self._endpoints[end.label].ends for end in (pair.sender, pair.receiver))

    def hold(self, probes: Iterable[Probe]) -> list[Trial]:
        """Hold conversations and judge them. Raises OSError."""
        results, seen = self._engine.hold(probes)
        self.packets += len(seen)
        self.missed += sum(endpoint.capture.dropped() for endpoint in self._endpoints.values())
        legs = legs_of(self._magic, results, seen)
        return [
            Trial(
                result.probe,
                judge(self.world, result, legs[result.probe.number]),
                legs[result.probe.number],
                frozenset(observed_encapsulations(self.world, result.probe, legs[result.probe.number])),
                bool(result.reached),
            )
            for result in results
        ]

    def _open(self, world: World) -> tuple[int, int]:
        for attempt in range(_PORT_TRIES):
            port, echo_id = random.choice(_PORTS), random.randrange(1, 2**16)
            self._endpoints: dict[str, ProbeEndpoint] = {}
            try:
                for point in world.points.values():
                    self._endpoints[point.label] = ProbeEndpoint(point, port, echo_id, self._magic)
            except PortTaken:
                self._close()
                if attempt == _PORT_TRIES - 1:
                    raise
            except BaseException:
                self._close()
                raise
            else:
                await_stamps()
                return port, echo_id
        raise AssertionError("the last attempt returns or raises")

    def _close(self) -> None:
        # Closing a packet socket waits for an RCU grace period: many at once wait for the same ones.
        with ThreadPoolExecutor(_CLOSERS) as closers:
            for endpoint in self._endpoints.values():
                closers.submit(endpoint.close)


def enter(world: World, inspector: Inspector) -> tuple[World, dict[str, KernelState]]:
    """Look into every namespace; return the world with what was not known filled in, and what stands there.

    What cannot be entered becomes absent. Raises KernelError.
    """
    kernel_states: dict[str, KernelState] = {}
    absent = list(world.absent)
    for point in world.points.values():
        try:
            kernel_states[point.label] = inspector.kernel_state(point)
        except InvalidInput as error:
            absent.append(Absent(point.label, f"cannot be entered: {error.message}"))
    nodes = tuple(node for node in world.nodes if node.label in kernel_states)
    inside = {node.name: kernel_states[node.label] for node in nodes}
    pods: list[PodPoint] = []
    for pod in world.pods:
        if pod.label in kernel_states and pod.node in inside:
            pods.append(_completed(pod, kernel_states[pod.label], inside[pod.node]))
        elif pod.label in kernel_states:
            absent.append(Absent(pod.label, f"its node {pod.node} cannot be entered"))
    entered = msgspec.structs.replace(world, nodes=nodes, pods=tuple(pods), absent=tuple(absent))
    return entered, kernel_states


def link_mtus(world: World, kernel_states: dict[str, KernelState]) -> dict[str, int]:
    """Return the MTU of every point's link, by label."""
    mtus = {pod.label: pod.mtu for pod in world.pods}
    for node in world.nodes:
        link = kernel_states[node.label].links.get(node.uplink)
        mtus[node.label] = link.mtu if link else _DEFAULT_MTU
    return mtus


def _completed(pod: PodPoint, inside: KernelState, node: KernelState) -> PodPoint:
    link = inside.links.get(pod.ifname)
    peer = node.link_by_index(link.peer) if link else None
    return msgspec.structs.replace(
        pod,
        host_link=pod.host_link or (peer.name if peer else ""),
        mtu=pod.mtu or (link.mtu if link else _DEFAULT_MTU),
    )


def _raise_file_limit() -> None:
    """Allow as many open sockets as may be: there are up to nine in every pod."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
