"""Faults of agents, stores, runtimes and limits, caused in a lab or in a namespace of their own."""

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest

from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.network_config import BgpSettings, ChannelSettings, NetworkConfig
from podway.api.kinds.pod import Pod
from podway.api.meta import Metadata
from podway.bgp.status import BirdRoute, NextHop
from podway.cni.conflist import render_conflist
from podway.health.checks.agent import disk
from podway.health.checks.host import forwarding
from podway.health.checks.limits import conntrack, inotify, neighbours
from podway.health.checks.runtime import cni_spool
from podway.health.facts import Disk, Files, NeighbourTable, Settings
from podway.health.sources import files, network, settings
from podway.kernel import netns
from podway.kernel.netlink import Connection
from podway.lab import names, pods
from podway.lab.paths import lab_dir
from podway.plan.uplink import Uplink
from podway.store.base import Store
from tests.health.health_lab import HealthLab

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
    file, rejected = lab_dir(lab.name) / "store.db", lab_dir(lab.name) / "aside.db"
    file.rename(rejected)
    try:
        lab.finding("store", "node1, node2: store", "store.db")
    finally:
        rejected.rename(file)


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


def disable(lab: HealthLab, name: str, *, disabled: bool) -> None:
    async def change(store: Store) -> None:
        pool = await store.get(IPPool, name)
        spec = msgspec.structs.replace(pool.spec, disabled=disabled)
        await store.update(msgspec.structs.replace(pool, spec=spec))

    lab.store(change)


def claimed(lab: HealthLab, pool: str) -> bool:
    return any(block.spec.pool == pool for block in lab.store(lambda store: store.list(AddressBlock)).items)


def test_a_pool_without_a_block_left(lab: HealthLab) -> None:
    """One block for two nodes: whoever comes second gets none, which is well while another pool serves pods."""
    tiny = IPPool(metadata=Metadata(name="tiny"), spec=IPPoolSpec(cidr="10.99.0.0/29", block_size=29))
    lab.store(lambda store: store.create(tiny))
    try:
        deadline = time.monotonic() + 10
        while not claimed(lab, "tiny"):
            assert time.monotonic() < deadline
        assert lab.doctor()["findings"] == []
        disable(lab, "ipv4", disabled=True)
        lab.finding("pool", "IPPool/tiny", "1 of 1 blocks of 10.99.0.0/29 are claimed")
        owner = lab.store(lambda store: store.get(AddressBlock, "10-99-0-0-29")).spec.node
        poor = "node2" if owner == "node1" else "node1"
        finding = lab.finding("blocks", f"{poor}: IPPool/tiny", "0 of 0 addresses", "podway apply")
        assert finding["severity"] == "error"
    finally:
        disable(lab, "ipv4", disabled=False)
        lab.store(lambda store: store.delete(IPPool, "tiny"))
        deadline = time.monotonic() + 15
        while claimed(lab, "tiny"):  # agents give it back
            assert time.monotonic() < deadline
            time.sleep(0.2)


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
        (configurations / "05-other.conflist").unlink()
        (configurations / "10-podway.conflist").write_bytes(render_conflist(chained=("portmap", "tuning")))
        (plugins / "portmap").touch()
        lab.finding("cni-chain", "node1: plugin tuning", f"which is not in {plugins}")
        assert {one["check"] for one in lab.doctor()["findings"]} == {"cni-chain", "cni-plugin"}
        (configurations / "10-podway.conflist").write_text("{}")
        lab.finding("cni-config", f"node1: {configurations}/10-podway.conflist", "no network configuration list")
    finally:
        for directory in (configurations, plugins):
            for path in directory.glob("*"):
                path.unlink()
            if directory.exists():
                directory.rmdir()


def test_a_lease_without_a_pod_and_a_pod_without_a_lease(lab: HealthLab) -> None:
    pod = pods.run(lab.name, "stray", node="node2")
    address = pod.status.pod_ip
    lab.store(lambda store: store.delete(Pod, "stray", namespace="default"))
    found = lab.finding("leases", "node2: lease of default/stray", f"{address}", "ip netns delete")
    assert found["severity"] == "warning"
    subprocess.run(["sh", "-c", found["advice"].partition("(")[2].partition(")")[0]], check=True)
    lab.wait_healthy()
    pods.run(lab.name, "stray", node="node1")
    lab.store(lambda store: store.delete(Pod, "stray", namespace="default"))
    again = pods.run(lab.name, "stray", node="node2")
    assert again.status.pod_ip != address, "what the former Pod of this name left is gone, in its cool-down"
    lab.wait_healthy()
    assert "Pod/default/stray deleted" in lab.podway("delete", "pod", "stray").stdout
    assert not netns.path_of(names.pod_netns(lab.name, "default", "stray")).exists()
    lab.wait_healthy()
    ghost = msgspec.structs.replace(pod, metadata=Metadata(name="ghost", namespace="default"))
    lab.store(lambda store: store.create(ghost))
    try:
        lab.finding("leases", "node2: Pod default/ghost", "is not leased on this node")
    finally:
        lab.store(lambda store: store.delete(Pod, "ghost", namespace="default"))


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
    assert "fs.inotify.max_user_instances" in problem.advice


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
    assert "net.ipv4.neigh.default.gc_thresh3=" in problem.advice


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


def test_what_a_peer_tells_besides_pods_ranges_is_the_hosts_to_decide(node: Any) -> None:
    """A default route that a peer advertises holds the node's own addresses; a block may hold a narrower route."""
    node.sh("ip link add eth0 type bridge; ip link set eth0 up; ip addr add 172.30.0.1/16 dev eth0; "
            "ip addr add fd30::1/64 dev eth0 nodad")  # fmt: skip
    told = {
        "0.0.0.0/0": "172.30.0.9",
        "::/0": "fd30::9",
        "10.0.0.0/8": "172.30.0.9",
        "10.244.7.0/24": "172.30.0.7",
        "fd00:244::/64": "fd30::7",
    }
    for destination, gateway in told.items():
        node.sh(f"ip route add {destination} via {gateway} dev eth0 proto bird metric 32")
    node.sh("ip route add 0.0.0.0/0 via 172.30.0.8; ip route add 10.244.7.1 dev eth0 proto 112")
    now = datetime(2026, 1, 1, tzinfo=UTC)
    learned = tuple(
        BirdRoute(ip_network(net), "unicast", "x", now, True, (NextHop(ip_address(gateway), "eth0"),))
        for net, gateway in told.items()
    )
    pools = [ip_network("10.244.0.0/16"), ip_network("fd00:244::/56")]

    def look() -> list[str]:
        with Connection(node.fd) as connection:
            return [str(way.block) for way in network.read(connection, learned, pools).block_routes]

    assert look() == []
    node.sh("ip route replace 10.244.7.0/24 via 172.30.0.6 dev eth0 metric 1")
    assert look() == ["10.244.7.0/24"]


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
