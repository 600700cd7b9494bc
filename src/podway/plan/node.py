"""From what is known of the cluster and a node to every kernel object that the node must hold.

What a node holds is planned in scopes, each a part that can be planned by itself. Most are one section: a plan of
what the node holds for itself, and the inputs that it depends on, so that it is planned anew only where one of
these changed (podway.reconcile.planning). Two are keyed, a section for each pod and for each other node: these are
many, and change one at a time.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from podway.api.addresses import Address, Family, Network
from podway.api.lease import Attachment, Lease
from podway.cached import cached_property
from podway.cluster.view import ClusterView
from podway.plan.bridge import lan_of, plan_bridge
from podway.plan.changes import merged
from podway.plan.fabric import required_modes
from podway.plan.guard import plan_pod_guard
from podway.plan.host_facts import ACCEPT_RA, USUAL_HOST, HostFacts
from podway.plan.mtu import pod_mtu
from podway.plan.nat import plan_nat, plan_nat_sets
from podway.plan.objects import IPIP_DEVICE, VXLAN_DEVICES, FlowProgram, NodePlan, PodWiring, Route, Sysctl
from podway.plan.others import plan_others
from podway.plan.overlays import RP_FILTER, plan_overlays
from podway.plan.ports import port_guard
from podway.plan.remote import last_resorts
from podway.plan.segment import plan_segment
from podway.plan.sent_modes import NOTHING_SENT, SentModes
from podway.plan.services import plan_services
from podway.plan.uplink import Uplink
from podway.plan.wiring import wire

NODE_FORWARDING: dict[Family, str] = {
    # IPv4 asks the incoming interface; IPv6 asks the whole namespace (net/ipv6/ip6_output.c, ip6_forward).
    Family.IPV4: "net/ipv4/conf/{uplink}/forwarding",
    Family.IPV6: "net/ipv6/conf/all/forwarding",
}

_NONE = NodePlan()

FORWARD_USES_PATH_MTU = "net/ipv4/ip_forward_use_pmtu"


@dataclass(frozen=True)
class NodeFacts:
    """All that decides what a node holds.

    `leases` are of the pods that stay. `withdrawn` blocks are being given back. `sent` are the modes in which the
    node may still send, by pool. `transitional` are blocks of other nodes that get a route of ours for a while
    though BGP advertises them, so that no packet is lost while BIRD changes its own. `lingering` names pools in
    which BIRD's routes still stand though the store distributes them. `engine`: the flow engine judges pods'
    packets. For `answered`, addresses of Services, the node answers on its segment.
    """

    view: ClusterView
    node: str
    uplink: Uplink
    leases: Mapping[Attachment, Lease] = field(default_factory=dict)
    withdrawn: frozenset[Network] = frozenset()
    host: HostFacts = USUAL_HOST
    sent: SentModes = field(default_factory=dict)
    transitional: frozenset[Network] = frozenset()
    lingering: frozenset[str] = frozenset()
    engine: bool = False
    answered: frozenset[Address] = frozenset()

    @cached_property
    def lan(self) -> tuple[Network, ...]:
        """The blocks that have the bridge's pods among theirs (podway.plan.bridge.lan_of)."""
        return lan_of(self.view, self.node, self.leases.values(), self.withdrawn)

    @cached_property
    def lan_mtu(self) -> int:
        """The MTU of the bridge's pods in bytes.

        They have one: nobody tells a sender on a LAN that its frame is too long for another.
        """
        return pod_mtu(self.view, self.uplink, [block.network_address for block in self.lan], self.sent)

    @cached_property
    def blocks(self) -> tuple[Network, ...]:
        """The node's own blocks that it advertises."""
        return tuple(b.network for b in self.view.blocks_of(self.node) if b.network not in self.withdrawn)

    @cached_property
    def modes(self) -> frozenset[str]:
        """The tunnel modes whose devices the node must hold."""
        return required_modes(self.view, self.node)

    @property
    def strict(self) -> bool:
        """Whether the node as a whole asks for the way back (rp_filter 1)."""
        return self.host.all_rp_filter == "1"


class Scope(NamedTuple):
    """A part of a node's plan that is one section.

    `inputs` are what the section depends on: while they are equal, the section is the same.
    """

    name: str
    inputs: Callable[[NodeFacts], tuple[object, ...]]
    plan: Callable[[NodeFacts], NodePlan]


class KeyedScope(NamedTuple):
    """A part of a node's plan that has a section for each of many keys.

    `inputs` are what all sections depend on, besides what is their own; `keys` are those that have one. `plan`
    returns the sections of some keys: empty ones for those that have none.
    """

    name: str
    inputs: Callable[[NodeFacts], tuple[object, ...]]
    keys: Callable[[NodeFacts], Collection[Hashable]]
    plan: Callable[[NodeFacts, Iterable[Hashable]], Mapping[Hashable, NodePlan]]


def _here(facts: NodeFacts) -> tuple[object, ...]:
    """Return what of the node's own object decides what it holds."""
    here = facts.view.nodes.get(facts.node)
    if here is None:
        return ()
    return (here.internal_addresses, here.interface_addresses, here.accepts, here.sends)


def _guard(facts: NodeFacts) -> NodePlan:
    """Plan what the node takes from its pods."""
    guard = plan_pod_guard(
        facts.view,
        facts.node,
        subnets=[address.network for address in facts.uplink.addresses],
        neighbours=facts.host.most_neighbours,
        loose=facts.host.loose,
        bridge=bool(facts.lan),
    )
    return merged([guard, NodePlan(tables=port_guard(facts.lan))])


def _guard_inputs(facts: NodeFacts) -> tuple[object, ...]:
    view = facts.view
    return (
        _here(facts),
        view.pools,
        view.config,
        facts.uplink.addresses,
        facts.host,
        facts.lan,
        facts.modes,
    )


def _nat(facts: NodeFacts) -> NodePlan:
    return plan_nat(facts.view, facts.node, bridge=bool(facts.lan))


def _nat_inputs(facts: NodeFacts) -> tuple[object, ...]:
    view = facts.view
    here = view.nodes.get(facts.node)
    chosen = here.nat_addresses if here else ()
    return (chosen, view.pools, view.peers, view.config, bool(facts.lan), facts.modes)


def _services_inputs(facts: NodeFacts) -> tuple[object, ...]:
    return (facts.view.config, facts.view.pools, facts.uplink, facts.engine)


def _services(facts: NodeFacts) -> NodePlan:
    return plan_services(facts.view, facts.uplink, engine=facts.engine)


def _overlay(facts: NodeFacts) -> NodePlan:
    """Plan the devices of encapsulations, and what keeps a pool's packets from leaving bare."""
    over = plan_overlays(facts.view, facts.node, facts.uplink, strict=facts.strict)
    return merged([over, NodePlan(routes=tuple(last_resorts(facts.view)))])


def _overlay_inputs(facts: NodeFacts) -> tuple[object, ...]:
    view = facts.view
    return (
        _here(facts),
        view.blocks_of(facts.node),
        view.pools,
        view.config,
        facts.uplink,
        facts.strict,
        facts.modes,
    )


def _bridge(facts: NodeFacts) -> NodePlan:
    return plan_bridge(facts.lan, facts.lan_mtu, facts.host.bridge_netfilter)


def _bridge_inputs(facts: NodeFacts) -> tuple[object, ...]:
    return (facts.lan, facts.lan_mtu, facts.host.bridge_netfilter)


def _settings(facts: NodeFacts) -> NodePlan:
    """Plan the settings of the whole node."""
    over = plan_overlays(facts.view, facts.node, facts.uplink, strict=facts.strict)
    families = {Family.of(block) for block in facts.blocks} | {Family.of(each) for each in facts.uplink.addresses}
    return NodePlan(
        sysctls=(
            *_both_ways(facts, over),
            *_heed_path_mtu(over),
            *(Sysctl(NODE_FORWARDING[each].format(uplink=facts.uplink.device), "1") for each in sorted(families)),
            *_keep_listening(facts, families),
        )
    )


def _settings_inputs(facts: NodeFacts) -> tuple[object, ...]:
    return (*_overlay_inputs(facts), facts.host, facts.blocks)


def _wires(facts: NodeFacts) -> NodePlan:
    """Plan the programs of the flow engine on what leads to other machines; pods' links have theirs in `pods`."""
    return (
        NodePlan(programs=tuple(FlowProgram(name, "from wire") for name in wires(facts)))
        if facts.engine
        else _NONE
    )


def wires(facts: NodeFacts) -> tuple[str, ...]:
    """Return the devices by which pods' packets come from other machines."""
    over = plan_overlays(facts.view, facts.node, facts.uplink, strict=facts.strict)
    names = (device.name for device in over.devices)
    return (facts.uplink.device, *(name for name in names if name in (*VXLAN_DEVICES, IPIP_DEVICE)))


def _blocks(facts: NodeFacts) -> NodePlan:
    """Plan a blackhole route for each own block.

    What is sent to an address that no pod holds ends here instead of going round, and BIRD learns from it what to
    announce.
    """
    return NodePlan(routes=tuple(Route(block, "blackhole") for block in facts.blocks))


def _pods(facts: NodeFacts, keys: Iterable[Hashable]) -> dict[Hashable, NodePlan]:
    found: dict[Hashable, NodePlan] = {}
    for key in keys:
        lease = facts.leases.get(key)  # type: ignore[call-overload]
        found[key] = NodePlan() if lease is None else section_of(wiring_of(facts, lease))
    return found


def _pods_inputs(facts: NodeFacts) -> tuple[object, ...]:
    mtus = tuple(pod_mtu(facts.view, facts.uplink, [net.network_address], facts.sent) for net in _pools(facts))
    return (mtus, facts.view.pools, facts.view.config, facts.lan, facts.lan_mtu, facts.uplink, facts.engine)


def _pools(facts: NodeFacts) -> list[Network]:
    return [pool.network for pool in facts.view.pools.values()]


def _nodes(facts: NodeFacts, keys: Iterable[Hashable]) -> dict[Hashable, NodePlan]:
    names = map(str, keys)
    sections = plan_others(facts.view, facts.node, facts.uplink, facts.transitional, facts.lingering, only=names)
    return {name: sections[name] for name in sections}


def _nodes_inputs(facts: NodeFacts) -> tuple[object, ...]:
    view = facts.view
    return (_here(facts), view.pools, view.config, facts.uplink, facts.modes, facts.lingering)


def other_nodes(facts: NodeFacts) -> list[str]:
    """Return the names of all other nodes, registered ones and owners of blocks, in order."""
    view = facts.view
    return sorted({*view.nodes, *(str(owner) for owner in view.blocks.indexed("node"))} - {facts.node})


PODS = KeyedScope("pods", _pods_inputs, lambda facts: facts.leases.keys(), _pods)
"""A section for each attachment: its end in the node."""

NODES = KeyedScope("nodes", _nodes_inputs, other_nodes, _nodes)
"""A section for each other node, by name: its entries on overlay devices, and routes to its blocks."""

SCOPES: tuple[Scope | KeyedScope, ...] = (
    # Rules come before what they guard, devices before what stands on them.
    Scope("guard", _guard_inputs, _guard),
    Scope("nat sets", lambda facts: (facts.view.pools,), lambda facts: plan_nat_sets(facts.view)),
    Scope("overlay", _overlay_inputs, _overlay),
    Scope("bridge", _bridge_inputs, _bridge),
    Scope("settings", _settings_inputs, _settings),
    Scope("wires", lambda facts: (*_overlay_inputs(facts), facts.engine), _wires),
    Scope("blocks", lambda facts: (facts.blocks,), _blocks),
    PODS,
    NODES,
    Scope(
        "segment",
        lambda facts: (facts.answered, facts.uplink),
        lambda facts: plan_segment(facts.answered, facts.uplink),
    ),
    Scope("services", _services_inputs, _services),
    # What translates all but packets to nodes comes when it knows them all.
    Scope("nat", _nat_inputs, _nat),
)
"""All scopes, in the order in which they are brought to the kernel."""


def plan_all(facts: NodeFacts) -> NodePlan:
    """Return all kernel objects of ours that a node must hold: every section of every scope."""
    return merged(
        section
        for scope in SCOPES
        for section in (
            [scope.plan(facts)] if isinstance(scope, Scope) else scope.plan(facts, scope.keys(facts)).values()
        )
    )


def plan_node(
    view: ClusterView,
    node: str,
    uplink: Uplink,
    leases: Iterable[Lease] = (),
    *,
    withdrawn: frozenset[Network] = frozenset(),
    facts: HostFacts = USUAL_HOST,
    sent: SentModes = NOTHING_SENT,
    transitional: Collection[Network] = (),
    lingering: Collection[str] = (),
) -> NodePlan:
    """Return what `plan_all` does, of the facts one by one: see NodeFacts."""
    held = {lease.attachment: lease for lease in leases}
    stays = frozenset(transitional), frozenset(lingering)
    return plan_all(NodeFacts(view, node, uplink, held, withdrawn, facts, sent, *stays))


def decapsulation(facts: NodeFacts, plan: NodePlan) -> NodePlan:
    """Return the part of a node's plan by which it takes off encapsulations."""
    over = plan_overlays(facts.view, facts.node, facts.uplink, strict=facts.strict)
    tables = {table.key for table in over.tables}
    return NodePlan(
        devices=over.devices,
        addresses=over.addresses,
        tunnels=over.tunnels,
        sysctls=over.sysctls,
        tables=over.tables,
        endpoints=plan.endpoints,
        sources=plan.sources,
        elements=tuple(each for each in plan.elements if (each.family, each.table) in tables),
    )


def plan_wiring(
    view: ClusterView,
    node: str,
    uplink: Uplink,
    lease: Lease,
    *,
    leases: Iterable[Lease] = (),
    sent: SentModes = NOTHING_SENT,
) -> PodWiring:
    """Return what one pod's attachment needs, `lease`'s; `leases` are all of the node."""
    held = {each.attachment: each for each in (*leases, lease)}
    return wiring_of(NodeFacts(view, node, uplink, held, sent=sent), lease)


def wiring_of(facts: NodeFacts, lease: Lease) -> PodWiring:
    """Return what the attachment of one of the node's leases needs."""
    together = lease.attach == "bridge"
    addresses: Collection[Address] = lease.addresses
    if together:
        addresses = [block.network_address for block in facts.lan]
    mtu = pod_mtu(facts.view, facts.uplink, addresses, facts.sent)
    return wire(lease, mtu=mtu, node_addresses=facts.uplink.sources, lan=facts.lan, engine=facts.engine)


def section_of(wiring: PodWiring) -> NodePlan:
    """Return what of a pod's attachment stands in the node."""
    return NodePlan(
        links=(wiring.link,),
        addresses=wiring.addresses,
        neighbours=wiring.neighbours,
        ports=(wiring.port,) if wiring.port else (),
        proxies=wiring.proxies,
        sysctls=wiring.sysctls,
        routes=wiring.routes,
        elements=wiring.elements,
        programs=wiring.programs,
    )


def _both_ways(facts: NodeFacts, over: NodePlan) -> tuple[Sysctl, ...]:
    """Let in by the uplink what is answered by an overlay: IPIP always, every mode while it is switched.

    The kernel takes the larger of the two settings, so loose (2) on the uplink is enough.
    """
    if not over.devices or not facts.host.strict:
        return ()
    return (Sysctl(RP_FILTER.format(device=facts.uplink.device), "2"),)


def _heed_path_mtu(over: NodePlan) -> tuple[Sysctl, ...]:
    """Have the node tell IPv4 pods of a link behind it that is narrower than its own, where VXLAN crosses one.

    A router there answers the node, whose kernel passes what it learned on to the route of the inner packet
    (skb_tunnel_check_pmtu). IPv6 heeds that also for what it forwards (ip6_finish_output), IPv4 only if it is told
    to (ip_dst_mtu_maybe_forward): large packets with DF would vanish without a word.
    """
    if not any(device.kind == "vxlan" for device in over.devices):
        return ()
    return (Sysctl(FORWARD_USES_PATH_MTU, "1"),)


def _keep_listening(facts: NodeFacts, families: set[Family]) -> tuple[Sysctl, ...]:
    if Family.IPV6 not in families or not facts.host.loses_router_advertisements:
        return ()
    return (Sysctl(ACCEPT_RA.format(device=facts.uplink.device), "2"),)
