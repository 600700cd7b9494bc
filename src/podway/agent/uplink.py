"""What the kernel has, as far as the choice of the uplink depends on it (podway.plan.uplink_choice)."""

from podway.api.addresses import Family
from podway.api.lease import LINK_PREFIX
from podway.kernel.network import Connection, RouteRecord, dump_addresses, dump_links, dump_routes
from podway.plan.objects import DEVICE_GROUP
from podway.plan.uplink_choice import DefaultRoute, HostInterfaces, Link, LinkAddress

WIDE = ("global", "200")
"""Scopes of addresses that other machines can reach; 200 is `site` (rtnetlink(7))."""


def host_interfaces(connection: Connection) -> HostInterfaces:
    """Return what there is, without devices and pod links of ours. Raises KernelError."""
    found = [
        link
        for link in dump_links(connection)
        if link.group != DEVICE_GROUP and not link.name.startswith(LINK_PREFIX)
    ]
    known = {link.index for link in found}
    return HostInterfaces(
        links=tuple(
            Link(link.index, link.name, link.mtu, link.up, link.kind, link.master, link.altnames) for link in found
        ),
        addresses=tuple(
            LinkAddress(
                record.index,
                record.address,
                record.created,
                record.permanent,
                record.tentative,
                record.duplicate,
                record.deprecated,
                record.temporary,
            )
            for record in dump_addresses(connection)
            if record.index in known and record.scope in WIDE
        ),
        defaults=tuple(
            _default(family, record)
            for family in Family
            for record in dump_routes(connection, family, lengths={0})
            if record.type == "unicast"
        ),
    )


def _default(family: Family, record: RouteRecord) -> DefaultRoute:
    hops = [(record.index, record.gateway), *((hop.index, hop.gateway) for hop in record.next_hops)]
    return DefaultRoute(
        family,
        record.metric,
        frozenset(index for index, _ in hops if index),
        tuple(gateway for _, gateway in hops if gateway is not None),
    )
