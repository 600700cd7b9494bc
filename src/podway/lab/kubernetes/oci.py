"""Container images as archives that `ctr images import` and `podman load` take, made without a registry.

The same directory makes the same bytes: entries are in order, without times and owners of their own. Source: OCI
image format specification 1.1 (image-layout.md, manifest.md, config.md, layer.md).
"""

import gzip
import hashlib
import io
import os
import platform
import shutil
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""Go's names for them, which images use, by the kernel's."""

BEGINNING = "1970-01-01T00:00:00Z"
"""When everything was made, as far as an image tells: it is to depend on its content alone."""

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_TYPE = "application/vnd.oci.image"
_PERMISSIONS = 0o1777
"""Of a file's mode: no program in an image gains rights by being run."""
_FASTER = 6


class Layer(msgspec.Struct, frozen=True):
    """A layer in a compressed file; `content` is the digest of what it is uncompressed."""

    path: Path
    digest: str
    content: str
    size: int


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """What an image is called (`registry/name:tag`), how it starts, and what its labels say."""

    name: str
    entrypoint: Sequence[str]
    labels: Mapping[str, str] = {}
    architecture: str = ""
    """Go's name for it; empty: this machine's."""


def pack(root: Path, target: Path) -> Layer:
    """Write what is below a directory as a layer, owned by root, without devices; return it. Raises OSError."""
    with target.open("wb") as file:
        compressed = _Digested(file)
        with gzip.GzipFile("", "wb", _FASTER, compressed, mtime=0) as zipped:
            content = _Digested(zipped)
            with tarfile.open(fileobj=content, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                for path in _below(root):
                    _add(tar, root, path)
    return Layer(target, compressed.digest, content.digest, target.stat().st_size)


def write_archive(target: Path, image: Image, layers: Sequence[Layer]) -> str:
    """Write an image of layers, the lowest first, as an archive; return its manifest's digest. Raises OSError."""
    config = {
        "created": BEGINNING,
        "architecture": image.architecture or ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": list(image.entrypoint), "Env": [PATH], "Labels": dict(image.labels)},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.content}" for layer in layers]},
        "history": [{"created": BEGINNING} for _ in layers],
    }
    blobs: dict[str, bytes] = {}

    def blob(kind: str, document: Any) -> dict[str, Any]:
        text = msgspec.json.encode(document, order="deterministic")
        digest = hashlib.sha256(text).hexdigest()
        blobs[digest] = text
        return {"mediaType": f"{_TYPE}.{kind}", "digest": f"sha256:{digest}", "size": len(text)}

    manifest = blob(
        "manifest.v1+json",
        {
            "schemaVersion": 2,
            "mediaType": f"{_TYPE}.manifest.v1+json",
            "config": blob("config.v1+json", config),
            "layers": [
                {"mediaType": f"{_TYPE}.layer.v1.tar+gzip", "digest": f"sha256:{one.digest}", "size": one.size}
                for one in layers
            ],
        },
    )
    # containerd takes the whole name from its own annotation, others from the specification's.
    names = {"io.containerd.image.name": image.name, "org.opencontainers.image.ref.name": image.name}
    index = {
        "schemaVersion": 2,
        "mediaType": f"{_TYPE}.index.v1+json",
        "manifests": [{**manifest, "annotations": names}],
    }
    draft = target.with_name(f".{target.name}.new")
    with tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as tar:
        _file(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _file(tar, "index.json", msgspec.json.encode(index, order="deterministic"))
        for digest, text in sorted(blobs.items()):
            _file(tar, f"blobs/sha256/{digest}", text)
        for layer in {one.digest: one for one in layers}.values():
            entry = tarfile.TarInfo(f"blobs/sha256/{layer.digest}")
            entry.size = layer.size
            with layer.path.open("rb") as content:
                tar.addfile(entry, content)
    draft.replace(target)
    return str(manifest["digest"])


class _Sink(Protocol):
    def write(self, data: Any, /) -> int: ...


class _Digested(io.RawIOBase):
    """Writes on into a file, and knows the SHA-256 of what went through."""

    def __init__(self, file: _Sink) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return self._file.write(data)


def _below(root: Path) -> Iterator[Path]:
    for directory, directories, files in os.walk(root):
        directories.sort()
        for name in sorted([*directories, *files]):
            yield Path(directory, name)


def _add(tar: tarfile.TarFile, root: Path, path: Path) -> None:
    status = path.lstat()
    entry = tarfile.TarInfo(str(path.relative_to(root)))
    entry.mode = status.st_mode & _PERMISSIONS
    if stat.S_ISLNK(status.st_mode):
        entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, os.readlink(path), 0o777
        tar.addfile(entry)
    elif stat.S_ISDIR(status.st_mode):
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
    elif stat.S_ISREG(status.st_mode):
        entry.size = status.st_size
        with path.open("rb") as content:
            tar.addfile(entry, content)


def _file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def copy_in(root: Path, file: Path, inside: str, mode: int = 0o755) -> None:
    """Put a file into a directory that becomes a layer. Raises OSError."""
    target = root / inside.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)
    target.chmod(mode)
