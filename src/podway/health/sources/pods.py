"""What stands inside pods: looked at in their own namespaces."""

import errno
import os
from collections.abc import Iterable

from podway.api.lease import Lease
from podway.errors import InvalidInput, KernelError
from podway.health.facts import PodDevice
from podway.kernel import netns
from podway.kernel.network import Connection, find_link


def read(leases: Iterable[Lease]) -> tuple[PodDevice, ...]:
    """Return the pods' own devices; pods that are just gone are left out. Raises KernelError."""
    return tuple(found for lease in leases if (found := _device(lease)) is not None)


def _device(lease: Lease) -> PodDevice | None:
    ifname, name = lease.attachment.ifname, lease.pod or lease.attachment.container
    try:
        descriptor = netns.open_path(lease.netns)
    except InvalidInput:
        return None
    try:
        with Connection(descriptor) as connection:
            link = find_link(connection, ifname)
    except KernelError as error:
        if error.errno != errno.ENODEV:
            raise
        return None
    finally:
        os.close(descriptor)
    return PodDevice(name, lease.attachment.link, lease.netns, ifname, link.mtu)
