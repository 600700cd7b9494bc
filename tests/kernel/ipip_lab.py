"""Two nodes with a pod each, a router between them that knows no pods, and IPIP tunnels by our engine.

pod a ── node a ── router ── node b ── pod b
"""

import contextlib
import ctypes
import fcntl
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import Self

from podway.kernel import engine, ipip, netns
from podway.kernel.netlink import Connection
from podway.kernel.netlink.connection import SO_RCVBUFFORCE
from podway.kernel.netlink.constants import ETH_P_ALL
from podway.kernel.rtnl import links
from podway.plan.objects import IPIP_DEVICE, IpipTunnel, NodePlan, TunnelEndpoint
from tests.namespaces import TestNamespace

MTU = 1500
TUNNEL_MTU = MTU - 20

SIOCETHTOOL = 0x8946
ETHTOOL_STXCSUM, ETHTOOL_SGRO = 0x17, 0x2C


class Node:
    """A node: its namespace, its pod's, and the two kinds of kernel object under test."""

    def __init__(self, node: TestNamespace, pod: TestNamespace, number: int, other: int) -> None:
        self.netns, self.pod = node, pod
        self.address, self.pod_address = f"172.31.{number}.1", f"10.77.{number}.2"
        self.other = f"172.31.{other}.1"
        self.connection = Connection(node.fd)
        self.kinds = (
            ipip.IpipTunnels(self.connection, self.numbers),
            ipip.TunnelEndpoints(self.connection, self.numbers),
        )
        self.plan = NodePlan(
            tunnels=(IpipTunnel(IPIP_DEVICE, "eth0", ip_address(self.address)),),
            endpoints=(TunnelEndpoint(ip_address(self.other)),),
        )
        self.mac = overlay_mac(self.other)
        node.sh(f"""
            ip link add {IPIP_DEVICE} mtu {TUNNEL_MTU} type veth peer name {IPIP_DEVICE}0 mtu {TUNNEL_MTU}
            ip link set {IPIP_DEVICE}0 up
            ip link set {IPIP_DEVICE} up
            ip neighbour add fe80::77 lladdr {self.mac} dev {IPIP_DEVICE} nud permanent
            ip link add pod mtu {TUNNEL_MTU} type veth peer name eth0 mtu {TUNNEL_MTU} netns {pod.name}
            ip address add 169.254.1.1/32 dev pod
            ip link set pod up
            ip route add {self.pod_address} dev pod
            echo 2 > /proc/sys/net/ipv4/conf/eth0/rp_filter
            echo 1 > /proc/sys/net/ipv4/ip_forward
        """)
        pod.sh(f"""
            ip address add {self.pod_address}/32 dev eth0
            ip link set eth0 up
            ip route add default via 169.254.1.1 dev eth0 onlink
        """)
        self.route(f"10.77.{other}.0/24")

    def route(self, network: str, source: str = "") -> None:
        """Send a network's packets through the tunnel to the other node."""
        self.netns.sh(f"ip route replace {network} via inet6 fe80::77 dev {IPIP_DEVICE} {source}")

    def numbers(self) -> Mapping[str, int]:
        return {link.name: link.index for link in links.dump(self.connection)}

    def apply(self, plan: NodePlan | None = None) -> engine.Report:
        report = engine.apply(self.kinds, self.plan if plan is None else plan)
        assert report.failures == ()
        return report

    @property
    def writes(self) -> int:
        return self.connection.writes + sum(kind.writes for kind in self.kinds)

    @property
    def counters(self) -> dict[str, int]:
        return ipip.counters(self.connection, self.numbers())


class Lab:
    """Node `a` and node `b`, not yet tunnelled, and the router between them."""

    def __init__(self, new_netns: Callable[[], TestNamespace]) -> None:
        self.router = new_netns()
        namespaces = [new_netns() for _ in range(4)]
        for number, node in ((1, namespaces[0]), (2, namespaces[2])):
            node.sh(f"""
                ip link add eth0 mtu {MTU} type veth peer name r{number} mtu {MTU} netns {self.router.name}
                ip address add 172.31.{number}.1/24 dev eth0
                ip link set eth0 up
                ip -n {self.router.name} address add 172.31.{number}.254/24 dev r{number}
                ip -n {self.router.name} link set r{number} up
                ip route add default via 172.31.{number}.254
            """)
        self.router.sh("echo 1 > /proc/sys/net/ipv4/ip_forward")
        self.a = Node(namespaces[0], namespaces[1], 1, 2)
        self.b = Node(namespaces[2], namespaces[3], 2, 1)

    def tunnel(self) -> None:
        self.a.apply()
        self.b.apply()

    def close(self) -> None:
        self.a.connection.close()
        self.b.connection.close()


def overlay_mac(address: str) -> str:
    return ":".join(["02:70", *(f"{byte:02x}" for byte in ip_address(address).packed)])


def ipv4(source: str, destination: str, protocol: int, payload: bytes, *, tos: int = 0, flags: int = 0) -> bytes:
    """Return an IPv4 packet. Its TTL is 9: no default."""
    fields = [0x45, tos, 20 + len(payload), 0, flags, 9, protocol, 0]
    addresses = ip_address(source).packed + ip_address(destination).packed
    fields[7] = checksum(struct.pack("!BBHHHBBH", *fields) + addresses)
    return struct.pack("!BBHHHBBH", *fields) + addresses + payload


def udp(port: int, payload: bytes) -> bytes:
    """Return a UDP datagram without a checksum."""
    return struct.pack("!HHHH", 4000, port, 8 + len(payload), 0) + payload


def checksum(data: bytes) -> int:
    """Return the Internet checksum of an even number of bytes (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@contextlib.contextmanager
def raw_socket(namespace: TestNamespace) -> Iterator[socket.socket]:
    """Give a socket that sends whole IPv4 packets, from whatever source they name."""
    with netns.run(
        namespace.fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    ) as sock:
        yield sock


_SENDER = """
import select, socket, sys, time
address, port, rate = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sent, begun = 0, time.monotonic()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.connect((address, port))
    while not select.select([sys.stdin], [], [], 0.0005)[0]:
        while sent < (time.monotonic() - begun) * rate:
            sock.send(b"%d" % sent)
            sent += 1
print(sent)
"""


@contextlib.contextmanager
def stream(source: TestNamespace, target: TestNamespace, address: str, rate: int) -> Iterator[None]:
    """Send numbered packets, so many per second, while the block runs; see that all have come, and in order."""
    with target.udp(address) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 256 << 20)
        command = ["ip", "netns", "exec", source.name, sys.executable, "-c", _SENDER]
        command += [*map(str, receiver.getsockname()), str(rate)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sender:
            try:
                first = int(receiver.recv(100))
                yield
            finally:
                said, _ = sender.communicate()
        sent = int(said)
        received = [first]
        receiver.settimeout(5)
        with contextlib.suppress(TimeoutError):
            while len(received) < sent:
                received.append(int(receiver.recv(100)))
    assert sent > 100
    assert received == list(range(sent)), f"{sent - len(received)} of {sent} lost"


class Capture:
    """All frames that a device sends and receives while the block runs."""

    def __init__(self, namespace: TestNamespace, device: str) -> None:
        self._socket = netns.run(
            namespace.fd, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        )
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._socket.bind((device, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def frames(self) -> list[bytes]:
        """Return the frames so far that were not returned before."""
        found = []
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self._socket.recv(1 << 17))
        return found

    def packets(self) -> list[bytes]:
        """Return the IPv4 packets among them."""
        return [frame[14:] for frame in self.frames() if frame[12:14] == b"\x08\x00"]


def pcap(frames: Iterable[bytes]) -> bytes:
    """Return a capture file of Ethernet frames (pcap(3PCAP) savefile format)."""
    parts = [struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1)]
    parts += [struct.pack("=IIII", 0, 0, len(frame), len(frame)) + frame for frame in frames]
    return b"".join(parts)


def set_offload(namespace: TestNamespace, device: str, command: int, value: int) -> None:
    """Switch an offload of a device on or off, as `ethtool -K` does (linux/ethtool.h)."""
    request = ctypes.create_string_buffer(struct.pack("=II", command, value))
    packed = struct.pack("16sQ16x", device.encode(), ctypes.addressof(request))

    def switch() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, SIOCETHTOOL, packed)

    netns.run(namespace.fd, switch)
