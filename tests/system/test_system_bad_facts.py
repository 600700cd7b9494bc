"""One bad object of the store, or one mistake in a task: told, and nothing else suffers; agents start with it."""

import contextlib
import json
import sqlite3
from typing import Any

import pytest

from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.network_config import NetworkConfig
from podway.api.meta import Metadata
from podway.lab.paths import lab_dir
from podway.store.base import list_all
from tests.patience import eventually
from tests.system.system_lab import SystemLab

pytestmark = pytest.mark.kernel


def name_of(lab: SystemLab, kind: str, name: str) -> str:
    """Return an object's name: the block of node2 and the pool are those of IPv4."""
    found = lab.store(list_all).items
    match kind:
        case "AddressBlock":
            return next(
                obj.metadata.name
                for obj in found
                if isinstance(obj, AddressBlock) and obj.spec.node == "node2" and obj.network.version == 4
            )
        case "IPPool":
            return next(obj.metadata.name for obj in found if isinstance(obj, IPPool) and obj.network.version == 4)
        case _:
            return name


def body(lab: SystemLab, kind: str, name: str) -> bytes:
    with contextlib.closing(sqlite3.connect(lab_dir(lab.name) / "store.db")) as database:
        row = database.execute("SELECT body FROM objects WHERE kind = ? AND name = ?", (kind, name)).fetchone()
    return bytes(row[0])


def write(lab: SystemLab, kind: str, name: str, new: bytes) -> None:
    """Write an object as another program would: with a change that watches tell."""
    file = lab_dir(lab.name) / "store.db"
    with contextlib.closing(sqlite3.connect(file, timeout=10)) as database, database:
        database.execute("UPDATE objects SET body = ? WHERE kind = ? AND name = ?", (new, kind, name))
        database.execute(
            "INSERT INTO changes SELECT max(revision) + 1, 'modified', ?, ? FROM changes", (kind, new)
        )
    file.touch()


def spoilt(was: bytes, path: tuple[str | int, ...], bad: Any) -> bytes:
    value = json.loads(was)
    at = value
    for step in path[:-1]:
        at = at.setdefault(step, {}) if isinstance(at, dict) else at[step]
    at[path[-1]] = bad
    return json.dumps(value).encode()


NOTES = ("metadata", "annotations")
CASES: dict[str, tuple[str, str, tuple[str | int, ...], Any]] = {
    "a block's cidr": ("AddressBlock", "of node2", ("spec", "cidr"), "10.244.0.0/40"),
    "a pool's cidr": ("IPPool", "default", ("spec", "cidr"), "nonsense"),
    "a pool's excluded": ("IPPool", "default", ("spec", "excluded"), ["x"]),
    "another node's asn": ("Node", "node2", (*NOTES, "podway.io/asn"), "many"),
    "its own asn": ("Node", "node1", (*NOTES, "podway.io/asn"), "many"),
    "its own subnets": ("Node", "node1", (*NOTES, "podway.io/interface-addresses"), "x/y"),
    "another node's subnets": ("Node", "node2", (*NOTES, "podway.io/interface-addresses"), "x/y"),
    "another node's address": ("Node", "node2", ("status", "addresses", 1, "address"), "fe80::1%eth0; nonsense"),
    "the settings": ("NetworkConfig", "default", ("spec", "bgp"), {"bfdMultiplier": -7}),
    "no UTF-8": ("AddressBlock", "of node2", (), b'{"metadata":{"name":"\xff"}}'),
    "a pool without UTF-8": ("IPPool", "default", (), b"\xff\xfe\x00"),
}


@pytest.fixture
def seeing(lab: SystemLab) -> SystemLab:
    """Other agents of node2 do not repair what a test does to its object: it is stopped."""
    lab.kill_agent("node2")
    return lab


@pytest.mark.parametrize("case", CASES)
def test_a_bad_object_is_named_and_everything_else_goes_on(seeing: SystemLab, case: str) -> None:
    lab = seeing
    kind, name, path, bad = CASES[case]
    name = name_of(lab, kind, name)
    lab.start_agent("node2")
    here, there = lab.add("node1"), lab.add("node2")
    lab.kill_agent("node2")
    assert here.reaches(there.addresses[0])
    routes = {*lab.sh("node1", "ip route; ip -6 route").splitlines()}
    was = body(lab, kind, name)
    try:
        write(lab, kind, name, spoilt(was, path, bad) if path else bad)
        rejected = f"{kind}/{name}"
        heals = kind == "Node" and name == "node1" and path[-1] != "podway.io/asn"  # the agent writes it anew
        if not heals:
            eventually(lambda: rejected in lab.status("node1")["store"]["rejected"])
            assert rejected in lab.podway("status", "node1")
            assert f"{rejected} (objects)" in lab.podway("doctor", "node1", check=False)
            assert rejected in lab.podway("get", "pools", check=False)
        assert lab.add("node1").reaches(here.addresses[0])
        assert here.reaches(there.addresses[0])
        assert routes <= {*lab.sh("node1", "ip route; ip -6 route").splitlines()}
        assert not lab.status("node1")["failures"]
        # An agent that starts with it goes on as well.
        lab.kill_agent("node1")
        lab.start_agent("node1")
        assert routes <= {*lab.sh("node1", "ip route; ip -6 route").splitlines()}
        assert lab.add("node1").reaches(here.addresses[0])
        assert here.reaches(there.addresses[0])
        assert not lab.status("node1")["failures"]
        assert not lab.status("node1")["drift"]["now"]
    finally:
        if kind != "Node" or name != "node1":  # its agent has written it since
            write(lab, kind, name, was)
        elif path[-1] == "podway.io/asn":
            lab.podway("set", "node/node1", "asn=")
    eventually(lambda: not lab.status("node1")["store"]["rejected"])
    assert here.reaches(there.addresses[0])


def test_apply_puts_a_right_object_in_the_place_of_a_bad_one(lab: SystemLab) -> None:
    manifest = lab.podway("get", "config", "default", "-o", "json")
    was = body(lab, "NetworkConfig", "default")
    write(lab, "NetworkConfig", "default", spoilt(was, ("spec",), {"mtu": 7}))
    refused = lab.podway(
        "apply", "-f", "-", stdin=json.dumps({**json.loads(manifest), "spec": {"mtu": 7}}), check=False
    )
    assert "spec.mtu: 7 is out of range" in refused
    assert "NetworkConfig/default replaced" in lab.podway("apply", "-f", "-", stdin=manifest)
    config = lab.store(lambda store: store.get(NetworkConfig, "default"))
    assert config.metadata == Metadata(
        name="default",
        uid=config.metadata.uid,
        resource_version=config.metadata.resource_version,
        creation_timestamp=config.metadata.creation_timestamp,
        annotations=config.metadata.annotations,
    )
    eventually(lambda: not lab.status("node1")["store"]["rejected"])


def test_a_task_that_fails_is_told_and_pods_come_and_go(lab: SystemLab) -> None:
    lab.kill_agent("node1")
    flag = lab.run_dir("node1") / "fail"
    lab.start_agent_with("node1", fail=str(flag))
    pod = lab.add("node1")
    flag.touch()
    try:
        lab.sh("node1", f"ip route del {pod.addresses[0]}")  # asks for a comparison
        eventually(lambda: '"task":"reconciler"' in lab.log("node1").replace(" ", ""))
        assert "KeyError" in lab.podway("status", "node1", check=False)
    finally:
        flag.unlink()
    other = lab.add("node1")
    eventually(lambda: pod.reaches(other.addresses[0], within=1))
    (failure,) = (each for each in lab.status("node1")["failures"] if each["task"] == "reconciler")
    assert failure["error"] == "KeyError: 'a mistake'"
    told = lab.podway("doctor", "node1", check=False)
    assert "node1: reconciler (tasks)" in told
    assert "a mistake" in told
    assert "failure" in lab.podway("status", "node1")
    lab.kill_agent("node1")
    lab.start_agent("node1")


def test_an_agent_whose_plan_fails_starts_all_the_same_and_plans_when_it_can(lab: SystemLab) -> None:
    pod = lab.add("node1")
    lab.kill_agent("node1")
    lab.sh("node1", "ip route del blackhole 10.244.1.0/24")
    flag = lab.run_dir("node1") / "fail"
    flag.touch()
    try:
        lab.start_agent_with("node1", fail=str(flag))
        assert "KeyError" in lab.podway("status", "node1", check=False)
    finally:
        flag.unlink()
    eventually(lambda: "blackhole 10.244.1.0/24" in lab.sh("node1", "ip route"))
    assert pod.reaches(lab.add("node2").addresses[0], within=10)
    lab.kill_agent("node1")
    lab.start_agent("node1")
    assert lab.status("node1")["failures"] == []


@pytest.mark.parametrize("how", ["garbage", "missing"])
def test_a_lost_store_is_made_anew_of_what_any_agent_knows_and_no_packet_is_lost(lab: SystemLab, how: str) -> None:
    file, rejected, fresh = (lab_dir(lab.name) / name for name in ("store.db", "damaged.db", "new.db"))
    here, there = lab.add("node1"), lab.add("node2")
    owners = lab.blocks()
    eventually((lab.run_dir("node1") / "last-known.json").exists)
    eventually(lambda: "node2" in (lab.run_dir("node1") / "last-known.json").read_text())
    for ending in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            file.with_name(file.name + ending).rename(f"{rejected}{ending}")
    file.rename(rejected)
    if how == "garbage":
        file.write_bytes(b"\x00" * 8192)
    eventually(lambda: "store.db" in lab.status("node1")["store"]["problem"])
    told = lab.podway("get", "nodes", check=False)
    assert "Traceback" not in told
    assert "last-known.json" in told or how == "missing"
    # An agent that starts now goes on by what it knew last.
    lab.kill_agent("node1")
    lab.start_agent("node1")
    assert lab.status("node1")["store"]["problem"]
    assert here.reaches(there.addresses[0])
    assert lab.add("node1").reaches(there.addresses[1])
    # The way back.
    before = lab.sh("node1", "ip route; ip -6 route")
    known = lab.run_dir("node1") / "last-known.json"
    lab.podway("--store", f"sqlite://{fresh}", "apply", "-f", str(known))
    fresh.rename(file)
    eventually(lambda: not lab.status("node1")["store"]["problem"])
    eventually(lambda: not lab.status("node2")["store"]["problem"])
    assert lab.blocks() == owners
    assert here.reaches(there.addresses[0])
    assert lab.sh("node1", "ip route; ip -6 route") == before
    assert lab.add("node2").reaches(here.addresses[0])
    for node in ("node1", "node2"):
        assert not lab.status(node)["failures"]


def test_damaged_files_of_the_run_directory_keep_no_agent_from_starting(lab: SystemLab) -> None:
    here, there = lab.add("node1"), lab.add("node2")
    lab.kill_agent("node1")
    kept = {}
    for name in ("original-sysctls.json", "last-known.json"):
        file = lab.run_dir("node1") / name
        kept[file] = file.read_bytes()
        file.write_bytes(b"\xff{")
    try:
        lab.start_agent("node1")
        assert here.reaches(there.addresses[0])
        assert lab.add("node1").reaches(there.addresses[1])
        told = lab.status("node1")
        assert any("original-sysctls.json is damaged" in line for line in told["drift"]["refused"])
        assert not told["failures"]
    finally:
        for file, content in kept.items():
            file.write_bytes(content)
