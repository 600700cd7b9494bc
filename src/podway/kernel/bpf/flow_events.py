"""What the flow engine tells: new flows, ends of flows, dropped packets, by a ring buffer (kernel 5.8).

What did not fit is not here, but counted exactly: Counter.EVENTS_LOST, and `lost` in the next event of the same
processor.

The ring is read as it lies in memory (Documentation/bpf/ringbuf.rst): a page with the reader's position, one with
the writer's, and the data twice in a row, so that none of it is ever cut in two. All events are of one size, so
thousands are taken with a few copies; a call of Python for each would cost more than the engine itself. The
reader's position is kept by the ring: what was not taken is there for the next agent.
"""

import mmap
import os
import select
import threading

from podway.errors import KernelError
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_layout import EVENT, Event

_HEADER = 8
_BUSY = 1 << 31
_DISCARDED = 1 << 30


class Records:
    """Reads records of one size from a ring, in the order in which they were made on each processor.

    The kernel wakes nobody while little waits: read now and then, and whenever `fd` is readable. `unreadable`
    counts records that are none of this build's.
    """

    def __init__(self, ring: int, length: int) -> None:
        """Map a ring buffer (a descriptor, which may be closed afterwards) of records of a length (bytes).

        Raises KernelError.
        """
        self.unreadable = 0
        self._length = length
        self._stride = _HEADER + length
        self._head = length.to_bytes(4, "little")
        self._size = int(bpf.map_info(ring).max_entries)
        self._ring = os.dup(ring)
        try:
            self._reader = mmap.mmap(self._ring, mmap.PAGESIZE)
            self._writer = mmap.mmap(
                self._ring, mmap.PAGESIZE + 2 * self._size, prot=mmap.PROT_READ, offset=mmap.PAGESIZE
            )
            self._epoll = select.epoll()
            self._epoll.register(self._ring, select.EPOLLIN)
        except OSError as error:
            os.close(self._ring)
            raise KernelError("map a ring buffer", error.errno or 0) from error
        self._position, self._end = memoryview(self._reader).cast("Q"), memoryview(self._writer).cast("Q")
        self._fence = threading.Lock()
        self._taken = self._position[0]

    @property
    def fd(self) -> int:
        """A descriptor that is readable when much waits (an epoll instance)."""
        return self._epoll.fileno()

    def peek(self) -> bytes:
        """Return the records that wait, one after the other; they wait until `advance`."""
        self._taken, end = self._position[0], self._end[0]
        found = []
        while self._taken < end:
            start = mmap.PAGESIZE + self._taken % self._size
            count = self._usual(start, (end - self._taken) // self._stride)
            if count:
                self._order()
                data = self._writer[start : start + count * self._stride]
                found += [data[at : at + self._length] for at in range(_HEADER, len(data), self._stride)]
                self._taken += count * self._stride
                continue
            head = int.from_bytes(self._writer[start : start + 4], "little")
            if head & _BUSY:
                break
            self.unreadable += not head & _DISCARDED
            self._taken += _HEADER + -(-(head & ~_DISCARDED) // 8) * 8
        return b"".join(found)

    def advance(self) -> None:
        """Give back the room of what `peek` returned last."""
        self._order()
        self._position[0] = self._taken

    def close(self) -> None:
        """Unmap the buffer."""
        self._position.release()
        self._end.release()
        self._epoll.close()
        self._reader.close()
        self._writer.close()
        os.close(self._ring)

    def _usual(self, start: int, most: int) -> int:
        """Return how many records from here on are whole records."""
        count = most
        for at, byte in enumerate(self._head):
            heads = self._writer[start + at : start + count * self._stride : self._stride]
            if heads.count(byte) != count:
                count = len(heads) - len(heads.lstrip(bytes([byte])))
        return count

    def _order(self) -> None:
        """Let no processor do what follows before what precedes: a lock given back, then taken, is that."""
        for _ in range(2):
            self._fence.acquire()
            self._fence.release()


class Events(Records):
    """Reads an engine's events."""

    def __init__(self, ring: int) -> None:
        """Map the ring of events (a descriptor, which may be closed afterwards). Raises KernelError."""
        super().__init__(ring, EVENT.size)

    def read(self) -> list[Event]:
        """Return what waits, and give back its room."""
        data = self.peek()
        self.advance()
        return [Event.unpack(data[at : at + EVENT.size]) for at in range(0, len(data), EVENT.size)]
