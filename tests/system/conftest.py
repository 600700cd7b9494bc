"""Labs for the system tests: shared within a module, left as they were found, removed whatever happens."""

from collections.abc import Generator, Iterator

import pytest

from tests.system.policy_lab import PolicyLab
from tests.system.system_lab import SystemLab, running_lab


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failure what the nodes of a lab with policies say, as they do then."""
    report = yield
    lab = item.funcargs.get("lab")
    if report.failed and report.when == "call" and isinstance(lab, PolicyLab):
        report.sections.append(("the lab's nodes", lab.told()))
    return report


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
