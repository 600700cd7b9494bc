"""Where nodes and pods are on a plain host: asked from its kernel, which holds the leases."""

from collections.abc import Iterable

from podway.api.kinds.node import Node
from podway.api.resource import Resource
from podway.kernel import leases
from podway.kernel.network import Connection, dump_addresses, dump_links
from podway.prove.world import NodePlace, PodPlace


def places_here(resources: Iterable[Resource]) -> tuple[dict[str, NodePlace], dict[str, PodPlace]]:
    """Return where this machine's own node and its pods are, in the form that `build_world` takes.

    The node is the one whose address is on a device here: that device is its uplink. Raises KernelError.
    """
    with Connection() as connection:
        names = {link.index: link.name for link in dump_links(connection)}
        devices = {record.address.ip: names.get(record.index, "") for record in dump_addresses(connection)}
        held = leases.read(connection).leases
    nodes = {
        node.metadata.name: NodePlace("", devices[address])
        for node in resources
        if isinstance(node, Node)
        for address in node.internal_addresses
        if address in devices
    }
    pods = {
        lease.pod: PodPlace(lease.netns, lease.attachment.ifname, lease.attachment.link)
        for lease in held
        if lease.pod
    }
    return nodes, pods
