"""A node's route to every block: who distributes it, its encapsulation and next hops, and if the kernel has it.

Pure: view, kernel and BIRD are joined here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

import msgspec

from podway.api.addresses import Network
from podway.api.kinds.ip_pool import Encapsulation
from podway.bgp.status import BirdRoute
from podway.cluster.view import ClusterView
from podway.kernel.network import RTPROT_BIRD, RouteRecord
from podway.plan.fabric import encapsulation_of, mode_of_device
from podway.plan.objects import MAIN_TABLE, ROUTE_PROTOCOL


class Via(msgspec.Struct, frozen=True):
    """Where a route leads."""

    gateway: str
    device: str


class NodeRoute(msgspec.Struct, frozen=True, kw_only=True):
    """The route of one node to a block, or to what an outside peer advertised.

    `protocol` is `own` (the block is the node's: what no pod holds ends here), `bgp`, `store`, or the number of
    the rtm_protocol of somebody else's route that comes first. `session` is the BGP session that told it, `since`
    when. Without `in_kernel` the other fields say what should be.
    """

    network: Network
    node: str = ""
    pool: str = ""
    protocol: str
    encapsulation: Encapsulation = "none"
    next_hops: tuple[Via, ...] = ()
    in_kernel: bool
    session: str = ""
    since: datetime | None = None


def node_routes(
    view: ClusterView,
    node: str,
    records: Iterable[RouteRecord],
    names: Mapping[int, str],
    known: Sequence[BirdRoute],
) -> Iterator[NodeRoute]:
    """Yield a node's routes to all blocks, then those to other networks that BGP advertised.

    `records` are the kernel's routes and `names` its devices by number; `known` are BIRD's routes.
    """
    first: dict[Network, RouteRecord] = {}
    for record in records:
        best = first.get(record.destination)
        if record.table == MAIN_TABLE and (best is None or record.metric < best.metric):
            first[record.destination] = record
    learned = {route.network: route for route in known if route.best}
    blocks = {block.network: block for block in view.blocks.values()}
    for network, block in sorted(blocks.items(), key=lambda pair: (pair[0].version, pair[0].network_address)):
        pool = view.pools.get(block.spec.pool)
        by = "own" if block.spec.node == node else pool.spec.distribution if pool else ""
        yield _route(
            network, block.spec.node, block.spec.pool, by, first.get(network), names, learned.get(network)
        )
    for network, route in learned.items():
        if network not in blocks:
            yield _route(network, "", "", "bgp", first.get(network), names, route)


def _route(
    network: Network,
    node: str,
    pool: str,
    by: str,
    record: RouteRecord | None,
    names: Mapping[int, str],
    known: BirdRoute | None,
) -> NodeRoute:
    session = known.protocol if known and by == "bgp" else ""
    since = known.since if known and by == "bgp" else None
    if record is None:
        next_hops = (
            tuple(Via(str(hop.gateway), hop.device) for hop in known.next_hops) if known and by == "bgp" else ()
        )
    else:
        next_hops = _next_hops(record, names)
        by = (
            by
            if by == "own"
            else {ROUTE_PROTOCOL: "store", RTPROT_BIRD: "bgp"}.get(record.protocol, str(record.protocol))
        )
    return NodeRoute(
        network=network,
        node=node,
        pool=pool,
        protocol=by,
        encapsulation=encapsulation_of(mode_of_device(next_hops[0].device)) if next_hops else "none",
        next_hops=next_hops,
        in_kernel=record is not None,
        session=session if by == "bgp" else "",
        since=since if by == "bgp" else None,
    )


def _next_hops(record: RouteRecord, names: Mapping[int, str]) -> tuple[Via, ...]:
    if record.next_hops:
        return tuple(Via(str(hop.gateway or ""), names.get(hop.index, "")) for hop in record.next_hops)
    return (Via(str(record.gateway or ""), names.get(record.index, "")),) if record.index else ()
