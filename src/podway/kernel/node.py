"""Kernel: everything that Podway does to one node's kernel, behind one door."""

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from typing import Literal, Self, TypeVar

from podway.api.addresses import Address, Family, Network
from podway.api.lease import LINK_PREFIX, Lease
from podway.errors import InvalidInput, KernelError
from podway.kernel import announce, engine, ipip, kinds, leases, netns, offload, pods, sysctls, wiring
from podway.kernel.engine import Kind, Report
from podway.kernel.flow import FlowEngine
from podway.kernel.netlink import Connection
from podway.kernel.netlink.constants import NETLINK_NETFILTER
from podway.kernel.nft.libnftables import Nftables
from podway.kernel.nft.sets import NftSets
from podway.kernel.node_services import NodeServices
from podway.kernel.rtnl import addresses as rtnl_addresses
from podway.kernel.rtnl import links, proxies, routes
from podway.plan.changes import Change
from podway.plan.objects import DEVICE_GROUP, LINK_GROUP, ROUTE_PROTOCOL, NftElement, NodePlan, PodEnd, PodWiring

_T = TypeVar("_T")


class Kernel:
    """The kernel as one node's network namespace shows it. Threads may share it.

    It pins the namespace until it is closed. Every method may raise KernelError.
    """

    def __init__(self, netns_fd: int | None = None) -> None:
        """Open the kernel of a namespace; None is the calling thread's."""
        if netns_fd is not None and netns.identity(netns_fd) == netns.identity():
            netns_fd = None
        self._netns = None if netns_fd is None else fcntl.fcntl(netns_fd, fcntl.F_DUPFD_CLOEXEC, 3)
        self.connection = Connection(self._netns)
        self._netfilter = Connection(self._netns, protocol=NETLINK_NETFILTER)
        self._further: list[Connection] = []
        self.ports: set[int] = {self.connection.port, self._netfilter.port}
        """The netlink port ids by which the kernel tells our own changes from others' (events.Watcher)."""
        self._nftables: Nftables | None = None
        self._sets = NftSets(self._netfilter)
        self._lock = threading.Lock()
        self._pod_settings = 0
        """How many settings of pods' links were written."""
        self._inventory = kinds.Inventory(self.connection)
        self._sysctls = kinds.Sysctls(self.inside, self._inventory)
        self._links = kinds.PodLinks(self.connection, self._inventory)
        self._tunnels = ipip.IpipTunnels(self.connection, lambda: self._inventory.numbers)
        self._endpoints = ipip.TunnelEndpoints(self.connection, lambda: self._inventory.numbers)
        self._sources = ipip.TunnelSources(self.connection, lambda: self._inventory.numbers)
        self.flow = FlowEngine(self.connection, lambda: self._inventory.numbers)
        self.services = NodeServices(self._netfilter)
        self._devices = kinds.Devices(self.connection, self._inventory, self._netns)
        # Rules come before what they guard, and go after it.
        self._kinds: tuple[Kind, ...] = (
            kinds.NftTables(self._netfilter, self._open_nftables),
            kinds.NftElements(self._sets),
            self._devices,
            self._links,
            kinds.Ports(self.connection, self._inventory),
            self._sysctls,
            kinds.Addresses(self.connection, self._inventory),
            kinds.Neighbours(self.connection, self._inventory),
            kinds.Proxies(self.connection, self._inventory),
            kinds.Forwarding(self.connection, self._inventory),
            self._tunnels,
            self._sources,
            self._endpoints,
            self.flow,
            kinds.Routes(self.connection, self._inventory),
        )

    @classmethod
    def open(cls, netns_fd: int | None = None) -> Self:
        """Open the kernel of a namespace (None: the calling thread's), whose descriptor stays the caller's."""
        return cls(netns_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the namespace."""
        self.flow.close()
        for connection in (self.connection, self._netfilter, *self._further):
            connection.close()
        if self._nftables:
            self._nftables.close()
            self._nftables = None
        if self._netns is not None:
            os.close(self._netns)
            self._netns = None

    @property
    def writes(self) -> int:
        """How often something was sent so far that could have changed the node's namespace."""
        maps = (self._endpoints, self._sources)
        writers = (
            self.connection,
            self._netfilter,
            self._devices,
            self._sysctls,
            self._tunnels,
            *maps,
            self._nftables,
            self.flow,
        )
        return self._pod_settings + sum(writer.writes for writer in (*writers, *self._further) if writer)

    def connect(self) -> Connection:
        """Return a further connection to rtnetlink, for a thread of its own; it is closed with the kernel."""
        connection = Connection(self._netns)
        self._further.append(connection)
        self.ports.add(connection.port)
        return connection

    def inside(self, function: Callable[[], _T]) -> _T:
        """Run a function in the node's namespace; return or raise what it does."""
        return function() if self._netns is None else netns.run(self._netns, function)

    def wire(self, plan: PodWiring, pod_netns: int, *, on_stage: Callable[[str], None] = lambda _: None) -> None:
        """Build a pod's attachment, or nothing: when a step fails, what was made is removed again.

        `on_stage` hears what `wire_in_steps` yields. Raises KernelError, with errno EEXIST if the interface's name
        is taken in the pod; the message says which name.
        """
        with contextlib.closing(self.wire_in_steps(plan, pod_netns)) as steps:
            for stage in steps:
                on_stage(stage)

    def wire_in_steps(
        self, plan: PodWiring, pod_netns: int, connection: Connection | None = None
    ) -> Generator[str, None, None]:
        """Build a pod's attachment step by step; what was made goes if one fails, or it is closed before its end.

        Yields `created`, when nothing can pass there yet; `guarded`, when what judges the pod's packets is there;
        `host`, `pod` and `committed`. All steps but the one to `guarded` may be taken in another thread, which has
        a `connection` of its own (`connect`), if nothing of the wiring stands elsewhere than on the pod's link.
        Raises KernelError as `wire` does.
        """
        steps = wiring.wire(connection or self.connection, self._write_sysctls, plan, pod_netns)
        try:
            for stage in steps:
                yield stage
                if stage == "created":
                    self._change_elements("add", plan.elements)
                    self.flow.attach_pod(plan)
                    yield "guarded"
        except BaseException:
            steps.close()
            with contextlib.suppress(KernelError):  # the first failure is the one to tell
                self._change_elements("delete", plan.elements)
            raise

    def unwire(self, link: str) -> bool:
        """Remove the host end of a pod's pair, and with it all the rest; False if it was gone."""
        if not link.startswith(LINK_PREFIX):
            raise InvalidInput(f"link {link}: is not a pod's", hint=f"their names begin with {LINK_PREFIX}")
        return links.remove_if_there(self.connection, link)

    def release(self, plan: PodWiring) -> None:
        """Take away what of a pod's wiring stands on other devices than its link, as far as it is there."""
        wiring.release(self.connection, plan)
        self._change_elements("delete", plan.elements)

    def has_link(self, name: str) -> bool:
        """Tell whether there is a link of this name."""
        return links.exists(self.connection, name)

    def inspect_pod(self, pod_netns: int, ifname: str) -> pods.PodState | None:
        """Return what a pod has of an interface, None if there is no such interface."""
        with Connection(pod_netns) as pod:
            return pods.inspect(pod, ifname)

    def check_pod(self, pod_netns: int, want: PodEnd) -> list[str]:
        """Say in words what of a pod end is missing or altered; an empty list if nothing is."""
        return pods.differences(self.inspect_pod(pod_netns, want.ifname), want)

    def foreign_addresses(self) -> tuple[Address, ...]:
        """Return all addresses of the node, in order, but for those on devices of ours."""
        ours = {link.index for link in links.dump(self.connection) if link.group in (LINK_GROUP, DEVICE_GROUP)}
        found = {one.address.ip for one in rtnl_addresses.dump(self.connection) if one.index not in ours}
        return tuple(sorted(found, key=lambda one: (one.version, one)))

    def mtus(self) -> dict[str, int]:
        """Return the MTU of each device of the node, in bytes."""
        return {link.name: link.mtu for link in links.dump(self.connection)}

    def gateway_devices(self, protocol: int, lengths: Collection[tuple[int, int]]) -> dict[Network, str]:
        """See NodeKernel.gateway_devices."""
        found: dict[Network, str] = {}
        # A thread may ask this: nobody shall wait for the loop's own connection until all routes are read.
        with Connection(self._netns) as connection:
            names = {link.index: link.name for link in links.dump(connection)}
            for family in Family:
                wanted = {length for version, length in lengths if version == family}
                for destination, index in routes.gateways(connection, family, protocol=protocol, lengths=wanted):
                    found[destination] = names.get(index, "")
        return found

    def ipip_counters(self) -> dict[str, int]:
        """Return how many packets the IPIP programs have seen (see ipip.COUNTERS); nothing without them."""
        return ipip.counters(self.connection, {link.name: link.index for link in links.dump(self.connection)})

    def set_pod_mtu(self, pod_netns: int, ifname: str, mtu: int, *, was: int) -> None:
        """Change the MTU of a pod's interface, unless somebody else has set it to another than it `was`."""
        with Connection(pod_netns) as pod:
            link = links.find(pod, ifname)
            if link.mtu == was:
                pod.transact([links.change(link.index, mtu=mtu, label=ifname)])

    def leases(self) -> list[Lease]:
        """Return every lease that the kernel holds."""
        return leases.read(self.connection).leases

    def orphans(self) -> list[str]:
        """Return the names of pod links that hold no lease: of ADDs that were cut short."""
        return leases.read(self.connection).orphans

    def offloads(self, device: str) -> dict[str, bool]:
        """Return the offloads of a device by the names of `ethtool -k`, and whether each is on."""
        return offload.features(device, self._netns)

    def turn_off(self, device: str, offloads: Iterable[str]) -> None:
        """Turn offloads of a device of ours off, and again whenever it is made anew."""
        self._devices.turn_off(device, frozenset(offloads))

    def probe_socket(self, device: str) -> offload.ProbeSocket:
        """Return a socket that sends and hears probes on a device; the caller closes it."""
        return offload.ProbeSocket(device, self._netns)

    def answered_on(self, device: str) -> frozenset[Address]:
        """Return the addresses that the node answers for on a device because an agent had it so."""
        with self._lock:
            numbers = {link.name: link.index for link in self._inventory.look()}
        return frozenset(
            record.address
            for record in proxies.dump(self.connection)
            if record.index == numbers.get(device) and record.protocol == ROUTE_PROTOCOL
        )

    def announce(self, device: str, addresses: Collection[Address]) -> None:
        """Tell a segment that addresses are here from now on: see podway.kernel.announce. Raises KernelError."""
        announce.announce(device, addresses, self._netns)

    def sysctls(self, paths: Iterable[str]) -> dict[str, str]:
        """Return the settings at these paths below /proc/sys; those that do not exist are left out."""
        return self.inside(lambda: sysctls.read(paths))

    def diff(self, plan: NodePlan, *, of: Collection[str] | None = None) -> list[Change]:
        """Return what differs from a plan, of all kinds or `of` those of these names, and change nothing."""
        with self._lock:
            feasible = self._feasible(plan)
        kinds = [kind for kind in self._kinds if of is None or kind.name in of]
        return [change for kind in kinds for change in engine.diff(kind, feasible)]

    def audit(self, plan: NodePlan, *, full: bool = True) -> Iterator[Change | None]:
        """Yield what differs from a plan, with None between where a caller may pause: see engine.audit.

        Without `full` the kinds are left out of which there may be thousands.
        """
        with self._lock:
            feasible = self._feasible(plan)
        yield from engine.audit(
            (kind for kind in self._kinds if full or not isinstance(kind, engine.Scannable)), feasible
        )

    def carry_out(
        self, changes: Iterable[Change], plan: Callable[[], NodePlan], *, removes: bool = True
    ) -> Report:
        """Carry out changes that lead to a plan, without a look at the rest; failures are in the report.

        Where a device was made anew, or lost an address, what stood on it may have gone with it, and a program of
        IPIP that is the only one has nothing in its maps: then all of the plan is applied, with or without what
        it `removes`.
        """
        with self._lock:
            self._inventory.look()
        report = engine.carry_out(self._kinds, changes, plan)
        causes = [change for change in report.changes if _takes_others_along(change)]
        if causes:
            again = self.apply(plan(), removes=removes)
            found = tuple(change for change in again.changes if not _went_along(change, causes))
            return Report(report.changes + again.changes, again.failures, found)
        return report

    def apply(self, plan: NodePlan, *, removes: bool = True) -> Report:
        """Make the kernel what a plan says; failures are in the report. A correct node costs no write.

        Without `removes` what is not in the plan stays.
        """
        with self._lock:
            feasible = self._feasible(plan)
        report = engine.apply(self._kinds, feasible, removes=removes)
        # With the last IPv4 address of a device its IPv4 routes go, without a word (fib_disable_ip in
        # net/ipv4/fib_frontend.c).
        disturbed = any(change.kind == "address" and change.action == "remove" for change in report.changes)
        if report.failures and (still := self._feasible(feasible)) is not feasible:
            # A pod's link went meanwhile, so what failed may have been on it: only a second look can tell.
            feasible, disturbed = still, True
        if disturbed:
            again = engine.apply(self._kinds, feasible, removes=removes)
            return Report(report.changes + again.changes, again.failures)
        return report

    def _feasible(self, plan: NodePlan) -> NodePlan:
        """Leave out what belongs on pod links that are gone: whoever makes and removes links will hear of it."""
        self._inventory.look()
        return plan.without({link.name for link in plan.links} - self._links.list(plan).keys())

    def _open_nftables(self) -> Nftables:
        if self._nftables is None:
            self._nftables = Nftables(self.inside, self.ports)
        return self._nftables

    def _change_elements(self, action: Literal["add", "delete"], elements: Sequence[NftElement]) -> None:
        """Add elements of sets or delete them, if their table is there: the engine loads it with its elements."""
        try:
            self._sets.change(action, elements)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise

    def _write_sysctls(self, plan: PodWiring) -> None:
        written = self.inside(lambda: sum(map(sysctls.write, plan.sysctls)))
        with self._lock:
            self._pod_settings += written


def _takes_others_along(change: Change) -> bool:
    if change.kind == "device":
        return change.action == "replace"
    if change.kind == "IPIP tunnel":  # a program that is the only one begins with empty maps
        return change.action != "remove"
    return change.kind == "address" and change.action == "remove"


def _went_along(change: Change, causes: Iterable[Change]) -> bool:
    """Tell whether something is missing or altered for what was done to a device that it stands on."""
    return any(
        change.kind in ("tunnel source", "tunnel endpoint")
        if cause.kind == "IPIP tunnel"
        else not set(cause.devices).isdisjoint(change.devices)
        for cause in causes
    )
