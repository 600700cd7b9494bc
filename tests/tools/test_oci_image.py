"""Images made without a registry: what is in the archive is what was in the directory, and nothing else is."""

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from podway.lab.kubernetes.oci import Image, pack, write_archive


def fill(root: Path) -> Path:
    (root / "bin").mkdir(parents=True)
    (root / "bin/program").write_bytes(b"\x7fELF")
    (root / "bin/program").chmod(0o4755)
    (root / "bin/other").symlink_to("program")
    (root / "empty").mkdir(mode=0o1777)
    os.mkfifo(root / "pipe")
    return root


def read(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        members = {member.name: tar.extractfile(member) for member in tar}
        return {name: file.read() for name, file in members.items() if file is not None}


def test_every_blob_is_what_its_name_says_and_the_layer_unpacks_to_what_was_packed(tmp_path: Path) -> None:
    layer = pack(fill(tmp_path / "root"), tmp_path / "layer.tar.gz")
    target = tmp_path / "image.tar"
    digest = write_archive(target, Image(name="podway.io/x:1", entrypoint=("/bin/program",)), [layer])
    files = read(target)
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    blobs = {name.removeprefix("blobs/sha256/"): text for name, text in files.items() if name.startswith("blobs/")}
    assert all(hashlib.sha256(text).hexdigest() == name for name, text in blobs.items())

    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["digest"] == digest
    assert entry["annotations"]["io.containerd.image.name"] == "podway.io/x:1"
    manifest = json.loads(blobs[digest.removeprefix("sha256:")])
    for described in (entry, manifest["config"], *manifest["layers"]):
        assert len(blobs[described["digest"].removeprefix("sha256:")]) == described["size"]
    config = json.loads(blobs[manifest["config"]["digest"].removeprefix("sha256:")])
    assert config["config"]["Entrypoint"] == ["/bin/program"]
    (packed,) = manifest["layers"]
    content = gzip.decompress(blobs[packed["digest"].removeprefix("sha256:")])
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(content).hexdigest()}"]

    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        found = {member.name: member for member in tar}
        program = tar.extractfile("bin/program")
        assert program is not None
        assert program.read() == b"\x7fELF"
    assert set(found) == {"bin", "bin/program", "bin/other", "empty"}, "a pipe is no file of an image"
    assert found["bin/program"].mode == 0o755, "no program gains rights by being run"
    assert found["bin/other"].linkname == "program"
    assert found["empty"].isdir()
    assert {(member.uid, member.gid, member.mtime) for member in found.values()} == {(0, 0, 0)}


def test_the_same_directory_makes_the_same_bytes(tmp_path: Path) -> None:
    """Whatever the order in which its files were made, and whenever."""
    made = []
    for number, names in enumerate((("a", "b"), ("b", "a"))):
        root = tmp_path / str(number)
        root.mkdir()
        for name in names:
            (root / name).write_text(name)
            os.utime(root / name, (number, number))
        layer = pack(root, tmp_path / f"{number}.tar.gz")
        target = tmp_path / f"{number}.tar"
        write_archive(target, Image(name="x:1", entrypoint=()), [layer])
        made.append(target.read_bytes())
    assert made[0] == made[1]


def test_an_archive_that_cannot_be_finished_leaves_none(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    layer = pack(tmp_path / "root", tmp_path / "layer.tar.gz")
    layer.path.unlink()
    with pytest.raises(FileNotFoundError):
        write_archive(tmp_path / "image.tar", Image(name="x:1", entrypoint=()), [layer])
    assert not (tmp_path / "image.tar").exists()
