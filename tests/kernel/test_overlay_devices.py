"""VXLAN devices and all that stands on them: made, repaired, removed; real packets between two nodes."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface

import msgspec
import pytest

from podway.api.addresses import Family
from podway.kernel import netns
from podway.kernel.events import Event, Watcher
from podway.kernel.node import Kernel
from podway.kernel.rtnl import links, routes
from podway.plan.objects import (
    BRIDGE_DEVICE,
    DEVICE_GROUP,
    IPIP_DEVICE,
    VXLAN_DEVICE,
    Device,
    LinkAddress,
    NodePlan,
    Route,
    Vxlan,
)
from tests.kernel.overlay_pair import (
    GATEWAYS,
    HEADERS,
    MACS,
    NODES,
    OUTER_MTU,
    PODS,
    Pair,
    forbid_fragments,
    overlay_plan,
)
from tests.namespaces import TestNamespace

pytestmark = pytest.mark.kernel


@pytest.fixture
def pair(new_netns: Callable[[], TestNamespace]) -> Iterator[Pair]:
    first, second = new_netns(), new_netns()
    with Kernel.open(first.fd) as one, Kernel.open(second.fd) as two:
        one.connection.transact([links.new_veth("eth0", links.Peer("eth0", second.fd))])
        yield Pair((first, second), (one, two))


@pytest.fixture(params=list(Family), ids=lambda family: f"over {family.label}")
def outer(request: pytest.FixtureRequest) -> Family:
    param: Family = request.param
    return param


def test_both_families_cross_over_either_and_nothing_floods(pair: Pair, outer: Family) -> None:
    pair.apply(outer)
    capture = netns.run(pair.namespaces[0].fd, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300))
    with capture:
        capture.bind(("eth0", 0x0003))
        capture.setblocking(False)
        for family in Family:
            assert pair.reaches(family)
        node = pair.namespaces[0]
        # Addresses of the overlay that nobody has told of: they would be asked for, if anybody were to ask.
        node.run("ping", "-c1", "-W0.2", f"fe80::1234%{VXLAN_DEVICE}", check=False)
        node.sh(f"ip addr add 10.99.0.1/24 dev {VXLAN_DEVICE}")
        node.run("ping", "-c1", "-W0.2", "10.99.0.2", check=False)
        inner = []
        while True:
            try:
                frame = capture.recv(65535)
            except BlockingIOError:
                break
            header = 14 + (20 if outer is Family.IPV4 else 40)
            if frame[header + 2 : header + 4] == (4789).to_bytes(2, "big"):
                inner.append(frame[header + 16 :])
    # What is sent twice on a busy machine is no flood: that would go to a hardware address of a group.
    assert len(inner) >= 4
    assert {frame[:6].hex(":") for frame in inner} == set(MACS)


def test_a_full_packet_passes_and_one_byte_more_is_answered(pair: Pair, outer: Family) -> None:
    pair.apply(outer)
    room = OUTER_MTU - HEADERS[outer]
    for family in Family:
        assert pair.reaches(family, room)
        with pytest.raises(OSError, match="Message too long"):
            pair.reaches(family, room + 1)


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.label)
def test_a_pod_that_sends_one_byte_too_many_is_told_the_mtu(
    pair: Pair, pod: TestNamespace, outer: Family, family: Family
) -> None:
    """Its own link is larger: the node answers "fragmentation needed" (RFC 1191), "packet too big" (RFC 8201)."""
    plan, _ = pair.apply(outer)
    room = OUTER_MTU - HEADERS[outer]
    node, kernel = pair.namespaces[0], pair.kernels[0]
    kernel.connection.transact([links.new_veth("pod0", links.Peer("eth0", pod.fd))])
    own, gateway = (f"{PODS[family][0][place]}/{family.bits}" for place in (9, 1))
    nodad = " nodad" if family is Family.IPV6 else ""
    node.sh(f"""
        ip link set pod0 addrgenmode none; ip link set pod0 up; ip route add {own} dev pod0
        echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
    """)
    pod.sh(f"""
        ip link set eth0 addrgenmode none; ip link set eth0 up; ip addr add {own} dev eth0{nodad}
        ip route add {gateway} dev eth0; ip route add default via {gateway.split("/")[0]} dev eth0 onlink
    """)
    node_mac, pod_mac = (
        json.loads(space.sh(f"ip -j link show {name}"))[0]["address"]
        for space, name in ((node, "pod0"), (pod, "eth0"))
    )
    node.sh(f"ip neigh replace {own.split('/')[0]} lladdr {pod_mac} dev pod0")
    pod.sh(f"ip neigh replace {gateway.split('/')[0]} lladdr {node_mac} dev eth0")
    header = 28 if family is Family.IPV4 else 48
    there = str(PODS[family][1][1])
    with pair.namespaces[1].udp(there) as server, pod.udp(own.split("/")[0]) as client:
        forbid_fragments(client, family)
        client.connect(server.getsockname()[:2])
        client.send(b"x" * (room - header))
        assert len(server.recv(9000)) == room - header
        client.send(b"x" * (room - header + 1))
        with pytest.raises(OSError, match="Message too long"):
            client.recv(1)
        level, option = (socket.IPPROTO_IP, 14) if family is Family.IPV4 else (socket.IPPROTO_IPV6, 24)
        assert client.getsockopt(level, option) == room  # IP_MTU, IPV6_MTU
    assert kernel.diff(plan) == []


def test_a_correct_node_costs_no_write(pair: Pair, outer: Family) -> None:
    plan, _ = pair.apply(outer)
    before = pair.kernels[0].writes
    assert pair.kernels[0].diff(plan) == []
    assert pair.kernels[0].apply(plan).changes == ()
    assert pair.kernels[0].writes == before


DEV = VXLAN_DEVICE
OTHER_MAC, OTHER_GATEWAY = MACS[1], GATEWAYS[1]
TAMPERINGS = {
    f"ip link del {DEV}": "device podway-vxlan was missing",
    f"ip link set {DEV} down": "device podway-vxlan was altered (it was device podway-vxlan, down)",
    f"ip link set {DEV} mtu 1300": "(mtu 1300, not 1450)",
    f"ip link set {DEV} address 02:00:00:00:00:99": "(mac 02:00:00:00:00:99, not 02:70:0a:00:00:01)",
    f"ip link set {DEV} group 5": "(it was device podway-vxlan, in group 5)",
    f"ip link set {DEV} type vxlan learning": "which learns hardware addresses",
    f"ip link set {DEV} type vxlan df unset": "ignore DF",
    f"ip link set {DEV} type vxlan local 192.0.2.77": "192.0.2.77",
    f"ip link set {DEV} type vxlan remote 192.0.2.9": "floods",
    f"ip link del {DEV}; ip link add {DEV} address 02:70:0a:00:00:01 group {DEVICE_GROUP} type vxlan id 7 "
    "dstport 4789 dev eth0 local 192.0.2.1 nolearning": "device podway-vxlan was altered",
    f"ip link del {DEV}; ip link add {DEV} group {DEVICE_GROUP} type bridge": "a bridge device",
    f"bridge fdb del {OTHER_MAC} dev {DEV} dst 192.0.2.2 self": f"forwarding entry {OTHER_MAC} on {DEV} was miss",
    f"bridge fdb replace {OTHER_MAC} dev {DEV} dst 192.0.2.66 self permanent": "(endpoint 192.0.2.66, not 192.",
    f"bridge fdb replace {OTHER_MAC} dev {DEV} dst 192.0.2.2 port 99 self permanent": "was altered",
    f"bridge fdb append 00:00:00:00:00:00 dev {DEV} dst 192.0.2.66 self permanent": "was not in the plan: removed",
    f"ip neigh del {OTHER_GATEWAY} dev {DEV}": f"neighbour {OTHER_GATEWAY} on {DEV} was missing",
    f"ip neigh add fe80::9 lladdr 02:00:00:00:00:09 dev {DEV}": f"neighbour fe80::9 on {DEV} was not in the plan",
    f"ip addr add 10.9.9.9/32 dev {DEV}": f"address 10.9.9.9/32 on {DEV} was not in the plan",
    f"ip addr flush dev {DEV}": f"address {GATEWAYS[0]}/64 on {DEV} was missing",
    f"ip route replace 10.244.2.0/24 dev {DEV} proto 112": "(gateway none, not",
    f"ip route replace 10.244.2.0/24 via inet6 fe80::9 dev {DEV} proto 112": "(gateway fe80::9, not",
    "ip link add dev forgotten group 0x70776164 type veth peer name far": "device forgotten, a veth device was",
}


@pytest.mark.parametrize("command", TAMPERINGS)
def test_tampering_is_heard_told_and_put_right(pair: Pair, command: str) -> None:
    plan, _ = pair.apply(Family.IPV4)
    node, kernel = pair.namespaces[0], pair.kernels[0]
    time.sleep(0.02)
    with Watcher(node.fd, kernel.ports) as watcher:
        node.sh(command)
        time.sleep(0.02)
        assert any(isinstance(event, Event) and event.ours for event in watcher.read())
    report = kernel.apply(plan)
    assert report.failures == ()
    assert TAMPERINGS[command] in "\n".join(map(str, report.changes))
    assert kernel.diff(plan) == []
    for family in Family:
        assert pair.reaches(family)


def test_what_takes_birds_routes_along_is_told_whoever_did_it(pair: Pair) -> None:
    """The kernel drops IPv4 routes without a word when their device, or its last IPv4 address, goes."""
    plan, _ = pair.apply(Family.IPV4)
    node, kernel = pair.namespaces[0], pair.kernels[0]
    node.sh(f"ip addr add 10.99.0.1/24 dev {DEV}")
    time.sleep(0.02)
    with Watcher(node.fd, kernel.ports) as watcher:

        def learned() -> bool:
            time.sleep(0.02)
            return any(isinstance(event, Event) and event.learned for event in watcher.read())

        kernel.connection.transact([links.change(DEV, mtu=1400), links.change(DEV, mtu=1450)])
        assert not learned()
        route = f"ip route add 10.77.0.0/16 via inet6 {OTHER_GATEWAY} dev {DEV} proto bird"
        for doing in (
            lambda: kernel.apply(plan),  # takes the address away
            lambda: node.sh(f"ip link set {DEV} down"),
            lambda: kernel.apply(NodePlan()),
        ):
            node.sh(route)
            watcher.read()
            doing()
            assert node.sh("ip route show proto bird") == ""
            assert learned()
            kernel.apply(plan)


def test_everything_goes_with_an_empty_plan_even_what_others_hung_on_it(pair: Pair) -> None:
    pair.apply(Family.IPV4)
    node, kernel = pair.namespaces[0], pair.kernels[0]
    node.sh(f"ip route add 10.77.0.0/16 via inet6 {OTHER_GATEWAY} dev {DEV}")
    report = kernel.apply(NodePlan())
    assert report.failures == ()
    assert [str(change.have) for change in report.changes][-1] == f"device {DEV}, a vxlan device"
    assert set(kernel.mtus()) == {"lo", "eth0"}


CONFLICTS = {
    f"ip link add {DEV} type veth peer name far": (
        f"device {DEV}, a veth device that is not Podway's",
        f"ip link delete {DEV}",
    ),
    f"ip link add {DEV} address 02:00:00:00:00:01 type vxlan id 9 dstport 4789 dev eth0": (
        f"device {DEV}, a vxlan device that is not Podway's",
        f"ip link delete {DEV}",
    ),
    "ip link add flannel.1 type vxlan id 4096 dstport 4789 dev eth0 local 192.0.2.1": (
        "device flannel.1 has VNI 4096 at UDP port 4789",
        "spec.vxlan of NetworkConfig/default",
    ),
}


def test_a_conflict_is_with_the_device_of_the_same_outer_family(pair: Pair, outer: Family) -> None:
    """The kernel lets devices of one VNI and port stand side by side that differ in family."""
    node, kernel = pair.namespaces[0], pair.kernels[0]
    for name, local in (("four", "192.0.2.1"), ("six", "2001:db8::1")):
        node.sh(f"ip link add {name} type vxlan id 4096 dstport 4789 dev eth0 local {local}")
    (failure,) = kernel.apply(NodePlan(devices=overlay_plan(0, outer).devices)).failures
    assert f"device {'four' if outer is Family.IPV4 else 'six'} has VNI 4096" in failure.message
    node.sh("ip link del " + ("four" if outer is Family.IPV4 else "six"))
    assert kernel.apply(NodePlan(devices=overlay_plan(0, outer).devices)).failures == ()


@pytest.mark.parametrize("command", CONFLICTS)
def test_what_others_have_is_refused_and_left_as_it_is(pair: Pair, command: str) -> None:
    node, kernel = pair.namespaces[0], pair.kernels[0]
    node.sh(command)
    look = f"ip -d link; ip -o addr show {DEV} || true; ip route; bridge fdb"
    before = node.sh(look)
    plan = msgspec.structs.replace(
        overlay_plan(0, Family.IPV4),
        addresses=(LinkAddress(DEV, ip_interface(f"{GATEWAYS[0]}/64"), "link"),),
        sysctls=(),
    )
    for _ in range(2):
        report = kernel.apply(plan)
        (failure,) = report.failures
        assert CONFLICTS[command][0] in str(failure)
        assert CONFLICTS[command][1] in failure.hint
        assert report.changes == ()
    assert node.sh(look) == before


def test_a_taken_port_is_told_and_leaves_no_device(pair: Pair) -> None:
    node, kernel = pair.namespaces[0], pair.kernels[0]
    taken = netns.run(node.fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with taken:
        taken.bind(("0.0.0.0", 4789))
        (failure,) = kernel.apply(overlay_plan(0, Family.IPV4)).failures
        assert "UDP port 4789 is taken" in str(failure)
        assert not kernel.has_link(DEV)
    assert kernel.apply(overlay_plan(0, Family.IPV4)).failures == ()


def test_a_new_vni_makes_the_device_anew_with_all_that_stands_on_it(pair: Pair) -> None:
    pair.apply(Family.IPV4)
    own = Vxlan(4097, 8472, NODES[Family.IPV4][0].ip, "eth0")
    other = Vxlan(4097, 8472, NODES[Family.IPV4][1].ip, "eth0")
    for place, settings in ((0, own), (1, other)):
        plan = overlay_plan(place, Family.IPV4, vxlan=settings)
        assert pair.kernels[place].apply(plan).failures == ()
        assert pair.kernels[place].diff(plan) == []
    for family in Family:
        assert pair.reaches(family)


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.label)
def test_a_device_that_goes_takes_no_packet_along(pair: Pair, family: Family) -> None:
    """Under traffic the routes move from the overlay to the wire and back, in one plan each."""
    overlay = overlay_plan(0, Family.IPV4), overlay_plan(1, Family.IPV4)
    plain = tuple(
        NodePlan(
            addresses=tuple(address for address in overlay[here].addresses if address.device == "lo"),
            routes=tuple(
                Route(
                    PODS[kind][1 - here],
                    device="eth0",
                    gateway=NODES[kind][1 - here].ip,
                    source=PODS[kind][here][1],
                )
                for kind in Family
            ),
        )
        for here in (0, 1)
    )
    for kernel, plan in zip(pair.kernels, overlay, strict=True):
        assert kernel.apply(plan).failures == ()
    # The receiver takes off either encapsulation throughout: only the sender switches.
    here, there = (str(net[1]) for net in PODS[family])
    sent = 0
    with pair.namespaces[0].udp(here) as client, pair.namespaces[1].udp(there) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        stop = threading.Event()

        def send() -> None:
            nonlocal sent
            while not stop.wait(0.0005):
                client.sendto(sent.to_bytes(4, "big"), server.getsockname()[:2])
                sent += 1

        thread = threading.Thread(target=send)
        thread.start()
        try:
            for plan in (plain[0], overlay[0], plain[0], overlay[0]):
                time.sleep(0.05)
                report = pair.kernels[0].apply(plan)
                assert report.failures == ()
                assert [change.kind for change in report.changes].count("device") == 1
        finally:
            time.sleep(0.05)
            stop.set()
            thread.join()
        server.settimeout(5)
        got: set[int] = set()
        try:
            while len(got) < sent:
                got.add(int.from_bytes(server.recv(100), "big"))
        except TimeoutError:
            pass
    assert sorted(set(range(sent)) - got) == []
    assert sent > 100


def test_the_ipip_pair_has_a_carrier_and_is_mended(node: TestNamespace) -> None:
    plan = NodePlan(devices=(Device(IPIP_DEVICE, "ipip", MACS[0], 1480),))
    with Kernel.open(node.fd) as kernel:
        assert kernel.apply(plan).failures == ()
        assert links.find(kernel.connection, IPIP_DEVICE).running
        assert kernel.diff(plan) == []
        node.sh(f"ip link set {IPIP_DEVICE}0 down")
        assert "other end podway-ipip0 is down" in str(kernel.apply(plan).changes[0])
        assert kernel.diff(plan) == []
        assert kernel.apply(NodePlan()).failures == ()
        assert set(kernel.mtus()) == {"lo"}


def test_the_bridge_keeps_its_mtu_whatever_its_ports_have(node: TestNamespace) -> None:
    plan = NodePlan(devices=(Device(BRIDGE_DEVICE, "bridge", MACS[0], 1400),))
    with Kernel.open(node.fd) as kernel:
        assert kernel.apply(plan).failures == ()
        node.sh(f"ip link add port type veth peer name far; ip link set port mtu 1300 master {BRIDGE_DEVICE} up")
        assert kernel.diff(plan) == []
        (seen,) = json.loads(node.sh(f"ip -j link show {BRIDGE_DEVICE}"))
        assert (seen["mtu"], seen["address"]) == (1400, MACS[0])


def test_another_plugins_bridge_is_refused(node: TestNamespace) -> None:
    node.sh(f"ip link add {BRIDGE_DEVICE} type bridge; ip addr add 10.244.0.1/24 dev {BRIDGE_DEVICE}")
    plan = NodePlan(
        devices=(Device(BRIDGE_DEVICE, "bridge", MACS[0], 1500),),
        addresses=(LinkAddress(BRIDGE_DEVICE, ip_interface("10.244.1.1/24")),),
    )
    with Kernel.open(node.fd) as kernel:
        (failure,) = kernel.apply(plan).failures
        assert "cni0, a bridge device that is not Podway's" in str(failure)
        assert "ip link delete cni0" in failure.hint
        assert "10.244.0.1/24" in node.sh(f"ip addr show {BRIDGE_DEVICE}")
        assert "10.244.1.1" not in node.sh(f"ip addr show {BRIDGE_DEVICE}")
        assert kernel.apply(NodePlan()).changes == ()


def test_routes_over_several_ways_are_read_whole(pair: Pair) -> None:
    node, connection = pair.namespaces[0], pair.kernels[0].connection
    pair.apply(Family.IPV4)
    eth0, overlay = (links.find(connection, name).index for name in ("eth0", DEV))
    node.sh(
        f"ip route add 10.8.0.0/16 proto bird nexthop via 192.0.2.2 weight 2 "
        f"nexthop via inet6 {OTHER_GATEWAY} dev {DEV} weight 1"
    )
    node.sh("ip -6 route add fd08::/64 proto bird nexthop via 2001:db8::2 nexthop via 2001:db8::3")
    (record,) = routes.dump(connection, Family.IPV4, protocol=12)
    assert not record.plain
    assert [(hop.index, hop.gateway, hop.weight) for hop in record.next_hops] == [
        (eth0, ip_address("192.0.2.2"), 2),
        (overlay, OTHER_GATEWAY, 1),
    ]
    (record,) = routes.dump(connection, Family.IPV6, protocol=12)
    assert {hop.gateway for hop in record.next_hops} == {ip_address("2001:db8::2"), ip_address("2001:db8::3")}
    found = routes.lookup(connection, ip_address("10.8.1.1"))
    assert len(found.next_hops) == 2
    assert (found.device, found.gateway) in {("eth0", ip_address("192.0.2.2")), (DEV, OTHER_GATEWAY)}
    assert routes.lookup(connection, PODS[Family.IPV4][1][1]).gateway == OTHER_GATEWAY
