"""The flow engine on Debian's kernels: their verifiers take its programs, and packets become what they should.

Not collected by a plain `pytest`: `./dev test-vm` runs it.
"""

from pathlib import Path

import pytest

from tests.namespaces import TestNamespace
from tests.vm.machine import ROOT, SHARE, SHARE_MODULES, Kernel, booted, run_tests

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1800)]

PACKETS = [ROOT / "tests/bpf" / f"test_flow_{name}.py" for name in ("packets", "hostile")]
LOADED = [f"{PACKETS[0]}::test_a_kernel_that_lists_no_trie_in_one_go_is_asked_key_by_key"]
"""What loads all programs and sends nothing: kernel 5.10 runs no program for a packet that came in by a device."""


def test_programs_load_and_packets_become_what_they_should(
    kernel: Kernel, node: TestNamespace, tmp_path: Path
) -> None:
    """Run the tests of single packets in the machine (BPF_PROG_TEST_RUN)."""
    tests = LOADED if kernel.version.startswith("5.") else list(map(str, PACKETS))
    with booted(kernel, [*SHARE_MODULES, "veth"], tmp_path, netns=node, options=SHARE, memory=1536) as machine:
        assert kernel.version in machine.sh("uname -r")
        print(run_tests(machine, tests, "PODWAY_HOSTILE_PACKETS=3000", seconds=1700))
