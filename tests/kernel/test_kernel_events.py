"""The watcher: others' changes are told, our own are not, and a flood ends in a resync."""

import fcntl
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv4Network, ip_address, ip_interface, ip_network
from pathlib import Path

import msgspec
import pytest

from podway.api.addresses import Family
from podway.api.lease import Attachment, Lease
from podway.kernel import netns
from podway.kernel.events import Event, Resync, Watcher
from podway.kernel.netlink import Connection
from podway.kernel.netlink import constants as c
from podway.kernel.node import Kernel
from podway.kernel.rtnl import addresses, links, routes
from podway.plan.objects import LinkAddress, NftTable, NodePlan, Route
from podway.plan.wiring import wire
from tests.namespaces import TestNamespace
from tests.patience import PATIENCE

pytestmark = pytest.mark.kernel

LEASE = Lease(
    Attachment("c0ffee", "eth0"),
    "default/web",
    "podway",
    "/run/netns/x",
    (ip_address("10.244.1.7"), ip_address("fd00::7")),
)
POD = LEASE.attachment.link
TABLE = NftTable("inet", "podway", "chain c {\n}")
WIRING = wire(LEASE, mtu=1500, node_addresses=())
PLAN = NodePlan(
    links=(WIRING.link,),
    addresses=WIRING.addresses,
    neighbours=WIRING.neighbours,
    routes=(*WIRING.routes, Route(ip_network("10.244.1.0/24"), "blackhole")),
    tables=(TABLE,),
)


@pytest.fixture
def kernel(node: TestNamespace, pod: TestNamespace) -> Iterator[Kernel]:
    """A node with a pod, a block, a table and a link of somebody else."""
    with Kernel.open(node.fd) as kernel:
        kernel.wire(WIRING, pod.fd)
        assert kernel.apply(PLAN).failures == ()
        kernel.connection.transact([links.new_veth("foreign", links.Peer("far")), links.set_up("foreign")])
        yield kernel


@pytest.fixture
def watcher(node: TestNamespace, kernel: Kernel) -> Iterator[Watcher]:
    time.sleep(0.1)  # what the kernel still has to say about the fixture
    with Watcher(node.fd, kernel.ports) as watcher:
        yield watcher


def wait(watcher: Watcher, seconds: float = PATIENCE) -> list[Event | Resync]:
    select.select([watcher], [], [], seconds)
    return watcher.read()


OURS = {
    f"ip link set {POD} mtu 1400": ("link", POD, False),
    f"ip link set {POD} down": ("link", POD, False),
    f"ip link del {POD}": ("link", POD, True),
    f"ip link property del dev {POD} altname {LEASE.attachment.altname}": ("link", POD, False),
    f"ip addr del 169.254.1.1/32 dev {POD}": ("address", "169.254.1.1/32", True),
    f"ip -6 addr del fe80::1/128 dev {POD}": ("address", "fe80::1/128", True),
    "ip route del 10.244.1.7": ("route", "10.244.1.7/32", True),
    "ip -6 route del fd00::7": ("route", "fd00::7/128", True),
    "ip route del blackhole 10.244.1.0/24": ("route", "10.244.1.0/24", True),
    "ip route replace unreachable 10.244.1.0/24 proto static": ("route", "10.244.1.0/24", False),
    f"ip neigh del 10.244.1.7 dev {POD}": ("neighbour", "10.244.1.7", True),
    f"ip neigh replace fd00::7 lladdr 02:00:00:00:00:99 dev {POD}": ("neighbour", "fd00::7", False),
    f"echo 0 > /proc/sys/net/ipv4/conf/{POD}/rp_filter": ("sysctl", f"net/ipv4/conf/{POD}", False),
    f"echo 0 > /proc/sys/net/ipv4/conf/{POD}/forwarding": ("sysctl", f"net/ipv4/conf/{POD}", False),
    f"echo 1 > /proc/sys/net/ipv6/conf/{POD}/forwarding": ("sysctl", f"net/ipv6/conf/{POD}", False),
    "nft delete table inet podway": ("nft", "podway", True),
    "nft add rule inet podway c accept": ("nft", "podway", False),
}


@pytest.mark.parametrize("command", OURS)
def test_a_change_of_ours_by_others_is_told(node: TestNamespace, watcher: Watcher, command: str) -> None:
    if "forwarding" in command:
        node.sh(f"echo 1 > /proc/sys/net/ipv4/conf/{POD}/forwarding")
        node.sh(f"echo 0 > /proc/sys/net/ipv6/conf/{POD}/forwarding")
    if "rp_filter" in command:
        node.sh(f"echo 1 > /proc/sys/net/ipv4/conf/{POD}/rp_filter")
    watcher.read()
    node.sh(command)
    told = [(e.kind, e.subject, e.removed) for e in wait(watcher) if isinstance(e, Event) and e.ours]
    # Some kernels first tell that a neighbour failed, and name nobody when it then goes.
    assert OURS[command] in told or ("neigh del" in command and told)


FOREIGN = {
    "ip link set foreign mtu 1400": "link",
    "ip addr add 198.51.100.1/24 dev foreign": "address",
    "ip route add 10.6.0.0/16 dev foreign": "route",
    "ip neigh add 198.51.100.9 lladdr 02:00:00:00:00:09 dev foreign": "neighbour",
    "echo 1 > /proc/sys/net/ipv4/ip_forward": "sysctl",
    "nft add table inet other": "nft",
}


@pytest.mark.parametrize("command", FOREIGN)
def test_a_change_of_what_is_not_ours_is_told_as_such(node: TestNamespace, watcher: Watcher, command: str) -> None:
    node.sh(command)
    told = [e for e in wait(watcher) if isinstance(e, Event)]
    assert FOREIGN[command] in {e.kind for e in told}
    assert not any(e.ours for e in told if e.kind != "sysctl")


def test_our_own_changes_are_not_told(
    kernel: Kernel, watcher: Watcher, new_netns: Callable[[], TestNamespace]
) -> None:
    other = Lease(Attachment("beef", "eth0"), "", "podway", "/run/netns/y", (ip_address("10.244.1.8"),))
    wiring = wire(other, mtu=1500, node_addresses=())
    kernel.wire(wiring, new_netns().fd)
    block = Route(ip_network("10.244.9.0/24"), "blackhole")
    plan = msgspec.structs.replace(
        PLAN,
        addresses=PLAN.addresses + wiring.addresses,
        neighbours=PLAN.neighbours + wiring.neighbours,
        routes=(*PLAN.routes, *wiring.routes, block),
    )
    assert [change.want.destination for change in kernel.apply(plan).changes] == [block.destination]
    table = msgspec.structs.replace(TABLE, body="chain c {\n}\nchain another {\n}")
    assert len(kernel.apply(msgspec.structs.replace(plan, tables=(table,))).changes) == 1
    told = [e for e in wait(watcher, 0.3) if isinstance(e, Event) and e.ours]
    # For what it does later on its own the kernel names no author: carrier, settings of a new device, and
    # IPv6 addresses, which a work item puts in force.
    assert {e.kind for e in told} <= {"link", "sysctl", "address"}
    assert not [e for e in told if e.removed]


def test_to_know_its_own_changes_a_kernel_gives_up_nobodys_locks(node: TestNamespace, tmp_path: Path) -> None:
    """Record locks go when any descriptor of the file is closed (fcntl(2)): those of the SQLite store are such."""
    file = tmp_path / "locked"
    with file.open("w") as held, Kernel.open(node.fd) as kernel:
        fcntl.lockf(held, fcntl.LOCK_EX)
        assert kernel.apply(NodePlan(tables=(TABLE,))).failures == ()
        script = f"import fcntl; fcntl.lockf(open({str(file)!r}, 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert "BlockingIOError" in other.stderr


def test_a_neighbour_that_ages_is_nothing_of_ours(
    node: TestNamespace, watcher: Watcher, pod: TestNamespace
) -> None:
    """The kernel learns the pod's link-local address, and tells each step."""
    for namespace in (pod, node):
        namespace.sh("ip -6 neigh flush all nud permanent; ip -6 neigh flush all")
    watcher.read()
    with pod.udp("fd00::7") as sock:
        sock.sendto(b"x", (f"fe80::1%{netns.run(pod.fd, lambda: socket.if_nametoindex('eth0'))}", 9))
    told: list[Event] = []
    while not told:
        assert select.select([watcher], [], [], PATIENCE)[0]
        told = [e for e in watcher.read() if isinstance(e, Event) and e.kind == "neighbour"]
    assert not [e for e in told if e.ours]


def test_a_flood_ends_in_a_resync(node: TestNamespace, watcher: Watcher) -> None:
    """Nobody reads while 60,000 changes happen: they cannot all be kept."""
    batch = [routes.add(Route(IPv4Network((0x0B000000 + (i << 8), 24)), "blackhole"), 0) for i in range(15_000)]
    gone = [routes.remove(Route(IPv4Network((0x0B000000 + (i << 8), 24)), "blackhole"), 0) for i in range(15_000)]
    with Connection(node.fd) as other:
        for _ in range(2):
            other.transact(batch)
            other.transact(gone)
    events = watcher.read()
    assert Resync() in events
    node.sh("ip link set foreign mtu 1400")
    assert "link" in {e.kind for e in wait(watcher) if isinstance(e, Event)}


def test_a_watcher_sees_only_its_namespace(watcher: Watcher, pod: TestNamespace) -> None:
    with Connection(pod.fd) as inside:
        inside.transact([addresses.add(LinkAddress("lo", ip_interface("10.1.1.1/32")), links.LOOPBACK)])
    told = [event for event in wait(watcher, 0.2) if isinstance(event, Event)]
    assert "address" not in {event.kind for event in told}


def test_only_birds_routes_to_blocks_matter(node: TestNamespace, kernel: Kernel, watcher: Watcher) -> None:
    """Of others a peer may tell tens of thousands; they are neither news nor read where only blocks are wanted."""
    watcher.blocks = ((ip_network("10.244.0.0/16"), 24), (ip_network("fd00:10:244::/112"), 122))
    via = "dev foreign proto bird metric 32"
    for word in ("add", "del"):
        for network in ("10.244.9.0/24", "10.245.9.0/24", "10.244.9.0/25", "fd00:10:244::40/122", "fd00:1::/122"):
            netns.run(node.fd, partial(_ip, f"route {word} {network} {via}"))
    found = [event for event in wait(watcher) if isinstance(event, Event) and event.kind == "route"]
    assert [event.subject for event in found if event.learned] == ["10.244.9.0/24", "fd00:10:244::40/122"]
    assert {event.subject for event in found} == {"10.244.9.0/24", "fd00:10:244::40/122"}
    netns.run(node.fd, lambda: _ip(f"route add default {via}"))
    assert [event.subject for event in wait(watcher) if isinstance(event, Event) and event.uplink] == ["0.0.0.0/0"]
    netns.run(
        node.fd, lambda: list(map(_ip, (f"route add {net} {via}" for net in ("10.244.9.0/24", "10.244.9.0/25"))))
    )
    lengths = [
        route.destination.prefixlen
        for route in routes.dump(kernel.connection, Family.IPV4, protocol=c.RTPROT_BIRD, lengths={24})
    ]
    assert lengths == [24]


def _ip(words: str) -> None:
    family = ["-6"] if "fd00" in words else []
    subprocess.run(["ip", *family, *words.split()], check=True)
