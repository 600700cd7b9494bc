"""What the reconcile loop asks of a node's kernel, so that the loop runs without one, too.

`podway.kernel.node.Kernel` is the kernel itself. The tests have another, which keeps in memory what is applied and
is driven by the same engine (podway.kernel.engine).
"""

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from typing import Protocol

from podway.api.addresses import Address, Family, Network
from podway.kernel.engine import Report
from podway.kernel.flow import Entries, FlowWrites
from podway.plan.changes import Change
from podway.plan.objects import NodePlan
from podway.policy.names import Bearer
from podway.services.maps import Delta as ServiceDelta
from podway.services.maps import Entries as ServiceEntries
from podway.services.node_maps import NodeDelta, NodeKey, NodeValue


class NamesDoor(Protocol):
    """What a flow engine's maps say of DNS (podway.kernel.dns_answers.NameMaps). Methods may raise KernelError."""

    def listen(self, resolvers: Iterable[Address], until: float) -> None:
        """Have answers of these resolvers, and of no others, held until a time (CLOCK_MONOTONIC, seconds)."""
        ...

    def remember(self, until: Mapping[Bearer, float]) -> None:
        """Write down until when addresses bear names; 0 for what they do not any more."""
        ...

    def remembered(self) -> Mapping[Bearer, float]:
        """Return what was written down, by whichever agent."""
        ...


class FlowDoor(Protocol):
    """The flow engine of a node (podway.kernel.flow.FlowEngine). Every method may raise KernelError."""

    @property
    def is_open(self) -> bool:
        """Whether the engine is there to be written to."""
        ...

    def why_not(self) -> str:
        """Say why this system cannot have the flow engine, as far as is known before it is tried."""
        ...

    @property
    def openings(self) -> int:
        """How often it was opened: each time the maps may be others."""
        ...

    def is_attached(self) -> bool:
        """Tell whether an engine is at work on devices of the node."""
        ...

    def loading(self, wires: Iterable[str], pods: Iterable[str]) -> Callable[[], None] | None:
        """Return what a thread has to do before `open`, which takes long; None if nothing. Call it once."""
        ...

    def open(self, wires: Iterable[str], pods: Iterable[str], fill: Callable[[], None]) -> None:
        """Have the engine work on these devices, once `fill` wrote its maps.

        Raises UnsupportedSystem and KernelError.
        """
        ...

    def limited(self) -> frozenset[str]:
        """Return the pods' links on which somebody limits what passes: their packets are the stack's."""
        ...

    def close(self) -> None:
        """Let go of the engine: what is attached goes on."""
        ...

    def stop(self) -> None:
        """Have the engine judge nothing any more, on all devices at once, and let go of it."""
        ...

    def read(self) -> Generator[None, None, Entries]:
        """Return what the maps say; yields now and then, where a caller may pause."""
        ...

    def write(self, changes: FlowWrites) -> Iterator[None]:
        """Write changes; yields now and then, where a caller may pause."""
        ...

    def name_maps(self) -> NamesDoor:
        """Return what the maps say of resolvers and names; good until the engine is closed."""
        ...

    def read_services(self) -> Generator[None, None, ServiceEntries]:
        """Return what the maps say of Services; yields now and then, where a caller may pause."""
        ...

    def write_services(self, delta: ServiceDelta) -> Generator[None, None, None]:
        """Write changes of Services; yields now and then, where a caller may pause."""
        ...

    def look_again(self, *, ways: bool = False) -> None:
        """Have flows judged again whose grounds changed; with `ways`, their ways looked up anew."""
        ...


class ServicesDoor(Protocol):
    """The maps that lead a node's own processes to Services (podway.kernel.node_services.NodeServices).

    Every method may raise KernelError.
    """

    def read(self, families: Iterable[Family]) -> Generator[None, None, Mapping[NodeKey, NodeValue]]:
        """Return all entries of the tables of these families; yields now and then, where a caller may pause.

        The error is ENOENT while one of the tables is not there.
        """
        ...

    def write(self, delta: NodeDelta) -> Generator[None, None, None]:
        """Write changes; yields now and then, where a caller may pause."""
        ...


class NodeKernel(Protocol):
    """A kernel as one node's network namespace shows it. Every method may raise KernelError."""

    @property
    def flow(self) -> FlowDoor:
        """The node's flow engine."""
        ...

    @property
    def services(self) -> ServicesDoor:
        """The maps of Services for the node's own processes."""
        ...

    def apply(self, plan: NodePlan, *, removes: bool = True) -> Report:
        """Make the kernel what a plan says; failures are in the report.

        Without `removes` what is not in the plan stays.
        """
        ...

    def carry_out(
        self, changes: Iterable[Change], plan: Callable[[], NodePlan], *, removes: bool = True
    ) -> Report:
        """Carry out changes that lead to a plan, without a look at the rest; failures are in the report.

        The plan is asked for only where it has to be known, because the changes took others along; then what
        is not in it goes as well if it `removes`.
        """
        ...

    def audit(self, plan: NodePlan, *, full: bool = True) -> Iterator[Change | None]:
        """Yield what differs from a plan, with None between where a caller may pause."""
        ...

    def diff(self, plan: NodePlan, *, of: Collection[str] | None = None) -> list[Change]:
        """Return what differs from a plan, of all kinds or `of` those of these names."""
        ...

    def sysctls(self, paths: Iterable[str]) -> dict[str, str]:
        """Return the settings at these paths below /proc/sys; those that do not exist are left out."""
        ...

    def foreign_addresses(self) -> tuple[Address, ...]:
        """Return all addresses of the node, in order, but for those on devices of ours."""
        ...

    def mtus(self) -> dict[str, int]:
        """Return the MTU of each device of the node, in bytes."""
        ...

    def set_pod_mtu(self, pod_netns: int, ifname: str, mtu: int, *, was: int) -> None:
        """Change the MTU of a pod's interface, unless somebody else has set it to another than it `was`."""
        ...

    def gateway_devices(self, protocol: int, lengths: Collection[tuple[int, int]]) -> Mapping[Network, str]:
        """Return the devices by which a protocol's routes lead to a gateway, by destination.

        To destinations of these IP versions and prefix lengths; of several equal ways the first.
        """
        ...
