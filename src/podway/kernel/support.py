"""Whether this system can run Podway: privileges, kernel version and features.

Features are tried out, in a namespace made for that, since a kernel's version says little of its configuration.
"""

import errno
import os
import re
from pathlib import Path

from podway.errors import KernelError, NeedsRoot, UnsupportedSystem
from podway.kernel import netns
from podway.kernel.netlink import Connection
from podway.kernel.nft.forms import loaded_form
from podway.kernel.rtnl import links
from podway.plan.objects import LINK_GROUP, NFT_TABLE, NftTable

MINIMUM_KERNEL = (5, 10)
"""The oldest of the kernels that are still maintained and have alternative names (5.5)."""

CAPABILITIES = {
    "CAP_NET_ADMIN": (12, "to make links, addresses and routes"),
    "CAP_NET_RAW": (13, "to send and capture packets"),
    "CAP_SYS_ADMIN": (21, "to make and enter network namespaces"),
}
"""Name, bit (include/uapi/linux/capability.h) and what it is needed for."""


def missing_capabilities(status: str | None = None) -> list[str]:
    """Return the names of the capabilities that this process needs and lacks.

    `status` is the text of /proc/self/status, None to read it.
    """
    text = Path("/proc/self/status").read_text() if status is None else status
    match = re.search(r"^CapEff:\s*([0-9a-fA-F]+)$", text, re.MULTILINE)
    effective = int(match[1], 16) if match else 0
    return [name for name, (bit, _) in CAPABILITIES.items() if not effective >> bit & 1]


def require_privileges() -> None:
    """Raise NeedsRoot if a capability is missing, UnsupportedSystem if root itself lacks it; both name it."""
    missing = missing_capabilities()
    if not missing:
        return
    told = " and ".join(f"{name} {CAPABILITIES[name][1]}" for name in missing)
    if os.geteuid() != 0:
        raise NeedsRoot(f"this command ({told})")
    raise UnsupportedSystem(
        f"root lacks {told}", hint="in a container, give it these capabilities (docker run --privileged)"
    )


def version_of(release: str) -> tuple[int, ...]:
    """Return the first two numbers of a release as `uname -r` tells it, such as `6.12+` or `6.1.0-18-amd64`."""
    return tuple(map(int, re.findall(r"\d+", release)[:2]))


def require_kernel(release: str = "") -> None:
    """Raise UnsupportedSystem if the kernel is too old; `release` is as of `uname -r`, empty: this one's."""
    release = release or os.uname().release
    if version_of(release) < MINIMUM_KERNEL:
        needed = ".".join(map(str, MINIMUM_KERNEL))
        raise UnsupportedSystem(
            f"kernel {release} is too old: it lacks what {needed} has (alternative link names, strict dumps)",
            hint=f"use kernel {needed} or newer",
        )


def require_features() -> None:
    """Try veth pairs, alternative names and nftables; raise UnsupportedSystem for the first that is missing."""
    fd = netns.new()
    try:
        with Connection(fd) as connection:
            _try_links(connection)
    finally:
        os.close(fd)
    try:
        loaded_form(NftTable("inet", NFT_TABLE, ""))
    except KernelError as error:
        raise UnsupportedSystem(
            f"the kernel has no nftables: {error.message}", hint="load nf_tables (CONFIG_NF_TABLES)"
        ) from error


def require_all() -> None:
    """Raise UnsupportedSystem if anything is missing that Podway's kernel side needs."""
    require_kernel()
    require_privileges()
    require_features()


def _try_links(connection: Connection) -> None:
    try:
        connection.transact([links.new_veth("try0", links.Peer("try1"), group=LINK_GROUP)])
    except KernelError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise UnsupportedSystem("the kernel has no veth devices", hint="load veth (CONFIG_VETH)") from error
    try:
        connection.transact([links.altname("try0", "pod.try:eth0")])
    except KernelError as error:
        raise UnsupportedSystem(
            f"the kernel has no alternative link names: {error.message}", hint="use kernel 5.5 or newer"
        ) from error
