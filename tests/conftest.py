"""Fixtures for all tests: network namespaces of our own, removed whatever happens."""

import contextlib
import os
import secrets
import signal
from collections.abc import Callable, Iterator

import hypothesis
import pytest

from tests import leftovers
from tests.kubernetes import ApiServer, running_api_server
from tests.namespaces import TestNamespace

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# Who starts the tests in the background of a shell has interrupts ignored (POSIX, 2.11 of the shell), and every
# command that the tests start would inherit that. A handler is not inherited: commands begin with the default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A real Kubernetes API server that knows Podway's kinds; tests leave it as they found it."""
    with running_api_server(tmp_path_factory.mktemp("kubernetes")) as server:
        yield server


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
