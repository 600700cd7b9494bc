"""The agents, as a trace asks them: each for its own node, and none twice that does not answer."""

from collections.abc import Iterable
from ipaddress import ip_interface
from typing import Any, Protocol

import msgspec

from podway.api.addresses import Address
from podway.api.lease import LeaseRecord
from podway.bgp.probe import PathMtu
from podway.errors import AgentError
from podway.kernel.network import RouteRecord
from podway.plan.path import Site
from podway.plan.uplink import Uplink
from podway.probe.facts import KernelState, RouteLookup
from podway.probe.plain import read_kernel_state, read_lookup, read_route
from podway.prove.world import PodPoint, Point


class Ask(Protocol):
    """How an agent is called, whatever lies between: a unix socket, or the channel between machines."""

    def __call__(self, node: str, method: str, **params: Any) -> Any:
        """Call a method of a node's agent, return its result. Raises AgentError."""


class Agents:
    """All agents. `silent` says of those that did not answer why."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.silent: dict[str, str] = {}
        self.sites: dict[str, Site] = {}
        self.kernels: dict[str, str] = {}
        """What tells the nodes' machines apart: those of one machine have one clock."""
        self.fallbacks: dict[str, str] = {}
        """Of nodes that do without the flow engine, as `dataPath: auto` lets them, why."""

    def call(self, node: str, method: str, **params: Any) -> Any:
        """Call a method of a node's agent. Raises AgentError, at once if it did not tell about its node."""
        if node in self.silent:
            raise AgentError(self.silent[node])
        return self._ask(node, method, **params)

    def answers(self, node: str) -> bool:
        """Tell whether a node's agent has answered."""
        return node in self.kernels

    def learn(self, node: str, *, addresses: Iterable[Address] = (), links: Iterable[str] = ()) -> None:
        """Ask a node for its uplink and for the leases of these addresses and links; note it if it is silent."""
        if not node or node in self.silent:
            return
        try:
            told = self.call(node, "trace.site", addresses=[str(one) for one in addresses], links=list(links))
        except AgentError as error:
            self.silent[node] = f"{error.message}; {error.hint}" if error.hint else error.message
            return
        uplink = told["uplink"]
        before = self.sites.get(node, Site())
        leases = {
            lease.attachment: lease
            for lease in (
                *before.leases,
                *(record.lease for record in msgspec.convert(told["leases"], list[LeaseRecord])),
            )
        }
        self.kernels[node] = told["kernel"]
        if fallback := told.get("fallback", ""):  # an older agent does not say it
            self.fallbacks[node] = fallback
        self.sites[node] = Site(
            Uplink(uplink["device"], uplink["mtu"], tuple(map(ip_interface, uplink["addresses"]))),
            tuple(leases.values()),
        )


class RemoteInspector:
    """The kernels of points, by way of their nodes' agents; see podway.prove.inspector. Each question once."""

    overflowed = False

    def __init__(self, agents: Agents) -> None:
        self._agents = agents
        self._kernel_states: dict[str, KernelState] = {}
        self._lookups: dict[tuple[str, Address, Address | None, str], tuple[RouteLookup, str]] = {}

    def kernel_state(self, point: Point) -> KernelState:
        """See Inspector. Raises AgentError."""
        if point.label not in self._kernel_states:
            self._kernel_states[point.label] = read_kernel_state(self._call(point, "trace.ground"))
        return self._kernel_states[point.label]

    def lookup(self, point: Point, destination: Address, source: Address | None, iif: str) -> RouteLookup:
        """See Inspector. Raises AgentError."""
        return self.lookup_and_session(point, destination, source, iif)[0]

    def lookup_and_session(
        self, point: Point, destination: Address, source: Address | None, iif: str
    ) -> tuple[RouteLookup, str]:
        """Return the way, and the name of the BIRD session that told its route, if one did."""
        key = point.label, destination, source, iif
        if key not in self._lookups:
            told = self._call(
                point, "trace.way", destination=str(destination), source=str(source) if source else "", iif=iif
            )
            self._lookups[key] = read_lookup(told["way"]), told["session"]
        return self._lookups[key]

    def rejecting(self, point: Point, destination: Address) -> RouteRecord | None:
        """See Inspector. Raises AgentError."""
        told = self._call(point, "trace.rejecting", destination=str(destination))
        return read_route(told) if told else None

    def setting(self, point: Point, name: str) -> str | None:
        """See Inspector. Raises AgentError."""
        told: str | None = self._call(point, "trace.setting", name=name)
        return told

    def path_mtu(self, point: Point, address: Address, largest: int) -> PathMtu | None:
        """See Inspector. Raises AgentError."""
        told = self._call(point, "trace.path_mtu", address=str(address), largest=largest)
        return PathMtu(told["fits"], told["told"]) if told else None

    def _call(self, point: Point, method: str, **params: Any) -> Any:
        link = point.host_link if isinstance(point, PodPoint) else ""
        return self._agents.call(point.node, method, link=link, **params)
