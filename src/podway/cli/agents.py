"""Where the agents that a command may ask are, and what they know of routes and sessions."""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import msgspec

from podway.agent.client import call
from podway.cli.options import GlobalOptions
from podway.errors import InvalidInput
from podway.lab.paths import lab_dir

Row = TypeVar("Row", bound=msgspec.Struct)

HOST_SOCKET = Path("/run/podway/agent.sock")


class PeerRow(msgspec.Struct, frozen=True):
    """One BGP session of one node."""

    on: str
    name: str
    node: str
    address: str
    asn: int
    state: str
    since: datetime
    last_error: str = ""
    bfd: str = ""
    imported: int = 0
    exported: int = 0


class NextHopRow(msgspec.Struct, frozen=True):
    """Where a route leads."""

    gateway: str
    device: str


class RouteRow(msgspec.Struct, frozen=True):
    """One route that a node's BIRD knows."""

    on: str
    network: str
    type: str
    protocol: str
    since: datetime
    best: bool
    next_hops: tuple[NextHopRow, ...] = ()


def sockets(options: GlobalOptions, node: str | None = None) -> dict[str, Path]:
    """Return the agents' sockets by node name: the lab's, or this host's where no lab stands.

    Raises InvalidInput if there is no such node.
    """
    nodes = lab_dir(options.lab) / "nodes"
    found = {path.parent.name: path for path in sorted(nodes.glob("*/agent.sock"))}
    if not found and HOST_SOCKET.exists():
        found = {"this host": HOST_SOCKET}
    if node is None and found:
        return found
    if node not in found:
        raise InvalidInput(
            f"no agent of a node {node!r} here" if node else "no agent runs here",
            hint=f"there are {', '.join(found)}" if found else "start one: `podway lab up`, or `podway agent`",
        )
    return {node: found[node]}


def peers(options: GlobalOptions, names: Iterable[str]) -> list[PeerRow]:
    """Return the BGP sessions of all nodes, or of those named."""
    return [row for on, path in _asked(options, names) for row in _rows(path, on, "peers", PeerRow)]


def routes(options: GlobalOptions, names: Iterable[str]) -> list[RouteRow]:
    """Return the routes to pods' blocks on all nodes, or on those named."""
    return [row for on, path in _asked(options, names) for row in _rows(path, on, "routes", RouteRow)]


def _asked(options: GlobalOptions, names: Iterable[str]) -> list[tuple[str, Path]]:
    wanted = tuple(names)
    every = (
        sockets(options) if not wanted else {k: v for name in wanted for k, v in sockets(options, name).items()}
    )
    return list(every.items())


def _rows(path: Path, on: str, method: str, row: type[Row]) -> list[Row]:
    return [msgspec.convert({"on": on, **answer}, row) for answer in call(path, method)]
