"""What a lab remembers: its nodes and their numbers, in `lab.json`, and one command at a time that changes it.

Everything else is asked of those who know: the store (pods, blocks), the kernel (namespaces, processes).
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from ipaddress import ip_interface, ip_network
from pathlib import Path

import msgspec

from podway.api.addresses import Interface
from podway.errors import LabError
from podway.lab import names
from podway.lab.fabric import Fabric, Tor
from podway.lab.paths import LABS, lab_dir
from podway.suggestion import did_you_mean

SHOWN = 5
"""Of how many labs a hint tells the names."""

LOCK_SECONDS = 30.0
"""How long a command waits for another one at work in the same lab."""


class LabNode(msgspec.Struct, frozen=True):
    """A node. `index`, from 1, and `rack` give its addresses; `running` is false while its power is cut."""

    index: int
    running: bool = True
    rack: int = 1


class LabState(msgspec.Struct, frozen=True):
    """A lab's own facts; `estate` is what the subnets of its racks are cut from (podway.lab.fabric)."""

    name: str
    estate: tuple[str, ...]
    racks: int = 1
    tor: Tor = "none"
    nodes: dict[str, LabNode] = {}
    outside: tuple[str, ...] = ()
    """The addresses of the host beside the cluster, with prefix lengths; none while there is none."""
    kubernetes: str = ""
    """Where the programs are of which it is a Kubernetes; empty: it is none."""

    @property
    def outside_interfaces(self) -> tuple[Interface, ...]:
        """The same as addresses."""
        return tuple(map(ip_interface, self.outside))

    @property
    def fabric(self) -> Fabric:
        """Where its nodes stand."""
        return Fabric(tuple(map(ip_network, self.estate)), self.racks)

    @property
    def running(self) -> tuple[str, ...]:
        """Names of the nodes that are on."""
        return tuple(name for name, node in self.nodes.items() if node.running)

    def require_plain(self) -> None:
        """Raise LabError if the lab is a Kubernetes, which runs its pods and nodes itself."""
        if self.kubernetes:
            raise LabError(
                f"lab {self.name} is a Kubernetes: its pods and nodes are its own business",
                hint=f"use it as any cluster: podway lab kubectl{names.option(self.name)} …",
            )

    def node(self, name: str) -> LabNode:
        """Return a node. Raises LabError if there is none of this name."""
        if name in self.nodes:
            return self.nodes[name]
        raise LabError(f"lab {self.name}: no node {name!r}", hint=f"there are {', '.join(self.nodes) or 'none'}")

    def addresses(self, name: str) -> tuple[Interface, ...]:
        """Return the uplink addresses of a node. Raises LabError if there is none of this name."""
        place = self.node(name)
        return self.fabric.addresses(place.rack, place.index)

    def with_node(self, name: str, node: LabNode | None) -> "LabState":
        """Return the state with this node added, changed or (None) left out."""
        others = {key: value for key, value in self.nodes.items() if key != name}
        merged = others if node is None else {**others, name: node}
        ordered = dict(sorted(merged.items(), key=lambda entry: entry[1].index))
        return msgspec.structs.replace(self, nodes=ordered)


def node_dir(lab: str, node: str) -> Path:
    """Return where a node's agent keeps its sockets and log."""
    return lab_dir(lab) / "nodes" / node


def tor_dir(lab: str, rack: int) -> Path:
    """Return where a router's BGP speaker keeps its files."""
    return lab_dir(lab) / "tors" / str(rack)


def labs() -> list[str]:
    """Return the names of all labs, also of those that were only half built."""
    try:
        return sorted(path.name for path in LABS.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []


def load(lab: str) -> LabState:
    """Return a lab's state. Raises LabError if there is no such lab, or it was never finished."""
    names.require_lab_name(lab)
    try:
        return msgspec.json.decode((lab_dir(lab) / "lab.json").read_bytes(), type=LabState)
    except FileNotFoundError:
        raise unknown(lab) from None
    except msgspec.MsgspecError as error:
        raise LabError(
            f"lab {lab}: {lab_dir(lab)}/lab.json is damaged: {error}",
            hint=f"remove the lab: podway lab down {lab}",
        ) from error


def save(state: LabState) -> None:
    """Write a lab's state, at once and as a whole."""
    path = lab_dir(state.name) / "lab.json"
    draft = path.with_suffix(".new")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")
    draft.rename(path)


def unknown(lab: str) -> LabError:
    """Return the error for a lab that does not exist."""
    others = labs()
    known = f"{', '.join(others[:SHOWN])}{' …' if len(others) > SHOWN else ''}"
    choice = f"there are {known}: choose with --lab NAME." if others else ""
    there = did_you_mean(lab, others, otherwise=choice, written="--lab {}")
    return LabError(f"no lab {lab!r}", hint=f"{there} To build it: podway lab up{names.option(lab)}".lstrip())


@contextlib.contextmanager
def locked(lab: str, *, shared: bool = False) -> Iterator[None]:
    """Keep other commands from changing the lab while the block runs; `shared` ones run beside each other.

    Raises LabError if there is no such lab, or another command does not finish.
    """
    fd = _acquire(lab, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)


def _acquire(lab: str, kind: int) -> int:
    """Lock the lab's directory; closing the descriptor unlocks it."""
    path = lab_dir(lab)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        with contextlib.ExitStack() as unlock:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise unknown(lab) from None
            unlock.callback(os.close, fd)
            try:
                fcntl.flock(fd, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LabError(
                        f"lab {lab}: another command has been at work for {LOCK_SECONDS:g} s",
                        hint="wait for it, or end it, then try again",
                    ) from None
                time.sleep(0.02)
                continue
            # Whoever held the lock may have removed the directory, and a third made a new one.
            if path.exists() and os.path.samestat(os.stat(path), os.fstat(fd)):
                unlock.pop_all()
                return fd
