"""inotify(7), which the standard library lacks: a descriptor that is readable when a file was changed."""

import ctypes
import os
from pathlib import Path

# include/uapi/linux/inotify.h
IN_MODIFY = 0x00000002
IN_ATTRIB = 0x00000004
IN_MOVED_TO = 0x00000080
IN_CREATE = 0x00000100
IN_DELETE_SELF = 0x00000400
IN_MOVE_SELF = 0x00000800

_libc = ctypes.CDLL(None, use_errno=True)


def watch(path: Path, events: int) -> int:
    """Return a descriptor that becomes readable at these events on a file or directory; the caller closes it.

    Raises OSError; EMFILE if the user has too many of them (fs.inotify.max_user_instances).
    """
    descriptor: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if _libc.inotify_add_watch(descriptor, os.fsencode(path), events) < 0:
        code = ctypes.get_errno()
        os.close(descriptor)
        raise OSError(code, os.strerror(code))
    return descriptor


def drain(descriptor: int) -> None:
    """Read what makes the descriptor readable, and forget it."""
    os.read(descriptor, 1 << 16)
