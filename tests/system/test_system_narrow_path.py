"""A link between the racks that is narrower than the nodes' own: pods are told, and their transfers go on."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from functools import partial
from itertools import product

import pytest

from podway.api.addresses import Address, Family
from podway.lab import names
from tests.patience import eventually
from tests.system.switch_traffic import opened
from tests.system.system_lab import PodUnderTest, SystemLab, sh

pytestmark = pytest.mark.kernel

SPINE_MTU = 1400
BYTES = 2_000_000
PATIENCE = 60.0

HEADERS = {("vxlan", "dual"): 50, ("vxlan", "ipv6"): 70, ("ipip", "ipv4"): 20, ("none", "dual"): 0}
"""Bytes of outer headers, by encapsulation and families of the nodes; where there is IPv4, that carries."""

POOLS = {"ipv4": "10.244.0.0/16", "ipv6": "fd00:244::/56"}


@pytest.fixture(
    scope="module", params=HEADERS, ids=lambda encapsulation: f"{encapsulation[0]} over {encapsulation[1]}"
)
def narrow(request: pytest.FixtureRequest) -> Iterator[tuple[SystemLab, int]]:
    """Two racks of a node each, with the narrow link between them; and the MTU that it leaves to pods."""
    encapsulation, underlay = request.param
    pools = [POOLS["ipv4"]] if encapsulation == "ipip" else POOLS.values()
    arguments = ["--racks", "2", "--nodes", "2", "--encapsulation", encapsulation, "--node-family", underlay]
    arguments += [word for pool in pools for word in ("--pool", pool)]
    if encapsulation == "none":
        arguments += ["--tor", "bird"]
    if underlay == "ipv6":
        arguments += ["--distribution", "store"]
    lab = SystemLab()
    lab.podway("lab", "up", *arguments)
    try:
        for rack in (1, 2):
            sh(names.tor_netns(lab.name, rack), f"ip link set spine mtu {SPINE_MTU}")
        yield lab, SPINE_MTU - HEADERS[request.param]
    finally:
        lab.down()


@pytest.fixture
def pair(narrow: tuple[SystemLab, int]) -> Iterator[tuple[PodUnderTest, PodUnderTest]]:
    """A pod in each rack: new ones, for what was learned is by destination."""
    lab = narrow[0]
    one, other = lab.add("node1"), lab.add("node2")
    for address in other.addresses:
        eventually(lambda address=address: one.reaches(address, within=1))
    yield one, other
    lab.remove_pods()


def test_a_transfer_goes_on_both_ways(pair: tuple[PodUnderTest, PodUnderTest]) -> None:
    for (one, other), family in product((pair, pair[::-1]), Family):
        for address in other.addresses:
            if address.version == family:
                assert transferred(one, other, address) == BYTES


def test_a_packet_that_must_stay_whole_is_answered(
    narrow: tuple[SystemLab, int], pair: tuple[PodUnderTest, PodUnderTest]
) -> None:
    one, other = pair
    for address in other.addresses:
        with opened(one, address) as sender, opened(other, address) as receiver:
            receiver.bind((str(address), 0))
            receiver.setblocking(False)
            whole(sender, address)
            sender.connect((str(address), receiver.getsockname()[1]))
            eventually(lambda sender=sender: mtu_told(sender) == narrow[1])
            size = narrow[1] - (28 if address.version == 4 else 48)
            eventually(partial(arrived, sender, receiver, size))


def test_a_packet_that_may_be_cut_arrives(pair: tuple[PodUnderTest, PodUnderTest]) -> None:
    """IPv4 alone has such packets: without DF (RFC 791)."""
    one, other = pair
    for address in other.addresses:
        if address.version == 4:
            with opened(one, address) as sender, opened(other, address) as receiver:
                receiver.bind((str(address), 0))
                receiver.setblocking(False)
                sender.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT
                sender.connect((str(address), receiver.getsockname()[1]))
                eventually(partial(arrived, sender, receiver, 1400))


def whole(sock: socket.socket, address: Address) -> None:
    """Have the kernel send with DF, and no more than it believes to fit: IP(V6)_MTU_DISCOVER, PMTUDISC_DO."""
    level, option = (socket.IPPROTO_IP, 10) if address.version == 4 else (socket.IPPROTO_IPV6, 23)
    sock.setsockopt(level, option, 2)


def mtu_told(sock: socket.socket) -> int:
    """Send what the pod's link takes, and return what the kernel believes of the path."""
    four = sock.family == socket.AF_INET
    level, option = (socket.IPPROTO_IP, 14) if four else (socket.IPPROTO_IPV6, 24)  # IP_MTU, IPV6_MTU
    mtu = sock.getsockopt(level, option)
    with contextlib.suppress(OSError):
        sock.send(bytes(mtu - (28 if four else 48)))
    return sock.getsockopt(level, option)


def arrived(sender: socket.socket, receiver: socket.socket, size: int) -> bool:
    """Send a datagram of this size; tell whether it, or an earlier one, has arrived."""
    with contextlib.suppress(OSError):
        sender.send(bytes(size))
    sizes = set[int]()
    with contextlib.suppress(BlockingIOError):
        while True:
            sizes.add(len(receiver.recv(65535)))
    return size in sizes


def transferred(one: PodUnderTest, other: PodUnderTest, address: Address) -> int:
    """Send BYTES over TCP from one pod to another; return how many arrived."""
    with opened(other, address, socket.SOCK_STREAM) as server, opened(one, address, socket.SOCK_STREAM) as client:
        server.settimeout(PATIENCE)
        server.bind((str(address), 0))
        server.listen()
        client.settimeout(PATIENCE)
        client.connect(server.getsockname()[:2])
        taken = server.accept()[0]
        with taken:
            taken.settimeout(PATIENCE)
            sending = threading.Thread(target=partial(_send, client))
            sending.start()
            count = 0
            with contextlib.suppress(TimeoutError):
                while data := taken.recv(1 << 16):
                    count += len(data)
            taken.close()
            sending.join()
            return count


def _send(client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        client.sendall(bytes(BYTES))
        client.shutdown(socket.SHUT_WR)
