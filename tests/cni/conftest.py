import importlib.util
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from podway.cni.server import CniServer
from tests.cni.cni_runtime import MemoryNetwork, Runtime, serving

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def shim() -> Path:
    """The shim, compiled from the sources as they are."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shim: Path = module.compile_shim()
    return shim


@pytest.fixture
def netns() -> Iterator[str]:
    """Path of a network namespace that lives as long as the test."""
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; exec sleep 300"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield f"/proc/{process.pid}/ns/net"
        process.kill()


@pytest.fixture
def runtime(shim: Path, tmp_path: Path) -> Runtime:
    return Runtime(shim, tmp_path)


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
def agent(runtime: Runtime, network: MemoryNetwork) -> Iterator[CniServer]:
    with serving(runtime, network) as server:
        yield server
