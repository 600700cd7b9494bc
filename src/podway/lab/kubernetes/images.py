"""Images that a lab makes itself, since it asks no registry: what holds pods' namespaces, and one to try with."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from podway.errors import UnsupportedSystem
from podway.lab.kubernetes.oci import Image, copy_in, pack, write_archive

PAUSE = "podway.io/pause:1"
BUSYBOX = "podway.io/busybox:1"


def pause_program() -> str:
    """Return the program that only waits. Raises UnsupportedSystem if it was never compiled."""
    path = Path(__file__).parent / "bin" / "pause"
    if not path.exists():
        raise UnsupportedSystem(
            "the program that holds a node's namespaces is not part of this installation of Podway",
            hint="it is compiled when the package is built: install gcc and libc6-dev, then `./dev setup`",
        )
    return str(path)


def make_images(directory: Path) -> list[Path]:
    """Write the images into a directory; return their archives. Raises UnsupportedSystem, OSError.

    That to try things with is a busybox, and is left out where none is installed.
    """
    made = [_make(directory, PAUSE, Path(pause_program()), "/pause", ())]
    busybox = shutil.which("busybox")
    if busybox is not None:
        applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
        made.append(_make(directory, BUSYBOX, Path(busybox), "/bin/busybox", applets))
    return made


def _make(directory: Path, name: str, program: Path, inside: str, applets: Sequence[str]) -> Path:
    short = name.rpartition("/")[2].partition(":")[0]
    root = directory / short
    copy_in(root, program, inside)
    for place in ("etc", "proc", "sys", "dev", "tmp", "www"):
        (root / place).mkdir(exist_ok=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    for applet in applets:
        link = root / "bin" / applet
        if not link.exists() and not link.is_symlink():
            link.symlink_to("busybox")
    archive = directory / f"{short}.tar"
    entrypoint = () if applets else (inside,)
    write_archive(archive, Image(name=name, entrypoint=entrypoint), [pack(root, directory / f"{short}.tar.gz")])
    shutil.rmtree(root)
    return archive
