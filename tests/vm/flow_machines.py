"""The flow engine on Debian's kernels: their verifiers take its programs, and packets become what they should.

Not collected by a plain `pytest`: `./dev test-vm` runs it.
"""

from pathlib import Path

import pytest

from tests.namespaces import TestNamespace
from tests.vm.machine import ROOT, SHARE, SHARE_MODULES, Kernel, booted, run_tests

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1800)]

PACKETS = [ROOT / "tests/bpf" / f"test_flow_{name}.py" for name in ("packets", "hostile")]


def test_packets_become_what_they_should(kernel: Kernel, node: TestNamespace, tmp_path: Path) -> None:
    """Run the tests of single packets in the machine (BPF_PROG_TEST_RUN)."""
    with booted(kernel, [*SHARE_MODULES, "veth"], tmp_path, netns=node, options=SHARE, memory=1536) as machine:
        assert kernel.version in machine.sh("uname -r")
        print(run_tests(machine, PACKETS, "PODWAY_HOSTILE_PACKETS=3000", seconds=1700))
