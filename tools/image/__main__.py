"""python -m tools.image TARGET NAME: write Podway's image as an archive, `ctr images import TARGET` takes it.

Three layers: Debian's packages, the Python packages that Podway needs, as requirements.lock pins them, and Podway.
The first two are kept, and made anew only when they are others. For this machine's own architecture.
"""

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from podway import __version__
from podway.lab.kubernetes.oci import Image, Layer, copy_in, pack, write_archive
from tools.image import debian
from tools.image.debian import ImageError

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "podway/image"

LAUNCHER = b"#!/usr/bin/python3\nfrom podway.cli.main import main\n\nmain()\n"
KEPT_LAYERS = 2


def main(target: Path, name: str) -> None:
    """Write the image of this name. Raises ImageError, OSError."""
    CACHE.mkdir(parents=True, exist_ok=True)
    packages = debian.resolve(CACHE)
    python = _python(packages)
    pins = "".join(_pins(_needed("podway")))
    below = [
        _kept("debian", debian.fingerprint(packages), lambda root: _unpack(packages, root, python)),
        _kept("python", _digest(python, pins), lambda root: _install_needed(root, pins, python)),
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        root = Path(scratch, "root")
        _install(root, Path(scratch), python)
        layers = [*below, pack(root, Path(scratch, "podway.tar.gz"))]
        labels = {"org.opencontainers.image.title": "podway", "org.opencontainers.image.version": __version__}
        image = Image(name=name, entrypoint=("/usr/local/bin/podway",), labels=labels)
        digest = write_archive(target, image, layers)
    print(f"{target}: {name}, {target.stat().st_size / 1e6:.1f} MB, {digest}")


def _kept(name: str, fingerprint: str, fill: Callable[[Path], None]) -> Layer:
    """Return a layer that is kept from last time, if it has the same fingerprint; else it is filled anew."""
    kept = CACHE / f"{name}-{fingerprint}.tar.gz"
    told = kept.with_name(f"{name}-{fingerprint}.json")
    if not told.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            root = Path(scratch, "root")
            root.mkdir()
            fill(root)
            layer = pack(root, kept)
        told.write_bytes(msgspec.json.encode(layer, enc_hook=str))
    for old in sorted(CACHE.glob(f"{name}-*.json"), key=lambda path: path.stat().st_mtime)[:-KEPT_LAYERS]:
        old.with_suffix(".tar.gz").unlink(missing_ok=True)
        old.unlink()
    return msgspec.json.decode(told.read_bytes(), type=Layer, dec_hook=lambda kind, text: kind(text))


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join((*texts, Path(__file__).read_text())).encode()).hexdigest()[:16]


def _unpack(packages: list[debian.Package], root: Path, python: str) -> None:
    debian.unpack(packages, root, CACHE)
    _compile(root, root / f"usr/lib/python{python}", python)


def _python(packages: list[debian.Package]) -> str:
    """Return the version of the image's Python, such as 3.11."""
    found = [one.name for one in packages]
    versions = [match[1] for name in found if (match := re.fullmatch(r"python(3\.\d+)-minimal", name))]
    if len(versions) != 1:
        raise ImageError(f"Debian's python3 is of no one version: {', '.join(versions) or 'none'}")
    return versions[0]


PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


def _install_needed(root: Path, pins: str, python: str) -> None:
    """Lay out the Python packages that Podway needs."""
    pinned = root.with_name("pinned.txt")
    pinned.write_text(pins)
    _install_wheels(root, python, "--require-hashes", "-r", pinned)


def _install(root: Path, scratch: Path, python: str) -> None:
    """Lay out Podway itself."""
    _run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", scratch, ROOT)
    (wheel,) = scratch.glob("podway-*.whl")
    _install_wheels(root, python, wheel)
    launcher = scratch / "launcher"
    launcher.write_bytes(LAUNCHER)
    copy_in(root, launcher, "/usr/local/bin/podway")


def _install_wheels(root: Path, python: str, *wheels: str | Path) -> None:
    site = root / f"usr/local/lib/python{python}/dist-packages"
    options: list[str | Path] = [
        "--target",
        site,
        "--no-compile",
        "--only-binary=:all:",
        f"--python-version={python}",
    ]
    _run(*PIP, "install", *options, "--no-deps", *wheels)
    shutil.rmtree(site / "bin", ignore_errors=True)  # its programs start by the path of this machine's Python
    for record in site.glob("*.dist-info/*"):
        if record.name in {"RECORD", "direct_url.json", "REQUESTED", "INSTALLER"}:
            record.unlink()
    _compile(root, site, python)


def _compile(root: Path, below: Path, python: str) -> None:
    """Compile Python's files, as a container cannot: it would write into its own layer at every start."""
    compiler = shutil.which(f"python{python}")
    if compiler is None:
        print(f"python{python} is not here to compile for: containers take longer to start")
        return
    options = ["-q", "-j0", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
    # The hash of strings would put sets into another order each time.
    _run(compiler, "-m", "compileall", *options, below, environment={"PYTHONHASHSEED": "0"})


def _needed(package: str, seen: frozenset[str] = frozenset()) -> frozenset[str]:
    """Return the names of what a package needs when it runs, as installed here."""
    for requirement in importlib.metadata.requires(package) or ():
        words, _, marker = requirement.partition(";")
        name = _normal(re.split(r"[^A-Za-z0-9._-]", words)[0])
        if "extra" not in marker and name not in seen and _is_installed(name):
            seen = _needed(name, seen | {name})
    return seen


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False  # of another system or version of Python
    return True


def _pins(names: frozenset[str]) -> list[str]:
    """Return the entries of requirements.lock of these names. Raises ImageError if one is missing."""
    entries = re.findall(r"^\S.*(?:\n[ \t].*)*\n", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    pinned = {_normal(re.split(r"[=\s]", entry)[0]): entry for entry in entries}
    if missing := sorted(names - pinned.keys()):
        raise ImageError(f"requirements.lock does not pin {', '.join(missing)}: ./dev lock")
    return [pinned[name] for name in sorted(names)]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _run(*command: str | Path, environment: dict[str, str] | None = None) -> None:
    try:
        subprocess.run(command, check=True, env={**os.environ, **(environment or {})})
    except subprocess.CalledProcessError as error:
        raise ImageError(f"{' '.join(map(str, command[:4]))}… ended with status {error.returncode}") from None


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2])
    except ImageError as error:
        sys.exit(f"image: {error}")
