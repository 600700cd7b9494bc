"""Network namespaces.

A thread's namespace is the thread's own (man 2 setns), and a thread that came back from a namespace may not
be quite what it was; so nothing here ever moves a thread that lives on: what must run inside a namespace
runs in a thread made for it. A socket stays in the namespace in which it was opened, and so does an open
file of /proc/sys/net. An open descriptor of a namespace keeps it alive: close it soon.

Named namespaces are those of `ip netns` (man 8 ip-netns): bind mounts in /run/netns.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from podway.errors import InvalidInput, KernelError

RUN_NETNS = Path("/run/netns")

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_NS_GET_NSTYPE = 0xB703
"""include/uapi/linux/nsfs.h"""
_MS_BIND, _MS_REC, _MS_SLAVE, _MS_SHARED = 4096, 16384, 1 << 19, 1 << 20
_MNT_DETACH = 2
_OWN = "/proc/thread-self/ns/net"
_NO_FILES: Mapping[Path, Path] = MappingProxyType({})

_libc = ctypes.CDLL(None, use_errno=True)
_T = TypeVar("_T")


class Identity(NamedTuple):
    """What tells two namespaces apart, for as long as either is alive (man 7 namespaces)."""

    device: int
    inode: int


def open_path(path: str | Path) -> int:
    """Open the network namespace at a path, return a descriptor that the caller closes.

    Raises InvalidInput if the path is missing, is no namespace, or is a namespace of another type.
    """
    try:
        # O_NONBLOCK: opening a FIFO by mistake must not hang.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidInput(
            f"network namespace {path}: {reason}", hint="is the container or pod still there?"
        ) from error
    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError as error:
        os.close(fd)
        raise InvalidInput(
            f"network namespace {path}: is not a namespace",
            hint="give a path such as /run/netns/NAME or /proc/PID/ns/net",
        ) from error
    if kind != _CLONE_NEWNET:
        os.close(fd)
        raise InvalidInput(
            f"network namespace {path}: is a namespace, but not a network namespace",
            hint="give a path such as /run/netns/NAME or /proc/PID/ns/net",
        )
    return fd


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[int]:
    """Give a descriptor of the network namespace at a path while the block runs. Raises InvalidInput."""
    fd = open_path(path)
    try:
        yield fd
    finally:
        os.close(fd)


def current() -> int:
    """Open the calling thread's own network namespace; the caller closes the descriptor."""
    return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)


def identity(fd: int | None = None) -> Identity:
    """Return which namespace a descriptor stands for (None: the calling thread's)."""
    status = os.stat(_OWN if fd is None else fd)
    return Identity(status.st_dev, status.st_ino)


def run(fd: int, function: Callable[[], _T], *, files: Mapping[Path, Path] = _NO_FILES) -> _T:
    """Run a function inside a network namespace, in a thread of its own; return or raise what it does.

    With `files` the thread, and what it starts, sees the file of each value in the place of the file of the key,
    as `ip netns exec` has it with /etc/netns (man 8 ip-netns). Raises KernelError if the namespace cannot be
    entered.
    """

    def inside() -> _T:
        _setns(fd)
        if files:
            _unshare(_CLONE_NEWNS)
            _mount("", Path("/"), _MS_SLAVE | _MS_REC)  # what is mounted here is nobody else's
        for target, source in files.items():
            _mount(source, target.resolve(), _MS_BIND)
        return function()

    return _in_thread(inside)


def new() -> int:
    """Make a namespace without a name and return its only descriptor: closing that deletes it.

    Raises KernelError.
    """

    def inside() -> int:
        _unshare()
        return current()

    return _in_thread(inside)


def create(name: str) -> Path:
    """Make a named namespace, as `ip netns add` does; return its path.

    Raises InvalidInput for a name that cannot be one, KernelError (errno EEXIST if the name is taken).
    """
    path = _named(name)
    _share_directory()
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    except OSError as error:
        raise KernelError(f"create network namespace {name}", error.errno or errno.EIO) from error

    def inside() -> None:
        _unshare()
        _mount(_OWN, path, _MS_BIND)

    try:
        _in_thread(inside)
    except KernelError:
        path.unlink()
        raise
    return path


def delete(name: str) -> bool:
    """Delete a named namespace; tell whether it was there. It lives on while a process is in it.

    Raises InvalidInput for a name that cannot be one, KernelError.
    """
    path = _named(name)
    if not path.exists():
        return False
    if _libc.umount2(os.fsencode(path), _MNT_DETACH) and ctypes.get_errno() != errno.EINVAL:
        raise KernelError(f"delete network namespace {name}", ctypes.get_errno())
    path.unlink(missing_ok=True)
    return True


def names() -> list[str]:
    """Return the named namespaces, sorted; names whose namespace is gone are left out."""
    try:
        entries = list(os.scandir(RUN_NETNS))
    except FileNotFoundError:
        return []
    here = os.stat(RUN_NETNS).st_dev
    return sorted(e.name for e in entries if stat.S_ISREG(e.stat().st_mode) and e.stat().st_dev != here)


def path_of(name: str) -> Path:
    """Return where a named namespace is, whether it exists or not. Raises InvalidInput."""
    return _named(name)


def _named(name: str) -> Path:
    if not name or name in {".", ".."} or "/" in name or "\0" in name or len(name.encode()) > 255:
        raise InvalidInput(f"network namespace {name!r}: is not a name", hint="use 1 to 255 bytes without a slash")
    return RUN_NETNS / name


def _share_directory() -> None:
    """Make mounts below /run/netns show in every mount namespace, as iproute2 does.

    Without this, a namespace that is deleted here would live on in the copies of others.
    """
    RUN_NETNS.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = os.open(RUN_NETNS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            _mount("", RUN_NETNS, _MS_SHARED | _MS_REC)
        except KernelError as error:
            if error.errno != errno.EINVAL:
                raise
            _mount(RUN_NETNS, RUN_NETNS, _MS_BIND | _MS_REC)  # it was no mount point yet
            _mount("", RUN_NETNS, _MS_SHARED | _MS_REC)
    finally:
        os.close(lock)


def _mount(source: str | Path, target: Path, flags: int) -> None:
    if _libc.mount(os.fsencode(source), os.fsencode(target), b"none", ctypes.c_ulong(flags), None):
        raise KernelError(f"mount {source or 'none'} on {target}", ctypes.get_errno())


def _setns(fd: int) -> None:
    if sys.version_info >= (3, 12):
        try:
            os.setns(fd, _CLONE_NEWNET)
        except OSError as error:
            raise KernelError("enter a network namespace", error.errno or errno.EIO) from error
    elif _libc.setns(fd, _CLONE_NEWNET):
        raise KernelError("enter a network namespace", ctypes.get_errno())


def _unshare(kind: int = _CLONE_NEWNET) -> None:
    if _libc.unshare(kind):
        what = "network" if kind == _CLONE_NEWNET else "mount"
        raise KernelError(f"make a {what} namespace", ctypes.get_errno())


def _in_thread(function: Callable[[], _T]) -> _T:
    results: list[_T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=body, name="netns", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
