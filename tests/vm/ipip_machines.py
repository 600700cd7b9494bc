"""IPIP against a stock Debian kernel: its own `ipip` device at the other end, and our programs inside it.

Not collected by a plain `pytest`: `./dev test-vm` runs it.
"""

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from podway.kernel import engine, ipip, netns
from podway.kernel.netlink import Connection
from podway.kernel.rtnl import links
from podway.plan.objects import IPIP_DEVICE, IpipTunnel, NodePlan, TunnelEndpoint
from tests.namespaces import TestNamespace
from tests.vm.machine import ROOT, SHARE, SHARE_MODULES, Kernel, Machine, booted, run_tests

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(900)]

NODE, POD, PEER, INNER = "172.31.0.1", "10.77.1.2", "172.31.0.2", "10.77.2.2"
MAC = "02:70:ac:1f:00:02"
SIZE = 4 << 20


@pytest.fixture
def peer(kernel: Kernel, node: TestNamespace, pod: TestNamespace, tmp_path: Path) -> Iterator[Machine]:
    """A machine with an `ipip` device, and at the other end of its wire a node of ours with a pod."""
    node.sh(f"""
        ip tuntap add eth0 mode tap
        ip address add {NODE}/24 dev eth0
        ip link set eth0 up
        ip link add {IPIP_DEVICE} mtu 1480 type veth peer name {IPIP_DEVICE}0 mtu 1480
        ip link set {IPIP_DEVICE}0 up
        ip link set {IPIP_DEVICE} up
        ip neighbour add fe80::77 lladdr {MAC} dev {IPIP_DEVICE} nud permanent
        ip link add pod type veth peer name eth0 netns {pod.name}
        ip address add 169.254.1.1/32 dev pod
        ip link set pod up
        ip route add {POD} dev pod
        ip route add {INNER} via inet6 fe80::77 dev {IPIP_DEVICE}
        echo 2 > /proc/sys/net/ipv4/conf/eth0/rp_filter
        echo 1 > /proc/sys/net/ipv4/ip_forward
    """)
    pod.sh(f"""
        ip address add {POD}/32 dev eth0
        ip link set eth0 up
        ip route add default via 169.254.1.1 dev eth0 onlink
    """)
    wire = ["-netdev", "tap,id=wire,ifname=eth0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=wire"]
    modules = ["virtio_pci", "virtio_net", "ipip"]
    with (
        booted(kernel, modules, tmp_path, netns=node, options=wire) as machine,
        Connection(node.fd) as connection,
    ):
        machine.sh(f"""
            ip address add {PEER}/24 dev eth0
            ip link set eth0 up
            ip tunnel add podtun mode ipip local {PEER} remote {NODE}
            ip address add {INNER}/32 dev podtun
            ip link set podtun up
            ip route add {POD} dev podtun src {INNER}
        """)

        def numbers() -> dict[str, int]:
            return {link.name: link.index for link in links.dump(connection)}

        plan = NodePlan(
            tunnels=(IpipTunnel(IPIP_DEVICE, "eth0", ip_address(NODE)),),
            endpoints=(TunnelEndpoint(ip_address(PEER)),),
        )
        kinds = (ipip.IpipTunnels(connection, numbers), ipip.TunnelEndpoints(connection, numbers))
        assert engine.apply(kinds, plan).failures == ()
        yield machine


def ping(namespace: TestNamespace, size: int) -> str:
    """Send echo requests of so many bytes, with DF, from the pod; return what ping says."""
    command = ("ping", "-c2", "-W5", "-M", "do", "-s", str(size - 28), INNER)
    return namespace.run(*command, check=False).stdout


def test_a_kernel_ipip_device_is_the_other_end(peer: Machine, node: TestNamespace, pod: TestNamespace) -> None:
    assert "ipip" in peer.sh("cat /proc/modules")
    assert "2 received" in ping(pod, 84)
    assert "2 packets received" in peer.sh(f"ping -c2 -W5 {POD}")

    # MTU: a full packet crosses each way, one byte more is told to its sender.
    assert "mtu 1480" in peer.sh("ip link show podtun")
    assert "2 received" in ping(pod, 1480)
    assert "Frag needed and DF set (mtu = 1480)" in ping(pod, 1481)
    assert "2 packets received" in peer.sh(f"ping -c2 -W5 -s 1452 {POD}")
    assert "2 packets received" in peer.sh(f"ping -c2 -W5 -s 3000 {POD}"), "fragments of the inner packet"

    data = os.urandom(SIZE)
    digest = hashlib.sha256(data).hexdigest()
    receive_in_machine(peer, pod, data, digest)
    receive_in_pod(peer, pod, data, digest)

    moved = ipip_counters(node)
    assert moved["encapsulated"] > 0
    assert moved["decapsulated"] > SIZE / 65536
    assert {name: n for name, n in moved.items() if name.startswith("dropped") and n} in (
        {},
        {"dropped-not-ipv4": moved["dropped-not-ipv4"]},
    )


def receive_in_machine(peer: Machine, pod: TestNamespace, data: bytes, digest: str) -> None:
    peer.sh("nc -l -p 5000 > /tmp/data & sleep 1")
    with netns.run(pod.fd, lambda: socket.create_connection((INNER, 5000), 20)) as sender:
        sender.settimeout(60)
        sender.sendall(data)
        sender.shutdown(socket.SHUT_WR)
        assert sender.recv(1) == b"", "the other end has taken all and closed"
    assert peer.sh("while pidof nc > /dev/null; do sleep 0.1; done; sha256sum /tmp/data").split()[0] == digest


def receive_in_pod(peer: Machine, pod: TestNamespace, data: bytes, digest: str) -> None:
    received = hashlib.sha256()
    with netns.run(pod.fd, lambda: socket.create_server((POD, 5001))) as server:
        server.settimeout(60)

        def receive() -> None:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(60)
                left = len(data)
                while left and (chunk := connection.recv(1 << 16)):
                    received.update(chunk)
                    left -= len(chunk)

        receiver = threading.Thread(target=receive)
        receiver.start()
        peer.sh(f"nc {POD} 5001 < /tmp/data")
        receiver.join(90)
    assert received.hexdigest() == digest


def ipip_counters(node: TestNamespace) -> dict[str, int]:
    with Connection(node.fd) as connection:
        return ipip.counters(connection, {link.name: link.index for link in links.dump(connection)})


def test_our_programs_do_the_same_on_that_kernel(kernel: Kernel, node: TestNamespace, tmp_path: Path) -> None:
    """Run the kernel room's IPIP tests in the machine."""
    modules = [*SHARE_MODULES, "veth", "cls_bpf", "sch_ingress"]
    with booted(kernel, modules, tmp_path, netns=node, options=SHARE, memory=1024) as machine:
        assert kernel.version in machine.sh("uname -r")
        print(run_tests(machine, sorted((ROOT / "tests/kernel").glob("test_ipip_*.py"))))
