"""Following the kernels: at each hop, which way would this packet go? Side by side with what was planned."""

from collections.abc import Container, Sequence
from itertools import pairwise

import msgspec

from podway.api.addresses import Address
from podway.errors import PodwayError
from podway.kernel.network import Lookup, RouteRecord
from podway.plan.fabric import DEVICES
from podway.plan.objects import BRIDGE_DEVICE
from podway.plan.path import End, PlannedHop
from podway.probe.facts import KernelState, RouteLookup
from podway.prove.path import Stage
from podway.prove.world import Place, PodPoint
from podway.trace.agents import RemoteInspector
from podway.trace.points import PointIndex
from podway.trace.underlay import UnderlayPath, underlay_path

_LOOPBACK = "lo"


class ForwardingHop(msgspec.Struct, frozen=True):
    """One namespace, planned or where the kernels send the packet, or both.

    `planned` is None off the planned path. `lookup`, with the BIRD session that told its route, and `kernel_state`
    are None where the kernel could not be asked (`problem` says why) or where the packet does not come. `entry`
    and `exit` are the devices that routing sees; `wire_entry` and `wire_exit` those below them, where they are
    overlay devices, and `underlay` says how the packet gets from one to the other.
    """

    node: str
    pod: str
    entry: str
    exit: str
    point: Place | None = None
    planned: PlannedHop | None = None
    lookup: RouteLookup | None = None
    session: str = ""
    rejecting: RouteRecord | None = None
    """The route that leads nowhere, if one decides: `lookup` does not tell it."""
    kernel_state: KernelState | None = None
    problem: str = ""
    wire_entry: str = ""
    wire_exit: str = ""
    underlay: UnderlayPath | None = None

    @property
    def label(self) -> str:
        """As its point's."""
        if self.point is not None:
            return self.point.label
        return f"pod {self.pod}" if self.pod else f"node {self.node}"


def forwarding_path(
    points: PointIndex, inspector: RemoteInspector, source: End, target: End, planned: Sequence[PlannedHop]
) -> tuple[ForwardingHop, ...]:
    """Follow a packet from `source` to `target` through the kernels' answers.

    Where a node's agent does not answer, the planned way is followed. Planned hops that the kernels do not
    lead to come last, with no `lookup`.
    """
    expected = {(hop.node, hop.pod): hop for hop in planned}
    hops: dict[tuple[str, str], ForwardingHop] = {}
    coming = _Coming(planned[0].node, planned[0].pod, planned[0].entry) if planned else None
    while coming is not None and coming.place not in hops:
        hop = _look(points, inspector, source, target, coming, expected.get(coming.place))
        hops[coming.place] = hop
        coming = _next(points, hop, target, planned)
    for missed in planned:
        if (missed.node, missed.pod) not in hops:
            hops[missed.node, missed.pod] = ForwardingHop(
                missed.node,
                missed.pod,
                missed.entry,
                missed.exit,
                points.point(missed.node, missed.pod),
                missed,
                wire_entry=missed.wire_entry,
                wire_exit=missed.wire_exit,
            )
    return tuple(hops.values())


class _Coming(msgspec.Struct, frozen=True):
    """Where a packet comes next, and by which devices."""

    node: str
    pod: str
    entry: str
    wire: str = ""

    @property
    def place(self) -> tuple[str, str]:
        return (self.node, self.pod)


def stages_of(hops: Sequence[ForwardingHop], watched: Container[str]) -> tuple[Stage, ...]:
    """Return the devices that a packet should pass at the points of these labels."""
    planned = [(hop, hop.planned) for hop in hops if hop.planned]
    stages: list[Stage] = []
    for hop, plan in planned:
        if hop.point is None or hop.label not in watched:
            continue
        way_out = plan.exit
        if plan.disposition == "outside" and not isinstance(hop.point, PodPoint):
            way_out = hop.exit or hop.point.uplink  # the host's own affair: whatever its kernel says
        above_in, above_out = hop.entry, way_out
        if plan.encapsulation == "ipip":
            above_out = ""  # on its way out by the IPIP device a packet is taken before any capture sees it
        if hop.entry == plan.exit == BRIDGE_DEVICE:
            above_in = above_out = ""  # from port to port: the bridge itself does not see it
        devices = [(hop.wire_entry, False), (above_in, False), (above_out, True), (plan.wire_exit, True)]
        if len(planned) == 1 and not hop.entry and not way_out:
            devices = [(_LOOPBACK, True), (_LOOPBACK, False)]
        stages += [_stage(hop.point, device, outgoing) for device, outgoing in devices if device]
    return tuple(stages)


def _stage(point: Place, device: str, outgoing: bool) -> Stage:
    if isinstance(point, PodPoint):
        return Stage(point.label, device, outgoing, "pod")
    if device in (*DEVICES.values(), BRIDGE_DEVICE):
        return Stage(point.label, device, outgoing, "overlay")
    return Stage(point.label, device, outgoing, "uplink" if device == point.uplink else "host link")


def look(
    points: PointIndex, inspector: RemoteInspector, planned: PlannedHop, source: Address, to: Address
) -> ForwardingHop:
    """Return the hop where a packet from and to these addresses is made, as its kernel sees it."""
    coming = _Coming(planned.node, planned.pod, "")
    return _look(points, inspector, End(source), End(to), coming, planned)


def _look(
    points: PointIndex,
    inspector: RemoteInspector,
    source: End,
    target: End,
    coming: _Coming,
    planned: PlannedHop | None,
) -> ForwardingHop:
    node, pod = coming.place
    point = points.point(node, pod)
    hop = ForwardingHop(
        node, pod, coming.entry, planned.exit if planned else "", point, planned, wire_entry=coming.wire
    )
    if point is None or node in points.agents.silent:
        gone = f"node {node} knows no {hop.label}: it is gone" if pod else f"there is no {hop.label}"
        silent = f"the agent of {node} does not answer"
        return msgspec.structs.replace(hop, problem=silent if node in points.agents.silent else gone)
    try:
        lookup, session = inspector.lookup_and_session(point, target.address, source.address, coming.entry)
        kernel_state = inspector.kernel_state(point)
        leads = not isinstance(lookup, Lookup) or lookup.type in ("unicast", "local")
        rejecting = None if leads else inspector.rejecting(point, target.address)
        leaves = lookup.device if isinstance(lookup, Lookup) and lookup.type == "unicast" else ""
        under = planned.wire_exit if planned and leaves == planned.exit else ""
        overlaid = (
            underlay_path(inspector, point, kernel_state, lookup)
            if isinstance(lookup, Lookup) and leaves and not pod
            else None
        )
    except PodwayError as error:
        return msgspec.structs.replace(hop, problem=error.message)
    return msgspec.structs.replace(
        hop,
        exit=leaves,
        lookup=lookup,
        session=session,
        rejecting=rejecting,
        kernel_state=kernel_state,
        wire_exit=overlaid.wire if overlaid else under,
        underlay=overlaid,
    )


def _next(points: PointIndex, hop: ForwardingHop, target: End, planned: Sequence[PlannedHop]) -> _Coming | None:
    """Return where the packet goes from a hop; None if that is nowhere we know of."""
    if hop.lookup is None:
        return _planned_next(hop, planned)
    if not isinstance(hop.lookup, Lookup) or hop.lookup.type != "unicast":
        return None
    if isinstance(hop.point, PodPoint):
        if hop.lookup.device != hop.point.ifname:
            return None
        bridge, link = hop.point.bridge, hop.point.host_link
        return _Coming(hop.node, "", bridge, link) if bridge else _Coming(hop.node, "", link)
    behind = None if hop.underlay else points.pod_behind(hop.node, hop.lookup.device, target.address)
    if behind is not None:
        return _Coming(hop.node, behind.name, behind.ifname)
    following = _node_after(points, hop, hop.lookup, target)
    if not following or following == hop.node:
        return None
    points.agents.learn(following, addresses=(target.address,))
    there = points.node(following)
    uplink = there.uplink if there else ""
    if hop.underlay is not None and hop.underlay.encapsulation == "vxlan":
        return _Coming(following, "", hop.lookup.device, uplink)
    return _Coming(following, "", uplink)


def _node_after(points: PointIndex, hop: ForwardingHop, lookup: Lookup, target: End) -> str:
    """Return the node that a packet comes to after this one; empty if it comes to none."""
    if hop.underlay is not None:
        return (
            "" if hop.underlay.broken or hop.underlay.endpoint is None else points.node_with(hop.underlay.endpoint)
        )
    following = points.node_with(lookup.gateway or target.address)
    if not following and lookup.gateway and hop.planned is not None:
        # A router's, which should know the way on.
        return hop.planned.leads_to or target.node or points.host_with(target.address)
    return following


def _planned_next(hop: ForwardingHop, planned: Sequence[PlannedHop]) -> _Coming | None:
    for this, after in pairwise(planned):
        if (this.node, this.pod) == (hop.node, hop.pod):
            return _Coming(after.node, after.pod, after.entry, after.wire_entry)
    return None
