"""Starting the little server of pods and hosts (podway.lab.echo)."""

import os
import sys
from pathlib import Path

from podway.errors import LabError
from podway.lab import processes


def serve(port: int, greeting: str, *, namespace: str, mark: str, log: Path) -> None:
    """Start the server in a named namespace, with a lab's mark, and wait until it listens.

    Raises LabError with its last words if it does not.
    """
    read, write = os.pipe()
    try:
        processes.spawn(
            [sys.executable, "-m", "podway.lab.echo", str(port), greeting, str(write)],
            namespace=namespace,
            mark=mark,
            log=log,
            kept=(write,),
        )
    finally:
        os.close(write)
    with os.fdopen(read, "rb") as listening:
        if not listening.read():  # it ended: ours was the only other copy of the pipe's end
            words = log.read_text(errors="replace").strip().splitlines()
            whose = greeting.removeprefix("I am ")
            raise LabError(f"{whose}: no server on port {port}: {words[-1:]}")
