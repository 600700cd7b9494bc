"""A node with pods, and the fabric beyond its uplink: what anybody sends, and what comes of it.

pods ── node (192.0.2.1) ── eth0 ── fabric (192.0.2.2, another node; .254, a router; whoever else a test says)
"""

import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from types import MappingProxyType

from podway.api.addresses import Address, Family, Interface, link_local
from podway.api.kinds.address_block import AddressBlock, AddressBlockSpec, block_name
from podway.api.kinds.ip_pool import Attach, IPPool, IPPoolSpec
from podway.api.kinds.node import ACCEPTS, SENDS, Node
from podway.api.lease import Attachment, Lease
from podway.api.meta import Metadata
from podway.api.resource import Resource
from podway.cluster.view import ClusterView
from podway.kernel import netns
from podway.kernel.node import Kernel
from podway.plan.host_facts import HostFacts
from podway.plan.node import plan_node, plan_wiring
from podway.plan.objects import NodePlan, PodWiring
from podway.plan.uplink import Uplink
from podway.probe.packet import ICMP, internet_checksum
from tests.builders import node
from tests.namespaces import TestNamespace

HERE = {Family.IPV4: ip_interface("192.0.2.1/24"), Family.IPV6: ip_interface("2001:db8::1/64")}
THERE = {Family.IPV4: ip_interface("192.0.2.2/24"), Family.IPV6: ip_interface("2001:db8::2/64")}
ROUTER = {Family.IPV4: ip_interface("192.0.2.254/24"), Family.IPV6: ip_interface("2001:db8::fe/64")}
POOLS = {Family.IPV4: "10.244.0.0/16", Family.IPV6: "fd00:10:244::/48"}
BLOCKS = {
    Family.IPV4: ("10.244.1.0/24", "10.244.2.0/24"),
    Family.IPV6: ("fd00:10:244:1::40/122", "fd00:10:244:2::40/122"),
}

FRAGMENTATION_NEEDED = {Family.IPV4: (3, 4), Family.IPV6: (2, 0)}
"""Type and code (RFC 1191, RFC 4443 section 3.2)."""
REDIRECT = {Family.IPV4: (5, 1), Family.IPV6: (137, 0)}
NARROW = 1290


def node_object(name: str, addresses: dict[Family, Interface], encapsulations: str = "") -> Node:
    return node(name, *map(str, addresses.values()), notes={ACCEPTS: encapsulations, SENDS: encapsulations})


def cluster(
    attach: Attach = "routed",
    encapsulations: str = "",
    underlay: Iterable[Family] = tuple(Family),
    more: Sequence[dict[Family, Interface]] = (),
    blocks: Mapping[str, str] = MappingProxyType({}),
) -> ClusterView:
    """Two nodes, `here` and `there`, a block each of two pools, one a family; they send and take `encapsulations`.

    `underlay` are the families of the nodes' addresses, `more` the addresses of further nodes, `more0` and
    so on, and `blocks` what these own besides.
    """
    objects: list[Resource] = [
        node_object("here", {family: HERE[family] for family in underlay}, encapsulations),
        node_object("there", {family: THERE[family] for family in underlay}, encapsulations),
        *(node_object(f"more{number}", addresses, encapsulations) for number, addresses in enumerate(more)),
    ]
    for name, cidr in blocks.items():
        spec = AddressBlockSpec(cidr=cidr, pool=f"pool{Family.of(ip_network(cidr)).value}", node=name)
        objects.append(AddressBlock(metadata=Metadata(name=block_name(ip_network(cidr))), spec=spec))
    for family in Family:
        pool = IPPool(
            metadata=Metadata(name=f"pool{family.value}"), spec=IPPoolSpec(cidr=POOLS[family], attach=attach)
        )
        objects.append(pool)
        for owner, cidr in zip(("here", "there"), BLOCKS[family], strict=True):
            spec = AddressBlockSpec(cidr=cidr, pool=pool.metadata.name, node=owner)
            objects.append(AddressBlock(metadata=Metadata(name=block_name(ip_network(cidr))), spec=spec))
    return ClusterView.of(objects)


class Pod:
    """A pod: its namespace, lease and wiring."""

    def __init__(self, namespace: TestNamespace, lease: Lease, wiring: PodWiring) -> None:
        self.netns, self.lease, self.wiring = namespace, lease, wiring
        self.address = {Family.of(address): address for address in lease.addresses}
        self.mac = lease.attachment.mac
        self.link_local = link_local(self.mac).ip

    def send(self, packet: bytes, to: str = "02:70:77:61:79:01", *, source: str = "", kind: int = 0) -> None:
        """Send an IP packet (or what `kind` says) out of eth0 to a hardware address, the gateway's by default."""
        send_frame(self.netns, packet, to, source or self.mac, kind)


class GuardLab:
    """The node under test and the fabric."""

    def __init__(
        self, node: TestNamespace, fabric: TestNamespace, kernel: Kernel, view: ClusterView, facts: HostFacts
    ) -> None:
        self.node, self.fabric, self.kernel, self.view, self.facts = node, fabric, kernel, view, facts
        self.pods: list[Pod] = []
        own = next(node for node in view.nodes.values() if node.metadata.name == "here")
        self.uplink = Uplink("eth0", 1500, own.interface_addresses)

    def run_pod(self, namespace: TestNamespace, number: int, attach: Attach = "routed") -> Pod:
        addresses = tuple(ip_network(BLOCKS[family][0]).network_address + number for family in Family)
        lease = Lease(Attachment(f"c{number}", "eth0"), f"default/{number}", "podway", "/run/x", addresses, attach)
        leases = [pod.lease for pod in self.pods]
        wiring = plan_wiring(self.view, "here", self.uplink, lease, leases=leases)
        self.kernel.wire(wiring, namespace.fd)
        self.pods.append(Pod(namespace, lease, wiring))
        assert self.kernel.apply(self.plan()).failures == ()
        assert self.kernel.diff(self.plan()) == []
        return self.pods[-1]

    def plan(self) -> NodePlan:
        return plan_node(self.view, "here", self.uplink, [pod.lease for pod in self.pods], facts=self.facts)

    def follow(self, view: ClusterView) -> None:
        self.view = view
        assert self.kernel.apply(self.plan()).failures == ()

    def narrowed(self, destination: Address) -> bool:
        """Tell whether the node has learned a path MTU to an address."""
        (route,) = json.loads(self.node.sh(f"ip -j route get {destination}"))
        return any("mtu" in each for each in route.get("metrics", []))

    def dropped(self, table: str, chain: str) -> int:
        """Return how many packets the drop rules of a chain have seen."""
        rules = json.loads(self.node.sh(f"nft -j list chain {table} {chain}"))["nftables"]
        return sum(
            e["counter"]["packets"] for r in rules for e in r.get("rule", {}).get("expr", []) if "counter" in e
        )


@contextlib.contextmanager
def guard_lab(
    new_netns: Callable[[], TestNamespace], view: ClusterView, facts: HostFacts | None = None
) -> Iterator[GuardLab]:
    node, fabric = new_netns(), new_netns()
    node.sh(f"ip link add eth0 type veth peer name eth0 netns {fabric.name}")
    for namespace, sites in ((node, [HERE]), (fabric, [THERE, ROUTER])):
        for site in sites:
            for interface in site.values():
                nodad = "nodad" if interface.version == 6 else ""
                namespace.sh(f"ip addr add {interface} dev eth0 {nodad}")
        namespace.sh("ip link set eth0 up")
    node.sh(
        f"ip route add default via {ROUTER[Family.IPV4].ip}; ip route add default via {ROUTER[Family.IPV6].ip}"
    )
    for family in Family:
        node.sh(f"ip route add {BLOCKS[family][1]} via {THERE[family].ip}")
        fabric.sh(f"ip route add {BLOCKS[family][0]} via {HERE[family].ip}")
    for family in Family:
        first = ip_network(BLOCKS[family][1]).network_address + 7
        fabric.sh(f"ip addr add {first}/{family.bits} dev lo {'nodad' if family is Family.IPV6 else ''}")
    if facts and facts.all_rp_filter:
        node.sh(f"echo {facts.all_rp_filter} > /proc/sys/net/ipv4/conf/all/rp_filter")
    with Kernel.open(node.fd) as kernel:
        lab = GuardLab(node, fabric, kernel, view, facts or HostFacts())
        assert kernel.apply(lab.plan()).failures == ()
        yield lab


def ip_packet(
    source: Address | str, destination: Address | str, protocol: int, body: bytes, hop_limit: int = 64
) -> bytes:
    """Return an IP packet; the checksums of ICMPv6, UDP (0 in IPv4) are in it."""
    one, other = ip_address(str(source)), ip_address(str(destination))
    ends = one.packed + other.packed
    if one.version == 6:
        pseudo = ends + struct.pack("!II", len(body), protocol)
        at = {58: 2, 17: 6}.get(protocol)
        if at is not None:
            body = body[:at] + internet_checksum(pseudo + body).to_bytes(2, "big") + body[at + 2 :]
        return struct.pack("!IHBB", 6 << 28, len(body), protocol, hop_limit) + ends + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 7, 0, hop_limit, protocol, 0) + ends
    return head[:10] + internet_checksum(head).to_bytes(2, "big") + head[12:] + body


def icmp(family: Family, kind: tuple[int, int], rest: bytes, payload: bytes = b"") -> bytes:
    """Return an ICMP message: type and code, four bytes, and what follows."""
    body = struct.pack("!BBH", *kind, 0) + rest + payload
    if family is Family.IPV4:
        body = body[:2] + internet_checksum(body).to_bytes(2, "big") + body[4:]
    return body


def icmp_error(
    family: Family,
    source: Address,
    destination: Address,
    quoted: bytes,
    kind: tuple[int, int] | None = None,
    mtu: int = NARROW,
) -> bytes:
    """Return an ICMP error from an address to another, about a packet: it must be cut, to `mtu` bytes."""
    rest = struct.pack("!HH", 0, mtu) if family is Family.IPV4 else struct.pack("!I", mtu)
    message = icmp(family, kind or FRAGMENTATION_NEEDED[family], rest, quoted[:400])
    return ip_packet(source, destination, ICMP[family], message)


def udp(source_port: int, port: int, payload: bytes = b"podway") -> bytes:
    return struct.pack("!HHHH", source_port, port, 8 + len(payload), 0) + payload


def ethernet(target: str, source: str, kind: int, payload: bytes) -> bytes:
    return bytes.fromhex(f"{target}{source}".replace(":", "")) + struct.pack("!H", kind) + payload


def send_frame(
    namespace: TestNamespace, packet: bytes, target: str, source: str, kind: int = 0, device: str = "eth0"
) -> None:
    kind = kind or (0x0800 if packet[0] >> 4 == 4 else 0x86DD)
    with netns.run(namespace.fd, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)) as sock:
        sock.bind((device, 0))
        sock.send(ethernet(target, source, kind, packet))


@contextlib.contextmanager
def listening(namespace: TestNamespace, device: str = "eth0") -> Iterator["Heard"]:
    """Collect the frames that arrive at a device of a namespace while the block runs."""
    with netns.run(namespace.fd, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300)) as sock:
        sock.bind((device, 3))
        yield Heard(sock)


class Heard:
    """Frames that arrived."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def has(self, part: bytes, within: float) -> bool:
        """Tell whether a frame with these bytes in it arrives, sent by another."""

        end = time.monotonic() + within
        while (left := end - time.monotonic()) > 0:
            self._sock.settimeout(left)
            try:
                frame, where = self._sock.recvfrom(65535)
            except TimeoutError:
                return False
            if where[2] != socket.PACKET_OUTGOING and part in frame:
                return True
        return False


def mac_of(namespace: TestNamespace, device: str = "eth0") -> str:
    return str(json.loads(namespace.sh(f"ip -j link show {device}"))[0]["address"])
