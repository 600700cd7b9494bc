"""What an agent and a lab refuse, in words that say what to do; and what they leave as it was."""

import os
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.meta import Metadata
from podway.kernel import netns
from podway.lab import names, topology
from podway.lab.paths import lab_dir, lab_store
from tests.patience import eventually
from tests.system.system_lab import SystemLab, running_lab

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def lab() -> Iterator[SystemLab]:
    """Two nodes; agent and BIRD of node2 are dead, so that others can be tried in their place."""
    with running_lab(2, ["10.244.0.0/16"]) as two:
        bird = two.status("node2")["routing"]["bird"]
        two.kill_agent("node2")
        two.kill(bird)
        yield two


def in_mounts(script: str) -> tuple[str, ...]:
    """Return a wrapper that runs a command where this script has changed the mounts, for it alone."""
    return ("unshare", "--mount", "sh", "-euc", f'{script}; exec "$@"', "sh")


def without(capability: str) -> tuple[str, ...]:
    """Return a wrapper that runs a command without one capability."""
    return ("setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}")


# Agents.


def test_a_second_agent_on_one_node(lab: SystemLab, tmp_path: Path) -> None:
    said = lab.refused_agent("node1", name="another", run_dir=tmp_path)
    assert "another Podway agent runs on this node" in said
    assert "hint: stop it first" in said
    assert "another" not in lab.podway("get", "nodes")
    pod = lab.add("node1")
    assert pod.cni("DEL").ok


def test_nobody_but_root_keeps_an_agent_from_starting(lab: SystemLab) -> None:
    """What an unprivileged process of the node's namespace can bind or hold is none of the lock."""
    squatter = (
        "import os, socket; os.setuid(65534)\n"
        "taken = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); taken.bind('\\0podway-agent')\n"
        "try: os.listdir('/run/podway/locks')\n"
        "except PermissionError: print('held', flush=True); input()\n"
    )
    path = netns.path_of(names.node_netns(lab.name, "node1"))
    lab.kill_agent("node1")
    with subprocess.Popen(
        ["nsenter", f"--net={path}", sys.executable, "-c", squatter],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        lab.start_agent("node1")
        process.kill()
    assert lab.add("node1").cni("DEL").ok


@pytest.mark.parametrize("name", ["Node2", "node_2", "-node2", "node2.", "n" * 254])
def test_a_node_name_that_kubernetes_does_not_have(lab: SystemLab, tmp_path: Path, name: str) -> None:
    """Names are RFC 1123 subdomains: with capitals it would be another node at node2's address."""
    said = lab.refused_agent("node2", name=name, run_dir=tmp_path)
    assert f"--node: {name!r} is not an RFC 1123 subdomain" in said
    assert "hint: use at most 253 lower-case letters" in said
    assert name not in lab.podway("get", "nodes", "-o", "json").split('"')
    assert not (tmp_path / "bird.conf").exists()


def test_two_machines_under_one_name(lab: SystemLab, tmp_path: Path) -> None:
    before = lab.podway("get", "node", "node1", "-o", "json")
    said = lab.refused_agent("node2", name="node1", run_dir=tmp_path)
    assert "Node/node1: an agent on another machine runs under this name" in said
    assert "hint: give each node its own --node name" in said
    addresses = '"172.30.0.1"'
    assert addresses in before
    assert addresses in lab.podway("get", "node", "node1", "-o", "json")


REFUSED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no BIRD": (
        in_mounts("mount --bind /dev/null /usr/sbin/bird"),
        ("BIRD", "not installed", "apt install bird2"),
    ),
    "old kernel": (("setarch", "--uname-2.6"), ("kernel 2.6", "too old", "5.10")),
    "no CAP_NET_ADMIN": (without("net_admin"), ("lacks CAP_NET_ADMIN", "give it these capabilities")),
    "no CAP_SYS_ADMIN": (without("sys_admin"), ("lacks CAP_SYS_ADMIN",)),
    "no CAP_NET_RAW": (without("net_raw"), ("lacks CAP_NET_RAW",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_system_that_cannot_run_an_agent(lab: SystemLab, case: str) -> None:
    wrapper, words = REFUSED[case]
    said = lab.refused_agent("node2", wrapper=wrapper)
    assert "podway: " in said
    for word in words:
        assert word in said


STORES: dict[str, tuple[str, tuple[str, ...]]] = {
    "read-only": (
        "mount --bind {0}/store.db {0}/store.db; mount -o remount,ro,bind {0}/store.db",
        ("store", "read-only"),
    ),
    "full disk": (
        "cp {0}/store.db /tmp/store.$$; mount -t tmpfs -o size=256k none {0}; mv /tmp/store.$$ {0}/store.db; "
        "cat /dev/zero > {0}/fill 2>/dev/null || true",
        ("store", "the disk is full", "hint: free space"),
    ),
    "damaged": ("head -c 5000 /dev/urandom > {0}/store.db", ("store", "damaged", "apply -f")),
    "not a store": ("rm {0}/store.db; touch {0}/store.db", ("is not a Podway store",)),
    "no directory": ("rm -r {0}", ("has no directory",)),
}


@pytest.mark.parametrize("case", STORES)
def test_a_store_that_cannot_be_used(lab: SystemLab, tmp_path: Path, case: str) -> None:
    store = tmp_path / "store"
    store.mkdir()
    with sqlite3.connect(lab_dir(lab.name) / "store.db") as live, sqlite3.connect(store / "store.db") as copy:
        live.backup(copy)
    live.close()
    copy.close()
    script, words = STORES[case]
    said = lab.refused_agent("node2", wrapper=in_mounts(script.format(store)), store=f"sqlite://{store}/store.db")
    for word in words:
        assert word in said


def test_a_store_of_a_newer_version(lab: SystemLab, tmp_path: Path) -> None:
    with sqlite3.connect(lab_dir(lab.name) / "store.db") as live, sqlite3.connect(tmp_path / "store.db") as copy:
        live.backup(copy)
        copy.execute("PRAGMA user_version = 99")
    live.close()
    copy.close()
    said = lab.refused_agent("node2", store=f"sqlite://{tmp_path}/store.db")
    assert "schema version 99" in said
    assert "hint: use the Podway that wrote it, or a newer one" in said


def test_a_pool_over_the_nodes_own_subnet(lab: SystemLab) -> None:
    """`podway apply` refuses it; an agent that finds one refuses to start, and one that runs goes on."""
    manifest = "apiVersion: podway.io/v1\nkind: IPPool\nmetadata: {name: wrong}\nspec: {cidr: 172.30.0.0/24}\n"
    said = lab.podway("apply", "-f", "-", stdin=manifest, check=False)
    assert "172.30.0.0/24 overlaps 172.30.0.0/16" in said
    pool = IPPool(metadata=Metadata(name="wrong"), spec=IPPoolSpec(cidr="172.30.0.0/24", disabled=True))
    lab.store(lambda store: store.create(pool))
    try:
        said = lab.refused_agent("node2")
        assert "Node/node2" in said
        assert "overlaps 172.30.0.0/24 of IPPool/wrong" in said
        assert lab.add("node1").cni("DEL").ok
    finally:
        lab.store(lambda store: store.delete(IPPool, "wrong"))


def test_a_disk_that_fills_up_while_the_agent_runs(tmp_path: Path) -> None:
    """Pods come and go from the node's own blocks; the status says what is wrong, until there is room again."""
    with running_lab(1) as lab:
        lab.kill_agent("node1")
        store = tmp_path / "store"
        store.mkdir()
        with (
            sqlite3.connect(lab_dir(lab.name) / "store.db") as live,
            sqlite3.connect(tmp_path / "copy.db") as copy,
        ):
            live.backup(copy)
        live.close()
        copy.close()
        script = f"mount -t tmpfs -o size=600k none {store}; cp {tmp_path}/copy.db {store}/store.db"
        lab.start_agent_with(
            "node1", wrapper=in_mounts(script), store=f"sqlite://{store}/store.db", heartbeat_interval=0.3
        )
        pid = str(lab.status("node1")["pid"])

        def inside(command: str) -> None:
            subprocess.run(
                ["nsenter", "-t", pid, "--mount", "sh", "-c", command], check=False, capture_output=True
            )

        inside(f"cat /dev/zero > {store}/fill")
        eventually(lambda: "the disk is full" in lab.status("node1")["store"]["problem"])
        pod, other = lab.add(), lab.add()
        assert pod.reaches(other.addresses[0])
        assert pod.cni("DEL").ok
        inside(f"rm {store}/fill")
        eventually(lambda: lab.status("node1")["store"]["problem"] == "")


def test_a_store_that_is_damaged_while_the_agent_runs() -> None:
    with running_lab(1) as lab:
        file = lab_dir(lab.name) / "store.db"
        file.write_bytes(os.urandom(file.stat().st_size))
        for name in ("store.db-wal", "store.db-shm"):
            (lab_dir(lab.name) / name).write_bytes(os.urandom(4096))
        pod, other = lab.add(), lab.add()
        assert pod.reaches(other.addresses[0])
        eventually(lambda: lab.status("node1")["store"]["problem"])
        assert pod.cni("DEL").ok


# Labs.


def refused_lab(*arguments: str, wrapper: Sequence[str] = ()) -> str:
    """Run `lab up` that must fail; return what it says. It leaves nothing."""
    name = f"s{os.getpid()}r{secrets.token_hex(2)}"
    done = subprocess.run(
        [*wrapper, sys.executable, "-m", "podway", "--lab", name, "lab", "up", "--nodes", "1", *arguments],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert not lab_dir(name).exists()
    assert topology.namespaces(name) == []
    return done.stderr


LABS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pools overlap": (
        ("--pool", "10.244.0.0/16", "--pool", "10.244.128.0/17"),
        ("10.244.128.0/17", "overlaps", "IPPool/ipv4"),
    ),
    "pool is no network": (("--pool", "10.244.0.1/16"), ("10.244.0.1/16", "host bits")),
    "pool is a word": (("--pool", "many"), ("pool many", "10.244.0.0/16")),
    "block larger than its pool": (("--pool", "10.244.0.0/24", "--block-size", "20"), ("spec.blockSize", "20")),
    "block without room for a pod": (("--pool", "10.244.0.0/24", "--block-size", "32"), ("spec.blockSize", "32")),
    "block size of another family": (("--pool", "10.244.0.0/24", "--block-size", "122"), ("122", "IPv6")),
    "no room for nodes": (
        ("--pool", "172.16.0.0/12", "--pool", "192.168.0.0/16", "--pool", "198.18.0.0/15"),
        ("leave no IPv4 subnet for the nodes",),
    ),
    "no AS": (("--asn", "0"), ("asn",)),
}


@pytest.mark.parametrize("case", LABS)
def test_a_lab_that_cannot_be(case: str) -> None:
    arguments, words = LABS[case]
    said = refused_lab(*arguments)
    for word in words:
        assert word in said


@pytest.mark.parametrize("capability", ["net_admin", "net_raw", "sys_admin"])
def test_a_lab_with_too_little_privilege(capability: str) -> None:
    said = refused_lab(wrapper=without(capability))
    assert f"CAP_{capability.upper()}" in said
    assert "give it these capabilities" in said


def test_a_lab_without_bird_says_why_and_leaves_nothing() -> None:
    said = refused_lab(wrapper=in_mounts("mount --bind /dev/null /usr/sbin/bird"))
    assert "BIRD" in said
    assert "apt install bird2" in said


def test_a_name_in_use(lab: SystemLab) -> None:
    said = lab.podway("lab", "up", "--nodes", "1", check=False)
    assert "exists already" in said
    assert lab.status("node1")["ready"]
    assert lab_store(lab.name).endswith(f"/{lab.name}/store.db")
