"""How this very Podway is started again: from a unit, by sudo."""

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def program() -> str:
    """Return the command that runs this Podway, by its full path."""
    found = shutil.which(sys.argv[0])
    return str(Path(found).absolute()) if found else f"{sys.executable} -m podway"


def as_root(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return the command line that runs Podway with these arguments as root.

    sudo starts with an environment and a search path of its own: hence the full path, and the PODWAY_ variables.
    """
    kept = [f"{name}={value}" for name, value in sorted(environment.items()) if name.startswith("PODWAY_")]
    return f"sudo {shlex.join(['env', *kept]) + ' ' if kept else ''}{program()} {shlex.join(arguments)}".rstrip()
