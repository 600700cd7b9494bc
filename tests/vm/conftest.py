"""The kernel that the machines boot, and the option that names another."""

from pathlib import Path

import pytest

from tests.vm.machine import Kernel, fetch_kernel


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kernel", type=Path, help="a linux-image-*.deb of Debian's; the newest of this system's")


@pytest.fixture(scope="session")
def kernel(pytestconfig: pytest.Config) -> Kernel:
    return fetch_kernel(pytestconfig.getoption("--kernel"))
