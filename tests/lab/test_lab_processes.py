import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from podway.errors import LabError
from podway.lab import processes
from tests.namespaces import TestNamespace
from tests.patience import PATIENCE, eventually

pytestmark = pytest.mark.kernel

FORKING = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.setsid() if os.fork() == 0 else None
os.write(1, b"up;")  # whole, whoever else writes
time.sleep(1000)
"""


def _unmarked(_: str) -> bool:
    return False


def test_every_process_of_a_namespace_ends_whoever_started_it(node: TestNamespace, tmp_path: Path) -> None:
    said, command = tmp_path / "said", [sys.executable, "-c", FORKING]
    ours = processes.spawn(command, namespace=node.name, mark="x/y", log=said)
    with said.open("ab") as output:
        strangers = subprocess.Popen(["ip", "netns", "exec", node.name, *command], stdout=output)
    try:
        eventually(lambda: said.read_bytes() == b"up;" * 4, "two processes and a child of each are up")
        members = processes.Members([node.name], marked=_unmarked)
        assert {ours.pid, strangers.pid} < set(members.pids())
        members.end(grace=0.1)  # they ignore SIGTERM
        assert members.pids() == []
        assert ours.ended() == strangers.wait() == -9
    finally:
        processes.Members([node.name], marked=_unmarked).end()
        strangers.wait()


def test_marked_processes_are_found_without_their_namespaces_name(
    new_netns: Callable[[], TestNamespace], tmp_path: Path
) -> None:
    home = new_netns()
    sleeper = ["sleep", "1000"]
    process = processes.spawn(sleeper, namespace=home.name, mark="lab1/n", log=tmp_path / "log")
    home.remove()
    others = processes.Members([home.name], marked=lambda mark: mark == "lab2/n")
    members = processes.Members([], marked=lambda mark: mark == "lab1/n")
    assert others.pids() == []
    assert members.pids() == [process.pid]
    members.end()
    assert process.ended() == -9


def test_who_asks_is_never_among_the_ended(node: TestNamespace) -> None:
    script = (
        "import os; from podway.lab import processes\n"
        f"members = processes.Members([{node.name!r}], marked=lambda _: False)\n"
        "assert not {os.getpid(), os.getppid()} & set(members.pids())\n"
        "members.end(); print('alive')"
    )
    shell = ["sh", "-c", f'sleep 1000 & {sys.executable} -c "$0"; echo shell', script]
    done = subprocess.run(
        ["ip", "netns", "exec", node.name, *shell], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.stdout == "alive\nshell\n", done.stderr


def test_a_command_runs_inside_and_its_status_comes_back(node: TestNamespace) -> None:
    shell = ["sh", "-c", f"test $(readlink /proc/self/ns/net) = 'net:[{node.path.stat().st_ino}]' && exit 7"]
    assert processes.run(shell, namespace=node.name) == 7
    assert processes.run(["sh", "-c", "kill -9 $$"], namespace=node.name) == 128 + 9
    with pytest.raises(LabError, match="no-such-command: No such file"):
        processes.run(["no-such-command"], namespace=node.name)
