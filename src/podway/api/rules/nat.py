"""Translation of what leaves the cluster: chosen source addresses, and Services' ranges, beside the rest. Pure."""

from collections.abc import Iterator, Sequence

from podway.api.addresses import Address, Network
from podway.api.kinds.bgp_peer import BGPPeer
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.node import NAT_ADDRESSES, Node
from podway.api.resource import Resource, invalid, key, of_kind, subject


def check_change(new: Resource, others: Sequence[Resource], old: Resource | None) -> None:
    """Check a node's chosen addresses, and that Services and pods have ranges apart. Raises InvalidObject."""
    match new:
        case Node():
            for other in others:
                _check_node(new, other, blamed=new)
        case IPPool():
            for config in of_kind(NetworkConfig, others):
                check_services(config, new, blamed=new)
        case NetworkConfig():
            for pool in of_kind(IPPool, others):
                check_services(new, pool, blamed=new)
        case _:
            pass
    if isinstance(new, IPPool | NetworkConfig | BGPPeer | Node):
        for node in of_kind(Node, others):
            _check_node(node, new, blamed=new)


def check_services(config: NetworkConfig, pool: IPPool, *, blamed: Resource) -> None:
    """Check that Services and a pool's pods have ranges apart. Raises InvalidObject about the one to blame."""
    for index, network in enumerate(config.spec.service_networks):
        if network.version != pool.network.version or not network.overlaps(pool.network):
            continue
        if blamed is pool:
            problem = f"{pool.network} overlaps {network}, spec.serviceCidrs[{index}] of {subject(key(config))}"
            raise invalid(
                pool,
                "spec.cidr",
                problem,
                "use another range for the pool: of these addresses the cluster gives some to Services",
            )
        raise invalid(
            config,
            f"spec.serviceCidrs[{index}]",
            f"{network} overlaps {pool.network} of {subject(key(pool))}",
            "write the range of the Services' addresses (kube-apiserver's --service-cluster-ip-range)",
        )


def _check_node(node: Node, other: Resource, *, blamed: Resource) -> None:
    """Check that a node's chosen addresses are nobody else's."""
    for address in node.nat_addresses:
        for field, how in _holds(other, address):
            mine, theirs = subject(key(node)), subject(key(other))
            hint = f"choose for {mine} an address that is its alone, since answers must come to it"
            if blamed is node:
                raise invalid(node, f"metadata.annotations[{NAT_ADDRESSES}]", f"{address} {how} {theirs}", hint)
            raise invalid(
                other, field, f"{address}, to which {mine} translates pods' addresses, {how} {theirs}", hint
            )


def _holds(other: Resource, address: Address) -> Iterator[tuple[str, str]]:
    """Yield the field by which an object has an address, and in words how."""
    match other:
        case IPPool():
            if _within(address, other.network):
                yield "spec.cidr", f"is an address for {'Services' if other.for_services else 'pods'}, of"
        case NetworkConfig():
            for index, network in enumerate(other.spec.service_networks):
                if _within(address, network):
                    yield f"spec.serviceCidrs[{index}]", "is an address for Services, of"
        case BGPPeer():
            if address == other.address:
                yield "spec.address", "is the address of"
        case Node():
            if address in other.internal_addresses:
                yield "status.addresses", "is the address of"
            elif address in other.nat_addresses:
                yield f"metadata.annotations[{NAT_ADDRESSES}]", "is where pods' addresses are translated to by"


def _within(address: Address, network: Network) -> bool:
    return address.version == network.version and address in network
