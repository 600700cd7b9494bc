"""A stock Debian kernel in a virtual machine: fetched, unpacked, booted with busybox, and told what to do.

Nothing is installed on this machine. Without hardware virtualization the machine is emulated, some 20 times
slower; the kernel is the same.
"""

import base64
import contextlib
import glob
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "podway/vm"
BOOT_SECONDS = 180
COMMAND_SECONDS = 120

INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /sbin /root
/bin/busybox --install -s /bin
ln -sf /bin/modprobe /sbin/modprobe
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
export PATH=/bin
modprobe -a {modules}
exec < /dev/ttyS1 > /dev/ttyS1
stty raw -echo
echo @@ready
while read -r script; do
    echo "$script" | base64 -d > /tmp/script
    sh -e /tmp/script < /dev/null 2>&1
    echo "@@ended $?"
done
"""


class Kernel(NamedTuple):
    """An unpacked kernel package."""

    version: str
    image: Path
    root: Path


KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITES = {"5.10": "bullseye-security", "6.1": "bookworm", "6.12": "trixie", "newest": "sid"}
"""The suites of Debian's whose kernels these are."""


def fetch_kernel(which: str = "") -> Kernel:
    """Unpack a Debian kernel: a package (`linux-image-*.deb`), one of `SUITES`, or this system's newest."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if which.endswith(".deb"):
        return _unpacked([Path(which)])
    with _apt(SUITES[which]) if which else contextlib.nullcontext() as environment:
        (image,) = _dependencies("linux-image-amd64", r"linux-image-\S+", environment)
        # From 7.1 on, what was one package is several.
        names = [image, *_dependencies(image, r"linux-(?:binary|modules)-\S+", environment)]
        for name in names:
            if not glob.glob(f"{CACHE}/{name}_*.deb"):
                subprocess.run(["apt-get", "-q", "download", name], cwd=CACHE, check=True, env=environment)
    return _unpacked([Path(max(glob.glob(f"{CACHE}/{name}_*.deb"))) for name in names])


@contextlib.contextmanager
def _apt(suite: str) -> Iterator[dict[str, str]]:
    """Give an environment in which apt knows one suite of the mirror that this system uses, and no other."""
    targets = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Origin: Debian"]
    site = subprocess.run(targets, check=True, text=True, capture_output=True).stdout.splitlines()[0]
    if suite.endswith("-security"):
        site = f"{site.removesuffix('/')}-security"
    with tempfile.TemporaryDirectory() as scratch:
        for place in ("lists/partial", "cache/archives/partial"):
            Path(scratch, place).mkdir(parents=True)
        Path(scratch, "sources.list").write_text(f"deb [signed-by={KEYRING}] {site} {suite} main\n")
        configuration = Path(scratch, "apt.conf")
        configuration.write_text(f"""
            Dir::State::lists "{scratch}/lists";
            Dir::Cache "{scratch}/cache";
            Dir::Etc::sourcelist "{scratch}/sources.list";
            Dir::Etc::sourceparts "-";
            APT::Sandbox::User "root";
            Acquire::Languages "none";
            Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
        """)
        environment = {**os.environ, "APT_CONFIG": str(configuration)}
        subprocess.run(["apt-get", "-q", "update"], check=True, env=environment)
        yield environment


def _dependencies(package: str, pattern: str, environment: dict[str, str] | None) -> list[str]:
    command = ["apt-cache", "depends", "--important", package]
    listed = subprocess.run(command, check=True, text=True, capture_output=True, env=environment).stdout
    return re.findall(rf"Depends: ({pattern})", listed)


def _unpacked(packages: list[Path]) -> Kernel:
    root = CACHE / packages[0].stem
    if not root.exists():
        scratch = CACHE / f"{packages[0].stem}.part"
        shutil.rmtree(scratch, ignore_errors=True)
        for package in packages:
            subprocess.run(["dpkg-deb", "-x", package, scratch], check=True)
        if not (scratch / "lib").exists():  # what busybox knows as /lib
            (scratch / "lib").symlink_to("usr/lib")
        version = next((scratch / "lib/modules").iterdir()).name
        subprocess.run(["busybox", "depmod", "-b", scratch, version], check=True)
        scratch.rename(root)
    version = next((root / "lib/modules").iterdir()).name
    (image,) = (*root.glob("boot/vmlinuz-*"), *root.glob("usr/lib/modules/*/vmlinuz"))
    return Kernel(version, image, root)


def loadable(kernel: Kernel, modules: Iterable[str]) -> dict[str, list[str]]:
    """Return the modules that are not built in, each with its file and those that it needs (modules.dep)."""
    found: dict[str, list[str]] = {}
    for line in (kernel.root / "lib/modules" / kernel.version / "modules.dep").read_text().splitlines():
        file, _, others = line.partition(":")
        found[Path(file).name.split(".")[0].replace("-", "_")] = [file, *others.split()]
    return {module: found[module] for module in modules if module in found}


def build_initramfs(kernel: Kernel, modules: Iterable[str], scratch: Path) -> Path:
    """Make an initramfs of busybox, these modules, and a shell on the second serial line."""
    found = loadable(kernel, modules)
    tree = scratch / "initramfs"
    (tree / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    base = Path("lib/modules") / kernel.version
    for file in {file for files in found.values() for file in files}:
        target = tree / base / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(kernel.root / base / file, target)
    subprocess.run(["busybox", "depmod", "-b", tree, kernel.version], check=True)
    (tree / "init").write_text(INIT.format(modules=" ".join(found)))
    (tree / "init").chmod(0o755)
    files = "\n".join(sorted(str(path.relative_to(tree)) for path in tree.rglob("*")))
    image = scratch / "initramfs.cpio"
    with image.open("wb") as out:
        subprocess.run(
            ["busybox", "cpio", "-o", "-H", "newc"], input=files.encode(), stdout=out, cwd=tree, check=True
        )
    return image


class Machine:
    """A running machine with a root shell."""

    def __init__(self, line: socket.socket, console: Path) -> None:
        self._line = line
        self._console = console

    def sh(self, script: str, seconds: float = COMMAND_SECONDS) -> str:
        """Run a script, return what it printed; fail if it ends with another status than 0."""
        self._line.sendall(base64.b64encode(script.encode()) + b"\n")
        self._line.settimeout(seconds)
        said = ""
        while not (ended := re.search(r"@@ended (\d+)\n", said)):
            try:
                data = self._line.recv(1 << 16)
            except TimeoutError:
                data = b""
            assert data, f"{script}: no answer\n{said}\n{self._console.read_text(errors='replace')[-3000:]}"
            said += data.decode(errors="replace")
        printed = said[: ended.start()]
        assert ended[1] == "0", f"{script}: status {ended[1]}\n{printed}"
        return printed


SHARE = ("-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap")
SHARE_MODULES = ("virtio_pci", "9pnet_virtio", "9p")


def run_tests(machine: Machine, tests: Iterable[object], *settings: str, seconds: float = 850) -> str:
    """Run tests inside, on this system's files, which the machine shares (SHARE) and reads only.

    `settings` are variables of the environment. Returns what pytest printed; fails if a test does.
    """
    machine.sh(f"""
        mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 root /root
        mount -t proc proc /root/proc
        mount -t sysfs sys /root/sys
        mount -t devtmpfs dev /root/dev
        mkdir /tree
        mount --bind /root{ROOT} /tree
        for place in /root/tmp /root/run /root/var/tmp; do mount -t tmpfs tmpfs $place; done
        mkdir -p /root/run/netns
        if ! [ -d /root{ROOT} ]; then
            mkdir -p /root{ROOT}
            mount --bind /tree /root{ROOT}
        fi
    """)
    files = " ".join(map(str, tests))
    return machine.sh(
        "chroot /root /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp "
        f"{' '.join(settings)} "
        f"sh -c 'cd {ROOT} && {sys.executable} -B -m pytest -q --color=no -p no:cacheprovider {files}'",
        seconds=seconds,
    )


@contextlib.contextmanager
def booted(
    kernel: Kernel,
    modules: Iterable[str],
    scratch: Path,
    *,
    netns: Any,
    options: Iterable[str] = (),
    memory: int = 512,
) -> Iterator[Machine]:
    """Boot the kernel, with qemu in a network namespace; give it when its shell answers, and end it afterwards."""
    path, console = scratch / "shell.sock", scratch / "console.log"
    initramfs = build_initramfs(kernel, modules, scratch)
    command = ["nsenter", f"--net={netns.path}", "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max"]
    command += ["-m", str(memory), "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    command += ["-kernel", str(kernel.image), "-initrd", str(initramfs)]
    command += ["-append", "console=ttyS0 panic=-1 quiet"]
    command += ["-serial", f"file:{console}", "-serial", f"unix:{path},server=on,wait=off", *options]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            with _connect(process, path, console) as line:
                yield Machine(line, console)
        finally:
            process.kill()


def _connect(process: "subprocess.Popen[bytes]", path: Path, console: Path) -> socket.socket:
    """Connect to the machine's shell, and wait until it is there."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    until = time.monotonic() + BOOT_SECONDS
    while True:
        try:
            line.connect(str(path))
            break
        except (FileNotFoundError, ConnectionRefusedError):
            assert process.poll() is None, "qemu did not start; its words are above"
            assert time.monotonic() < until
            time.sleep(0.05)
    line.settimeout(BOOT_SECONDS)
    said = b""
    while not said.endswith(b"@@ready\n"):
        data = line.recv(1 << 12)
        assert data, f"the machine did not start: {console.read_text(errors='replace')[-3000:]}"
        said += data
    return line
