"""Fixtures for all tests: network namespaces of our own, removed whatever happens."""

import contextlib
import os
import secrets
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from podway.kernel import netns
from podway.kernel.rtnl import links
from podway.kernel.rtnl.netlink import Connection
from tests import leftovers
from tests.patience import PATIENCE


class TestNamespace:
    """A named network namespace with `lo` up. `fd` is closed, and the name removed, after the test."""

    __test__ = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.path: Path = netns.create(name)
        self.fd = netns.open_path(self.path)
        with Connection(self.fd) as connection:
            connection.transact([links.set_up(links.LOOPBACK)])

    def run(self, *command: str, check: bool = True, **options: object) -> "subprocess.CompletedProcess[str]":
        """Run a command inside; its output is text."""
        return subprocess.run(
            ["nsenter", f"--net={self.path}", *command],
            check=check,
            text=True,
            capture_output=True,
            **options,
        )

    def sh(self, script: str) -> str:
        """Run a shell script inside, return what it printed."""
        done = self.run("sh", "-euc", script, check=False)
        assert done.returncode == 0, f"{script}: {done.stderr}"
        return done.stdout

    def udp(self, address: object, timeout: float = PATIENCE) -> socket.socket:
        """Open a UDP socket inside, bound to a free port of this address."""
        family = socket.AF_INET6 if ":" in str(address) else socket.AF_INET
        sock = netns.run(self.fd, lambda: socket.socket(family, socket.SOCK_DGRAM))
        sock.settimeout(timeout)
        try:
            sock.bind((str(address), 0))
        except OSError:
            sock.close()
            raise
        return sock

    def remove(self) -> None:
        """Close the descriptor and delete the name."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        netns.delete(self.name)


@pytest.fixture(scope="session", autouse=True)
def nothing_stays() -> Iterator[None]:
    """All tests together leave no process and no namespace behind."""
    leftovers.mark_this_run()
    yield
    left = leftovers.left_since(leftovers.NOTHING, of_labs=True)
    assert not left, f"the tests left behind: {left}"


@pytest.fixture(scope="module", autouse=True)
def nothing_left_by_the_file(nothing_stays: None) -> Iterator[None]:
    """What the tests of a file share leaves nothing behind either."""
    before = leftovers.things(of_labs=False)
    yield
    left = leftovers.left_since(before)
    assert not left, f"the tests of this file left behind: {left}"


@pytest.fixture(autouse=True)
def nothing_left(nothing_left_by_the_file: None) -> Iterator[None]:
    """Each test leaves no process and no namespace behind, but for what labs have that other tests use, too."""
    before = leftovers.things(of_labs=False)
    yield
    left = leftovers.left_since(before)
    assert not left, f"the test left behind: {left}"


@contextlib.contextmanager
def _namespaces() -> Iterator[Callable[[], TestNamespace]]:
    made: list[TestNamespace] = []

    def make() -> TestNamespace:
        made.append(TestNamespace(f"pwt-{os.getpid()}-{secrets.token_hex(3)}"))
        return made[-1]

    try:
        yield make
    finally:
        for namespace in made:
            namespace.remove()


@pytest.fixture
def new_netns() -> Iterator[Callable[[], TestNamespace]]:
    """Give a function that makes a uniquely named network namespace."""
    with _namespaces() as make:
        yield make


@pytest.fixture(scope="module")
def new_netns_of_file() -> Iterator[Callable[[], TestNamespace]]:
    """Give a function that makes such a namespace for all tests of a file."""
    with _namespaces() as make:
        yield make


@pytest.fixture
def node(new_netns: Callable[[], TestNamespace]) -> TestNamespace:
    """A network namespace that stands for a node."""
    return new_netns()


@pytest.fixture
def pod(new_netns: Callable[[], TestNamespace]) -> TestNamespace:
    """A network namespace that stands for a pod."""
    return new_netns()
