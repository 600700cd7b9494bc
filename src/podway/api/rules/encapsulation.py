"""Encapsulation between nodes: pools' modes, and the VXLAN network. Pure."""

from collections.abc import Sequence

from podway.api.addresses import Family, Network
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.network_config import NetworkConfig, VxlanSettings
from podway.api.kinds.node import Node
from podway.api.resource import Resource, invalid, key, subject


def check_change(new: Resource, others: Sequence[Resource], old: Resource | None) -> None:
    """Check a pool's modes, or the VXLAN settings, beside the rest of the cluster. Raises InvalidObject.

    What `old` had already is not questioned: nodes may have come since.
    """
    if isinstance(new, IPPool):
        if new.for_services:
            return
        if not isinstance(old, IPPool) or _modes(new) != _modes(old):
            _check_pool(new, [other for other in others if isinstance(other, Node) and other.internal_addresses])
    elif isinstance(new, NetworkConfig):
        before = old.spec.vxlan if isinstance(old, NetworkConfig) else VxlanSettings()
        for field in ("vni", "port"):
            was, now = getattr(before, field), getattr(new.spec.vxlan, field)
            user = _user_of_vxlan(others) if was != now else None
            if user is not None:
                raise invalid(
                    new,
                    f"spec.vxlan.{field}",
                    f"cannot change from {was} to {now} while {subject(key(user))} uses vxlan: no node can take "
                    "off both",
                    "switch all pools to another encapsulation first, wait until no node sends vxlan any "
                    "more (`podway set --wait`, `podway status`), then change it and switch back",
                )


def _modes(pool: IPPool) -> tuple[object, ...]:
    spec = pool.spec
    return (pool.network, spec.distribution, spec.encapsulation, spec.when)


_VXLAN = frozenset({"vxlan", "vxlan6"})
"""What nodes say of it: by outer headers of IPv4, of IPv6."""


def _user_of_vxlan(others: Sequence[Resource]) -> Resource | None:
    for other in others:
        if isinstance(other, IPPool) and other.spec.encapsulation == "vxlan":
            return other
        if isinstance(other, Node) and not _VXLAN.isdisjoint(other.accepts | other.sends):
            return other
    return None


def _check_pool(pool: IPPool, nodes: Sequence[Node]) -> None:
    spec, family = pool.spec, pool.family
    lacking = next((node for node in nodes if node.internal_address(family) is None), None)
    if spec.encapsulation == "ipip":
        bare = next((node for node in nodes if node.internal_address(Family.IPV4) is None), None)
        if bare is not None:
            problem = f"{subject(key(bare))} has no IPv4 address, which ipip's outer header needs"
            raise invalid(pool, "spec.encapsulation", problem, "use vxlan")
    elif lacking is not None and (spec.encapsulation, spec.distribution) != ("vxlan", "store"):
        field = "spec.encapsulation" if spec.encapsulation == "none" else "spec.distribution"
        problem = (
            f"{subject(key(lacking))} has no {family.label} address, by which packets could cross bare or BGP "
        )
        hint = "set encapsulation: vxlan and distribution: store, or give every node such an address"
        raise invalid(pool, field, f"{problem}tell routes", hint)
    if (spec.distribution, spec.encapsulation) == ("store", "none"):
        _check_one_subnet(pool, nodes)


def _check_one_subnet(pool: IPPool, nodes: Sequence[Node]) -> None:
    """Routers know of blocks only what BGP advertises them: bare packets by the store's routes need one subnet."""
    first: tuple[Network, Node] | None = None
    for node in nodes:
        for interface in node.interface_addresses:
            if interface.version != pool.family:
                continue
            if first is None:
                first = (interface.network, node)
            elif interface.network != first[0]:
                raise invalid(
                    pool,
                    "spec.encapsulation",
                    f"is none and distribution store, but {subject(key(first[1]))} is in {first[0]} and "
                    f"{subject(key(node))} in {interface.network}: routers between different subnets would not "
                    "know pods' addresses",
                    "set encapsulation: vxlan (or ipip) and when: cross-subnet, or distribution: bgp",
                )
