import os
import select
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


CHAIN = """
import os, sys, time
os.write(int(sys.argv[2]), b"up;")
for _ in range(int(sys.argv[1])):
    os._exit(0) if os.fork() else None
time.sleep(1000)
"""


@pytest.mark.parametrize("chains", [1, 3])
@pytest.mark.parametrize("length", [1, 30, 300])
def test_none_escapes_by_starting_another_and_ending(
    node: TestNamespace, tmp_path: Path, chains: int, length: int
) -> None:
    """As a daemon does that goes into the background. Each holds a pipe open for as long as it lives."""
    ours, theirs = os.pipe()
    try:
        command = [sys.executable, "-c", CHAIN, str(length), str(theirs)]
        for _ in range(chains):
            processes.spawn(command, namespace=node.name, mark="x/y", log=tmp_path / "log", kept=[theirs])
        os.close(theirs)
        said = b""
        while len(said) < 3 * chains:
            said += os.read(ours, 1)
        processes.Members([node.name], marked=_unmarked).end()
        living = select.poll()
        living.register(ours, select.POLLIN)
        assert living.poll(1000) == [(ours, select.POLLHUP)], "somebody lives"
    finally:
        os.close(ours)
        processes.Members([node.name], marked=_unmarked).end()


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
