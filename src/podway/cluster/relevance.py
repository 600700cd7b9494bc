"""Which plans a change may alter: many alter none, say a label that nobody asks for."""

from typing import Any

from podway.api.kinds import KINDS
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.bgp_peer import BGPPeer
from podway.api.kinds.cluster_authority import ClusterAuthority
from podway.api.kinds.cluster_network_policy import ClusterNetworkPolicy
from podway.api.kinds.endpoint_slice import EndpointSlice
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.network_policy import NetworkPolicy
from podway.api.kinds.node import (
    ACCEPTS,
    ASN,
    BGP_LOST,
    BGP_READY,
    INTERFACE_ADDRESSES,
    NAT_ADDRESSES,
    SENDS,
    Node,
)
from podway.api.kinds.pod import Pod
from podway.api.kinds.secret import Secret
from podway.api.kinds.service import Service
from podway.cluster.change import Change

_ROUTING = frozenset({IPPool.KIND, NetworkConfig.KIND, BGPPeer.KIND, Secret.KIND})
_POLICIES = frozenset({NetworkPolicy.KIND, ClusterNetworkPolicy.KIND})
_SERVICES = frozenset({Service.KIND, EndpointSlice.KIND})
_UNPLANNED = frozenset({Node.KIND, ClusterAuthority.KIND, Pod.KIND, *_POLICIES, *_SERVICES})
"""Kinds of the view of which not every change alters a plan; policies and pods alter only what enforces them."""

_PLANNED_BY = (INTERFACE_ADDRESSES, ACCEPTS, SENDS, ASN, NAT_ADDRESSES, BGP_READY, BGP_LOST)
"""The annotations of a node that plans read."""

_JUDGED_BY = frozenset({*_POLICIES, Pod.KIND, Namespace.KIND, Node.KIND})


def alters_routing(change: Change[Any]) -> bool:
    """Tell whether a change may alter any node's BGP plan."""
    if change.kind == Node.KIND:
        return not _same_place(change.old, change.new)
    return change.kind in _ROUTING and not change.empty and not change.only_status


def alters_plans(change: Change[Any]) -> bool:
    """Tell whether a change may alter any plan of any node."""
    if change.kind not in _UNPLANNED and KINDS[change.kind].IN_VIEW and not (change.empty or change.only_status):
        return True
    return alters_routing(change)


def alters_policy(change: Change[Any]) -> bool:
    """Tell whether a change may alter what connections are judged by."""
    return change.kind in _JUDGED_BY and not change.empty


def alters_services(change: Change[Any]) -> bool:
    """Tell whether a change may alter how Services are served."""
    return (change.kind in _SERVICES or change.kind in (Pod.KIND, Node.KIND)) and not change.empty


def to_be_kept(change: Change[Any], node: str) -> bool:
    """Tell whether an agent that starts anew without a store has to know of a change that alters no plan.

    Of pods, policies, and blocks: those that it claimed or gave back it has entered itself, and hears of them as
    of nothing new.
    """
    if change.kind == AddressBlock.KIND:
        return True
    if change.kind == Pod.KIND:
        return any(one is not None and one.spec.node_name == node for one in (change.old, change.new))
    return change.kind in _POLICIES and not change.empty


def _same_place(one: Node | None, other: Node | None) -> bool:
    """Tell whether two states of a node say the same of what plans read; by their text, which costs little."""
    if one is None or other is None:
        return one is other
    return (
        one.status.addresses == other.status.addresses
        and one.spec.pod_cidrs == other.spec.pod_cidrs
        and one.metadata.labels == other.metadata.labels
        and all(_note(one, name) == _note(other, name) for name in _PLANNED_BY)
    )


def _note(node: Node, name: str) -> str | None:
    return node.metadata.annotations.get(name)
