"""Whether the console's built files belong to their sources: `--check` tells, `--stamp` writes down that they do.

Neither needs Node. What was built of what stands in built-from.json beside the files, by SHA-256.
"""

import hashlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "console"
BUILT = ROOT / "src/podway/console/assets"
STAMP = BUILT / "built-from.json"


def sources(folder: Path = SOURCES) -> str:
    """Return a digest of all sources: names and contents."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] != "node_modules":
            digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def built(folder: Path = BUILT) -> dict[str, str]:
    """Return the digest of each built file by its name."""
    paths = (path for path in sorted(folder.iterdir()) if path.name != STAMP.name)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def state(source: Path = SOURCES, folder: Path = BUILT) -> dict[str, object]:
    """Return what is written down."""
    return {"sources": sources(source), "files": built(folder)}


def problem(source: Path = SOURCES, folder: Path = BUILT) -> str:
    """Return what is wrong in words, empty if nothing is."""
    stamp = folder / STAMP.name
    if not stamp.exists():
        return f"{stamp} is missing"
    said = json.loads(stamp.read_text())
    now = state(source, folder)
    if said["sources"] != now["sources"]:
        return f"{folder} was built of other sources than those in {source}"
    if said["files"] != now["files"]:
        return f"files in {folder} are other than those that were built"
    return ""


def main() -> None:
    """See the module."""
    if sys.argv[1:] == ["--stamp"]:
        STAMP.write_text(json.dumps(state(), indent=2) + "\n")
    elif wrong := problem():
        sys.exit(f"console: {wrong}\n  hint: build them: ./dev console")


if __name__ == "__main__":
    main()
