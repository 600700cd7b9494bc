"""Settings below /proc/sys.

Paths below net/ show the settings of the network namespace of the thread that opens the file (net_ctl_root in
net/sysctl_net.c): call these functions in the right one (podway.kernel.netns.run).

Files are read and written by bare system calls, three for each: Python's file objects make seven, and a thread
that attaches a pod gives the interpreter to others with each of them.
"""

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from podway.errors import KernelError, UnsupportedSystem
from podway.plan.objects import Sysctl

_ROOT = Path("/proc/sys")
_PAGE = 4096
"""Bytes that are read at once: settings are shorter, but for lists of ports, say."""

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 2, 4, 8, 32, 4096
"""include/uapi/linux/mount.h"""


def read(paths: Iterable[str]) -> dict[str, str]:
    """Return the settings at these paths below /proc/sys; those that do not exist are left out.

    Raises KernelError.
    """
    found = {}
    for path in paths:
        try:
            found[path] = _read(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise KernelError(f"read sysctl {path}", error.errno or errno.EIO) from error
    return found


def write(sysctl: Sysctl) -> bool:
    """Make a setting what it shall be; tell whether it had to be written. Raises KernelError."""
    try:
        if _read(sysctl.path) == sysctl.value:
            return False
        with _opened(sysctl.path, os.O_WRONLY) as fd:
            os.write(fd, sysctl.value.encode())
    except OSError as error:
        raise KernelError(f"write {sysctl.value!r} to {sysctl}", error.errno or errno.EIO) from error
    return True


def make_writable() -> None:
    """Make /proc/sys writable where a container runtime mounted it read-only, for this mount namespace alone.

    Settings of the whole machine are as writable then as those of the network namespace; only the latter are
    ever written. Raises UnsupportedSystem if that is not allowed.
    """
    if not os.statvfs(_ROOT).f_flag & os.ST_RDONLY:
        return
    flags = _MS_REMOUNT | _MS_BIND | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    if ctypes.CDLL(None, use_errno=True).mount(None, os.fsencode(_ROOT), None, ctypes.c_ulong(flags), None):
        raise UnsupportedSystem(
            f"{_ROOT} is read-only, and cannot be made writable: {os.strerror(ctypes.get_errno())}",
            hint="give the container CAP_SYS_ADMIN and AppArmor's profile Unconfined, as deploy/podway.yaml does",
        )


def _read(path: str) -> str:
    # Several numbers come with tabs between them, and may be written with spaces.
    with _opened(path, os.O_RDONLY) as fd:
        parts = [os.read(fd, _PAGE)]
        while len(parts[-1]) == _PAGE:
            parts.append(os.read(fd, _PAGE))
    return " ".join(b"".join(parts).decode().split())


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    fd = os.open(f"{_ROOT}/{path}", flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
