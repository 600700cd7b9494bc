"""When routes come into the kernels of many nodes, and when they go: told by the kernels, on one clock."""

import os
import selectors
import socket
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from bench.labs import Lab
from podway.api.addresses import Network
from podway.kernel import netns
from podway.kernel.netlink import constants as c
from podway.kernel.netlink.connection import messages, open_socket
from podway.kernel.rtnl import routes
from podway.lab import names

PATIENCE = 60.0
LOOK = 0.02
"""Seconds between two looks at what was read. Times do not depend on it."""
_RECEIVE_BUFFER = 1 << 20
_DATAGRAM = 1 << 16
_GROUPS = (c.RTNLGRP_IPV4_ROUTE, c.RTNLGRP_IPV6_ROUTE)


class _Change(msgspec.Struct, frozen=True):
    """A route of this type that came (or was replaced) or went, by time.monotonic."""

    node: str
    type: str
    removed: bool
    at: float


class Fibs:
    """The routes of a lab's nodes, watched while the block runs.

    One thread reads what all kernels tell: for each node a netlink socket that was opened in its namespace. It
    notes the time and nothing else, so that a change does not wait until it has understood others.
    """

    def __init__(self, cluster: Lab, nodes: Collection[str]) -> None:
        self._told: deque[tuple[str, float, bytes]] = deque()
        self._changes: dict[Network, list[_Change]] = defaultdict(list)
        self._stop, stopped = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(stopped, selectors.EVENT_READ)
        for node in nodes:
            with netns.opened(netns.path_of(names.node_netns(cluster.name, node))) as fd:
                sock = open_socket(c.NETLINK_ROUTE, fd, _RECEIVE_BUFFER)
            for group in _GROUPS:
                sock.setsockopt(c.SOL_NETLINK, c.NETLINK_ADD_MEMBERSHIP, group)
            self._selector.register(sock, selectors.EVENT_READ, node)
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Fibs":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.close()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def came(self, network: Network, nodes: Collection[str], kind: str = "unicast") -> Mapping[str, float]:
        """Wait until a route of this type came to all these nodes; return when the first came to each.

        Raises TimeoutError.
        """

        def first(changes: Sequence[_Change]) -> dict[str, float]:
            return {change.node: change.at for change in reversed(changes) if not change.removed}

        return self._wait(network, kind, nodes, first)

    def went(self, network: Network, nodes: Collection[str], since: float) -> Mapping[str, float]:
        """Wait until the route went from all these nodes, after `since`; return when.

        One that comes again has not gone. Raises TimeoutError.
        """

        def last(changes: Sequence[_Change]) -> dict[str, float]:
            latest = {change.node: change for change in changes if change.at >= since}
            return {node: change.at for node, change in latest.items() if change.removed}

        return self._wait(network, "unicast", nodes, last)

    def _wait(
        self,
        network: Network,
        kind: str,
        nodes: Collection[str],
        choose: Callable[[Sequence[_Change]], dict[str, float]],
    ) -> Mapping[str, float]:
        begun = time.monotonic()
        while True:
            self._understand()
            found = choose([change for change in self._changes[network] if change.type == kind])
            lacking = set(nodes) - found.keys()
            if not lacking:
                return {node: found[node] for node in nodes}
            if time.monotonic() > begun + PATIENCE:
                raise TimeoutError(
                    f"the {kind} route to {network} does not change on {', '.join(sorted(lacking))} "
                    f"within {PATIENCE:g} s"
                )
            time.sleep(LOOK)

    def _watch(self) -> None:
        # News is stamped when it is read: not after all those who work on the same news have had the processor.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        while True:
            for key, _ in self._selector.select():
                if not key.data:
                    return
                datagram = key.fileobj.recv(_DATAGRAM)  # type: ignore[union-attr]
                self._told.append((key.data, time.monotonic(), datagram))

    def _understand(self) -> None:
        while self._told:
            node, at, datagram = self._told.popleft()
            for message in messages(datagram):
                if message.type in (c.RTM_NEWROUTE, c.RTM_DELROUTE):
                    route = routes.read(message)
                    removed = message.type == c.RTM_DELROUTE
                    self._changes[route.destination].append(_Change(node, route.type, removed, at))
