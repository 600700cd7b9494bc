"""A plugin of pytest (-p tests.failures) that notes failures at once in the file that PODWAY_FAILURES names.

Whoever ends tests because their time is up learns from it whether one had failed until then: their exit status
tells only that they were ended, also when that comes while a failed test cleans up.
"""

import os
from pathlib import Path

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note a test, or what it needs, that failed: before anything is cleaned up."""
    file = os.environ.get("PODWAY_FAILURES")
    if file and report.failed:
        with Path(file).open("a") as failures:
            failures.write(f"{report.nodeid}\n")
