"""The kernels that the machines boot, and the option that names others."""

import pytest

from tests.vm.machine import SUITES, Kernel, fetch_kernel


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kernel",
        action="append",
        default=[],
        help=f"a linux-image-*.deb of Debian's, or one of {', '.join(SUITES)}; may be given several times",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Test the flow engine with all of Debian's kernels, and what else there is with this system's newest."""
    if "kernel" in metafunc.fixturenames:
        every = list(SUITES) if metafunc.module.__name__.endswith("flow_machines") else [""]
        metafunc.parametrize(
            "kernel", metafunc.config.getoption("--kernel") or every, indirect=True, scope="session"
        )


@pytest.fixture(scope="session")
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return fetch_kernel(request.param)
