"""Kernel settings, counters and limits. Call in the node's namespace; all of it takes milliseconds."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

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
        udp_ports=_ports("udp"),
        tcp_ports=_ports("tcp", _LISTENS),
        unsupported=_unsupported(),
    )


def _ports(protocol: str, state: str = "") -> frozenset[int]:
    """Return the ports of sockets, of those in one state if that is said."""
    rows = [
        line.split()
        for name in (protocol, f"{protocol}6")
        if (path := _COUNTERS / name).exists()
        for line in path.read_text().splitlines()[1:]
    ]
    return frozenset(int(row[1].rpartition(":")[2], 16) for row in rows if state in ("", row[3]))


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
