"""Fixtures of the flow engine's tests."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.bpf.flow_bench import Bench
from tests.namespaces import TestNamespace


@pytest.fixture(scope="module")
def shared_bench(new_netns_of_file: Callable[[], TestNamespace]) -> Iterator[Bench]:
    """One engine for the tests of a file: the verifier takes seconds."""
    with contextlib.closing(Bench(new_netns_of_file(), new_netns_of_file())) as bench:
        yield bench


@pytest.fixture
def bench(shared_bench: Bench) -> Bench:
    """The engine, as if nothing had happened yet."""
    shared_bench.reset()
    return shared_bench
