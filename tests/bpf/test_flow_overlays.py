"""The flow engine on nodes that reach each other by VXLAN or IPIP: carried into the tunnel and out of it."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from podway.kernel.bpf.flow_layout import Counter, EventKind, FlowKey, Reason, Way
from podway.plan.objects import VXLAN_DEVICE
from podway.policy.maps import RuleKey
from tests.bpf.flow_nodes import HEADERS, Echo, Lab, open_socket, reaches_only, said
from tests.patience import ANSWERED, eventually

pytestmark = pytest.mark.kernel


@pytest.fixture(
    scope="module",
    params=[("vxlan", 0), ("vxlan", 1), ("ipip", 0)],
    ids=["IPv4 in VXLAN", "IPv6 in VXLAN", "IPv4 in IPIP"],
)
def shared_lab(request: Any, new_netns_of_file: Callable[[], Any]) -> Iterator[tuple[Lab, int]]:
    form, family = request.param
    with contextlib.ExitStack() as stack:
        lab = Lab(stack, new_netns_of_file, form)
        lab.start()
        yield lab, family


@pytest.fixture
def tunnel(shared_lab: tuple[Lab, int]) -> tuple[Lab, int]:
    """Two nodes in a form, without policy, and a family that is carried."""
    shared_lab[0].reset()
    return shared_lab


def test_a_stream_takes_no_stack(tunnel: tuple[Lab, int]) -> None:
    """Both ways and on both nodes; what is longer than the tunnel's MTU is none of the packets."""
    lab, family = tunnel
    lab.one.netns.run(*ANSWERED, lab.two.addresses[0])
    before = [node.counted().get(Counter.TO_STACK, 0) for node in (lab.one, lab.two)]
    with Echo(lab.c, family, 7000), open_socket(lab.a, family) as client:
        client.connect((lab.c.addresses[family], 7000))
        block = bytes(range(256)) * 1024
        for _ in range(4):
            assert said(client, block) == block
    assert [node.counted().get(Counter.TO_STACK, 0) for node in (lab.one, lab.two)] == before
    [event] = [one for one in lab.two.told() if one.kind is EventKind.FLOW_NEW and one.key.protocol == 6]
    flow, back = lab.two.maps.flow(event.key), lab.two.maps.flow(event.key.reversed())
    assert flow
    assert back
    assert (flow.way, back.way) == (Way.PEER, Way.WIRE)
    assert back.ifindex == lab.two.device(lab.two.wires[1])


def test_policy_holds_behind_a_tunnel(tunnel: tuple[Lab, int]) -> None:
    lab, family = tunnel
    lab.two.isolate(lab.c, {"protocol": 6, "port": 7000, "port_length": 16})
    lab.one.isolate(lab.a)
    reaches_only(lab.a, lab.c, family, port=7000, denied=7001)
    assert lab.two.counted()[Reason.DENIED_INGRESS] >= 1


@pytest.mark.parametrize("words", [b"after", bytes(1200)], ids=["few bytes", "many bytes"])
@pytest.mark.parametrize("offloads", ["on", "off"])
def test_a_connection_that_is_cut_is_reset_through_the_tunnel(
    tunnel: tuple[Lab, int], offloads: str, words: bytes
) -> None:
    """Who called is on the other node, which lets it through: the one of who is called says no."""
    lab, family = tunnel
    port = {"protocol": 6, "port": 7000, "port_length": 16}
    lab.two.isolate(lab.c, port)
    places = [(lab.a.netns, "eth0"), *((node.netns, node.wires[-1]) for node in (lab.one, lab.two))]
    for place, device in places:
        place.sh(f"ethtool -K {device} tx {offloads}")
    try:
        with open_socket(lab.c, family) as listening, open_socket(lab.a, family) as client:
            listening.bind((lab.c.addresses[family], 7000))
            listening.listen()
            client.connect((lab.c.addresses[family], 7000))
            with listening.accept()[0]:
                lab.two.maps.set_rules(rules := lab.two.device(lab.c.link) * 2, {}, [RuleKey(rules, **port)])
                lab.two.maps.changed()
                client.sendall(words)
                with pytest.raises(ConnectionResetError):
                    client.recv(10)
    finally:
        for place, device in places:
            place.sh(f"ethtool -K {device} tx on")


def test_long_packets_and_errors(tunnel: tuple[Lab, int]) -> None:
    """Fragments of a ping, and "too big" for what may not be fragmented; a closed port is reported."""
    lab, family = tunnel
    target = lab.c.addresses[family]
    lab.a.netns.run(*ANSWERED, "-s", "4000", target)
    with open_socket(lab.a, family, socket.SOCK_DGRAM) as client:
        client.connect((target, 9))
        client.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            client.recv(10)
        port = client.getsockname()[1]
    key = FlowKey(ip_address(lab.a.addresses[family]), ip_address(target), 17, port, 9)
    assert lab.one.maps.flow(key) is not None


def test_who_sends_is_told_of_a_path_that_is_narrower_than_the_devices(tunnel: tuple[Lab, int]) -> None:
    """The overlay's device learns it of a packet's route, and the stack says it of the next that is too long."""
    lab, family = tunnel
    if VXLAN_DEVICE not in lab.one.wires:
        pytest.skip("in IPIP the router's own answer is led to the pod: podway/bpf/ipip.c")
    target, mtu = lab.c.addresses[family], 1400 - HEADERS["vxlan"]
    lab.one.netns.sh(
        f"echo 1 > /proc/sys/net/ipv4/ip_forward_use_pmtu; ip route add {lab.two.addresses[0]} dev wire mtu 1400"
    )
    try:
        with open_socket(lab.a, family, socket.SOCK_DGRAM) as client:
            level, discover, told = ((0, 10, 14), (41, 23, 24))[family]  # IP(V6)_MTU_DISCOVER, IP(V6)_MTU
            client.setsockopt(level, discover, 2)
            client.connect((target, 9000))
            length = 1450 - (28, 48)[family]

            def knows() -> bool:
                with contextlib.suppress(OSError):
                    client.send(bytes(length))
                return client.getsockopt(level, told) == mtu

            eventually(knows)
        with Echo(lab.c, family, 7001), open_socket(lab.a, family) as client:
            client.connect((target, 7001))
            block = bytes(range(256)) * 256
            assert said(client, block) == block
    finally:
        lab.one.netns.sh(f"ip route del {lab.two.addresses[0]} dev wire mtu 1400; ip route flush cache")
        for pod in (lab.a, lab.c):
            pod.netns.sh("ip route flush cache; ip -6 route flush cache")
