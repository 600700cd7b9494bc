"""eBPF programs on tcx, the hooks of a device that need no qdisc (kernel 6.6; kernel/bpf/tcx.c, mprog.c).

A program is attached without a bpf_link: it outlives whoever attached it, needs no pin, and goes with its device.
No queue of the device is stopped for it, as one is for a qdisc that comes or goes. Who changes what is
attached is not told to anybody (there is no netlink message).

Devices are those of the calling thread's namespace.
"""

import contextlib
import ctypes
import errno
import functools

from podway.errors import KernelError
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.rtnl.tc import Direction

_ATTACH_TYPES: dict[Direction, int] = {"ingress": 46, "egress": 47}
"""BPF_TCX_INGRESS and BPF_TCX_EGRESS (linux/bpf.h), which older headers do not have."""
_F_REPLACE, _F_BEFORE, _F_AFTER = 1 << 2, 1 << 3, 1 << 4
_MOST = 64
"""bpf_mprog_max(): so many programs are on one hook at most."""
_FORBIDDEN = {errno.ENOSYS, errno.EPERM}
"""No bpf(2) at all, no right to it: as root of a user namespace only, for instance."""
_UNSUPPORTED = {errno.EINVAL, *_FORBIDDEN}
_LOOPBACK = 1
"""Every namespace has this device."""


class _AttachOptions(ctypes.Structure):
    """The beginning of struct bpf_prog_attach_opts (bpf/bpf.h)."""

    _fields_ = (("size", ctypes.c_size_t), ("flags", ctypes.c_uint32), ("replaced", ctypes.c_int))


@functools.cache
def why_not() -> str:
    """Say why this process cannot use tcx; empty if it can. Raises KernelError and UnsupportedSystem."""
    try:
        programs(_LOOPBACK, "ingress")
    except KernelError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return "this system forbids eBPF" if error.errno in _FORBIDDEN else "its kernel has no tcx (before 6.6)"
    return ""


def is_supported() -> bool:
    """Tell whether this kernel has tcx, and lets this process use it. Raises KernelError and UnsupportedSystem."""
    return not why_not()


def programs(index: int, direction: Direction) -> list[int]:
    """Return the ids of the programs on one hook of a device, in the order in which they see a packet.

    None are on a device that is gone. Raises KernelError.
    """
    found, count = (ctypes.c_uint32 * _MOST)(), ctypes.c_uint32(_MOST)
    said = bpf.library().bpf_prog_query(
        index, _ATTACH_TYPES[direction], ctypes.c_uint32(), None, found, ctypes.byref(count)
    )
    if said in {-errno.ENOENT, -errno.ENODEV}:
        return []
    bpf.checked(f"list the tcx {direction} programs of device {index}", said)
    return found[: count.value]


def put(
    index: int, direction: Direction, program: int, former: int | None, *, label: object, last: bool = False
) -> None:
    """Attach a program (a descriptor) ahead of all others, behind them (`last`), or in a `former` one's place.

    `former` is an id.

    In replacing, no packet sees neither or both: the kernel swaps them in one step. `label` is what errors name
    it. Raises KernelError.
    """
    with contextlib.ExitStack() as stack:
        options = _AttachOptions(size=ctypes.sizeof(_AttachOptions), flags=_F_AFTER if last else _F_BEFORE)
        if former is not None:
            options.flags, options.replaced = _F_REPLACE, stack.enter_context(bpf.opened(former)).fd
        said = bpf.library().bpf_prog_attach_opts(program, index, _ATTACH_TYPES[direction], ctypes.byref(options))
    bpf.checked(f"attach {label}", said)


def detach(index: int, direction: Direction, program: int, *, label: object) -> None:
    """Detach a program (an id). Raises KernelError, with errno ENOENT if it is not there."""
    with bpf.opened(program) as opened:
        said = bpf.library().bpf_prog_detach2(opened.fd, index, _ATTACH_TYPES[direction])
    bpf.checked(f"detach {label}", said)
