"""Objects of a cluster in few words, for tests that state one."""

from collections.abc import Mapping
from ipaddress import ip_network
from types import MappingProxyType
from typing import Any

from podway.api.kinds.address_block import AddressBlock, AddressBlockSpec, block_name
from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.network_config import NetworkConfig, NetworkConfigSpec
from podway.api.kinds.node import INTERFACE_ADDRESSES, Node, NodeAddress, NodeStatus
from podway.api.kinds.pod import Pod, PodAddress, PodSpec, PodStatus
from podway.api.meta import Metadata

NONE: Mapping[str, str] = MappingProxyType({})


def node(name: str, *interfaces: str, labels: Mapping[str, str] = NONE, notes: Mapping[str, str] = NONE) -> Node:
    """Return a node whose uplink has these addresses (ADDRESS/LENGTH), with annotations besides."""
    annotations = {INTERFACE_ADDRESSES: ",".join(interfaces), **notes}
    return Node(
        metadata=Metadata(name=name, labels=dict(labels), annotations=annotations),
        status=node_status(*(interface.partition("/")[0] for interface in interfaces)),
    )


def node_status(*addresses: str) -> NodeStatus:
    """Return the status of a node with these addresses of its own."""
    return NodeStatus(addresses=tuple(NodeAddress(type="InternalIP", address=address) for address in addresses))


def pool(name: str, cidr: str, **spec: Any) -> IPPool:
    """Return a pool."""
    return IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr, **spec))


def block(cidr: str, pool: str, owner: str) -> AddressBlock:
    """Return a node's block of a pool."""
    return AddressBlock(
        metadata=Metadata(name=block_name(ip_network(cidr))),
        spec=AddressBlockSpec(cidr=cidr, pool=pool, node=owner),
    )


def pod(
    name: str,
    on: str,
    *addresses: str,
    namespace: str = "default",
    phase: str = "Running",
    host_network: bool = False,
) -> Pod:
    """Return a pod with these addresses on a node; of none if `on` is empty."""
    return Pod(
        metadata=Metadata(name=name, namespace=namespace),
        spec=PodSpec(node_name=on, host_network=host_network),
        status=PodStatus(phase=phase, pod_ips=tuple(PodAddress(ip=address) for address in addresses)),
    )


def config(**spec: Any) -> NetworkConfig:
    """Return the cluster's settings."""
    return NetworkConfig(metadata=Metadata(name="default"), spec=NetworkConfigSpec(**spec))
