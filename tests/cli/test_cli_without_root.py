"""What a person who is not root is told: what needs root, and the command to run instead."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from podway.lab import cluster, pods
from podway.lab.paths import lab_store

pytestmark = pytest.mark.kernel

UNPRIVILEGED = (
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    # To read the program itself, wherever it was checked out; it is no right to write, or to change a network.
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search",
    "--bounding-set=-all,+dac_read_search",
)


@pytest.fixture(scope="module")
def lab() -> Iterator[str]:
    name = f"u{os.getpid()}"
    cluster.up(name, nodes=1, pools=("10.244.0.0/16",), block_sizes=(), asn=64512, report=lambda _: None)
    try:
        pods.run(name, "web")
        yield name
    finally:
        cluster.down(name)


def run(lab: str, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [*UNPRIVILEGED, sys.executable, "-m", "podway", *words]
    env = {**os.environ, "PODWAY_LAB": lab, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("get nodes", "reading the store"),
        ("get routes", "asking the agent"),
        ("status", "asking the agent"),
        ("status node1", "asking the agent"),
        ("status -o json", "asking the agent"),
        ("doctor", "asking the agent"),
        ("verify", "CAP_NET_RAW"),
        ("trace web node1", "reading the store"),
        ("snapshot", "reading the store"),
        ("plan --delete pod/web", "reading the store"),
        ("set config mtu=1400", "reading the store"),
        ("delete pod web", "reading the store"),
        ("describe pod web", "reading the store"),
        ("lab up", "CAP_NET_ADMIN"),
        ("lab down", "CAP_NET_ADMIN"),
        ("lab run x", "CAP_NET_ADMIN"),
        ("lab exec web -- true", "CAP_SYS_ADMIN"),
        ("lab node node1 -- true", "CAP_SYS_ADMIN"),
        ("lab node add node2", "CAP_SYS_ADMIN"),
        ("lab demo", "CAP_NET_ADMIN"),
        ("install --plugin-dir /root/bin", "writing to /root/bin"),
        ("uninstall", "CAP_NET_ADMIN"),
        ("agent --node x --store sqlite:////tmp/x.db", "CAP_NET_ADMIN"),
    ],
)
def test_what_needs_root_and_the_whole_command_are_told(lab: str, words: str, what: str) -> None:
    done = run(lab, *words.split())
    assert (done.returncode, done.stdout) == (1, "")
    first, hint = done.stderr.splitlines()
    assert first.startswith("podway: ")
    assert what in first
    assert first.endswith(" needs root")
    assert hint == f"  hint: run it as root: sudo env PODWAY_LAB={lab} {sys.executable} -m podway {words}"


def test_what_needs_no_root_asks_for_none(lab: str) -> None:
    for words in ("lab list", "lab up --help", "simulate --nodes 2 --pods 2 --only", "doctor --list", "--version"):
        assert run(lab, *words.split()).returncode == 0, words


def test_a_store_that_may_not_be_read(lab: str) -> None:
    done = run(lab, "--store", lab_store(lab), "get", "nodes")
    assert "needs root" in done.stderr
    missing = run(lab, "--store", "sqlite:////tmp/nosuch/store.db", "get", "nodes")
    assert "has no directory" in missing.stderr
    hidden = run(lab, "--store", "sqlite:////root/.nosuch/store.db", "get", "nodes")
    assert "root" in hidden.stderr


def test_install_writes_nothing_if_it_may_not_write_all(lab: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o777)
        done = run(lab, "install", "--plugin-dir", f"{directory}/bin", "--conf-dir", "/root/net.d")
        assert "writing to /root/net.d needs root" in done.stderr
        assert os.listdir(directory) == []
