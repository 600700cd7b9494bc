"""Where labs keep their files."""

from pathlib import Path

LABS = Path("/run/podway/lab")
"""One directory for each lab. Gone after a reboot, as the namespaces are."""

DEFAULT_LAB = "lab"


def lab_dir(name: str) -> Path:
    """Return the directory of the lab of this name."""
    return LABS / name


def lab_store(name: str) -> str:
    """Return the URL of the lab's store."""
    return f"sqlite://{lab_dir(name) / 'store.db'}"
