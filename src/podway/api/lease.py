"""A pod's lease: which attachment holds which addresses, in the form the kernel keeps it.

The kernel is the node's database. The host end of a pod's veth pair carries the lease:

* its alternative name `pod.<container>:<ifname>` is the key (the kernel refuses a second link of that name);
* its alias says who the pod is: `<namespace>/<name> <network> <netns path>`; for a port of the bridge it is
  `<namespace>/<name> <network>@bridge <netns path>`;
* the host routes through it hold the addresses; those of a port, to which no route leads, its permanent
  neighbours.

Alias and routes are written last: a link without them was never handed out. When the pod's network namespace
vanishes, all of it vanishes too.
"""

import hashlib
from ipaddress import ip_address

import msgspec

from podway.api.addresses import Address
from podway.api.kinds.ip_pool import Attach

ALTNAME_PREFIX = "pod."
LINK_PREFIX = "pway"
ON_BRIDGE = "@bridge"
"""Follows the network in a port's alias; no network's name has an `@` in it."""
ALIAS_BYTES = 255
"""IFALIASZ - 1 (include/uapi/linux/if.h)."""
ALTNAME_BYTES = 127
"""ALTIFNAMSIZ - 1."""
MAX_CONTAINER_ID = ALTNAME_BYTES - len(ALTNAME_PREFIX) - len(":") - 15
"""What is left for a container id beside the prefix and the longest interface name."""


class Attachment(msgspec.Struct, frozen=True, order=True):
    """One interface of one container: what a CNI ADD creates and a DEL removes."""

    container: str
    ifname: str

    def __str__(self) -> str:
        return f"{self.ifname} of container {self.container}"

    @property
    def altname(self) -> str:
        """The alternative name of the host end: the lease's key."""
        return f"{ALTNAME_PREFIX}{self.container}:{self.ifname}"

    @property
    def link(self) -> str:
        """Name of the host end: our prefix and 44 bits of a digest, 15 characters in all."""
        return LINK_PREFIX + self._digest().hex()[:11]

    @property
    def mac(self) -> str:
        """The pod end's hardware address: locally administered, the same each time."""
        return ":".join(f"{byte:02x}" for byte in (0x02, *self._digest()[-5:]))

    def _digest(self) -> bytes:
        return hashlib.sha256(self.altname.encode()).digest()

    @classmethod
    def from_altname(cls, altname: str) -> "Attachment | None":
        """Read an alternative name back; None if it is not one of ours."""
        if not altname.startswith(ALTNAME_PREFIX):
            return None
        # A colon can stand in neither part: the CNI spec forbids it in ids, the kernel in names.
        container, _, ifname = altname[len(ALTNAME_PREFIX) :].partition(":")
        return cls(container, ifname) if container and ifname else None


class Lease(msgspec.Struct, frozen=True):
    """An attachment, whose it is and the addresses it holds (at most one a family)."""

    attachment: Attachment
    pod: str
    """`<namespace>/<name>`; empty if the runtime did not say."""
    network: str
    """Name of the CNI network that the attachment belongs to."""
    netns: str
    """Path of the pod's network namespace as the runtime gave it."""
    addresses: tuple[Address, ...]
    attach: Attach = "routed"
    """How the pod was attached: it stays so when its pool's setting changes."""

    @property
    def alias(self) -> str:
        """The host end's alias; a name too long for it is cut and ends in `~` and a digest."""
        rest = f" {self.network}{ON_BRIDGE if self.attach == 'bridge' else ''} {self.netns}"
        room = ALIAS_BYTES - len(rest.encode())
        return f"{shorten(self.pod or '-', room)}{rest}"

    @classmethod
    def from_kernel(cls, altname: str, alias: str, addresses: tuple[str, ...]) -> "Lease | None":
        """Read a lease back from the three things the kernel holds; None if they are not one."""
        attachment = Attachment.from_altname(altname)
        parts = alias.split(" ", 2)
        if attachment is None or len(parts) != 3:
            return None
        pod, network, netns = parts
        return cls(
            attachment,
            "" if pod == "-" else pod,
            network.removesuffix(ON_BRIDGE),
            netns,
            tuple(map(ip_address, addresses)),
            "bridge" if network.endswith(ON_BRIDGE) else "routed",
        )


class LeaseRecord(msgspec.Struct, frozen=True):
    """A lease in plain values, as files hold it and agents tell it."""

    container: str
    ifname: str
    pod: str
    network: str
    netns: str
    addresses: tuple[str, ...]
    attach: Attach = "routed"

    @classmethod
    def of(cls, lease: Lease) -> "LeaseRecord":
        """Return the record of a lease."""
        return cls(
            lease.attachment.container,
            lease.attachment.ifname,
            lease.pod,
            lease.network,
            lease.netns,
            tuple(map(str, lease.addresses)),
            lease.attach,
        )

    @property
    def lease(self) -> Lease:
        """The lease that is recorded. Raises ValueError if an address is none."""
        return Lease(
            Attachment(self.container, self.ifname),
            self.pod,
            self.network,
            self.netns,
            tuple(map(ip_address, self.addresses)),
            self.attach,
        )


def shorten(name: str, room: int) -> str:
    """Cut a name to `room` bytes; a cut name ends in `~` and 8 digits of its digest."""
    if len(name.encode()) <= room:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: max(0, room - 9)]}~{digest}"
