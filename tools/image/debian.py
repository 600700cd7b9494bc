"""A root file system of packages of this machine's own distribution: unpacked, never installed.

apt resolves what the packages depend on, fetches it and checks it by the archive's signatures. Nothing is run of
it: what only serves installing (and Perl with it) is left out, so are manuals.
"""

import fnmatch
import hashlib
import shutil
import subprocess
from pathlib import Path

import msgspec

PACKAGES = ("bird2", "python3", "nftables", "iproute2", "libbpf1", "libnftables1", "ca-certificates")
"""What an agent runs by: BIRD, Python, libnftables and libbpf; `nft` and `ip` for people."""

FOR_INSTALLING = (
    *("adduser", "debconf*", "dpkg", "init-system-helpers", "lsb-base", "passwd", "sensible-utils", "tar", "ucf"),
    *("libaudit*", "libpam*", "libsemanage*", "libsepol*", "sysvinit-utils", "usrmerge", "usr-is-merged"),
    *("perl*", "libperl*", "lib*-perl", "libgdbm*", "openssl"),
)
"""Packages that others need for their scripts alone, which are not run."""

LEFT_OUT = (
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bash-completion",
)
MERGED = ("bin", "sbin", "lib", "lib64")
"""Directories whose place is below /usr (file-hierarchy(7)); some packages still name them otherwise."""


class ImageError(Exception):
    """Why no image can be made, in words."""


class Package(msgspec.Struct, frozen=True):
    """A package as apt would fetch it: the archive's file, its name here, and its digest (SHA256:…)."""

    file: str
    digest: str

    @property
    def name(self) -> str:
        """The package's name, without version and architecture."""
        return self.file.partition("_")[0]


def resolve(scratch: Path) -> list[Package]:
    """Return the packages that are needed, by what apt knows of the archive. Raises ImageError."""
    # What is there already would be left out: hence a place where nothing is.
    told = _apt(scratch, scratch / "nothing", "--print-uris", "-qq", "install", *PACKAGES)
    found = []
    for line in told.splitlines():
        _, file, _, digest = line.rsplit(" ", 3)
        found.append(Package(file, digest))
    return [one for one in found if not any(fnmatch.fnmatch(one.name, each) for each in FOR_INSTALLING)]


def unpack(packages: list[Package], root: Path, scratch: Path) -> None:
    """Fetch packages and unpack them into a new directory. Raises ImageError, and OSError."""
    _apt(scratch, scratch / "archives", "--download-only", "-qq", "install", *PACKAGES)
    for name in MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        _unpack(scratch / "archives" / package.file, root)
    for each in LEFT_OUT:
        shutil.rmtree(root / each, ignore_errors=True)
    for documents in (root / "usr/share/doc").iterdir():
        for path in documents.iterdir() if documents.is_dir() and not documents.is_symlink() else ():
            if path.name != "copyright":  # whose words have to come along
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    _make_up_for_scripts(root)


def _unpack(file: Path, root: Path) -> None:
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", file], stdout=subprocess.PIPE) as archive:
        options = ["--keep-directory-symlink", "--no-same-owner", "--exclude=./dev/*"]
        subprocess.run(["tar", "-x", *options, "-C", root], stdin=archive.stdout, check=True)
    if archive.returncode:
        raise ImageError(f"{file.name} cannot be unpacked")


def _make_up_for_scripts(root: Path) -> None:
    """Write what the scripts of packages would have."""
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/false\nnobody:x:65534:65534::/:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    bundle = root / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_text("".join(path.read_text() for path in certificates))
    for directory in ("proc", "sys", "dev", "run", "tmp", "root"):
        (root / directory).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    # Runtimes name pods' namespaces by it (/var/run/netns/…, kubelet's and containerd's way).
    (root / "var").mkdir(exist_ok=True)
    (root / "var/run").symlink_to("/run")


def fingerprint(packages: list[Package]) -> str:
    """Return what tells these packages, and what is done with them, from others."""
    text = "\n".join(f"{one.file} {one.digest}" for one in packages)
    return hashlib.sha256(text.encode() + Path(__file__).read_bytes()).hexdigest()[:16]


def _apt(scratch: Path, archives: Path, *arguments: str) -> str:
    """Run apt-get as if nothing were installed; return what it prints."""
    status = scratch / "status"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    status.write_text("")
    settings = {
        "Dir::State::status": status,
        "Dir::Cache::archives": archives,
        "APT::Install-Recommends": "false",
        "Debug::NoLocking": "true",
        "APT::Sandbox::User": "",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    try:
        done = subprocess.run(["apt-get", "-y", *options, *arguments], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise ImageError("the image is made of Debian packages, and apt-get is not here") from None
    except subprocess.CalledProcessError as error:
        raise ImageError(
            f"apt-get: {error.stderr.strip()}\n  hint: are its lists there? run apt-get update"
        ) from None
    return done.stdout
