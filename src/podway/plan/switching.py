"""How a node goes from one encapsulation to another without losing a packet. Pure.

What a pool asks for may change at any moment, and each node learns of it at a moment of its own. Nodes advertise
two annotations, each on its own Node object:

- `accepts`: it decapsulates these modes. Written after its kernel holds what that needs.
- `sends`: it may encapsulate in these modes. Written before it does, withdrawn after its kernel's last route in
  such a mode is gone and what was in flight has arrived.

The store delivers the changes of Nodes to everybody in one order, so an agent that reads its own annotations back
knows all that was advertised before; of pools it may learn earlier or later than others. A packet is encapsulated
when the sender reads its own `sends` and the other's `accepts` (fabric.mode_to); a tunnel mode's device goes when
its node reads that it accepts no more, and that nobody sends (fabric.required_modes). Until its last change comes
back a node holds what it has advertised that it accepts, sends nothing that it has withdrawn, and advertises
nothing else. So of two changes that concern each other one is the first, and who wrote the second knows it: no
device goes while somebody sends to it, and no clock is needed to be sure.

What a node itself still sends is not remembered but read from its kernel's routes (`InstalledModes`), so an agent
that is killed in the middle goes on where it was.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import msgspec

from podway.api.addresses import Family, Network
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.node import Node
from podway.cluster.change import Change as ClusterChange
from podway.cluster.view import ClusterView
from podway.plan.changes import Change
from podway.plan.fabric import (
    DEVICES,
    SMALLEST_IPV6_MTU,
    TunnelMode,
    desired_mode,
    mode_of_device,
    mode_to,
    pool_modes,
    pool_of,
    possible_modes,
)
from podway.plan.mtu import pool_mtu
from podway.plan.objects import (
    NFT_VXLAN_TABLE,
    Device,
    IpipTunnel,
    LinkAddress,
    NftElement,
    NftTable,
    NodePlan,
    Sysctl,
    TunnelEndpoint,
    TunnelSource,
)
from podway.plan.remote import distributed_by_store, remote_route
from podway.plan.sent_modes import SentModes
from podway.plan.uplink import Uplink

DECAPSULATION_KINDS = frozenset(
    {"device", "sysctl", "address", "IPIP tunnel", "tunnel endpoint", "tunnel source", "nft table", "nft element"}
)
"""The kinds of kernel objects by which a node takes off encapsulations."""

ModeByBlock: TypeAlias = Mapping[Network, TunnelMode]


class InstalledModes(msgspec.Struct, frozen=True):
    """In which mode the kernel's routes to blocks of other nodes lead: `learned` BIRD's, `own` ours."""

    learned: ModeByBlock = {}
    own: ModeByBlock = {}


def concerns(view: ClusterView, node: str) -> bool:
    """Tell whether there is more to do than to let all pools' packets cross bare, by BGP's routes."""
    here = view.nodes.get(node)
    asked = ((pool.spec.encapsulation, pool.spec.distribution) for pool in view.pools.values())
    return bool(view.nodes.indexed("sends") or (here and here.accepts)) or any(
        each != ("none", "bgp") for each in asked
    )


def alters_ways(change: ClusterChange[Any], node: str) -> bool:
    """Tell whether a change may alter in which mode packets go where a way is known already.

    A node that comes has none yet, and one that goes takes its own along. Of what else a node says (which
    topology of BGP it is ready for, say) no way depends.
    """
    if change.kind != Node.KIND:
        return True
    if change.old is None or change.new is None:
        return bool(change.key[2] == node)
    return _words(change.old) != _words(change.new)


def _words(node: Node) -> tuple[object, ...]:
    return (node.internal_addresses, node.interface_addresses, node.accepts, node.sends)


def needs_look(node: str, changes: Iterable[ClusterChange[Any]]) -> bool:
    """Tell whether only a node's routes say what it is to do after changes: anything but other nodes changed.

    Of these `with_changed` and `redirected` tell.
    """
    return any(
        change.kind != Node.KIND or (change.key[2] == node and alters_ways(change, node)) for change in changes
    )


def with_changed(
    view: ClusterView, node: str, sent: SentModes, changes: Iterable[ClusterChange[Any]]
) -> SentModes:
    """Return which encapsulations a node may put on, by pool, after other nodes came or changed.

    Those as before, and those in which these are sent to now.
    """
    here = view.nodes.get(node)
    names = {change.key[2] for change in changes if change.kind == Node.KIND and change.new is not None}
    others = [there for name in names - {node} if (there := view.nodes.get(name)) is not None]
    if here is None or not others:
        return sent
    found = {name: set(modes) for name, modes in sent.items()}
    for name, pool in view.pools.items():
        found.setdefault(name, set()).update({mode_to(pool, here, there) for there in others} - {"none"})
    return {name: frozenset(modes) for name, modes in found.items() if modes}


def redirected(
    before: ClusterView, view: ClusterView, node: str, changes: Iterable[ClusterChange[Any]]
) -> frozenset[Network]:
    """Return the blocks of other nodes that changed to which BGP's routes are to lead in another mode than before.

    Of a kernel whose routes lead as they were to before the changes, `unconverged` finds these.
    """
    here = view.nodes.get(node)
    names = {change.key[2] for change in changes if change.kind == Node.KIND} - {node}
    found = set()
    for name in names:
        old, new = before.nodes.get(name), view.nodes.get(name)
        if here is None or old is None or new is None:
            continue  # who comes has no way yet, and who goes takes it along
        for block in view.blocks_of(name):
            pool = pool_of(view, block)
            if pool and pool.spec.distribution == "bgp" and mode_to(pool, here, old) != mode_to(pool, here, new):
                found.add(block.network)
    return frozenset(found)


def unconverged(view: ClusterView, node: str, installed: InstalledModes) -> frozenset[Network]:
    """Return the blocks that need a route of ours for a while, though BGP advertises them.

    Those where BIRD's route leads in another mode than it is to, and those where it has none yet in place of ours.
    """
    here = view.nodes.get(node)
    if here is None or all(pool.spec.distribution != "bgp" for pool in view.pools.values()):
        return frozenset()
    found = set()
    for block in view.blocks.values():
        known = installed.learned.get(block.network)
        there = view.nodes.get(block.spec.node)
        if there is None or there is here or (known is None and block.network not in installed.own):
            continue
        pool = pool_of(view, block)
        if pool and pool.spec.distribution == "bgp" and known != mode_to(pool, here, there):
            found.add(block.network)
    return frozenset(found)


def lingering(view: ClusterView, installed: InstalledModes) -> frozenset[str]:
    """Return the names of the pools that the store distributes, and in which routes of BIRD's still stand.

    By whatever way these lead: which one BIRD is to take, and which one ours, changes at different moments.
    """
    by_store = distributed_by_store(view)
    blocks = view.blocks.values() if by_store and installed.learned else ()
    return frozenset(block.spec.pool for block in blocks if block.network in installed.learned) & by_store


def sent_modes(view: ClusterView, planned: SentModes, installed: InstalledModes) -> SentModes:
    """Return the encapsulations that a node may put on, by pool: those of `planned_modes`, and its kernel's."""
    sent: dict[str, set[TunnelMode]] = {name: set(modes - {"none"}) for name, modes in planned.items()}
    for modes in (installed.learned, installed.own):
        for network, mode in modes.items():
            if mode != "none":
                for name in _covering(view.pools, network):
                    sent.setdefault(name, set()).add(mode)
    return {name: frozenset(modes) for name, modes in sent.items() if modes}


def modes_to_advertise(view: ClusterView, sent: SentModes) -> frozenset[TunnelMode]:
    """Return what a node is to say that it sends: what pools ask for, and what it still may send."""
    return pool_modes(view).union(*sent.values())


def missing_modes(plan: NodePlan, differences: Iterable[Change]) -> frozenset[TunnelMode]:
    """Return the modes that a node cannot decapsulate: they are not in its plan, or its kernel lacks a part.

    `differences` are those of the kernel from the plan.
    """
    planned = {device.name for device in plan.devices}
    missing = {mode for mode, device in DEVICES.items() if device not in planned}
    for change in differences:
        if change.action != "remove":
            missing |= _part_of(change.want)
    return frozenset(missing)


def missing_routes(view: ClusterView, node: str, uplink: Uplink, installed: InstalledModes) -> Iterator[Network]:
    """Yield the blocks to which the store distributes a route that is not in the kernel."""
    by_store = distributed_by_store(view)
    for block in view.blocks.values() if by_store else ():
        if block.spec.pool not in by_store or block.network in installed.own:
            continue
        if remote_route(view, node, uplink, block) is not None:
            yield block.network


def waiting(view: ClusterView, node: str) -> Iterator[str]:
    """Say in words on whom a node waits before it sends to each in the mode that the pools ask for."""
    here = view.nodes.get(node)
    for name, pool in sorted(view.pools.items()) if here else ():
        for other, there in sorted(view.nodes.items()):
            if here is None or there is here:
                continue
            wanted = desired_mode(pool, here, there)
            mode = mode_to(pool, here, there)
            if wanted != mode:
                who = "this node to say that it sends" if wanted in there.accepts else f"{other} to accept"
                yield f"IPPool/{name}: waits for {who} {wanted}; until then {other} gets {mode}"


def impossible(view: ClusterView, uplink: Uplink) -> Iterator[str]:
    """Say in words what pools ask for that a node's uplink cannot give."""
    yield from _out_of_reach(view, uplink)
    for name, pool in sorted(view.pools.items()):
        if pool.spec.encapsulation == "ipip" and not possible_modes(uplink.node_addresses) >= {"ipip"}:
            yield f"IPPool/{name}: this node has no IPv4 address, and so neither sends nor accepts ipip"
        mtu = pool_mtu(view, uplink, pool)
        if pool.family is Family.IPV6 and mtu < SMALLEST_IPV6_MTU:
            yield (
                f"IPPool/{name}: IPv6 crosses to no other node: {pool.spec.encapsulation} leaves {mtu} bytes, and "
                f"it needs {SMALLEST_IPV6_MTU} (RFC 8200); raise the MTU of {uplink.device}, which is "
                f"{uplink.mtu}, to {SMALLEST_IPV6_MTU + uplink.mtu - mtu}, or use another encapsulation"
            )


def _out_of_reach(view: ClusterView, uplink: Uplink) -> Iterator[str]:
    own = {Family.of(address) for address in uplink.node_addresses}
    asked = sorted({pool.spec.encapsulation for pool in view.pools.values()} - {"none"})
    if not own or not asked:
        return
    for name, other in sorted(view.nodes.items()):
        theirs = {Family.of(address) for address in other.internal_addresses}
        if theirs and not own & theirs:
            yield (
                f"{name}: {' or '.join(asked)} does not reach it: it has only {_labels(theirs)}, and this node "
                f"only {_labels(own)}; give each node an address of one same family (IPv4 is preferred)"
            )


def _labels(families: Iterable[Family]) -> str:
    return " and ".join(family.label for family in sorted(families))


def _covering(pools: Mapping[str, IPPool], network: Network) -> Iterator[str]:
    for name, pool in pools.items():
        if pool.network.version == network.version and network.subnet_of(pool.network):  # type: ignore[arg-type]
            yield name


def _part_of(obj: object) -> set[TunnelMode]:
    """Return the mode that an object of a plan is needed for to decapsulate; nothing for other objects."""
    match obj:
        case Device(name=device) | LinkAddress(device=device) | IpipTunnel(device=device):
            pass
        case Sysctl(path=path):
            device = next((part for part in path.split("/") if mode_of_device(part) != "none"), "")
        case TunnelEndpoint() | TunnelSource():
            return {"ipip"}
        case NftTable(family=family, name=name) | NftElement(family=family, table=name) if name == NFT_VXLAN_TABLE:
            return {"vxlan6" if family == "ip6" else "vxlan"}
        case _:
            return set()
    return {mode_of_device(device)} - {"none"}
