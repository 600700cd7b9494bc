"""Names of domains in policies, in a lab with servers of DNS: learned before pods have the answer, and no lies.

Pods ask real servers (of dnspython's messages, over sockets), one on their own node and one on another.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import dns.message
import dns.rdatatype
import dns.rrset
import pytest

from podway.kernel import netns
from podway.kernel.bpf import flow_programs
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_layout import Reason
from podway.kernel.bpf.flow_maps import FlowMaps
from podway.kernel.netlink import Connection
from podway.kernel.rtnl import links
from tests.patience import eventually
from tests.system.policy_lab import CLUSTER_POLICY, FAMILIES, Place, PolicyLab, policy_lab

pytestmark = pytest.mark.kernel

WAIT = 5.0
"""Seconds until a client asks again: an answer that waits for an agent that is gone is lost."""

RECORDS: dict[int, str] = {socket.AF_INET: "A", socket.AF_INET6: "AAAA"}
LENGTH = struct.Struct("!H")


class Server:
    """A server of DNS in a pod, by UDP and TCP: answers with the records that a test gives it."""

    def __init__(self, lab: PolicyLab, place: Place) -> None:
        self.place = place
        self.records: dict[tuple[str, str], list[dns.rrset.RRset]] = {}
        self._sockets = [place.open(socket.AF_INET6, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)]
        for one in self._sockets:
            one.settimeout(None)
            one.bind(("::", 53))
        self._sockets[1].listen()
        for work in (self._datagrams, self._streams):
            threading.Thread(target=work, daemon=True).start()

    def has(self, name: str, kind: str, *values: str, bears: str = "") -> None:
        """Answer to a name with records: its own, or those of the name that it is an alias of."""
        sets = [dns.rrset.from_text_list(f"{bears or name}.", 1, "IN", kind, values)]
        if bears:
            sets.insert(0, dns.rrset.from_text(f"{name}.", 1, "IN", "CNAME", f"{bears}."))
        self.records[name, kind] = sets

    def close(self) -> None:
        """Serve no more."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _answer(self, data: bytes) -> bytes:
        query = dns.message.from_wire(data)
        asked = query.question[0]
        response = dns.message.make_response(query)
        name, kind = str(asked.name).lower().rstrip("."), dns.rdatatype.to_text(asked.rdtype)
        response.answer += self.records.get((name, kind), [])
        return response.to_wire()

    def _datagrams(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, client = self._sockets[0].recvfrom(4096)
                if not data:
                    return  # closed
                self._sockets[0].sendto(self._answer(data), client)

    def _streams(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._sockets[1].accept()
                with client:
                    (length,) = LENGTH.unpack(client.recv(2, socket.MSG_WAITALL))
                    said = self._answer(client.recv(length, socket.MSG_WAITALL))
                    client.sendall(LENGTH.pack(len(said)) + said)


class Scene:
    """A pod that may call names in example.com, and everybody's port 53, and nobody else."""

    def __init__(self, lab: PolicyLab) -> None:
        self.lab = lab
        cluster = {"k8s-app": "kube-dns"}
        self.near = Server(lab, lab.run("kube-system/dns1", "node1", labels=cluster))
        self.far = Server(lab, lab.run("kube-system/dns2", "node2", labels=cluster))
        self.liar = Server(lab, lab.run("liar", "node2"))
        self.web, self.other = lab.run("web", "node2", 80), lab.run("other", "node2", 80)
        dns_port = [{"udp": {"destinationPort": {"number": 53}}}, {"tcp": {"destinationPort": {"number": 53}}}]
        lab.apply(
            {
                **CLUSTER_POLICY,
                "metadata": {"name": "names"},
                "spec": {
                    "tier": "Admin",
                    "priority": 10,
                    "subject": {"pods": {"podSelector": {"matchLabels": {"app": "client"}}}},
                    "egress": [
                        {"action": "Accept", "to": [{"namespaces": {}}], "protocols": dns_port},
                        {"action": "Accept", "name": "shop", "to": [{"domainNames": ["*.example.com"]}]},
                        {"action": "Deny", "to": [{"networks": ["0.0.0.0/0", "::/0"]}]},
                    ],
                },
            }
        )
        self.client = lab.run("client", "node1", labels={"app": "client"})

    def asks(
        self, server: Server, name: str, family: int, *, tcp: bool = False, over: int = socket.AF_INET
    ) -> str:
        """Ask for a name's address as a pod's resolver does, again and again; return what it gets."""
        query = dns.message.make_query(name, RECORDS[family])
        found: list[str] = []

        def answered() -> bool:
            kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
            with self.client.open(over, kind) as asking:
                asking.settimeout(WAIT)
                try:
                    asking.connect((server.place.address(over), 53))
                    asking.sendall((LENGTH.pack(len(query.to_wire())) if tcp else b"") + query.to_wire())
                    data = asking.recv(4096)
                except (TimeoutError, ConnectionError):
                    return False
            said = dns.message.from_wire(data[2:] if tcp else data)
            found[:] = [one.address for records in said.answer for one in records if hasattr(one, "address")]
            return bool(found)

        eventually(answered)
        return found[0]

    def sends(self, address: str) -> None:
        """Send a packet that nobody answers."""
        family = socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6
        with self.client.open(family, socket.SOCK_DGRAM) as sending:
            sending.sendto(b"hello", (address, 9))

    def passes(self, round_: Callable[[], None]) -> None:
        """Do something until the agent has heard all answers in time; then no packet may have been denied."""

        def undisturbed() -> bool:
            missed, before = self._missed(), self.denied()
            round_()
            if self._missed() != missed:
                return False  # on a machine too busy for the agent, answers pass unheard
            assert self.denied() == before
            return True

        eventually(undisturbed)

    def _missed(self) -> int:
        return int(self.lab.data_path("node1")["names_missed"])

    def denies(self, address: str) -> None:
        """Send a packet that is to be denied."""
        before = self.denied()
        self.sends(address)
        eventually(lambda: self.denied() == before + 1)

    def denied(self) -> int:
        """How many packets of the node's pods were denied so far."""
        with netns.opened(self.lab.nodes["node1"].path) as fd, Connection(fd) as connection:
            names = {link.index: link.name for link in links.dump(connection)}
            found = flow_programs.attached(connection, names)
            with bpf.opened(found[0].program) as opened:
                return FlowMaps(opened.maps).counters()[Reason.DENIED_EGRESS]


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with policy_lab() as lab:
        made = Scene(lab)
        yield made
        for server in (made.near, made.far, made.liar):
            server.close()


@pytest.mark.parametrize("over", FAMILIES)
def test_the_first_packet_to_what_dns_has_just_told_passes(scene: Scene, over: int) -> None:
    fresh = iter(range(1, 1 << 15))

    def ask_and_send() -> None:
        for _ in range(10):
            for server in (scene.near, scene.far):
                number = next(fresh)
                address = f"{198 if over == socket.AF_INET else 199}.18.{number >> 8}.{number & 255}"
                server.has("new.example.com", "A", address)
                assert scene.asks(server, "new.example.com", socket.AF_INET, over=over) == address
                scene.sends(address)

    scene.passes(ask_and_send)
    scene.denies("203.0.113.250")


def test_an_alias_in_other_letters_leads_to_both_families(scene: Scene) -> None:
    for family in FAMILIES:
        address = scene.web.address(family)
        assert not scene.lab.connects(scene.client, scene.web, 80, family)
        scene.near.has("www.example.com", RECORDS[family], address, bears="web.cdn.test")
        assert scene.asks(scene.near, "WWW.eXample.Com", family) == str(ip_address(address))
        eventually(lambda family=family: scene.lab.connects(scene.client, scene.web, 80, family))
    told = scene.lab.lab.podway("policy", "names", "www.example.com").splitlines()
    assert {tuple(line.split()[:3]) for line in told[1:]} == {
        ("www.example.com", str(ip_address(scene.web.address(family))), "node1") for family in FAMILIES
    }


def test_what_is_asked_by_tcp_teaches_nothing(scene: Scene) -> None:
    for number, server in enumerate((scene.near, scene.far), 1):
        address = f"198.51.100.{number}"
        server.has("tcp.example.com", "A", address)
        assert scene.asks(server, "tcp.example.com", socket.AF_INET, tcp=True) == address
        assert address not in scene.lab.lab.podway("policy", "names", check=False)


def test_who_is_no_resolver_and_names_that_no_policy_has_teach_nothing(scene: Scene) -> None:
    address = scene.other.address(socket.AF_INET)
    scene.liar.has("lie.example.com", "A", address)
    assert scene.asks(scene.liar, "lie.example.com", socket.AF_INET) == address
    scene.far.has("example.com", "A", address)
    assert scene.asks(scene.far, "example.com", socket.AF_INET) == address
    assert not scene.lab.connects(scene.client, scene.other, 80, socket.AF_INET)


def test_names_outlive_an_agent_and_what_passes_without_one_teaches_the_next(scene: Scene) -> None:
    lab = scene.lab.lab
    scene.near.has("kept.example.com", "A", "203.0.113.10")
    scene.passes(lambda: scene.sends(scene.asks(scene.near, "kept.example.com", socket.AF_INET)))
    before = scene.denied()
    lab.kill_agent("node1")
    scene.sends("203.0.113.10")
    scene.near.has("meanwhile.example.com", "A", "203.0.113.11")
    assert scene.asks(scene.near, "meanwhile.example.com", socket.AF_INET) == "203.0.113.11"
    assert scene.denied() == before
    scene.denies("203.0.113.11")
    lab.start_agent("node1")

    def learned() -> bool:
        known = scene.denied()
        scene.sends("203.0.113.11")
        return scene.denied() == known

    eventually(learned)
    before = scene.denied()
    scene.sends("203.0.113.10")
    assert scene.denied() == before
