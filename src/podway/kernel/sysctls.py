"""Settings below /proc/sys.

Paths below net/ show the settings of the network namespace of the thread that opens the file (net_ctl_root in
net/sysctl_net.c): call these functions in the right one (podway.kernel.netns.run).
"""

import errno
from collections.abc import Iterable
from pathlib import Path

from podway.errors import KernelError
from podway.plan.objects import Sysctl

_ROOT = Path("/proc/sys")


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
        # Unbuffered: the kernel judges what one write holds.
        with open(_ROOT / sysctl.path, "wb", buffering=0) as file:
            file.write(sysctl.value.encode())
    except OSError as error:
        raise KernelError(f"write {sysctl.value!r} to {sysctl}", error.errno or errno.EIO) from error
    return True


def _read(path: str) -> str:
    # Several numbers come with tabs between them, and may be written with spaces.
    return " ".join((_ROOT / path).read_text().split())
