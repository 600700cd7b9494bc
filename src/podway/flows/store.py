"""A node's history of flows on its disk: blocks in a directory, written as events come, bounded, newest kept.

`current` is written as events come: pieces, each with its length and check sum, so that what a killed agent had
written is there, and a piece that was cut short is known as such. Once there is enough of it, it becomes a sealed
block (podway.flows.block), a file whose name says which records it has and of what time; the oldest go when there
is no more room. Nothing is ever changed in place.

Room is what was given, and never what the file system needs itself: the last twentieth of it (at most 256 MiB) is
left free. What cannot be written is kept in memory until the block is full, then lost, counted, and told.
"""

import os
import re
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog

from podway.flows.block import Block, DamagedBlock, Names
from podway.kernel.flow_events import EVENT_SIZE

log = structlog.get_logger(__name__)

BLOCK = 16384
"""Events after which a block is sealed: some 2 MB before, a tenth of it afterwards."""

OLD = 900.0
"""Seconds after which one is sealed that is not full: what a node without traffic may have in `current`."""

RESERVE, SHARE = 256 << 20, 20
"""What is left free of a file system: so many bytes at most, and one of so many parts."""

RETRY = 5.0
"""Seconds between attempts to write to a disk that took nothing: each writes all that is not sealed yet."""

_HEAD = 9
_NAMES = b"N"
assert EVENT_SIZE < 256, "events of this size need a mark of more than one byte"
assert _NAMES[0] != EVENT_SIZE, "events of this size need another mark: it is that of names"
_EVENTS = bytes((EVENT_SIZE,))
"""How pieces are marked: events by their size. Those of another build, which are of another size, are not read."""
_SEALED = re.compile(r"(?P<first>[0-9a-f]{16})-(?P<count>[0-9]+)-(?P<begin>[0-9]+)-(?P<end>[0-9]+)\.flows")


class Sealed(NamedTuple):
    """A sealed block's file: its records, its times (seconds since 1970), its bytes."""

    path: Path
    first: int
    records: int
    begin: float
    end: float
    size: int


class FlowStore:
    """The blocks of one node, in a directory that is nobody else's.

    One thread writes; others may read meanwhile. Nothing raises for what the disk does: `problem` says it.
    """

    def __init__(self, directory: Path, node: str, limit: int) -> None:
        """Take over what is in the directory; `limit` is in bytes."""
        self._directory = directory
        self._node = node
        self._limit = limit
        self._guard = threading.Lock()
        """Held by who changes or copies what the two following say."""
        self._sealed: list[Sealed] = []
        self._events, self._names = bytearray(), Names()
        self._first = 0
        self._begun = 0.0
        self._written = 0
        """How much of `current` is whole, in bytes."""
        self._fd = -1
        self._again = 0.0
        self.problem = ""
        """Why records cannot be kept; empty if they can."""
        self.unstored = 0
        """Records that were given up: the disk took none, or another build left them unsealed."""
        self._open()

    # What is there.

    def _open(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for entry in os.scandir(self._directory):
                found = _SEALED.fullmatch(entry.name)
                if found:
                    first, count, begin, end = int(found["first"], 16), *map(int, found.groups()[1:])
                    self._sealed.append(
                        Sealed(Path(entry.path), first, count, begin / 1000, end / 1000, entry.stat().st_size)
                    )
                elif entry.name.endswith(".new"):  # whoever wrote it was killed
                    Path(entry.path).unlink()
        except OSError as error:
            self._note(error)
        self._sealed.sort(key=lambda one: one.first)
        self._first = max((one.first + one.records for one in self._sealed), default=0)
        self._restore()

    def _restore(self) -> None:
        """Read what `current` has, up to a piece that was cut short."""
        self._begun = time.monotonic()
        try:
            self._fd = os.open(self._directory / "current", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with open(self._fd, "rb", closefd=False) as file:
                data = file.read()
        except OSError as error:
            self._note(error)
            return
        at, events, names, first = 0, bytearray(), Names(), None
        for kind, piece in _pieces(data):
            if kind == _EVENTS:
                if first is None:
                    first = int.from_bytes(piece[:8], "big")
                events += piece[8:]
            elif kind == _NAMES:
                try:
                    names.extend(msgspec.json.decode(piece, type=Names))
                except msgspec.MsgspecError:
                    break
            else:
                break
            at += _HEAD + len(piece)
        if first is None or first < self._first:  # of another build; or sealed, and whoever did it was killed then
            at, events, names = 0, bytearray(), Names()
            if first is None and data:
                self._give_up(data)
        else:
            self._first = first
        self._events, self._names, self._written = events, names, at
        try:
            os.ftruncate(self._fd, at)
        except OSError as error:
            self._note(error)

    def _give_up(self, data: bytes) -> None:
        """Count what another build left unsealed, by the size that marks it; its numbers are not used again.

        The first builds marked all with a letter whose code is smaller than any size: of theirs it is a bound.
        """
        events = [
            (int.from_bytes(piece[:8], "big"), (len(piece) - 8) // kind[0])
            for kind, piece in _pieces(data)
            if kind != _NAMES
        ]
        begin = max(self._first, min((first for first, _ in events), default=0))
        end = max(begin, *(first + count for first, count in events), 0)
        self._first = end
        self.unstored += end - begin
        if events and begin == end:  # all of it was sealed, and whoever did it was killed then
            return
        log.warning(
            "records that were not sealed yet cannot be read: another build wrote them, or they are damaged",
            records=end - begin,
            bytes=len(data),
        )

    @property
    def count(self) -> int:
        """How many events the block has that is not sealed yet."""
        return len(self._events) // EVENT_SIZE

    @property
    def first(self) -> int:
        """The number of the first record that is not sealed yet: another one whenever a block was."""
        return self._first

    @property
    def next(self) -> int:
        """The number that the next record gets."""
        return self._first + self.count

    def tail(self) -> frozenset[bytes]:
        """Return the events that are not sealed yet: what an agent wrote that was killed before it said so."""
        data = bytes(self._events)
        return frozenset(data[at : at + EVENT_SIZE] for at in range(0, len(data), EVENT_SIZE))

    def current_names(self) -> Names:
        """Return what names mean in the block that is not sealed yet."""
        return self._names

    def blocks(self, since: float = 0.0, until: float = float("inf")) -> Iterator[Block]:
        """Yield the blocks that have records of a time (seconds since 1970), newest first."""
        with self._guard:
            sealed = list(self._sealed)
            current = Block.of(self._node, self._first, bytes(self._events), self._names.copy())
        if current.count:
            yield current
        for one in reversed(sealed):
            if one.end < since or one.begin > until:
                continue
            try:
                yield Block.unseal(one.path.read_bytes(), (one.begin, one.end))
            except FileNotFoundError:
                continue  # it had to go meanwhile
            except (OSError, DamagedBlock) as error:
                log.error("a block of flows cannot be read", path=str(one.path), problem=str(error))

    def block_at(self, number: int) -> Block | None:
        """Return the block that has a record, by its number, or if it is gone the next one; None if none has."""
        while True:
            with self._guard:
                sealed = next((one for one in self._sealed if one.first + one.records > number), None)
                if sealed is None:
                    if self.next <= number:
                        return None
                    return Block.of(self._node, self._first, bytes(self._events), self._names.copy())
            try:
                return Block.unseal(sealed.path.read_bytes())
            except FileNotFoundError:
                continue  # it had to go meanwhile
            except (OSError, DamagedBlock) as error:
                log.error("a block of flows cannot be read", path=str(sealed.path), problem=str(error))
                number = sealed.first + sealed.records

    def status(self) -> dict[str, Any]:
        """Return what there is, in plain JSON values."""
        with self._guard:
            sealed = list(self._sealed)
        size = sum(one.size for one in sealed) + self._written
        records = sum(one.records for one in sealed) + self.count
        begin = min((one.begin for one in sealed), default=0.0)
        return {
            "records": records,
            "bytes": size,
            "limit": self._limit,
            "oldest": begin,
            "problem": self.problem,
            "unstored": self.unstored,
        }

    # What comes.

    def append(self, events: bytes, names: Names) -> None:
        """Take events, and what their names mean, which count from the first record that is not sealed yet."""
        pieces = [] if names.empty else [_piece(_NAMES, msgspec.json.encode(names))]
        if events:
            pieces.append(_piece(_EVENTS, self.next.to_bytes(8, "big") + events))
        with self._guard:
            self._events += events
            self._names.extend(names)
        if pieces:
            self._write(b"".join(pieces))

    def _write(self, data: bytes) -> None:
        if self._fd < 0 or self.problem:
            if time.monotonic() >= self._again:
                self._write_all_anew()
            return
        try:
            _put(self._fd, data, self._written)
            self._written += len(data)
        except OSError as error:
            self._note(error)

    def _write_all_anew(self) -> None:
        """Write all of the block: the disk took a part of it, or none, before. Makes room first."""
        self._make_room()
        pieces = _piece(_NAMES, msgspec.json.encode(self._names))
        pieces += _piece(_EVENTS, self._first.to_bytes(8, "big") + bytes(self._events))
        try:
            if self._fd < 0:
                self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._fd = os.open(self._directory / "current", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.ftruncate(self._fd, 0)
            self._written = 0
            _put(self._fd, pieces, 0)
            self._written = len(pieces)
        except OSError as error:
            self._again = time.monotonic() + RETRY
            self._note(error)
        else:
            log.info("flows are kept again", directory=str(self._directory))
            self.problem = ""

    @property
    def is_due(self) -> bool:
        """Whether the block should be sealed."""
        return self.count >= BLOCK or (self.count > 0 and time.monotonic() - self._begun > OLD)

    def seal(self) -> None:
        """Seal the block, and begin another one."""
        block = Block.of(self._node, self._first, bytes(self._events), self._names)
        begin, end = block.span
        name = f"{block.first:016x}-{block.count}-{int(begin * 1000)}-{int(end * 1000) + 1}.flows"
        path, data = self._directory / name, block.seal()
        self._make_room(len(data))
        written = path.with_suffix(".new")
        try:
            written.write_bytes(data)
            written.rename(path)
        except OSError as error:
            self._note(error)
            _remove(written)
            self.unstored += block.count
            new = []
        else:
            new = [Sealed(path, block.first, block.count, begin, end, len(data))]
        with self._guard:
            self._sealed += new
            self._first = block.end
            self._events, self._names = bytearray(), Names()
        self._begun = time.monotonic()
        self._written = 0
        if self._fd >= 0:
            try:
                os.ftruncate(self._fd, 0)
            except OSError as error:
                self._note(error)

    def _make_room(self, wanted: int = 0) -> None:
        """Remove the oldest blocks until so many bytes more are within the limit, and the disk has its reserve."""
        while self._sealed:
            size = sum(one.size for one in self._sealed) + wanted
            if size <= self._limit and not self._is_tight(wanted):
                return
            with self._guard:
                oldest = self._sealed.pop(0)
            _remove(oldest.path)

    def _is_tight(self, wanted: int) -> bool:
        try:
            disk = os.statvfs(self._directory)
        except OSError:
            return False
        free, whole = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        return free - wanted < min(RESERVE, whole // SHARE)

    def _note(self, error: OSError) -> None:
        problem = f"{self._directory}: {error.strerror or error}"
        if problem != self.problem:
            log.error("flows cannot be kept", problem=problem, hint="free some room there")
        self.problem = problem

    def close(self) -> None:
        """Let go of the file; what was written stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _piece(kind: bytes, data: bytes) -> bytes:
    return b"".join((kind, len(data).to_bytes(4, "big"), zlib.crc32(data).to_bytes(4, "big"), data))


def _pieces(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the pieces of a `current` file that are whole, also those that another build marked in its way."""
    at = 0
    while at + _HEAD <= len(data):
        kind, length = data[at : at + 1], int.from_bytes(data[at + 1 : at + 5], "big")
        check, piece = int.from_bytes(data[at + 5 : at + 9], "big"), data[at + _HEAD : at + _HEAD + length]
        if kind == b"\0" or len(piece) != length or zlib.crc32(piece) != check:  # zeros have their own check sum
            return
        yield kind, piece
        at += _HEAD + length


def _put(fd: int, data: bytes, at: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, at)
        rest, at = rest[written:], at + written


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.error("a file of flows cannot be removed", path=str(path), problem=error.strerror)
