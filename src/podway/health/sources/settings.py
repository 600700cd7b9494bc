"""Kernel settings, counters and limits. Call in the node's namespace; all of it takes milliseconds."""

import errno
import os
import struct
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

from podway import inotify
from podway.api.addresses import Family
from podway.errors import UnsupportedSystem
from podway.health.facts import (
    CONNTRACK_COUNT,
    CONNTRACK_MAX,
    FORWARDING,
    INOTIFY_TRIED,
    Settings,
)
from podway.kernel import sysctls
from podway.kernel.support import require_all
from podway.plan.host_facts import ACCEPT_RA
from podway.plan.overlays import RP_FILTER
from podway.plan.uplink import Uplink

_COUNTERS = Path("/proc/thread-self/net")

_LISTENS = "0A"
"""TCP_LISTEN, as /proc/net/tcp has it (include/net/tcp_states.h)."""


def read(uplink: Uplink) -> Settings:
    """Return the settings that concern a node with this uplink. Raises KernelError, OSError."""
    paths = [
        CONNTRACK_COUNT,
        CONNTRACK_MAX,
        *(RP_FILTER.format(device=device) for device in ("all", uplink.device)),
        ACCEPT_RA.format(device=uplink.device),
        *(FORWARDING[Family.of(address)].format(device=uplink.device) for address in uplink.addresses),
    ]
    return Settings(
        values=sysctls.read(paths),
        counters=counters(),
        inotify_room=_inotify_room(),
        udp_ports=frozenset(one.port for one in _sockets("udp")),
        served_ports={
            "TCP": frozenset(one.port for one in _sockets("tcp") if one.is_served and one.state == _LISTENS),
            "UDP": frozenset(one.port for one in _sockets("udp") if one.is_served),
        },
        unsupported=_unsupported(),
    )


class _Socket(NamedTuple):
    """A row of /proc/net/tcp, udp and those of IPv6: local address and port, remote ones, and the state."""

    local: str
    remote: str
    state: str

    @property
    def port(self) -> int:
        return int(self.local.rpartition(":")[2], 16)

    @property
    def is_served(self) -> bool:
        """Whether others than the node itself may begin to talk to it: it is not loopback's, nor connected."""
        # Words of 32 bits in network byte order, told as the processor's (net/ipv4/tcp_ipv4.c, get_tcp4_sock).
        words = struct.iter_unpack(">I", bytes.fromhex(self.local.partition(":")[0]))
        address = ip_address(b"".join(struct.pack("=I", word) for (word,) in words))
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return not (mapped or address).is_loopback and not self.remote.strip("0:")


def _sockets(protocol: str) -> Iterator[_Socket]:
    """Yield the sockets of a protocol, of both families. Raises OSError."""
    for path in (_COUNTERS / protocol, _COUNTERS / f"{protocol}6"):
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            yield _Socket(*line.split()[1:4])


def counters() -> dict[str, int]:
    """Return the counters of /proc/net/snmp, netstat, snmp6 and conntrack, by `Group.Name`. Raises OSError."""
    found: dict[str, int] = {}
    for name in ("snmp", "netstat"):
        found.update(_paired((_COUNTERS / name).read_text()))
    # Written once for each processor, in hexadecimal (ct_cpu_seq_show, net/netfilter/nf_conntrack_standalone.c).
    for file, prefix in (("snmp6", ""), ("stat/nf_conntrack", "conntrack.")):
        path = _COUNTERS / file
        if path.exists():
            read = _lines(path.read_text()) if file == "snmp6" else _columns(path.read_text())
            for key, value in read:
                found[prefix + key] = found.get(prefix + key, 0) + value
    return found


def _paired(text: str) -> Iterator[tuple[str, int]]:
    """Read lines that come in pairs: names, then numbers."""
    lines = text.splitlines()
    for names, numbers in zip(lines[::2], lines[1::2], strict=True):
        group, *keys = names.split()
        for key, value in zip(keys, numbers.split()[1:], strict=True):
            yield f"{group[:-1]}.{key}", int(value)


def _lines(text: str) -> Iterator[tuple[str, int]]:
    for line in text.splitlines():
        key, value = line.split()
        yield key, int(value)


def _columns(text: str) -> Iterator[tuple[str, int]]:
    head, *rows = text.splitlines()
    for row in rows:
        for key, value in zip(head.split(), row.split(), strict=True):
            yield key, int(value, 16)


def _inotify_room() -> int:
    opened: list[int] = []
    try:
        while len(opened) < INOTIFY_TRIED:
            opened.append(inotify.watch(Path("/"), inotify.IN_DELETE_SELF))
    except OSError as error:
        if error.errno not in {errno.EMFILE, errno.ENOSPC}:
            raise
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return len(opened)


def _unsupported() -> str:
    try:
        require_all()
    except UnsupportedSystem as error:
        return str(error)
    return ""
