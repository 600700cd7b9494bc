"""Links removed without waiting for the kernel to tidy up after them.

A request to delete a link is answered only when every CPU has let go of it: some 20 ms, and the caller
sleeps all the while (netdev_run_todo in net/core/dev.c waits for RCU). But the link has left its namespace,
and its peer has, long before: after about 1 ms, when the kernel announces RTM_DELLINK. So the request is made
in a thread of its own, and whoever waits is told at the announcement. The loop asks the kernel for nothing: the
answer would come behind the removals under way.
"""

import asyncio
import errno
import socket
from concurrent.futures import ThreadPoolExecutor

from podway.kernel.netlink import Connection
from podway.kernel.netlink import constants as c
from podway.kernel.netlink.connection import messages, open_socket
from podway.kernel.rtnl import links

_THREADS = 16
"""Removals under way at once; more wait for their turn."""
_RECEIVE_BUFFER = 4 << 20
_DATAGRAM = 1 << 16


class LinkRemover:
    """Removes links of one network namespace (None: the caller's). Belongs to one event loop."""

    def __init__(self, netns_fd: int | None = None) -> None:
        self._connections = [Connection(netns_fd) for _ in range(_THREADS)]
        self._idle = list(self._connections)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="unlink")
        self._announcements = open_socket(c.NETLINK_ROUTE, netns_fd, _RECEIVE_BUFFER)
        self._announcements.setsockopt(c.SOL_NETLINK, c.NETLINK_ADD_MEMBERSHIP, c.RTNLGRP_LINK)
        self._announcements.setblocking(False)
        self._waiting: dict[str, asyncio.Event] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._announcements, self._read)

    @property
    def ports(self) -> frozenset[int]:
        """Port ids of its sockets, by which a watcher knows its changes."""
        return frozenset(connection.port for connection in self._connections)

    @property
    def busy(self) -> int:
        """How many requests the kernel has not answered yet."""
        return len(self._connections) - len(self._idle)

    async def remove(self, name: str) -> bool:
        """Remove a link by name and return once it has left its namespace; False if it was gone.

        Raises KernelError.
        """
        gone = self._waiting[name] = asyncio.Event()
        request = self._loop.run_in_executor(self._threads, self._request, name)
        announcement = asyncio.ensure_future(gone.wait())
        try:
            await asyncio.wait((request, announcement), return_when=asyncio.FIRST_COMPLETED)
            # Else it failed, it was gone, or its announcement was lost in a full buffer.
            return True if gone.is_set() else await request
        finally:
            announcement.cancel()
            del self._waiting[name]

    def close(self) -> None:
        """Finish the removals under way, then close the sockets."""
        self._loop.remove_reader(self._announcements)
        self._threads.shutdown()
        self._announcements.close()
        for connection in self._connections:
            connection.close()

    def _request(self, name: str) -> bool:
        connection = self._idle.pop()
        try:
            return links.remove_if_there(connection, name)
        finally:
            self._idle.append(connection)

    def _read(self) -> None:
        while True:
            try:
                datagram = self._announcements.recv(_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue  # announcements were lost; the answers to the requests come all the same
            for message in messages(datagram):
                # A bridge tells of a port that leaves it in the same words, with its own family.
                if message.type == c.RTM_DELLINK and message.body[0] == socket.AF_UNSPEC:
                    gone = self._waiting.get(links.read(message).name)
                    if gone is not None:
                        gone.set()
