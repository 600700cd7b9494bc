"""Devices, routes and neighbours that rtnetlink tells, as far as they may stand in pods' way."""

from collections.abc import Collection, Iterable, Sequence

from podway.api.addresses import Address, Family, Network, is_within
from podway.api.lease import LINK_PREFIX
from podway.bgp.status import BirdRoute
from podway.health.facts import BlockRoute, Device, KernelNetwork, KernelRoute, NeighbourTable
from podway.ipam.blocks import free_blocks
from podway.kernel.network import (
    RTPROT_BIRD,
    RTPROT_KERNEL,
    AddressRecord,
    Connection,
    RouteRecord,
    dump_addresses,
    dump_links,
    dump_neighbour_tables,
    dump_neighbours,
    dump_routes,
    lookup_route,
)
from podway.plan.objects import DEVICE_GROUP, ROUTE_PROTOCOL

RT_TABLE_LOCAL = 255

MAX_BLOCK_ROUTES = 256
"""How many routes to others' blocks are asked for: two netlink questions each."""


def read(connection: Connection, learned: Sequence[BirdRoute], pools: Collection[Network] = ()) -> KernelNetwork:
    """Return what is there; `learned` are the routes that BIRD means the kernel to have. Raises KernelError.

    The routes to those inside `pools` are looked up.
    """
    by_index: dict[int, list[AddressRecord]] = {}
    for found in dump_addresses(connection):
        by_index.setdefault(found.index, []).append(found)
    records = dump_links(connection)
    names = {link.index: link.name for link in records}
    return KernelNetwork(
        devices=tuple(
            Device(
                link.name,
                link.kind,
                link.mtu,
                link.up,
                tuple(found.address for found in by_index.get(link.index, ())),
                link.name.startswith(LINK_PREFIX) or link.group == DEVICE_GROUP,
                (link.vxlan.vni, link.vxlan.port) if link.vxlan else None,
                link.vxlan.underlay if link.vxlan else Family.IPV4,
            )
            for link in records
        ),
        routes=tuple(_others_routes(connection, names, {route.network for route in learned})),
        block_routes=tuple(_block_routes(connection, learned, pools)),
        neighbours=_neighbour_tables(connection),
    )


def _others_routes(
    connection: Connection, names: dict[int, str], learned: Collection[Network]
) -> Iterable[KernelRoute]:
    """Yield routes in all tables that somebody else wrote, but for what the kernel made of addresses."""
    for family in Family:
        for record in dump_routes(connection, family, table=0):
            if record.table != RT_TABLE_LOCAL and not _expected(record, learned):
                yield KernelRoute(
                    record.destination,
                    record.type,
                    names.get(record.index, ""),
                    record.gateway,
                    record.protocol,
                    record.metric,
                    record.table,
                )


def _expected(record: RouteRecord, learned: Collection[Network]) -> bool:
    if record.protocol == RTPROT_BIRD:
        return record.destination in learned
    return record.protocol in {ROUTE_PROTOCOL, RTPROT_KERNEL}


def _block_routes(
    connection: Connection, learned: Iterable[BirdRoute], pools: Collection[Network]
) -> Iterable[BlockRoute]:
    remote = [route for route in learned if route.best and route.next_hops]
    routed = [record.destination for family in Family for record in dump_routes(connection, family)]
    inside = [net for net in routed if any(is_within(net, pool) for pool in pools)]
    # What a peer advertised besides (a default route, a wider range) the host may send where it likes.
    blocks = [route for route in remote if any(is_within(route.network, pool) for pool in pools)]
    for route in blocks[:MAX_BLOCK_ROUTES]:
        address = _an_address(route.network, inside)
        if address is None:
            continue  # narrower routes lead to all of it
        found = lookup_route(connection, address)
        if found.protocol == ROUTE_PROTOCOL:
            continue  # a pool switches from one mode to another, or from BGP to the store
        gateways = {hop.gateway for hop in route.next_hops}
        hop = next((hop for hop in route.next_hops if hop.gateway == found.gateway), route.next_hops[0])
        if found.gateway in gateways and found.device == hop.device and found.matched in {route.network, None}:
            continue
        yield BlockRoute(
            route.network,
            " or ".join(f"via {hop.gateway} dev {hop.device}" for hop in route.next_hops),
            found.device,
            found.gateway,
            found.matched,
            found.table,
            found.type,
        )


def _an_address(block: Network, routed: Collection[Network]) -> Address | None:
    """Return an address of a block to which no narrower route leads, rather one that a pod may have.

    None if narrower routes lead to all of it.
    """
    family = Family.of(block)
    narrower = [other for other in routed if other.prefixlen > block.prefixlen and is_within(other, block)]
    first = family.network(int(block.network_address), family.bits)
    for taken in ([*narrower, first], narrower):
        if (free := next(free_blocks(block, family.bits, taken), None)) is not None:
            return free.network_address
    return None


def _neighbour_tables(connection: Connection) -> tuple[NeighbourTable, ...]:
    learned = [found for found in dump_neighbours(connection) if not found.permanent]
    return tuple(
        NeighbourTable(
            table.family,
            sum(entry.address.version == table.family for entry in learned),
            table.room,
            table.overflows,
        )
        for table in dump_neighbour_tables(connection)
    )
