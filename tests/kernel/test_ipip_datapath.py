"""What the IPIP programs make of packets: on the wire, and at both ends."""

import hashlib
import itertools
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from podway.kernel import netns
from podway.plan.objects import NodePlan
from tests.kernel.ipip_lab import (
    ETHTOOL_SGRO,
    ETHTOOL_STXCSUM,
    MTU,
    Capture,
    Lab,
    ipv4,
    pcap,
    raw_socket,
    set_offload,
    udp,
)
from tests.namespaces import TestNamespace
from tests.patience import ONCE

pytestmark = pytest.mark.kernel

DF = 0x4000
NOT_ECT, ECT_1, ECT_0, CE = range(4)
IP_MTU_DISCOVER, IP_PMTUDISC_DONT, IP_PMTUDISC_DO = 10, 0, 2
IP_RECVTOS = 13


@pytest.fixture
def lab(new_netns: Callable[[], TestNamespace]) -> Iterator[Lab]:
    lab = Lab(new_netns)
    lab.tunnel()
    yield lab
    lab.close()


def difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Return the counters that moved, but for those of neighbour discovery, which comes when it likes."""
    return {name: after[name] - n for name, n in before.items() if after[name] != n and name != "dropped-not-ipv4"}


def exchange(sender: socket.socket, receiver: socket.socket, payload: bytes = b"ping") -> None:
    sender.sendto(payload, receiver.getsockname())
    assert receiver.recv(2000) == payload


def test_tshark_reads_plain_ipip(lab: Lab, tmp_path: Path) -> None:
    with (
        Capture(lab.router, "r1") as wire,
        lab.a.pod.udp(lab.a.pod_address) as here,
        lab.b.pod.udp(lab.b.pod_address) as there,
    ):
        exchange(here, there)
        exchange(there, here)
        capture = tmp_path / "wire.pcap"
        capture.write_bytes(pcap(wire.frames()))
    fields: list[str] = [
        "frame.protocols",
        "ip.src",
        "ip.dst",
        "ip.proto",
        "ip.len",
        "ip.flags.df",
        "ip.checksum.status",
        "ip.ttl",
    ]
    shown = subprocess.run(
        ["tshark", "-r", str(capture), "-Y", "udp", "-o", "ip.check_checksum:TRUE", "-T", "fields"]
        + [argument for field in fields for argument in ("-e", field)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    header = "eth:ethertype:ip:ip:udp:data"
    assert [line.split("\t") for line in shown] == [
        [header, "172.31.1.1,10.77.1.2", "172.31.2.1,10.77.2.2", "4,17", "52,32", "1,1", "1,1", "64,63"],
        [header, "172.31.2.1,10.77.2.2", "172.31.1.1,10.77.1.2", "4,17", "52,32", "1,1", "1,1", "63,63"],
    ], "protocol 4, DF, good checksums; the answer has passed the router"


@pytest.mark.parametrize("inner_df", [True, False])
def test_the_outer_header_tells_the_truth_about_the_inner_one(lab: Lab, inner_df: bool) -> None:
    with (
        Capture(lab.router, "r1") as wire,
        lab.a.pod.udp(lab.a.pod_address) as here,
        lab.b.pod.udp(lab.b.pod_address) as there,
    ):
        there.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
        here.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO if inner_df else IP_PMTUDISC_DONT)
        here.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 5)
        for tos in (0, 0xB8, NOT_ECT | 0x28, ECT_0, ECT_1 | 0xFC, CE):
            here.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
            here.sendto(b"x", there.getsockname())
            _, ancillary, _, _ = there.recvmsg(10, 100)
            assert [data[0] for _, _, data in ancillary] == [tos]
            [packet] = [packet for packet in wire.packets() if packet[9] == socket.IPPROTO_IPIP]
            outer, inner = packet[:20], packet[20:40]
            assert (outer[1], inner[1]) == (tos, tos), "DSCP and ECN are copied (RFC 6040 section 4.1)"
            assert (outer[8], inner[8]) == (64, 4), "forwarding took one from the inner TTL, the tunnel none"
            assert outer[6:8] == b"\x40\x00", "outer packets are never fragmented"
            assert inner[6:8] == (b"\x40\x00" if inner_df else b"\x00\x00")


def test_the_nodes_own_packets_keep_their_ttl(lab: Lab) -> None:
    lab.a.route("10.77.2.0/24", f"src {lab.a.address}")
    with (
        Capture(lab.router, "r1") as wire,
        lab.a.netns.udp(lab.a.address) as here,
        lab.b.pod.udp(lab.b.pod_address) as there,
    ):
        exchange(here, there)
        exchange(there, here)  # the way back is untunnelled: the node's address is the fabric's to know
        [there_way, back] = [packet for packet in wire.packets() if packet[9] != socket.IPPROTO_ICMP]
    assert (there_way[9], there_way[28]) == (socket.IPPROTO_IPIP, 64)
    assert (back[9], back[8]) == (socket.IPPROTO_UDP, 62)


def expected_ecn(inner: int, outer: int) -> int | None:
    """Figure 4 of RFC 6040; None: dropped."""
    rows: dict[int, dict[int, int | None]] = {
        NOT_ECT: {NOT_ECT: NOT_ECT, ECT_0: NOT_ECT, ECT_1: NOT_ECT, CE: None},
        ECT_0: {NOT_ECT: ECT_0, ECT_0: ECT_0, ECT_1: ECT_1, CE: CE},
        ECT_1: {NOT_ECT: ECT_1, ECT_0: ECT_1, ECT_1: ECT_1, CE: CE},
        CE: {NOT_ECT: CE, ECT_0: CE, ECT_1: CE, CE: CE},
    }
    return rows[inner][outer]


def test_congestion_marks_come_out_as_rfc_6040_says(lab: Lab) -> None:
    with raw_socket(lab.router) as sender, lab.b.pod.udp(lab.b.pod_address) as receiver:
        receiver.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
        port = receiver.getsockname()[1]
        for dscp, inner, outer in itertools.product((0, 0xB8), range(4), range(4)):
            before = lab.b.counters
            packet = ipv4(lab.a.pod_address, lab.b.pod_address, 17, udp(port, b"ecn?"), tos=dscp | inner)
            tunnelled = ipv4(lab.a.address, lab.b.address, 4, packet, tos=outer, flags=DF)
            sender.sendto(tunnelled, (lab.b.address, 0))
            want = expected_ecn(inner, outer)
            if want is None:
                assert difference(before, lab.b.counters) == {"dropped-ecn": 1}
            else:
                data, ancillary, _, _ = receiver.recvmsg(10, 100)
                assert (data, [value[0] for _, _, value in ancillary]) == (b"ecn?", [dscp | want])


def test_only_good_packets_from_known_nodes_are_taken(lab: Lab) -> None:
    a, b = lab.a, lab.b
    with raw_socket(lab.router) as sender, b.pod.udp(b.pod_address) as receiver:
        good = ipv4(a.pod_address, b.pod_address, 17, udp(receiver.getsockname()[1], b"in"))

        def send(packet: bytes) -> dict[str, int]:
            before = b.counters
            sender.sendto(packet, (b.address, 0))
            return difference(before, b.counters)

        assert send(ipv4(a.address, b.address, 4, good)) == {"decapsulated": 1}
        assert receiver.recv(10) == b"in"
        assert send(ipv4("172.31.1.99", b.address, 4, good)) == {"unknown-source": 1}
        assert send(ipv4("192.0.2.1", b.address, 4, good)) == {"unknown-source": 1}
        assert send(ipv4(a.address, b.address, 4, good, flags=0x2000)) == {"dropped-fragment": 1}
        assert send(ipv4(a.address, b.address, 4, b"\x60" + good[1:])) == {"dropped-malformed": 1}
        assert send(ipv4(a.address, b.address, 4, good[:19])) == {"dropped-malformed": 1}
        b.apply(NodePlan(tunnels=b.plan.tunnels))
        assert send(ipv4(a.address, b.address, 4, good)) == {"unknown-source": 1}
        receiver.settimeout(0.2)
        with pytest.raises(TimeoutError):
            receiver.recv(10)


def transfer(
    source: TestNamespace, source_address: str, target: TestNamespace, target_address: str, size: int
) -> None:
    """Send random bytes over TCP and compare what arrives."""
    data = os.urandom(1 << 20)
    digest = hashlib.sha256()
    with netns.run(target.fd, lambda: socket.create_server((target_address, 0))) as server:
        port = server.getsockname()[1]

        def receive() -> None:
            connection, _ = server.accept()
            with connection:
                while chunk := connection.recv(1 << 20):
                    digest.update(chunk)

        receiver = threading.Thread(target=receive)
        receiver.start()
        with netns.run(
            source.fd, lambda: socket.create_connection((target_address, port), 5, (source_address, 0))
        ) as sender:
            for _ in range(size >> 20):
                sender.sendall(data)
        receiver.join(30)
    assert not receiver.is_alive()
    assert digest.hexdigest() == hashlib.sha256(data * (size >> 20)).hexdigest()


def test_tcp_crosses_in_segments_that_nobody_had_to_cut(lab: Lab) -> None:
    with Capture(lab.router, "r1") as wire:
        transfer(lab.a.pod, lab.a.pod_address, lab.b.pod, lab.b.pod_address, 16 << 20)
        transfer(lab.b.pod, lab.b.pod_address, lab.a.pod, lab.a.pod_address, 16 << 20)
        lengths = [len(packet) for packet in wire.packets() if packet[9] == socket.IPPROTO_IPIP]
    assert max(lengths) > 10 * MTU
    assert sum(length > MTU for length in lengths) > len(lengths) / 4


def test_tcp_survives_segmentation_in_software_and_merging_at_the_other_end(lab: Lab) -> None:
    """A NIC without offloads: cut and summed before the wire, put together again (GRO) ahead of the program."""
    set_offload(lab.a.netns, "eth0", ETHTOOL_STXCSUM, 0)
    set_offload(lab.router, "r2", ETHTOOL_STXCSUM, 0)  # veth merges only what comes from an end without TSO
    set_offload(lab.b.netns, "eth0", ETHTOOL_SGRO, 1)
    before = lab.b.counters
    with Capture(lab.router, "r1") as wire, Capture(lab.b.pod, "eth0") as inside:
        transfer(lab.a.pod, lab.a.pod_address, lab.b.pod, lab.b.pod_address, 16 << 20)
        sent = [packet for packet in wire.packets() if packet[12:16] == socket.inet_aton(lab.a.address)]
        got = [packet for packet in inside.packets() if packet[12:16] == socket.inet_aton(lab.a.pod_address)]
    assert max(map(len, sent)) == MTU, "the segments fill the wire and no more: the header's room was left"
    assert max(map(len, got)) > 2 * MTU, "they were merged"
    assert difference(before, lab.b.counters)["decapsulated"] < len(sent), "ahead of the program"


def say_size(node: TestNamespace, target: str, size: int) -> str:
    """Send one echo request of `size` bytes, with DF; return what ping says."""
    return node.run(*ONCE, "-M", "do", "-s", str(size - 28), target, check=False).stdout


def test_a_full_packet_passes_and_one_byte_more_is_told_so(lab: Lab) -> None:
    lab.a.netns.sh("ip link set pod mtu 1500")
    lab.a.pod.sh("ip link set eth0 mtu 1500")
    assert "1 received" in say_size(lab.a.pod, lab.b.pod_address, MTU - 20)
    assert f"From 169.254.1.1 icmp_seq=1 Frag needed and DF set (mtu = {MTU - 20})" in say_size(
        lab.a.pod, lab.b.pod_address, MTU - 19
    )


def test_a_narrow_link_between_the_nodes_is_told_to_the_pod(lab: Lab) -> None:
    lab.router.sh("ip link set r2 mtu 1400")
    lab.b.netns.sh("ip link set eth0 mtu 1400")
    lab.router.sh("sysctl -qw net.ipv4.icmp_ratelimit=0")
    before = lab.a.counters
    told = say_size(lab.a.pod, lab.b.pod_address, 1381)
    assert "From 172.31.1.254 icmp_seq=1 Frag needed and DF set (mtu = 1380)" in told
    assert difference(before, lab.a.counters) == {"encapsulated": 1, "relayed": 1}
    assert "1 received" in say_size(lab.a.pod, lab.b.pod_address, 1380)
    transfer(lab.a.pod, lab.a.pod_address, lab.b.pod, lab.b.pod_address, 1 << 20)
    # To the node itself, when the packet was its own.
    lab.a.route("10.77.2.0/24", f"src {lab.a.address}")
    assert "mtu = 1380" in say_size(lab.a.netns, lab.b.pod_address, 1480)


def test_errors_about_other_packets_stay_as_they_are(lab: Lab) -> None:
    """The relay reads only what quotes our own outer header, to a node we know."""
    quoted = ipv4(lab.a.address, lab.b.address, 4, ipv4(lab.a.pod_address, lab.b.pod_address, 17, bytes(8)))
    others = ipv4(lab.a.address, "172.31.2.99", 4, ipv4(lab.a.pod_address, lab.b.pod_address, 17, bytes(8)))
    cases = {
        (3, 4, 1400, quoted): {"relayed": 1},
        (3, 4, 1400, others): {},
        (3, 4, 0, quoted): {},
        (3, 1, 0, quoted): {},
        (3, 4, 1400, quoted[:47]): {"relayed": 1},
        (3, 4, 1400, quoted[:39]): {},
        (3, 4, 1400, quoted[20:]): {},
    }
    with raw_socket(lab.router) as sender:
        for (kind, code, mtu, quotation), moved in cases.items():
            before = lab.a.counters
            message = bytes([kind, code, 0, 0, 0, 0, mtu >> 8, mtu & 0xFF]) + quotation
            sender.sendto(ipv4("172.31.1.254", lab.a.address, 1, message), (lab.a.address, 0))
            assert difference(before, lab.a.counters) == moved, (kind, code, mtu, len(quotation))


def test_other_protocols_do_not_leave(lab: Lab) -> None:
    lab.a.netns.sh("ip -6 route add 2001:db8:77::/64 via fe80::77 dev podway-ipip")
    before = lab.a.counters["dropped-not-ipv4"]
    with Capture(lab.router, "r1") as wire:
        lab.a.netns.run("ping", "-c1", "-W0.1", "2001:db8:77::1", check=False)
        assert not [frame for frame in wire.frames() if b"\x20\x01\x0d\xb8\x00\x77" in frame]
    assert lab.a.counters["dropped-not-ipv4"] > before
