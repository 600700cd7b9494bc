"""Records as lines of JSON in a file, of which a few former ones are kept."""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from podway.export.target import Target
from podway.flows.record import FlowRecord


class Lines:
    """Appends to a file; a full one becomes `FILE.1`, that one `FILE.2`, and so on. Somebody may also move it."""

    def __init__(self, target: Target) -> None:
        self._path = Path(target.path)
        self._most, self._keep = target.size << 20, target.keep

    def send(self, records: Sequence[FlowRecord]) -> int:
        """Append records, a line each."""
        data = b"".join(msgspec.json.encode(record) + b"\n" for record in records)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and size + len(data) > self._most:
                os.close(descriptor)
                descriptor = -1
                self._rotate()
                descriptor, size = os.open(self._path, flags, 0o600), 0
            self._append(descriptor, data, size)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return 0

    def close(self) -> None:
        """There is nothing open between batches."""

    def _append(self, descriptor: int, data: bytes, size: int) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            os.ftruncate(descriptor, size)  # all or none: it will come again
            raise

    def _rotate(self) -> None:
        names = [
            self._path,
            *(self._path.with_name(f"{self._path.name}.{number}") for number in range(1, self._keep + 1)),
        ]
        names[-1].unlink(missing_ok=True)
        for at in range(len(names) - 2, -1, -1):
            if names[at].exists():
                names[at].rename(names[at + 1])
