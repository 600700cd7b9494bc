"""What the flow engine tells: new flows, ends of flows, dropped packets, by a ring buffer (kernel 5.8).

What did not fit is not here, but counted exactly: Counter.EVENTS_LOST.
"""

import ctypes
import errno

from podway.errors import KernelError
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_layout import EVENT, Event


class Events:
    """Reads an engine's events, in the order in which they happened on each processor.

    The kernel wakes nobody while little waits: read now and then, and whenever `fd` is readable.
    """

    def __init__(self, ring: int) -> None:
        """Map a ring buffer (a descriptor, which may be closed afterwards). Raises KernelError."""
        libbpf = bpf.library()
        libbpf.ring_buffer__new.restype = ctypes.c_void_p
        self._found: list[Event] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        self._callback = kind(self._take)
        made = libbpf.ring_buffer__new(ring, self._callback, None, None)
        if not made:
            raise KernelError("map the ring buffer of events", ctypes.get_errno() or errno.EINVAL)
        self._ring = ctypes.c_void_p(made)

    @property
    def fd(self) -> int:
        """A descriptor that is readable when much waits (an epoll instance)."""
        return int(bpf.library().ring_buffer__epoll_fd(self._ring))

    def _take(self, _context: int | None, data: int, size: int) -> int:
        if size == EVENT.size:
            self._found.append(Event.unpack(ctypes.string_at(data, size)))
        return 0

    def read(self) -> list[Event]:
        """Return what waits. Raises KernelError."""
        bpf.checked("read events", bpf.library().ring_buffer__consume(self._ring))
        found, self._found = self._found, []
        return found

    def close(self) -> None:
        """Unmap the buffer."""
        bpf.library().ring_buffer__free(self._ring)
