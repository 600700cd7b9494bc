"""Who ends tests because their time is up learns what had failed until then."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

TESTS = """
import os, signal, pytest

@pytest.fixture(scope="module")
def cleaning():
    yield
    os.kill(os.getpid(), signal.SIGINT)  # the time is up

def test_that_passes(cleaning): pass

def test_that_does_what_is_said(cleaning): assert {holds}
"""


@pytest.mark.parametrize(("holds", "noted"), [(True, ""), (False, "test_timed.py::test_that_does_what_is_said\n")])
def test_a_failure_is_known_though_its_cleaning_is_interrupted(tmp_path: Path, holds: bool, noted: str) -> None:
    (tmp_path / "test_timed.py").write_text(TESTS.format(holds=holds))
    failures = tmp_path / "failures"
    failures.touch()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.failures", "-p", "no:cacheprovider", "-x", "test_timed.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PODWAY_FAILURES": str(failures)},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout + done.stderr
    assert failures.read_text() == noted
