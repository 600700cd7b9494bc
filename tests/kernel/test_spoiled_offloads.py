"""The test of offloads, on wires that do to packets what bad NICs do."""

import asyncio
import contextlib
import functools
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from podway.agent.offload import CHECKSUM, SEGMENTATION, OffloadTest
from podway.api.addresses import Family
from podway.kernel import netns, offload
from podway.kernel.netlink import Connection
from podway.kernel.node import Kernel
from podway.kernel.rtnl import links
from podway.plan.objects import VXLAN_DEVICE, NodePlan
from podway.probe.packet import internet_checksum
from tests.kernel.overlay_pair import PODS, Pair
from tests.namespaces import TestNamespace
from tests.patience import PATIENCE

pytestmark = pytest.mark.kernel

_INNER = 14 + 20 + 8 + 8 + 14
"""Where the inner IP header begins: Ethernet, IPv4, UDP, VXLAN, Ethernet."""


def forward(frame: bytes, *, finish: bool) -> bytes | None:
    """Return what a NIC sends of a frame as the kernel hands it over, with checksums to finish.

    It does finish those of plain packets. Of VXLAN's inner ones it does so only if told, and it never cuts packets
    into segments.
    """
    if len(frame) > 1514:
        return None
    if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_UDP or frame[36:38] != struct.pack("!H", 4789):
        return frame
    frame = frame[:40] + b"\0\0" + frame[42:]  # RFC 7348: zero is no checksum
    inner = frame[_INNER:]
    return frame[:_INNER] + _finished(inner) if finish else frame


def _finished(packet: bytes) -> bytes:
    ipv6 = packet[0] >> 4 == 6
    size, protocol = (40, packet[6]) if ipv6 else (20, packet[9])
    place = {socket.IPPROTO_TCP: 16, socket.IPPROTO_UDP: 6}.get(protocol)
    if place is None:
        return packet
    body = packet[size : size + place] + b"\0\0" + packet[size + place + 2 :]
    ends = packet[8:40] if ipv6 else packet[12:20]
    checksum = internet_checksum(ends + struct.pack("!II", len(body), protocol) + body)
    return packet[:size] + body[:place] + checksum.to_bytes(2, "big") + body[place + 2 :]


@contextlib.contextmanager
def wire(namespace: int, finish: bool) -> Iterator[None]:
    """Carry frames between the devices `left` and `right` of a namespace, both ways, as such a NIC would."""

    def listen(device: str) -> socket.socket:
        sock = netns.run(namespace, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        sock.bind((device, 3))  # ETH_P_ALL
        return sock

    stop, wake = os.pipe()
    left, right = listen("left"), listen("right")
    other = {left: right, right: left}

    def carry() -> None:
        while True:
            ready, _, _ = select.select([stop, left.fileno(), right.fileno()], [], [])
            if stop in ready:
                return
            for sock in (one for one in other if one.fileno() in ready):
                frame, sender = sock.recvfrom(1 << 17)
                sent = None if sender[2] == socket.PACKET_OUTGOING else forward(frame, finish=finish)
                if sent is not None:
                    other[sock].send(sent)

    thread = threading.Thread(target=carry)
    thread.start()
    try:
        yield
    finally:
        os.close(wake)
        thread.join()
        os.close(stop)
        for sock in other:
            sock.close()


@pytest.fixture
def apart(new_netns: Callable[[], TestNamespace]) -> Iterator[tuple[Pair, int]]:
    """Two nodes whose wires end in a third namespace, where a test can join them."""
    first, between, second = new_netns(), new_netns(), new_netns()
    with Connection(between.fd) as connection:
        for end, node in (("left", first), ("right", second)):
            connection.transact([links.new_veth(end, links.Peer("eth0", node.fd))])
            connection.transact([links.change(end, without_ipv6_autoconf=True), links.set_up(end)])
    with Kernel.open(first.fd) as one, Kernel.open(second.fd) as two:
        yield Pair((first, second), (one, two)), between.fd


def examine(pair: Pair, plans: tuple[NodePlan, NodePlan], rounds: int = 20) -> list[OffloadTest]:
    """Have both nodes test, one after the other, until both have come to an end, as agents would, or given up."""
    tests = [OffloadTest(pair.kernels[place], functools.partial(plans.__getitem__, place)) for place in (0, 1)]

    async def all_look() -> None:
        for _ in range(rounds):
            for test in tests:
                await test.look()
            if all(test.status() for test in tests):
                return

    asyncio.run(all_look())
    return tests


def transfers(pair: Pair, family: Family, patience: float = PATIENCE, size: int = 200_000) -> bool:
    """Send so many bytes by TCP from pod to pod; False if nothing comes for so many seconds."""
    here, there = (str(net[1]) for net in PODS[family])
    kind = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6

    def create(place: int) -> socket.socket:
        return netns.run(pair.namespaces[place].fd, lambda: socket.socket(kind, socket.SOCK_STREAM))

    with create(1) as listener, create(0) as client:
        listener.bind((there, 0))
        listener.listen()
        for sock in (listener, client):
            sock.settimeout(patience)
        client.bind((here, 0))
        try:
            client.connect(listener.getsockname()[:2])
            connection, _ = listener.accept()
        except TimeoutError:
            return False
        with connection:
            connection.settimeout(patience)
            sender = threading.Thread(target=_send_quietly, args=(client, bytes(size)))
            sender.start()
            got = 0
            try:
                while got < size:
                    got += len(connection.recv(1 << 16))
            except TimeoutError:
                return False
            finally:
                client.close()
                sender.join()
    return True


def _send_quietly(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)


def state(kernel: Kernel) -> tuple[bool, bool]:
    """Return whether checksums and segmentation are left to the devices below."""
    active = kernel.offloads(VXLAN_DEVICE)
    return active[CHECKSUM], active[SEGMENTATION[0]]


def test_a_good_wire_keeps_all_offloads(new_netns: Callable[[], TestNamespace]) -> None:
    first, second = new_netns(), new_netns()
    with Kernel.open(first.fd) as one, Kernel.open(second.fd) as two:
        one.connection.transact([links.new_veth("eth0", links.Peer("eth0", second.fd))])
        pair = Pair((first, second), (one, two))
        plans = pair.apply(Family.IPV4)
        before = [kernel.writes for kernel in pair.kernels]
        for test in examine(pair, plans):
            assert test.status() == {VXLAN_DEVICE: {"turned_off": [], "problem": ""}}
        assert [kernel.writes for kernel in pair.kernels] == before
        assert state(one) == state(two) == (True, True)


def test_a_spoiled_checksum_costs_that_offload_only_and_traffic_flows(apart: tuple[Pair, int]) -> None:
    pair, between = apart
    plans = pair.apply(Family.IPV4)
    with wire(between, finish=False):
        assert not transfers(pair, Family.IPV4, patience=1.0)
        for test in examine(pair, plans):
            assert test.status()[VXLAN_DEVICE]["turned_off"] == [CHECKSUM]
            assert test.status()[VXLAN_DEVICE]["problem"] == (
                "tx-checksum-ip-generic of podway-vxlan turned off: "
                "eth0 corrupts or drops packets whose inner checksum it is to finish"
            )
        assert all(transfers(pair, family) for family in Family)
        # A device made anew begins with all offloads: what was found out holds for it, too.
        pair.namespaces[0].sh(f"ip link del {VXLAN_DEVICE}")
        assert pair.kernels[0].apply(plans[0]).failures == ()
        assert not state(pair.kernels[0])[0]
        assert all(transfers(pair, family) for family in Family)
    nic = offload.features("eth0", pair.namespaces[0].fd)
    assert nic[CHECKSUM], "the NIC's own offloads are nobody's business"


def test_spoiled_segments_cost_segmentation_only(apart: tuple[Pair, int]) -> None:
    pair, between = apart
    plans = pair.apply(Family.IPV4)
    with wire(between, finish=True):
        for test in examine(pair, plans):
            assert set(test.status()[VXLAN_DEVICE]["turned_off"]) <= set(SEGMENTATION)
            assert "cut into segments" in test.status()[VXLAN_DEVICE]["problem"]
        assert [state(kernel) for kernel in pair.kernels] == [(True, False)] * 2
        assert all(transfers(pair, family) for family in Family)


def test_where_nobody_answers_nothing_is_decided_and_an_agent_started_again_tells_what_is_off(
    apart: tuple[Pair, int],
) -> None:
    pair, between = apart
    plans = pair.apply(Family.IPV4)
    for test in examine(pair, plans, rounds=1):
        assert not test.status()
    assert state(pair.kernels[0]) == (True, True)
    pair.kernels[0].turn_off(VXLAN_DEVICE, [CHECKSUM])
    before = pair.kernels[0].writes
    with wire(between, finish=False):
        first, _ = examine(pair, plans)
    assert first.status()[VXLAN_DEVICE]["turned_off"] == [CHECKSUM]
    assert pair.kernels[0].writes == before


def test_features_are_those_that_ethtool_shows(node: TestNamespace) -> None:
    with Connection(node.fd) as connection:
        connection.transact([links.new_veth("eth0", links.Peer("far"))])
    offload.set_features("eth0", {"tx-tcp-segmentation": False, "no such feature": True}, node.fd)
    shown = {}
    for line in node.run("ethtool", "-k", "eth0").stdout.splitlines()[1:]:
        name, _, value = line.strip().partition(": ")
        shown[name] = value.startswith("on")
    ours = offload.features("eth0", node.fd)
    assert not ours["tx-tcp-segmentation"]
    assert ours["tx-checksum-ip-generic"]
    common = ours.keys() & shown.keys()
    assert len(common) > 20
    assert {name: ours[name] for name in common} == {name: shown[name] for name in common}
