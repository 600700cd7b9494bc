"""Starting the little servers of pods and hosts (podway.lab.echo, podway.lab.dns)."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from podway.errors import LabError
from podway.lab import processes


def serve(port: int, greeting: str, *, namespace: str, mark: str, log: Path) -> None:
    """Start the server that tells who answers whom, in a named namespace with a lab's mark; wait until it listens.

    Raises LabError with its last words if it does not.
    """
    whose = f"{greeting.removeprefix('I am ')}: no server on port {port}"
    _start(("podway.lab.echo", str(port), greeting), whose, namespace=namespace, mark=mark, log=log)


def serve_names(store: str, *, namespace: str, mark: str, log: Path) -> None:
    """Start the server of DNS for a lab's store likewise."""
    _start(("podway.lab.dns", store), "no DNS server", namespace=namespace, mark=mark, log=log)


def _start(module: Sequence[str], problem: str, *, namespace: str, mark: str, log: Path) -> None:
    read, write = os.pipe()
    try:
        processes.spawn(
            [sys.executable, "-m", *module, str(write)], namespace=namespace, mark=mark, log=log, kept=(write,)
        )
    finally:
        os.close(write)
    with os.fdopen(read, "rb") as listening:
        if not listening.read():  # it ended: ours was the only other copy of the pipe's end
            words = log.read_text(errors="replace").strip().splitlines()
            raise LabError(f"{problem}: {words[-1:]}")
