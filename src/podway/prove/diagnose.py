"""Why a conversation failed: the kernel is asked, at the place where its packet was last seen."""

import msgspec

from podway.errors import PodwayError
from podway.kernel.network import Lookup
from podway.plan.fabric import mode_of_device
from podway.prove.advice import prefer_source, remove_address
from podway.prove.cause import Cause, command, place
from podway.prove.inspector import Inspector
from podway.prove.judge import Code, Fault, Flow
from podway.prove.loss import conflicting_route, explain_loss
from podway.prove.world import PodPoint, World, is_beyond


def diagnose(world: World, fault: Fault, inspector: Inspector) -> Cause:
    """Return why. Raises InvalidInput or KernelError if a kernel cannot be asked."""
    if (claimed := _claimed(world, fault, inspector)) is not None:
        return claimed
    match fault.code:
        case Code.NAT:
            return _translated(world, fault, inspector)
        case Code.TUNNEL | Code.ENCAPSULATION | Code.OFF_WIRE:
            return _wrong_encapsulation(world, fault, inspector)
        case Code.LOST | Code.NOT_SENT | Code.NOT_TAKEN:
            cause = explain_loss(world, fault, inspector)
            refusal = _refusal(world, fault)
            return msgspec.structs.replace(cause, detail=refusal) if refusal else cause
        case _:
            return _altered(world, fault)


def _claimed(world: World, fault: Fault, inspector: Inspector) -> Cause | None:
    """Tell if a node takes a pod's address for its own: whatever shows of that, here or there, follows from it."""
    for name in dict.fromkeys((fault.origin.node, fault.target.node)):
        node = world.node(name)
        if node is None:
            continue
        try:
            held = {interface.ip for _, interface in inspector.kernel_state(node).addresses}
        except PodwayError:
            continue  # nobody can be asked there
        for end in (fault.origin, fault.target):
            address = end.address(fault.probe.family)
            if address in held and isinstance(end, PodPoint):
                return Cause(
                    f"{node.label} takes {address} for an address of its own",
                    remove_address(world, inspector, node, address),
                )
    return None


def _refusal(world: World, fault: Fault) -> str:
    """Say who answered that the packet cannot be delivered, if anybody did."""
    refusal = fault.refusal
    if refusal is None:
        return ""
    holder = world.holder(refusal.by)
    mtu = f", MTU {refusal.mtu}" if refusal.mtu else ""
    return (
        f"{holder.label if holder else refusal.by} answered: {refusal.meaning}{mtu}; "
        f"first seen {refusal.sighting.words}"
    )


def _translated(world: World, fault: Fault, inspector: Inspector) -> Cause:
    before, after = fault.before, fault.after
    if before is None or after is None:
        raise ValueError("a translation has two sides")
    if fault.here is not None and fault.last is None:
        lookup = inspector.lookup(fault.origin, before.destination, None, "")
        if isinstance(lookup, Lookup) and lookup.source == after.source != before.source:
            return Cause(
                f"{fault.origin.label} sends from {after.source}, which is not its own address: "
                f"its route to {lookup.matched} prefers it",
                prefer_source(world, fault.origin, conflicting_route(lookup), before.source),
            )
    if fault.here is None:
        where = fault.target.label
    elif fault.last is None:
        where = fault.origin.label
    elif fault.last.point == fault.here.point:
        where = fault.here.point
    else:
        where = f"something between {fault.last.point} and {fault.here.point}"
    rules = command(world, where, "nft list ruleset")
    return Cause(
        f"{where} {_change(before, after)}",
        f"remove the rule (masquerade, snat, dnat, redirect) that matches pods' packets: {rules}",
        f"{before.words} became {after.words}",
    )


def _change(before: Flow, after: Flow) -> str:
    if before.source != after.source:
        return f"translates source addresses to {after.source} (NAT)"
    if before.destination != after.destination:
        return f"translates destination addresses to {after.destination} (NAT)"
    return f"translates {'source' if before.source_port != after.source_port else 'destination'} ports (NAT)"


def _wrong_encapsulation(world: World, fault: Fault, inspector: Inspector) -> Cause:
    sender = world.node(fault.origin.node)
    destination = fault.target.address(fault.probe.family)
    if is_beyond(fault.origin):
        where = fault.here.words if fault.here else fault.next.words if fault.next else "on the wire"
        return Cause(
            f"packets from {fault.origin.label} arrive, but are not seen as they are when {where}",
            "see whether they come into the cluster by another device or node",
        )
    if sender is None or destination is None:
        raise ValueError("a probe was judged between points that it cannot have been sent between")
    lookup = inspector.lookup(sender, destination, None, "")
    device = ""
    if isinstance(lookup, Lookup) and lookup.device and lookup.device != sender.uplink:
        kind = inspector.kernel_state(sender).links[lookup.device].kind
        device = f": the route there leads into {lookup.device}" + (f" ({kind})" if kind else "")
    what = f"packets from {sender.label} to {place(world, destination, fault.target, sender)}"
    advice = "route pods' addresses through the other node's own address, without a tunnel device"
    if fault.here is not None:
        tunnels = fault.here.packet.tunnels
        encapsulation = f"wrapped in {' in '.join(map(str, tunnels))}" if tunnels else "bare"
        asked = ""
        if fault.expected.name != "none":
            asked = f", but the pool asks for {fault.expected}"
            advice = _why_another_encapsulation(world, fault)
        cross = f"{what} cross {fault.here.interface} of {fault.here.point} {encapsulation}"
        return Cause(f"{cross}{asked}{device}", advice)
    where = fault.next.words if fault.next else "on the wire"
    return Cause(f"{what} arrive, but are not seen as they are when {where}{device}", advice)


def _why_another_encapsulation(world: World, fault: Fault) -> str:
    """Say what keeps a node from sending in the encapsulation that is asked for."""
    there = world.view.nodes.get(fault.target.node)
    if there is not None and mode_of_device(fault.expected.device) not in there.accepts:
        return (
            f"node {fault.target.node} does not say that it takes {fault.expected.name} off: see `podway doctor`, "
            "and whether its agent runs"
        )
    return (
        "if this stays for longer than a change of the pool takes, see `podway doctor` and "
        f"`podway get routes {fault.origin.node}`"
    )


def _altered(world: World, fault: Fault) -> Cause:
    here = fault.here
    where = f"when {here.words}" if here else f"on arrival at {fault.target.label}"
    rules = command(world, here.point if here else fault.target.label, "nft list ruleset")
    match fault.code:
        case Code.FRAGMENTED:
            return Cause(
                f"packets of {fault.probe.size} bytes are in fragments {where}",
                "make no MTU on the path smaller than that of the pods' links",
            )
        case Code.MAY_FRAGMENT:
            return Cause(f"the don't-fragment flag is gone {where}", f"find what clears it: {rules}")
        case Code.RESIZED:
            size = here.packet.length if here else 0
            return Cause(f"packets have another length, {size} bytes, {where}", f"find what cuts them: {rules}")
        case Code.CHECKSUM:
            wrong = here.checksum_fault if here else "transport"
            return Cause(
                f"the {wrong} checksum is wrong {where}",
                "switch checksum offload off on the devices before it (`ethtool -K DEVICE tx off`), and see",
            )
        case Code.UNSEEN:
            stage = fault.next.words if fault.next else "at the receiver"
            return Cause(
                f"packets are taken, but not seen when {stage}",
                "run verify again; if this stays, they enter by another device",
            )
        case _:
            return Cause(f"the content of packets has changed {where}", f"find what rewrites it: {rules}")
