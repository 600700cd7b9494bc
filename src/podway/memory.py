"""How much memory a process of long life holds, and what of it beyond what it uses.

glibc gives each thread an arena of its own (mallopt(3), M_ARENA_MAX), and keeps what is freed in it. An agent's
threads come and go, each with work that takes much memory for a moment: one arena serves them all, since they
take turns at the interpreter anyway.
"""

import ctypes
import gc
import os
import sys
from pathlib import Path

_M_ARENA_MAX = -8
"""malloc.h"""

_USUALLY, _SELDOM = gc.get_threshold(), (100_000, 10, 10)
"""After how many more objects than before the garbage collector looks (gc.set_threshold)."""

_libc = ctypes.CDLL(None)


def share_arena() -> None:
    """Have all threads allocate from one arena; to be called before there are any."""
    if hasattr(_libc, "mallopt"):  # musl has none, and no arenas
        _libc.mallopt(_M_ARENA_MAX, 1)


def do_without(package: str) -> None:
    """Have a package pass for not installed, which others would import for no other reason than that it is there.

    To be called before these are imported.
    """
    sys.modules.setdefault(package, None)  # type: ignore[arg-type]  # as the import system has it (sys.modules)


def collect_seldom() -> None:
    """Have the garbage collector look seldom: while a large cluster is taken in, nearly all that is made stays.

    It would walk again and again through what is there, for up to an eighth of the time that it takes.
    """
    gc.set_threshold(*_SELDOM)


def collect_usually() -> None:
    """End what `collect_seldom` began."""
    gc.set_threshold(*_USUALLY)


def settle() -> None:
    """Keep what there is out of the garbage collector's sight, and give what is free back to the kernel.

    What is known of a large cluster stays, and a start takes more memory than what comes then.
    """
    gc.collect()  # what is frozen as garbage stays garbage
    gc.freeze()
    collect_usually()
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def resident() -> int:
    """Return this process's memory in bytes. (getrusage's ru_maxrss is inherited from whoever started it.)"""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
