"""Finding all processes of some sort, though processes start and end while one looks.

A daemon that goes into the background ends as soon as it has started another process, which is in no listing of
/proc that was made before; and a listing tells of none that got a number behind the place where the listing is
(they come in the order of their numbers: fs/proc/base.c, next_tgid), as happens whenever numbers have begun
anew. So listings alone prove nothing on a machine where processes come and go all the time. Numbers do: the
kernel gives them out in rising order (kernel/pid.c, alloc_pid) and tells which was the last. Once all that
lived have been looked at, whoever comes has one of the numbers given out since. Each of these is looked at,
until none was given out meanwhile: then nobody lives who was not looked at, however many began and ended on the
way.

One case is left: a number is given out a little before there is anything to look at (copy_process in
kernel/fork.c). As long as that lasts, the parent is in the middle of clone(2) and so is found itself: a parent
is looked at before its child, as it has the smaller number. Where both had their numbers before the first
listing, a second one finds the child.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
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


def look(belongs: Callable[[int], bool]) -> Seen:
    """Return what processes there are.

    `belongs` raises OSError where it cannot tell: the process has ended, has no arguments or environment (yet), or
    nobody may look into it.
    """
    return _look_at(belongs, _listed())


def find(belongs: Callable[[int], bool], *, deadline: float) -> list[int]:
    """Return processes that belong, by number, perhaps not all of them; none only if there are none.

    Whoever is to belong has to be one from the start, or be started by one. `belongs` is as for `look`. Raises
    TimeoutError if it cannot be told before the deadline (of time.monotonic).
    """
    numbers = _Numbers()
    first = _look_at(belongs, numbers.noted_while(_listed()))
    settled = first.others | first.ended
    second = _look_at(belongs, numbers.noted_while(pid for pid in _listed() if pid not in settled))
    if belonging := first.belonging or second.belonging:
        return belonging
    beginning = dict.fromkeys(first.beginning | second.beginning, time.monotonic())  # since when
    while True:
        now = time.monotonic()
        # In the order in which they were given out: a parent before its child.
        seen = _look_at(belongs, [*beginning, *numbers.taken()])
        if belonging := [pid for pid in seen.belonging if _is_process(pid)]:
            return belonging
        beginning = {pid: beginning.get(pid, now) for pid in seen.beginning}
        begun = all(now - since > EXECVE_SECONDS for since in beginning.values())
        numbers.note()
        if begun and not numbers.given:
            return []
        if now > deadline:
            raise TimeoutError("processes start and end too quickly")


class _Numbers:
    """The numbers that are given out from now on, in this order."""

    def __init__(self) -> None:
        self._last = _last_number()
        self.given: dict[int, None] = {}
        """Those that were taken down, the latest last."""

    def note(self) -> None:
        """Take down what was given out since this was done last; not so long that all were given out meanwhile."""
        last = _last_number()
        if last < self._last:  # they have begun anew
            self._add(range(self._last + 1, _highest_number() + 1))
            self._last = 0
        self._add(range(self._last + 1, last + 1))
        self._last = last

    def _add(self, pids: Iterable[int]) -> None:
        for pid in pids:
            self.given.pop(pid, None)
            self.given[pid] = None

    def noted_while(self, pids: Iterable[int]) -> Iterator[int]:
        """Yield these numbers; take down meanwhile what is given out, however long that takes."""
        for place, pid in enumerate(pids):
            if place % 256 == 0:
                self.note()
            yield pid

    def taken(self) -> Iterator[int]:
        """Yield each that was taken down, the latest as well, and forget them."""
        self.note()
        given, self.given = self.given, {}
        return self.noted_while(given)


def _listed() -> Iterable[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _look_at(belongs: Callable[[int], bool], pids: Iterable[int]) -> Seen:
    seen = Seen([], set(), set(), set())
    for pid in pids:
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


def _is_process(pid: int) -> bool:
    """Tell whether it is one that lives, and no further thread of one (these have numbers and answers, too)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return False
    return f"\nTgid:\t{pid}\n" in status


def _last_number() -> int:
    """Return the number that was given out last (man 5 proc, /proc/loadavg); a smaller one than before: anew."""
    return int(Path("/proc/loadavg").read_text().split()[4])


def _highest_number() -> int:
    """Return the number after which they begin anew (man 5 proc, pid_max, is one more)."""
    return int(Path("/proc/sys/kernel/pid_max").read_text()) - 1
