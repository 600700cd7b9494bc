"""Faults of agents, stores, runtimes and limits, caused in a lab or in a namespace of their own."""

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import msgspec
import pytest
from health_lab import HealthLab

from podway.api.identity import ChannelSettings
from podway.api.meta import Metadata
from podway.api.resources import AddressBlock, BgpSettings, IPPool, IPPoolSpec, NetworkConfig
from podway.health.checks.agent import disk
from podway.health.checks.host import forwarding
from podway.health.checks.limits import conntrack, inotify, neighbours
from podway.health.checks.runtime import cni_spool
from podway.health.facts import Disk, Files, NeighbourTable, Settings
from podway.health.sources import files, network, settings
from podway.kernel import netns
from podway.kernel.netlink import Connection
from podway.lab.paths import lab_dir
from podway.plan.uplink import Uplink
from podway.store.base import Store

pytestmark = pytest.mark.kernel


def test_agents_of_two_versions(lab: HealthLab) -> None:
    with lab.altered_agent("node2", "import podway; podway.__version__ = '99.1'"):
        finding = lab.finding("versions", "node2", "its agent is 99.1")
        assert finding["severity"] == "warning"


def test_a_clock_that_is_ahead(lab: HealthLab) -> None:
    ahead = "import time; real = time.time; time.time = lambda: real() + 100"
    with lab.altered_agent("node2", ahead):
        lab.finding("clock", "node2", "its clock is 100 s ahead", "timedatectl")


def test_a_store_that_is_away(lab: HealthLab) -> None:
    file, aside = lab_dir(lab.name) / "store.db", lab_dir(lab.name) / "aside.db"
    file.rename(aside)
    try:
        lab.finding("store", "node1: store", "store.db")
    finally:
        aside.rename(file)


def test_a_channel_whose_port_is_taken(lab: HealthLab) -> None:
    """BIRD has port 179, so nobody else can."""

    async def put(store: Store, port: int) -> None:
        config = await store.get(NetworkConfig, "default")
        channel = msgspec.structs.replace(config.spec.channel, port=port)
        await store.update(
            msgspec.structs.replace(config, spec=msgspec.structs.replace(config.spec, channel=channel))
        )

    lab.store(lambda store: put(store, BgpSettings().port))
    try:
        lab.finding("channel", "node1: channel", "cannot listen at", f":{BgpSettings().port}")
    finally:
        lab.store(lambda store: put(store, ChannelSettings().port))


def test_a_pool_without_a_block_left(lab: HealthLab) -> None:
    """One block for two nodes: whoever comes second gets none."""
    tiny = IPPool(metadata=Metadata(name="tiny"), spec=IPPoolSpec(cidr="10.99.0.0/29", block_size=29))
    lab.store(lambda store: store.create(tiny))
    try:
        lab.finding("pool", "IPPool/tiny", "1 of 1 blocks of 10.99.0.0/29 are claimed")
        owner = lab.store(lambda store: store.get(AddressBlock, "10-99-0-0-29")).spec.node
        poor = "node2" if owner == "node1" else "node1"
        finding = lab.finding("blocks", f"{poor}: IPPool/tiny", "0 of 0 addresses", "podway apply")
        assert finding["severity"] == "error"
    finally:
        lab.store(lambda store: store.delete(IPPool, "tiny"))
        lab.store(lambda store: store.delete(AddressBlock, "10-99-0-0-29"))


def test_configurations_and_plugins_of_the_runtime(lab: HealthLab) -> None:
    """A lab has no runtime, so its agents look for one's files in their run directory."""
    configurations, plugins = lab.run_dir("node1") / "net.d", lab.run_dir("node1") / "bin"
    configurations.mkdir()
    try:
        lab.finding("cni-config", f"node1: {configurations}", "10-podway.conflist is missing", "podway install")
        (configurations / "10-podway.conflist").touch()
        (configurations / "05-other.conflist").touch()
        lab.finding("cni-config", f"node1: {configurations}", "05-other.conflist comes before 10-podway.conflist")
        lab.finding("cni-plugin", f"node1: {plugins}/podway", "is missing")
        plugins.mkdir()
        (plugins / "podway").write_text("of another version")
        lab.finding("cni-plugin", f"node1: {plugins}/podway", "of another version")
    finally:
        for directory in (configurations, plugins):
            for path in directory.glob("*"):
                path.unlink()
            if directory.exists():
                directory.rmdir()


def test_dels_that_wait(tmp_path: Path, node_facts: Callable[..., Any]) -> None:
    places = files.Places(tmp_path / "net.d", tmp_path / "bin", tmp_path, ())
    (tmp_path / f"{'a' * 64}:eth0").touch()
    (tmp_path / ".unfinished").touch()
    assert not list(cni_spool(node_facts(files=files.read(places))))
    long_ago = time.time() - 120
    os.utime(tmp_path / f"{'a' * 64}:eth0", (long_ago, long_ago))
    (problem,) = cni_spool(node_facts(files=files.read(places)))
    assert "1 DELs wait, the oldest for 120 s" in problem.found


def test_a_full_disk(tmp_path: Path, node_facts: Callable[..., Any]) -> None:
    program = (
        "import sys, json; from pathlib import Path; from podway.health.sources.files import _disk; "
        "d = _disk(Path(sys.argv[1])); print(json.dumps([d.path, d.free, d.total]))"
    )
    script = f"mount -t tmpfs -o size=1m none {tmp_path}; dd if=/dev/zero of={tmp_path}/x bs=64k >&2 || true; "
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            f'{script} exec "$@"',
            "sh",
            sys.executable,
            "-c",
            program,
            str(tmp_path),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    full = Disk(*json.loads(done.stdout))
    (problem,) = disk(node_facts(files=Files(disks=(full, full))))
    assert problem.subject == str(tmp_path)
    assert "0 MiB of 1 MiB" in problem.found
    assert not list(disk(node_facts(files=Files(disks=(Disk("/", 1 << 30, 100 << 30),)))))


def test_inotify_instances_used_up(node_facts: Callable[..., Any]) -> None:
    """In a user namespace of its own a limit is lowered for nobody else."""
    script = textwrap.dedent("""
        from podway.health.sources.settings import _inotify_room
        print(_inotify_room())
    """)
    lower = 'echo 3 > /proc/sys/user/max_inotify_instances; exec "$@"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-ec", lower, "sh", sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
    )
    room = int(done.stdout)
    assert room == 3
    (problem,) = inotify(node_facts(settings=Settings(inotify_room=room)))
    assert "only 3 more" in problem.found
    assert "fs.inotify.max_user_instances" in problem.mend


def test_forwarding_switched_off(node: Any, node_facts: Callable[..., Any]) -> None:
    uplink = Uplink("lo", 1500, (ip_interface("127.0.0.1/8"), ip_interface("::1/128")))

    def problems() -> list[str]:
        found = netns.run(node.fd, lambda: settings.read(uplink))
        return [problem.found for problem in forwarding(node_facts(settings=found, uplink=uplink))]

    node.sh("sysctl -qw net.ipv4.conf.lo.forwarding=0 net.ipv6.conf.all.forwarding=0")
    assert problems() == ["net/ipv4/conf/lo/forwarding is 0", "net/ipv6/conf/all/forwarding is 0"]
    node.sh("sysctl -qw net.ipv4.conf.lo.forwarding=1 net.ipv6.conf.all.forwarding=1")
    assert problems() == []


def test_neighbour_tables_are_read_as_ip_tells_them(node: Any, node_facts: Callable[..., Any]) -> None:
    """The limit is the whole machine's: the table is read for real, and its overflow is told to the judge."""
    node.sh("ip link add br0 type bridge; ip link set br0 up; ip address add 192.0.2.1/24 dev br0")
    node.sh("ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev br0 nud reachable")
    node.sh(
        "ip neigh add 192.0.2.8 lladdr 02:00:00:00:00:08 dev br0 nud permanent; sleep 0.5"
    )  # groups are joined
    with Connection(node.fd) as connection:
        tables = network.read(connection, ()).neighbours
    assert f"thresh3 {tables[0].room}" in node.sh("ip ntable show name arp_cache")
    entries = node.sh("ip -4 neigh show nud all").splitlines()
    assert tables[0].entries == len([entry for entry in entries if "PERMANENT" not in entry]) < len(entries)
    assert not list(neighbours(node_facts(tables=tables)))
    full = NeighbourTable(tables[0].family, tables[0].room, tables[0].room, 0)
    (problem,) = neighbours(node_facts(tables=(full,)))
    assert "net.ipv4.neigh.default.gc_thresh3=" in problem.mend


def test_conntrack_is_read_and_judged(node: Any, node_facts: Callable[..., Any]) -> None:
    """The limit is the whole machine's: counters are read for real, and a full table is told to the judge."""
    found = netns.run(node.fd, lambda: settings.read(Uplink("lo", 1500, ())))
    assert found.number("net/netfilter/nf_conntrack_max")
    assert "conntrack.drop" in found.counters
    assert not list(conntrack(node_facts(settings=found)))
    values = {"net/netfilter/nf_conntrack_count": "95000", "net/netfilter/nf_conntrack_max": "100000"}
    (nearly,) = conntrack(node_facts(settings=Settings(values)))
    assert nearly.severity == "warning"
    (lossy,) = conntrack(node_facts(settings=Settings(values, {"conntrack.drop": 9}, {"conntrack.drop": 2})))
    assert lossy.severity == "error"
    assert "7 dropped" in lossy.found


def test_a_certificate_of_a_shorter_life_is_renewed_in_time(lab: HealthLab) -> None:
    """Once lives are long again, the next look must not come after the short one's end."""

    async def live(store: Store, seconds: int) -> None:
        config = await store.get(NetworkConfig, "default")
        channel = msgspec.structs.replace(config.spec.channel, certificate_lifetime_seconds=seconds)
        await store.update(
            msgspec.structs.replace(config, spec=msgspec.structs.replace(config.spec, channel=channel))
        )

    lab.store(lambda store: live(store, 6))
    time.sleep(3)  # the agents have certificates of that life now
    lab.store(lambda store: live(store, ChannelSettings().certificate_lifetime_seconds))
    time.sleep(6)
    assert not [finding for finding in lab.doctor()["findings"] if finding["check"] == "channel"]
