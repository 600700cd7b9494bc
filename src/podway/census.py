"""Finding all processes of some sort, though processes start and end while one looks.

/proc lists them in the order of their numbers (fs/proc/base.c, next_tgid), which the kernel gives out in rising
order (kernel/pid.c, alloc_pid). So whatever lives when a listing ends is in it, unless the numbers began anew
meanwhile. But a process may have ended between the listing and the look at it, and have started another one that
is in no listing yet: a daemon that goes into the background does so. A look that found nothing is believed only if
there was no such process. One that had ended before the listing began is none: what it started is in the listing.
So no process is looked at twice, however many zombies there are for which nobody waits; and those that started
last are looked at first, before they end.
"""

import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

PF_KTHREAD = 0x00200000
"""A thread of the kernel's (include/linux/sched.h): it has neither arguments nor environment, and gets none."""

EXECVE_SECONDS = 1.0
"""How long execve(2) may take. Who has no arguments for longer was started without."""


class Seen(NamedTuple):
    """What a look saw: processes by number."""

    belonging: list[int]
    ended: set[int]
    """Zombies, and those that were listed and are there no more."""
    beginning: set[int]
    """Those of which it cannot be told yet: in the middle of execve(2)."""
    others: set[int]
    """Those that do not belong, and those of which it cannot be told."""


def look(belongs: Callable[[int], bool], without: Collection[int] = ()) -> Seen:
    """Return what processes there are.

    `belongs` raises OSError where it cannot tell: the process has ended, has no arguments or environment (yet), or
    nobody may look into it. Those `without` which to look are in none.
    """
    seen = Seen([], set(), set(), set())
    for pid in [int(name) for name in os.listdir("/proc") if name.isdecimal()][::-1]:
        if pid in without:
            continue
        try:
            belonging = belongs(pid)
        except PermissionError:
            belonging = False
        except OSError:
            if (state := _without_answer(pid, seen)) is not seen.others:
                state.add(pid)
                continue
            try:  # it may have begun meanwhile
                belonging = belongs(pid)
            except OSError:
                belonging = False
        if belonging:
            seen.belonging.append(pid)
        else:
            seen.others.add(pid)
    return seen


def find(belongs: Callable[[int], bool], *, deadline: float) -> list[int]:
    """Return processes that belong, by number, perhaps not all of them; none only if there are none.

    Whoever is to belong has to be one from the start, or be started by one. `belongs` is as for `look`. Raises
    TimeoutError if at the deadline (of time.monotonic) so many processes start and end that it cannot be told.

    All are looked at once. What one that ended may have started was in no listing before: only such are looked at
    then, and again those that were just beginning. They are few, so that hardly any of them ends meanwhile,
    however many come and go on a busy machine.
    """
    settled: set[int] = set()
    beginning: dict[int, float] = {}  # since when
    last = 0
    while True:
        began = _last_number()
        seen = look(belongs, settled)
        ended = _last_number()
        if seen.belonging:
            return seen.belonging
        now = time.monotonic()
        beginning = {pid: beginning.get(pid, now) for pid in seen.beginning}
        anew = not last <= began <= ended
        if not seen.ended and not anew and all(now - since > EXECVE_SECONDS for since in beginning.values()):
            return []
        if now > deadline:
            raise TimeoutError("processes start and end too quickly")
        settled, last = (set(), 0) if anew else (settled | seen.others | seen.ended, ended)


def _without_answer(pid: int, seen: Seen) -> set[int]:
    """Return of what sort a process is of which it could not be told (man 5 proc_pid_stat: state, flags)."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        if words[0] in "ZX":
            return seen.ended
        if int(words[6]) & PF_KTHREAD or Path(f"/proc/{pid}/cmdline").read_bytes():
            return seen.others
    except OSError:
        return seen.ended
    return seen.beginning


def _last_number() -> int:
    """Return the number that was given out last (man 5 proc, /proc/loadavg); a smaller one than before: anew."""
    return int(Path("/proc/loadavg").read_text().split()[4])
