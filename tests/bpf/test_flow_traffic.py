"""Real packets between real pods on two nodes, with the engine at work."""

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from podway.kernel.bpf.flow_layout import LIMITED, Counter, EventKind, Reason, Way
from podway.policy.maps import RuleKey
from tests.bpf.flow_nodes import Echo, Lab, open_socket, reaches_only, said
from tests.patience import ANSWERED, PATIENCE, eventually

pytestmark = pytest.mark.kernel

families = pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
RECEIVE_ERRORS = ((socket.IPPROTO_IP, 11), (socket.IPPROTO_IPV6, 25))
"""IP_RECVERR and IPV6_RECVERR (man 7 ip, man 7 ipv6)."""


@pytest.fixture(scope="module")
def shared_lab(new_netns_of_file: Callable[[], Any]) -> Iterator[Lab]:
    with contextlib.ExitStack() as stack:
        lab = Lab(stack, new_netns_of_file)
        lab.start()
        yield lab


@pytest.fixture
def lab(shared_lab: Lab) -> Lab:
    """Two nodes whose pods have no policy, and that have nothing to tell yet."""
    shared_lab.reset()
    return shared_lab


@families
@pytest.mark.parametrize("there", ["b", "c"], ids=["own node", "other node"])
def test_a_stream_takes_no_stack(lab: Lab, family: int, there: str) -> None:
    """Megabytes there and back: every packet of the connection is carried, on both nodes."""
    server = getattr(lab, there)
    with Echo(server, family, 7000), open_socket(lab.a, family) as client:
        # The first packet may wait for the neighbour, whom the stack asks.
        lab.one.netns.run(*ANSWERED, lab.two.addresses[family])
        before = [node.counted().get(Counter.TO_STACK, 0) for node in (lab.one, lab.two)]
        client.connect((server.addresses[family], 7000))
        block = bytes(range(256)) * 1024
        for _ in range(8):
            assert said(client, block) == block
    after = [node.counted().get(Counter.TO_STACK, 0) for node in (lab.one, lab.two)]
    assert after == before
    [event] = [one for one in lab.one.told() if one.kind is EventKind.FLOW_NEW and one.key.protocol == 6]
    flow, back = lab.one.maps.flow(event.key), lab.one.maps.flow(event.key.reversed())
    assert flow
    assert back
    assert (flow.way, back.way) == ((Way.PEER, Way.PEER) if there == "b" else (Way.WIRE, Way.PEER))
    assert min(flow.octets, back.octets) > 8 * len(block)


@families
@pytest.mark.parametrize("there", ["b", "c"], ids=["own node", "other node"])
def test_what_limits_a_pods_bandwidth_sees_its_packets(lab: Lab, family: int, there: str) -> None:
    """As the bandwidth plugin does it: a queue towards the pod; from it one on an ifb, ahead of the stack."""
    server = getattr(lab, there)
    lab.one.netns.sh("""
        ip link add limit type ifb
        ip link set limit up
        tc qdisc add dev limit root tbf rate 400mbit burst 256kb latency 50ms
        tc qdisc add dev pa root tbf rate 400mbit burst 256kb latency 50ms
        tc qdisc add dev pa ingress
        tc filter add dev pa ingress protocol all u32 match u32 0 0 action mirred egress redirect dev limit
    """)
    try:
        with Echo(server, family, 7000), open_socket(lab.a, family) as client:
            client.connect((server.addresses[family], 7000))
            block = bytes(100_000)
            for flags, passes in ((0, False), (LIMITED, True), (0, False)):
                lab.one.endpoint(lab.a, flags=flags)
                before = passed(lab, "pa"), passed(lab, "limit")
                assert said(client, block) == block
                grown = passed(lab, "pa") - before[0], passed(lab, "limit") - before[1]
                assert [one > len(block) for one in grown] == [passes, passes], grown
    finally:
        lab.one.netns.sh("tc qdisc del dev pa root; tc qdisc del dev pa ingress; ip link del limit")


def passed(lab: Lab, device: str) -> int:
    """How many bytes went through the queue of a device of the first node."""
    (found,) = json.loads(lab.one.netns.sh(f"tc -s -j qdisc show dev {device} root"))
    return int(found["bytes"])


@families
def test_allowed_port_only(lab: Lab, family: int) -> None:
    """What a rule does not allow is dropped on the node of who is called, and told with its rule."""
    lab.two.isolate(lab.c, {"protocol": 6, "port": 7000, "port_length": 16})
    reaches_only(lab.a, lab.c, family, port=7000, denied=7001)
    dropped = [one for one in lab.two.told() if one.kind is EventKind.PACKET_DROPPED]
    assert {(one.reason, one.rules[1], one.key.destination_port) for one in dropped} == {
        (Reason.DENIED_INGRESS, 77, 7001)
    }


@pytest.fixture(params=["all", "none of pods", "none of the wire"])
def offloads(request: pytest.FixtureRequest, lab: Lab) -> Iterator[None]:
    """Who sums up: the device, or who sends, so that who hears a packet looks at its checksum."""
    places = {
        "all": [],
        "none of pods": [(pod.netns, "eth0") for pod in (lab.a, lab.b, lab.c)],
        "none of the wire": [(node.netns, "wire") for node in (lab.one, lab.two)],
    }[request.param]
    for place, device in places:
        place.sh(f"ethtool -K {device} tx off")
    yield
    for place, device in places:
        place.sh(f"ethtool -K {device} tx on")


@families
@pytest.mark.usefixtures("offloads")
@pytest.mark.parametrize("there", ["b", "c"], ids=["own node", "other node"])
def test_changed_rule_resets_an_open_connection(lab: Lab, family: int, there: str) -> None:
    """Both ends are told as soon as they go on with it, with packets that their kernels believe."""
    server, node = getattr(lab, there), lab.one if there == "b" else lab.two
    port = {"protocol": 6, "port": 7000, "port_length": 16}
    node.isolate(server, port)
    with open_socket(server, family) as listening, open_socket(lab.a, family) as client:
        listening.bind((server.addresses[family], 7000))
        listening.listen()
        client.connect((server.addresses[family], 7000))
        serving, _ = listening.accept()
        with serving:
            serving.settimeout(PATIENCE)
            client.sendall(b"before")
            assert serving.recv(10) == b"before"
            node.isolate(server, port | {"port": 7001})
            node.maps.set_rules(rules := node.device(server.link) * 2, {}, [RuleKey(rules, **port)])
            node.maps.changed()
            for end in (client, serving):
                end.sendall(b"after" * 1000)
                with pytest.raises(ConnectionResetError):
                    end.recv(10)
    assert node.counted()[Counter.RESETS_SENT] >= 2
    kinds = {(one.kind, one.reason) for one in node.told()}
    assert (EventKind.FLOW_REJUDGED, Reason.DENIED_INGRESS) in kinds


@families
def test_rules_that_are_not_written_yet_break_no_connection(lab: Lab, family: int) -> None:
    """Nothing passes, but it goes on once they are there: TCP sends it again."""
    with Echo(lab.c, family, 7000), open_socket(lab.a, family) as client:
        client.connect((lab.c.addresses[family], 7000))
        assert said(client, b"before") == b"before"
        lab.two.endpoint(lab.c, ingress=999)
        client.settimeout(0.6)
        client.sendall(b"after")
        with pytest.raises(TimeoutError):
            client.recv(10)
        lab.two.endpoint(lab.c)
        client.settimeout(PATIENCE)
        assert client.recv(10) == b"after"
    assert Counter.RESETS_SENT not in lab.two.counted()


@families
def test_everything_else_is_as_without_the_engine(lab: Lab, family: int) -> None:
    """Node to pod, pod to node, pod to another node, ping of every size, also in fragments."""
    a, c = lab.a.addresses[family], lab.c.addresses[family]
    nodes = lab.one.addresses[family], lab.two.addresses[family]
    for sender, target in (
        (lab.one, a),
        (lab.one, c),
        (lab.a, nodes[0]),
        (lab.a, nodes[1]),
        (lab.a, lab.b.addresses[family]),
        (lab.a, c),
        (lab.c, a),
    ):
        for size in (56, 1400, 4000):
            sender.netns.run(*ANSWERED, "-s", str(size), target)
    for node in (lab.one, lab.two):
        drops = {reason: count for reason, count in node.counted().items() if isinstance(reason, Reason)}
        assert not drops


@families
def test_the_route_is_seen_as_without_the_engine(lab: Lab, family: int) -> None:
    """Both nodes answer where the TTL ends; a closed port is reported by the pod itself."""
    target = lab.c.addresses[family]
    for hops, router in enumerate((lab.one.addresses[family], lab.two.addresses[family]), 1):
        done = lab.a.netns.run("ping", "-n", "-c1", f"-t{hops}", f"-W{PATIENCE:g}", target, check=False)
        first = {router, "169.254.1.1"} if hops == 1 else {router}
        assert any(f"From {one}" in done.stdout for one in first), done.stdout
        assert "exceeded" in done.stdout
    with open_socket(lab.a, family, socket.SOCK_DGRAM) as client:
        client.connect((target, 9))
        client.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            client.recv(10)


@families
def test_too_big_is_said(lab: Lab, family: int) -> None:
    """A narrower wire: the node says so, the pod believes it, and a stream goes through."""
    try:
        for node in (lab.one, lab.two):
            node.netns.sh("ip link set wire mtu 1400")
            node.maps.changed(ways=True)
        size = 1400 - (20, 40)[family]
        target = lab.c.addresses[family]
        done = lab.a.netns.run("ping", "-n", "-c1", "-Mdo", f"-s{size}", f"-W{PATIENCE:g}", target, check=False)
        assert "mtu" in (done.stdout + done.stderr).lower()
        with Echo(lab.c, family, 7000), open_socket(lab.a, family) as client:
            client.connect((target, 7000))
            block = bytes(200_000)
            assert said(client, block) == block
    finally:
        for node in (lab.one, lab.two):
            node.netns.sh("ip link set wire mtu 1500")
            node.maps.changed(ways=True)
        for pod in (lab.a, lab.c):
            pod.netns.sh("ip route flush cache; ip -6 route flush cache")


@families
def test_forged_source_does_not_leave_the_node(lab: Lab, family: int) -> None:
    """A pod that puts on another's address, or an outsider's."""
    forged = (lab.b.addresses, ("192.0.2.1", "2001:db8::1"))
    for addresses in forged:
        length = (32, 128)[family]
        lab.a.netns.sh(f"ip address add {addresses[family]}/{length} dev eth0" + (" nodad" if family else ""))
        with open_socket(lab.a, family, socket.SOCK_DGRAM) as client:
            client.bind((addresses[family], 0))
            client.sendto(b"x", (lab.c.addresses[family], 9))
        lab.a.netns.sh(f"ip address del {addresses[family]}/{length} dev eth0")
    eventually(lambda: lab.one.counted().get(Reason.NOT_OWN_SOURCE) == len(forged), "both are dropped")
    assert not [flow for flow in lab.two.maps.flows() if flow[0].protocol == 17]


@families
def test_way_follows_the_route_by_itself(lab: Lab, family: int) -> None:
    """Nobody tells the engine that a route went: soon a flow's packets take the stack, which refuses them."""
    option = ("-4", "-6")[family]
    network = ("10.2.0.0/16", "fd00:2::/32")[family]
    with (
        open_socket(lab.a, family, socket.SOCK_DGRAM) as client,
        open_socket(lab.c, family, socket.SOCK_DGRAM) as sink,
    ):
        sink.bind((lab.c.addresses[family], 7000))
        client.connect((lab.c.addresses[family], 7000))
        client.setsockopt(*RECEIVE_ERRORS[family], 1)  # else "unreachable" is kept from it

        def arrives() -> bool:
            with contextlib.suppress(OSError):
                client.send(b"x")
            sink.settimeout(1)
            with contextlib.suppress(TimeoutError):
                return bool(sink.recv(10))
            return False

        def refused() -> bool:
            try:
                client.send(b"x")
            except OSError:
                return True
            return False

        eventually(arrives, "the first packets arrive")
        lab.one.netns.sh(f"ip {option} route replace unreachable {network}")
        try:
            eventually(refused, "the stack refuses")
        finally:
            lab.one.netns.sh(f"ip {option} route flush {network}")
            lab.one.netns.sh(f"ip {option} route add {network} via {lab.two.addresses[family]}")
        eventually(lambda: not refused() and arrives(), "packets arrive again")
