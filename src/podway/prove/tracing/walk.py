"""Following the kernels: at each hop, which way would this packet go? Side by side with what was planned."""

from collections.abc import Container, Sequence
from itertools import pairwise

import msgspec

from podway.errors import PodwayError
from podway.kernel.routes import Lookup, RouteRecord
from podway.plan.path import End, PlannedHop
from podway.probe.facts import Ground, Way
from podway.prove.journey import Stage
from podway.prove.tracing.atlas import Atlas
from podway.prove.tracing.fleet import RemoteWitness
from podway.prove.world import Place, PodPoint

_LOOPBACK = "lo"


class WalkedHop(msgspec.Struct, frozen=True):
    """One namespace, planned or where the kernels send the packet, or both.

    `planned` is None off the planned path. `way`, with the BIRD session that told its route, and `ground` are
    None where the kernel could not be asked (`problem` says why) or where the packet does not come.
    """

    node: str
    pod: str
    entry: str
    exit: str
    point: Place | None = None
    planned: PlannedHop | None = None
    way: Way | None = None
    session: str = ""
    rejecting: RouteRecord | None = None
    """The route that leads nowhere, if one decides: `way` does not tell it."""
    ground: Ground | None = None
    problem: str = ""

    @property
    def label(self) -> str:
        """As its point's."""
        return f"pod {self.pod}" if self.pod else f"node {self.node}"


def walk(
    atlas: Atlas, witness: RemoteWitness, source: End, target: End, planned: Sequence[PlannedHop]
) -> tuple[WalkedHop, ...]:
    """Follow a packet from `source` to `target` through the kernels' answers.

    Where a node's agent does not answer, the planned way is followed. Planned hops that the kernels do not
    lead to come last, with no `way`.
    """
    expected = {(hop.node, hop.pod): hop for hop in planned}
    hops: dict[tuple[str, str], WalkedHop] = {}
    place = (planned[0].node, planned[0].pod) if planned else None
    entry = planned[0].entry if planned else ""
    while place is not None and place not in hops:
        hop = _look(atlas, witness, source, target, place, entry, expected.get(place))
        hops[place] = hop
        place, entry = _next(atlas, hop, target, planned)
    for missed in planned:
        if (missed.node, missed.pod) not in hops:
            point = atlas.point(missed.node, missed.pod)
            hops[missed.node, missed.pod] = WalkedHop(
                missed.node, missed.pod, missed.entry, missed.exit, point, missed
            )
    return tuple(hops.values())


def stages_of(hops: Sequence[WalkedHop], watched: Container[str]) -> tuple[Stage, ...]:
    """Return the devices that a packet should pass at the points of these labels."""
    planned = [(hop, hop.planned) for hop in hops if hop.planned]
    stages: list[Stage] = []
    for hop, plan in planned:
        if hop.point is None or hop.label not in watched:
            continue
        way_out = plan.exit
        if plan.fate == "outside" and not isinstance(hop.point, PodPoint):
            way_out = hop.exit or hop.point.uplink  # the host's own affair: whatever its kernel says
        devices = [(hop.entry, False), (way_out, True)]
        if len(planned) == 1 and not hop.entry and not way_out:
            devices = [(_LOOPBACK, True), (_LOOPBACK, False)]
        stages += [_stage(hop.point, device, outgoing) for device, outgoing in devices if device]
    return tuple(stages)


def _stage(point: Place, device: str, outgoing: bool) -> Stage:
    if isinstance(point, PodPoint):
        return Stage(point.label, device, outgoing, "pod")
    return Stage(point.label, device, outgoing, "uplink" if device == point.uplink else "host link")


def _look(
    atlas: Atlas,
    witness: RemoteWitness,
    source: End,
    target: End,
    place: tuple[str, str],
    entry: str,
    planned: PlannedHop | None,
) -> WalkedHop:
    node, pod = place
    point = atlas.point(node, pod)
    hop = WalkedHop(node, pod, entry, planned.exit if planned else "", point, planned)
    if point is None or node in atlas.fleet.silent:
        gone = f"node {node} knows no {hop.label}: it is gone" if pod else f"there is no {hop.label}"
        silent = f"the agent of {node} does not answer"
        return msgspec.structs.replace(hop, problem=silent if node in atlas.fleet.silent else gone)
    try:
        way, session = witness.way_and_session(point, target.address, source.address, entry)
        ground = witness.ground(point)
        leads = not isinstance(way, Lookup) or way.type in ("unicast", "local")
        rejecting = None if leads else witness.rejecting(point, target.address)
    except PodwayError as error:
        return msgspec.structs.replace(hop, problem=error.message)
    leaves = way.device if isinstance(way, Lookup) and way.type == "unicast" else ""
    return msgspec.structs.replace(hop, exit=leaves, way=way, session=session, rejecting=rejecting, ground=ground)


def _next(
    atlas: Atlas, hop: WalkedHop, target: End, planned: Sequence[PlannedHop]
) -> tuple[tuple[str, str] | None, str]:
    """Return where the packet goes from a hop, and the device by which it comes in there."""
    if hop.way is None:
        return _planned_next(hop, planned)
    if not isinstance(hop.way, Lookup) or hop.way.type != "unicast":
        return None, ""
    if isinstance(hop.point, PodPoint):
        ours = hop.way.device == hop.point.ifname
        return ((hop.node, ""), hop.point.host_link) if ours else (None, "")
    if (behind := atlas.pod_behind(hop.node, hop.way.device)) is not None:
        return (hop.node, behind.name), behind.ifname
    following = atlas.node_with(hop.way.gateway or target.address)
    if not following or following == hop.node:
        return None, ""
    atlas.fleet.learn(following, addresses=(target.address,))
    there = atlas.node(following)
    return (following, ""), there.uplink if there else ""


def _planned_next(hop: WalkedHop, planned: Sequence[PlannedHop]) -> tuple[tuple[str, str] | None, str]:
    for this, after in pairwise(planned):
        if (this.node, this.pod) == (hop.node, hop.pod):
            return (after.node, after.pod), after.entry
    return None, ""
