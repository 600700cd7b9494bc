"""Finding all processes of some sort, though processes start and end while one looks.

/proc lists them in the order of their numbers (fs/proc/base.c, next_tgid), which the kernel gives out in rising
order (kernel/pid.c, alloc_pid). So whatever lives when a listing ends is in it, unless the numbers began anew
meanwhile. But a process may have ended between the listing and the look at it, and have started another one that
is in no listing yet: a daemon that goes into the background does so. A look that found nothing is believed only if
there was no such process.
"""

import os
import time
from collections.abc import Callable, Collection
from pathlib import Path


def look(
    belongs: Callable[[int], bool], without: Collection[int] = ()
) -> tuple[list[int], frozenset[int], frozenset[int]]:
    """Return the processes that belong, by number, those of which it cannot be told, and those that do not belong.

    `belongs` raises OSError where it cannot tell: the process has ended, or nobody may look into it. Those
    `without` which to look are in none.
    """
    found, unclear, others = [], set(), set()
    for pid in [int(name) for name in os.listdir("/proc") if name.isdecimal()]:
        if pid in without:
            continue
        try:
            if belongs(pid):
                found.append(pid)
            else:
                others.add(pid)
        except OSError:
            unclear.add(pid)
    return found, frozenset(unclear), frozenset(others)


def find(belongs: Callable[[int], bool], *, deadline: float) -> list[int]:
    """Return processes that belong, by number, perhaps not all of them; none only if there are none.

    Whoever is to belong has to be one from the start, or be started by one. `belongs` is as for `look`. Raises
    TimeoutError if at the deadline (of time.monotonic) so many processes start and end that it cannot be told.

    All are looked at once. What one that ended may have started was in no listing before: only such are looked at
    then, and again what was unclear, since it may have been about to begin (execve). They are few, so that hardly
    any of them ends meanwhile, however many come and go on a busy machine.
    """
    others: frozenset[int] = frozenset()
    known: frozenset[int] = frozenset()
    last = 0
    while True:
        began = _last_number()
        found, unclear, more = look(belongs, others)
        ended = _last_number()
        if found:
            return found
        anew = not last <= began <= ended
        # What was unclear before, too, has been a zombie since: what it started is in the listing.
        if unclear <= known and not anew:
            return []
        if time.monotonic() > deadline:
            raise TimeoutError("processes start and end too quickly")
        others, known, last = (frozenset(), frozenset(), 0) if anew else (others | more, unclear, ended)


def _last_number() -> int:
    """Return the number that was given out last (man 5 proc, /proc/loadavg); a smaller one than before: anew."""
    return int(Path("/proc/loadavg").read_text().split()[4])
