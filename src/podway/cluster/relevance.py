"""Which plans a change may alter: many alter none, say a label that nobody asks for."""

from typing import Any

from podway.api.kinds import KINDS
from podway.api.kinds.bgp_peer import BGPPeer
from podway.api.kinds.cluster_authority import ClusterAuthority
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.node import ASN, BGP_LOST, BGP_READY, NAT_ADDRESSES, Node
from podway.api.kinds.secret import Secret
from podway.cluster.change import Change

_ROUTING = frozenset({IPPool.KIND, NetworkConfig.KIND, BGPPeer.KIND, Secret.KIND})
_UNPLANNED = frozenset({Node.KIND, ClusterAuthority.KIND})
"""Kinds of the view of which not every change alters a plan."""


def alters_routing(change: Change[Any]) -> bool:
    """Tell whether a change may alter any node's BGP plan."""
    if change.kind == Node.KIND:
        return not _same_place(change.old, change.new)
    return change.kind in _ROUTING and not change.empty


def alters_plans(change: Change[Any]) -> bool:
    """Tell whether a change may alter any plan of any node."""
    if change.kind not in _UNPLANNED and KINDS[change.kind].IN_VIEW and not change.empty:
        return True
    return alters_routing(change)


def _same_place(one: Node | None, other: Node | None) -> bool:
    if one is None or other is None:
        return one is other
    return (
        one.internal_addresses == other.internal_addresses
        and one.interface_addresses == other.interface_addresses
        and one.metadata.labels == other.metadata.labels
        and one.accepts == other.accepts
        and one.sends == other.sends
        and _note(one, ASN) == _note(other, ASN)
        and _note(one, NAT_ADDRESSES) == _note(other, NAT_ADDRESSES)
        and _note(one, BGP_READY) == _note(other, BGP_READY)
        and _note(one, BGP_LOST) == _note(other, BGP_LOST)
    )


def _note(node: Node, name: str) -> str | None:
    return node.metadata.annotations.get(name)
