"""Labs for the system tests: shared within a module, left as they were found, removed whatever happens."""

from collections.abc import Iterator

import pytest

from tests.system.system_lab import SystemLab, running_lab


@pytest.fixture(scope="module")
def shared_lab() -> Iterator[SystemLab]:
    """Two dual-stack nodes; tests use `lab`."""
    with running_lab(2) as lab:
        yield lab


@pytest.fixture
def lab(shared_lab: SystemLab) -> Iterator[SystemLab]:
    """The module's lab: after each test all agents run, all sessions stand and all pods are gone."""
    yield shared_lab
    shared_lab.restore()
