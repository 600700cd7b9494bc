"""The clsact qdisc and the eBPF programs on it (man 8 tc, man 8 tc-bpf; net/sched/cls_bpf.c).

Putting the qdisc on a device or taking it off stops the device's queues for an instant, and what is sent then
is lost (dev_deactivate in qdisc_graft, net/sched/sch_api.c); filters come and go without that.
"""

import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, TypeAlias

import msgspec

from podway.kernel.netlink import Connection, Message, Request
from podway.kernel.netlink import constants as c
from podway.kernel.netlink.codec import TCMSG, nested, number, parse, string, text, u32

Direction: TypeAlias = Literal["ingress", "egress"]

PRIORITY = 112
"""Of a filter of ours: behind the filters that others number from 1, ahead of those that let the kernel choose.

It chooses from 49152 down.
"""
FIRST = 1
"""The priority ahead of all others."""
_HANDLE = 1
_CLSACT, _BPF = "clsact", "bpf"
"""Kinds of a qdisc and of a filter."""
_QDISC_HANDLE = 0xFFFF0000
_PARENTS: dict[Direction, int] = {
    "ingress": _QDISC_HANDLE | c.TC_H_MIN_INGRESS,
    "egress": _QDISC_HANDLE | c.TC_H_MIN_EGRESS,
}
_HOOKS: dict[str, tuple[Direction, ...]] = {_CLSACT: ("ingress", "egress"), "ingress": ("ingress",)}
"""The qdiscs that filters can hang on without queueing, and where. A device has one of them at most."""


class Filter(msgspec.Struct, frozen=True):
    """A direct-action eBPF filter as the kernel shows it: the device's number, and the program's id."""

    index: int
    direction: Direction
    priority: int
    handle: int
    protocol: int
    name: str
    program: int

    def __str__(self) -> str:
        return f"{self.direction} filter {self.name!r} on device {self.index}"


def hooks(connection: Connection) -> Mapping[int, tuple[Direction, ...]]:
    """Return the devices, by number, that filters can be hung on, and in which directions. Raises KernelError."""
    return {
        index: _HOOKS[kind]
        for index, handle, _, kind in _qdiscs(connection)
        if handle == _QDISC_HANDLE and kind in _HOOKS
    }


def limiting(connection: Connection) -> frozenset[int]:
    """Return the devices, by number, that somebody put a queue on, or filters ahead of the stack.

    That is how bandwidth is limited: tbf(8) and the like at the root; an `ingress` qdisc whose filters lead to an
    ifb with such a queue. A veth has `noqueue` unless somebody asked for another. Raises KernelError.
    """
    found = set()
    for index, handle, parent, kind in _qdiscs(connection):
        if (parent == c.TC_H_ROOT and kind != "noqueue") or (handle == _QDISC_HANDLE and kind == "ingress"):
            found.add(index)
    return frozenset(found)


def _qdiscs(connection: Connection) -> Iterator[tuple[int, int, int, str]]:
    """Yield of each qdisc its device's number, its handle, its parent and its kind."""
    request = Request(c.RTM_GETQDISC, TCMSG.pack(0, 0, 0, 0, 0), "list qdiscs")
    for message in connection.dump(request):
        _, index, handle, parent, _ = TCMSG.unpack_from(message.body)
        yield index, handle, parent, string(parse(message.body, TCMSG.size).get(c.TCA_KIND))


def filters(connection: Connection, index: int, direction: Direction) -> list[Filter]:
    """Return the eBPF filters on one hook of a device. Raises KernelError."""
    return [found for message in _dump(connection, index, direction) if (found := _read(message, direction))]


def is_empty(connection: Connection, index: int, directions: Iterable[Direction]) -> bool:
    """Tell whether no filter of any kind hangs on these hooks of a device. Raises KernelError."""
    return not any(_dump(connection, index, direction) for direction in directions)


def add_hooks(index: int) -> Request:
    """Build a request that puts a clsact qdisc on a device."""
    body = TCMSG.pack(0, index, _QDISC_HANDLE, c.TC_H_CLSACT, 0) + text(c.TCA_KIND, _CLSACT)
    return Request(c.RTM_NEWQDISC, body, "add", f"qdisc clsact on device {index}", c.NLM_F_CREATE | c.NLM_F_EXCL)


def remove_hooks(index: int) -> Request:
    """Build a request that takes the clsact qdisc off a device, with all that hangs on it."""
    body = TCMSG.pack(0, index, _QDISC_HANDLE, c.TC_H_CLSACT, 0)
    return Request(c.RTM_DELQDISC, body, "remove", f"qdisc clsact of device {index}")


def put(
    index: int,
    direction: Direction,
    name: str,
    program: int,
    former: Filter | None,
    *,
    priority: int = PRIORITY,
    beside: bool = False,
) -> Request:
    """Build a request that hangs a program (a descriptor) there, or puts it in the place of a `former` one.

    In replacing, no packet sees neither or both: the kernel swaps them in one step. `beside` others of ours it
    comes after them; else there may be none of this priority.
    """
    options = nested(
        c.TCA_OPTIONS,
        u32(c.TCA_BPF_FD, program),
        text(c.TCA_BPF_NAME, name),
        u32(c.TCA_BPF_FLAGS, c.TCA_BPF_FLAG_ACT_DIRECT),
    )
    handle, protocol = 0 if beside else _HANDLE, c.ETH_P_ALL
    if former is not None:
        priority, handle, protocol = former.priority, former.handle, former.protocol
    info = priority << 16 | socket.htons(protocol)
    body = TCMSG.pack(0, index, handle, _PARENTS[direction], info) + text(c.TCA_KIND, _BPF) + options
    flags = c.NLM_F_CREATE | (c.NLM_F_EXCL if former is None else 0)
    return Request(c.RTM_NEWTFILTER, body, "put", f"{direction} filter {name!r}", flags)


def remove(found: Filter) -> Request:
    """Build a request that removes a filter."""
    info = found.priority << 16 | socket.htons(found.protocol)
    body = TCMSG.pack(0, found.index, found.handle, _PARENTS[found.direction], info) + text(c.TCA_KIND, _BPF)
    return Request(c.RTM_DELTFILTER, body, "remove", found)


def _dump(connection: Connection, index: int, direction: Direction) -> list[Message]:
    body = TCMSG.pack(0, index, 0, _PARENTS[direction], 0)
    return connection.dump(Request(c.RTM_GETTFILTER, body, f"list {direction} filters of device", index))


def _read(message: Message, direction: Direction) -> Filter | None:
    _, index, handle, _, info = TCMSG.unpack_from(message.body)
    found = parse(message.body, TCMSG.size)
    if string(found.get(c.TCA_KIND)) != _BPF or c.TCA_OPTIONS not in found:
        return None
    options = parse(found[c.TCA_OPTIONS])
    if c.TCA_BPF_ID not in options:
        return None  # a classic BPF filter
    name, program = string(options.get(c.TCA_BPF_NAME)), number(options[c.TCA_BPF_ID])
    return Filter(index, direction, info >> 16, handle, socket.ntohs(info & 0xFFFF), name, program)
