"""Namespaces: ours are iproute2's, mistakes are told, no thread is left in the wrong place."""

import errno
import os
import secrets
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from podway.errors import InvalidInput, KernelError, UnsupportedSystem
from podway.kernel import netns, support
from tests.namespaces import TestNamespace

pytestmark = pytest.mark.kernel


@pytest.fixture
def name() -> Iterator[str]:
    name = f"pwt-{os.getpid()}-{secrets.token_hex(3)}"
    yield name
    netns.delete(name)


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, text=True, capture_output=True).stdout


def test_iproute2_sees_ours_and_we_see_its(name: str) -> None:
    path = netns.create(name)
    assert name in ip("netns", "list").split()
    assert ip("-n", name, "-o", "link").count("\n") == 1
    with netns.opened(path) as fd:
        assert netns.identity(fd) != netns.identity()
    assert name in netns.names()
    ip("netns", "delete", name)
    assert name not in netns.names()
    ip("netns", "add", name)
    assert name in netns.names()
    assert netns.delete(name) is True
    assert netns.delete(name) is False
    assert name not in ip("netns", "list").split()


def test_a_taken_name_is_told(name: str) -> None:
    netns.create(name)
    with pytest.raises(KernelError) as caught:
        netns.create(name)
    assert caught.value.errno == errno.EEXIST


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "x" * 256, "a\0b"])
def test_what_is_no_name_is_refused(bad: str) -> None:
    for function in (netns.create, netns.delete, netns.path_of):
        with pytest.raises(InvalidInput, match="is not a name"):
            function(bad)


def test_a_deleted_namespace_is_gone_for_good(name: str, pod: TestNamespace) -> None:
    """No mount namespace keeps a copy, so its links vanish: here the far end of a pair."""
    path = netns.create(name)
    pod.sh(f"ip link add left0 type veth peer name right0 netns {path.name}")
    netns.delete(name)
    for _ in range(100):
        if "left0" not in pod.sh("ip link"):
            break
        threading.Event().wait(0.02)
    assert "left0" not in pod.sh("ip link")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/run/netns/no-such-namespace", "No such file"),
        ("/etc/passwd", "is not a namespace"),
        ("/tmp", "is not a namespace"),
        ("/dev/null", "is not a namespace"),
        ("/proc/self/ns/mnt", "not a network namespace"),
        ("/run/a\0b", "null "),
    ],
)
def test_what_is_no_network_namespace_is_told(path: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        netns.open_path(path)
    assert caught.value.hint


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidInput, match="is not a namespace"):
        netns.open_path(tmp_path / "fifo")


def test_a_function_runs_inside_and_nobody_stays_there(pod: TestNamespace) -> None:
    here = netns.identity()
    assert netns.run(pod.fd, netns.identity) == netns.identity(pod.fd)
    assert netns.identity() == here
    with pytest.raises(ZeroDivisionError):
        netns.run(pod.fd, lambda: 1 // 0)
    with netns.run(pod.fd, lambda: socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        netns.run(pod.fd, lambda: socket.create_connection(("127.0.0.1", port))).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_a_descriptor_that_is_no_namespace_cannot_be_entered() -> None:
    with open("/dev/null") as file, pytest.raises(KernelError, match="enter a network namespace"):
        netns.run(file.fileno(), lambda: None)


def test_a_namespace_without_a_name_lives_as_long_as_its_descriptor(pod: TestNamespace) -> None:
    fd = netns.new()
    identity = netns.identity(fd)
    assert identity not in {netns.identity(), netns.identity(pod.fd)}
    os.close(fd)


def test_this_system_is_supported() -> None:
    support.require_all()


def test_too_little_privilege_names_what_lacks() -> None:
    """As a process without CAP_NET_ADMIN would see it, and one without any."""
    with open("/proc/self/status") as file:
        status = file.read()
    mask = 1 << 12
    effective = next(line for line in status.splitlines() if line.startswith("CapEff"))
    lacking = status.replace(effective, f"CapEff:\t{0x1FFFFFFFFFF & ~mask:016x}")
    assert support.missing_capabilities(status) == []
    assert support.missing_capabilities(lacking) == ["CAP_NET_ADMIN"]
    assert support.missing_capabilities("CapEff:\t0") == ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN"]


def test_an_unprivileged_process_is_told_what_it_lacks() -> None:
    code = "from podway.kernel import support; support.require_privileges()"
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=65534", "--clear-groups", *_python(), code],
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(__import__("sys").path)},
    )
    assert "CAP_NET_ADMIN to make links" in done.stderr
    assert "needs root" in done.stderr
    assert "CAP_SYS_ADMIN" in done.stderr


def _python() -> list[str]:
    import sys

    return [sys.executable, "-c"]


@pytest.mark.parametrize(("release", "fine"), [("5.9.16", False), ("4.19.0-27-amd64", False), ("5.10.0", True)])
def test_old_kernels_are_refused(release: str, fine: bool) -> None:
    if fine:
        support.require_kernel(release)
        return
    with pytest.raises(UnsupportedSystem, match=f"kernel {release} is too old"):
        support.require_kernel(release)
