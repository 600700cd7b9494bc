"""A container image without a registry: a static busybox that serves one page.

Podman takes its root file system as it lies there (`--rootfs`), containerd an archive of it.
"""

import hashlib
import io
import json
import platform
import shutil
import tarfile
from pathlib import Path

SERVE = ("/bin/httpd", "-f", "-p", "80", "-h", "/www")
PAGE = "I am a container\n"
ASKER = "cgi-bin/asker"
"""Page that tells the address of who asks."""
APPLETS = ("cat", "httpd", "ip", "sh", "sleep")

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""Go's names for them, which images use, by the kernel's."""

_TYPE = "application/vnd.oci.image"


def make_rootfs(directory: Path, busybox: Path) -> Path:
    """Lay out the root file system."""
    for part in ("bin", "dev", "etc", "proc", "run", "sys", "tmp", "www"):
        (directory / part).mkdir(parents=True)
    shutil.copy(busybox, directory / "bin" / "busybox")
    for applet in APPLETS:
        (directory / "bin" / applet).symlink_to("busybox")
    (directory / "www" / "index.html").write_text(PAGE)
    asker = directory / "www" / ASKER
    asker.parent.mkdir()
    asker.write_text('#!/bin/sh\necho; echo "$REMOTE_ADDR"\n')
    asker.chmod(0o755)
    return directory


def archive(rootfs: Path, name: str) -> bytes:
    """Return the image as an archive for `ctr images import` (OCI image layout specification 1.0)."""
    blobs: dict[str, bytes] = {}

    def blob(kind: str, content: bytes) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": f"{_TYPE}.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(rootfs, arcname=".")
    layers = [blob("layer.v1.tar", layer.getvalue())]
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": SERVE},
        "rootfs": {"type": "layers", "diff_ids": [entry["digest"] for entry in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_TYPE}.manifest.v1+json",
        "config": blob("config.v1+json", json.dumps(config).encode()),
        "layers": layers,
    }
    entry = blob("manifest.v1+json", json.dumps(manifest).encode())
    index = {"schemaVersion": 2, "manifests": [{**entry, "annotations": {"io.containerd.image.name": name}}]}
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(index).encode(), **blobs}
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return whole.getvalue()
