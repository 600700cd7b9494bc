"""A terminal in which a page's consoles are typed: one bash, and a lab under a name of its own."""

import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from podway.lab import names
from podway.lab.paths import DEFAULT_LAB, lab_dir, lab_store
from podway.lab.state import node_dir
from tests.docs.console import Console, Step
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
COLUMNS = 100

CHATTER = re.compile(
    r"^(tcpdump: |listening on |dropped privs)|packets? (captured|received by filter|dropped by kernel)$"
)
"""What tcpdump says of itself."""


class Terminal:
    """The lab that pages call `lab` has the name `lab` here; so has all that is shown."""

    def __init__(self, lab: str, directory: Path) -> None:
        self.lab, self.directory = lab, directory
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PODWAY_")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
        environment |= {"PATH": path, "PODWAY_LAB": lab, "COLUMNS": str(COLUMNS), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        self._bash = subprocess.Popen(
            ["bash", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=environment,
            start_new_session=True,
        )
        self._background = directory.parent / f"{directory.name}.background"
        self._heard = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.communicate()

    def type(self, command: str, node: str = "") -> tuple[list[str], int]:
        """Run a command, on a node if that is named; return the lines it printed, and its exit status.

        What a command in the background (`… &`) says until it listens comes at once, the rest with `wait`.
        """
        real = self._real(command, node)
        if node:
            real = f"nsenter --net=/run/netns/{names.node_netns(self.lab, node)} bash -c {shlex.quote(real)}"
        if real.rstrip().endswith("&"):
            self._background.write_text("")
            self._heard = 0
            self._run(f"{real.rstrip().rstrip('&')} >{self._background} 2>&1 &")
            self._await_listening()
            return self._new_background(), 0
        output, status = self._run(f"{{ {real}\n}} </dev/null 2>&1")
        if command.strip() == "wait":
            output += self._new_background()
        return output, status

    def step(self, console: Console, step: Step) -> tuple[list[str], int]:
        """Run one step of a console."""
        return self.type(step.command, console.node)

    def _run(self, script: str) -> tuple[list[str], int]:
        assert self._bash.stdin
        assert self._bash.stdout
        mark = f"-- {os.urandom(8).hex()}"
        self._bash.stdin.write(f"{script}\nprintf '\\n%s %d\\n' '{mark}' $?\n".encode())
        self._bash.stdin.flush()
        said, deadline = b"", time.monotonic() + 2 * PATIENCE
        while f"\n{mark} ".encode() not in said or not said.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._bash.stdout], [], [], left)[0]:
                raise AssertionError(f"no end within {2 * PATIENCE:g} s: {script}\n{said.decode()}")
            new = os.read(self._bash.stdout.fileno(), 1 << 16)
            assert new, f"bash has ended: {script}\n{said.decode()}"
            said += new
        text, _, status = said.decode().rpartition(f"\n{mark} ")
        return self._shown(text), int(status)

    def _await_listening(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while "listening on" not in self._background.read_text():
            assert time.monotonic() < deadline, self._background.read_text()
            time.sleep(0.02)

    def _new_background(self) -> list[str]:
        lines = [line for line in self._shown(self._background.read_text()) if not CHATTER.search(line)]
        new, self._heard = lines[self._heard :], len(lines)
        return new

    def _real(self, command: str, node: str) -> str:
        command = command.replace(names.prefix(DEFAULT_LAB), names.prefix(self.lab))
        command = command.replace(str(lab_dir(DEFAULT_LAB)), str(lab_dir(self.lab)))
        if node:  # a host's own place
            command = command.replace("/run/podway/bird", f"{node_dir(self.lab, node)}/bird")
            command = command.replace("sqlite:///var/lib/podway/store.db", lab_store(self.lab))
        return command

    def _shown(self, text: str) -> list[str]:
        lines = [line.rstrip() for line in text.replace(self.lab, DEFAULT_LAB).splitlines()]
        while lines and not lines[-1]:
            lines.pop()
        return lines
