"""The check that no test leaves anything behind would see it."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests import leftovers
from tests.namespaces import TestNamespace


def test_a_process_is_seen_whoever_adopted_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "ENDING_SECONDS", 0.2)
    before = leftovers.things(of_labs=False)
    subprocess.run(["sh", "-c", "setsid sleep 1000 &"], check=True)
    left = leftovers.left_since(before)
    assert list(left.processes.values()) == ["sleep 1000"]
    monkeypatch.undo()
    assert not leftovers.left_since(before), "it was killed"


def test_a_process_is_seen_that_comes_of_a_chain_of_short_lived_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = "import os, time\nfor _ in range(40):\n    os._exit(0) if os.fork() else None\ntime.sleep(1000)"
    monkeypatch.setattr(leftovers, "ENDING_SECONDS", 1.0)
    for _ in range(3):
        before = leftovers.things(of_labs=False)
        subprocess.run([sys.executable, "-c", chain], check=True)
        assert len(leftovers.left_since(before).processes) == 1
        assert not leftovers.left_since(before), "it was killed"


@pytest.mark.kernel
def test_a_namespace_is_seen(new_netns: Callable[[], TestNamespace], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "ENDING_SECONDS", 0)
    before = leftovers.things(of_labs=False)
    name = new_netns().name
    assert str(leftovers.left_since(before)) == f"network namespace {name}"
