"""Reaching a lab's nodes from outside of it: no route leads there, but a socket may be born inside."""

import socket

from podway.channel.remote import Reach, direct
from podway.errors import LabError
from podway.kernel import netns
from podway.lab import names, state


def from_a_node(lab: str) -> Reach:
    """Return how to open connections as a process on the lab's first running node would.

    Raises LabError if there is no such lab, or no node of it runs.
    """
    running = state.load(lab).running
    if not running:
        raise LabError(f"lab {lab}: no node is on", hint="start one: `podway lab node start NODE`")
    path = netns.path_of(names.node_netns(lab, running[0]))

    def reach(address: str, port: int, timeout: float) -> socket.socket:
        with netns.opened(path) as fd:
            return netns.run(fd, lambda: direct(address, port, timeout))

    return reach
