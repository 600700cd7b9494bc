"""Where things are: the cluster's objects and what the agents told, joined into places that can be asked."""

from collections.abc import Iterable

from podway.api.addresses import Address
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.resource import Resource
from podway.cluster.view import ClusterView
from podway.plan.mtu import pod_mtu
from podway.plan.objects import BRIDGE_DEVICE
from podway.plan.path import Site
from podway.plan.uplink import Uplink
from podway.prove.world import Block, HostPoint, NodePoint, Place, PodPoint, World
from podway.trace.agents import Agents
from podway.trace.names import NO_HOSTS, Hosts

_UNKNOWN = Uplink("", 0, ())


class PointIndex:
    """The places of one cluster. It grows as the agents learns of more nodes."""

    def __init__(self, resources: Iterable[Resource], agents: Agents, hosts: Hosts = NO_HOSTS) -> None:
        self.resources = tuple(resources)
        self.hosts = hosts
        self.view = ClusterView.of(self.resources)
        self.agents = agents

    def node(self, name: str) -> NodePoint | None:
        """Return a node, or a host beside the cluster; None if there is none of this name."""
        if name in self.hosts:
            return HostPoint(name, "", tuple(self.hosts[name]), self._uplink(name).device)
        known = self.view.nodes.get(name)
        return NodePoint(name, "", known.internal_addresses, self._uplink(name).device) if known else None

    def pod(self, node: str, name: str) -> PodPoint | None:
        """Return a pod whose lease the node's agent told, None if it did not."""
        for lease in self.agents.sites.get(node, Site()).leases:
            if lease.pod == name:
                return PodPoint(
                    name,
                    node,
                    lease.netns,
                    lease.addresses,
                    lease.attachment.ifname,
                    lease.attachment.link,
                    pod_mtu(self.view, self._uplink(node), lease.addresses),
                    BRIDGE_DEVICE if lease.attach == "bridge" else "",
                )
        return None

    def point(self, node: str, pod: str) -> Place | None:
        """Return a pod, or a node where `pod` is empty."""
        return self.pod(node, pod) if pod else self.node(node)

    def pod_behind(self, node: str, link: str, address: Address) -> PodPoint | None:
        """Return the pod to which a packet for an address comes by a node's device, None if that leads to no pod.

        The agent may be asked.
        """
        if link == BRIDGE_DEVICE:
            self.agents.learn(node, addresses=(address,))
            leases = self.agents.sites.get(node, Site()).leases
            port = next((one for one in leases if one.attach == "bridge" and address in one.addresses), None)
            return self.pod(node, port.pod) if port else None
        if not any(lease.attachment.link == link for lease in self.agents.sites.get(node, Site()).leases):
            self.agents.learn(node, links=(link,))
        leases = self.agents.sites.get(node, Site()).leases
        found = next((lease for lease in leases if lease.attachment.link == link), None)
        return self.pod(node, found.pod) if found else None

    def node_with(self, address: Address) -> str:
        """Return the name of the node, or host, that has an address, empty if none has."""
        nodes = (name for name, node in self.view.nodes.items() if address in node.internal_addresses)
        return next(nodes, "") or self.host_with(address)

    def host_with(self, address: Address) -> str:
        """Return the name of the host beside the cluster that has an address, empty if none has."""
        return next((name for name, addresses in self.hosts.items() if address in addresses), "")

    def world(self) -> World:
        """Return all of it as diagnosis knows it."""
        pods = []
        for one in self.resources:
            if isinstance(one, Pod) and one.addresses and not one.spec.host_network:
                name, node = f"{one.metadata.namespace}/{one.metadata.name}", one.spec.node_name
                pods.append(self.pod(node, name) or PodPoint(name, node, "", one.addresses))
        nodes = (self.node(one.metadata.name) for one in self.resources if isinstance(one, Node))
        blocks = tuple(Block(block.network, block.spec.node) for block in self.view.blocks.values())
        return World(tuple(node for node in nodes if node), tuple(pods), blocks, view=self.view)

    def _uplink(self, node: str) -> Uplink:
        return self.agents.sites.get(node, Site()).uplink or _UNKNOWN
