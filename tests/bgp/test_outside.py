"""Sessions with real speakers outside the cluster: what each side takes, and what is shown of those that fail."""

import subprocess
import time
from pathlib import Path

import msgspec
import pytest

from podway.api.kinds.bgp_peer import PasswordSource, PrefixRule, SecretKey
from podway.api.kinds.secret import Secret
from podway.api.meta import Metadata
from podway.bgp.status import PeerStatus
from tests.bgp.bgp_lab import TOR_ASN, LabNode, OutsidePeer, Segment, tells
from tests.patience import eventually

pytestmark = pytest.mark.kernel


@pytest.fixture
def alone(segment: Segment) -> Segment:
    """A segment whose nodes speak with outside peers only."""
    segment.bgp = msgspec.structs.replace(segment.bgp, topology="none")
    segment.pools = segment.pools[:1]
    return segment


def of_peer(node: LabNode, tor: OutsidePeer) -> PeerStatus:
    return next(peer for peer in node.run(node.speaker.peers()) if str(peer.address) == tor.address)


def established(node: LabNode, tor: OutsidePeer) -> bool:
    return of_peer(node, tor).established


def test_what_a_peer_is_told(alone: Segment) -> None:
    """Own blocks with communities; a filter keeps one back; aggregates instead of blocks."""
    one, two = alone.add(2)
    tor = alone.outside(101)
    tor.start(tor.session(one), tor.session(two))
    alone.objects = [
        tor.peer(communities=("65000:100", "65000:1:2"), node="node-1"),
        msgspec.structs.replace(
            tor.peer(advertise="aggregates", node="node-2"), metadata=Metadata(name="aggregates")
        ),
    ]
    for node in (one, two):
        node.start(alone.nodes)
    eventually(lambda: "10.244.1.0/24" in tor.routes_of("node1") and "10.244.0.0/16" in tor.routes_of("node2"))
    told = tor.routes_of("node1")
    assert "(65000,100)" in told
    assert "(65000, 1, 2)" in told
    assert "BGP.next_hop: 192.0.2.1" in told
    assert "10.244.2.0/24" not in tor.routes_of("node2")
    # What no block is there for ends at the node that told the aggregate (RFC 4632, section 5.1).
    assert one.routes().keys() == set()
    assert two.routes()["10.244.0.0/16"]["type"] == "unreachable"
    keeps_back = PrefixRule(cidr="10.244.0.0/16", action="reject", max_length=24)
    alone.objects = [tor.peer(exports=(keeps_back,))]
    one.follow(alone.nodes)
    eventually(lambda: "10.244.1.0/24" not in tor.routes_of("node1"))
    assert established(one, tor)


def test_pools_as_wholes_are_told_beside_a_pool_that_is_a_single_block(alone: Segment) -> None:
    """In BIRD `&&` binds no tighter than `||`."""
    (one,) = alone.add(1)
    alone.pools = (*alone.pools, "10.99.0.0/24")
    one.ip("route", "add", "blackhole", "10.99.0.0/24", "proto", "112")
    tor = alone.outside(101)
    tor.start(tor.session(one))
    alone.objects = [tor.peer(advertise="aggregates")]
    one.start([one])
    eventually(lambda: all(net in tor.routes_of("node1") for net in ("10.244.0.0/16", "10.99.0.0/24")))
    assert not any(net in tor.routes_of("node1") for net in ("10.244.1.0/24", "192.0.2.0/24"))


def test_what_is_taken_from_a_peer(alone: Segment) -> None:
    """Blocks; other routes only by a filter; never parts of blocks, own blocks or the nodes' own networks."""
    (one,) = alone.add(1)
    one.ip("route", "add", "203.0.113.0/24", "dev", "lo", "proto", "static")
    tor = alone.outside(101)
    wrong = ("192.0.2.0/25", "192.0.2.2/32", "10.244.1.0/24", "10.244.9.7/32", "10.244.0.0/16")
    tor.start(
        tor.session(one),
        tells("10.244.9.0/24", "10.244.8.0/24", "0.0.0.0/0", "198.51.100.0/24", "203.0.113.0/24", *wrong),
    )
    alone.objects = [tor.peer()]
    one.start([one])
    eventually(lambda: one.routes().keys() == {"10.244.8.0/24", "10.244.9.0/24"})
    assert of_peer(one, tor).peer == "tor-101"
    everything = PrefixRule(cidr="0.0.0.0/0", action="accept", min_length=0)
    not_eight = PrefixRule(cidr="10.244.8.0/24", action="reject")
    alone.objects = [tor.peer(imports=(not_eight, everything))]
    one.follow([one])
    # The machine's own route to 203.0.113.0/24 stands, whoever tells another.
    eventually(lambda: one.routes().keys() == {"default", "198.51.100.0/24", "10.244.9.0/24"})
    assert one.routes()["default"]["gateway"] == tor.address


def test_equally_good_ways_are_all_used(alone: Segment) -> None:
    """Two switches tell of another node's block; when one goes, the other carries on."""
    one, two = alone.add(2)
    tors = [alone.outside(101), alone.outside(102)]
    for tor in tors:
        tor.start(*(tor.session(node, channel="import all; export all; next hop self;") for node in (one, two)))
    alone.objects = [tor.peer(bfd=False) for tor in tors]
    for node in (one, two):
        node.start(alone.nodes)
    eventually(lambda: len(one.routes().get(two.block4, {}).get("nexthops", ())) == 2)
    route = one.routes()[two.block4]
    assert {hop["gateway"] for hop in route["nexthops"]} == {tor.address for tor in tors}
    assert route["prefsrc"] == "192.0.2.1"
    (known,) = (found for found in one.run(one.speaker.kernel_routes()) if str(found.network) == two.block4)
    assert known.best
    assert {str(hop.gateway) for hop in known.next_hops} == {tor.address for tor in tors}
    tors[0].birdc("disable", "node1")
    eventually(lambda: one.routes()[two.block4].get("gateway") == tors[1].address)


def test_a_password_from_a_file(alone: Segment, tmp_path: Path) -> None:
    (one,) = alone.add(1)
    tor = alone.outside(101)
    tor.start(tor.session(one, 'password "correct horse"'))
    file = tmp_path / "password"
    alone.objects = [tor.peer(password=PasswordSource(file=str(file)))]
    one.start([one])
    status = of_peer(one, tor)
    assert (status.established, status.last_error) == (
        False,
        f"no password: {file} cannot be read: No such file or directory",
    )
    file.write_text("correct horse\n")
    one.run(one.speaker.reread_passwords())
    eventually(lambda: established(one, tor))
    conf = one.run_dir / "bird.conf"
    assert conf.stat().st_mode & 0o777 == 0o600
    assert "correct horse" not in (one.run_dir / "bird.log").read_text()
    file.write_text("battery staple\n")
    one.run(one.speaker.reread_passwords())
    time.sleep(2)
    assert not established(one, tor), "the kernel drops segments whose signature is wrong"


def test_a_password_from_a_secret_and_a_wrong_as(alone: Segment) -> None:
    (one,) = alone.add(1)
    tor = alone.outside(101)
    tor.start(tor.session(one, 'password "s3cret"'))
    source = PasswordSource(secret=SecretKey(namespace="default", name="tor", key="password"))
    secret = Secret(metadata=Metadata(name="tor", namespace="default"), data={"password": "czNjcmV0"})
    alone.objects = [secret, tor.peer(password=source)]
    one.start([one])
    eventually(lambda: established(one, tor))
    alone.objects = [secret, tor.peer(password=source, asn=64999)]
    one.follow([one])
    eventually(lambda: "Bad peer AS" in of_peer(one, tor).last_error)


def test_a_peer_behind_a_router(alone: Segment) -> None:
    """Multihop, a source address, BFD and TTL security (RFC 5082): who comes from too far away is not heard."""
    (one,) = alone.add(1)
    tor, router = alone.outside(101), alone.outside(102)
    # The peer is at 198.51.100.1, behind the router: both directions cross it, and so lose one of their TTL.
    tor.ip("address", "add", "198.51.100.1/32", "dev", "lo")
    one.ip("address", "add", "203.0.113.1/32", "dev", "lo")
    one.ip("route", "add", "198.51.100.1", "via", router.address)
    tor.ip("route", "add", "203.0.113.1", "via", router.address, "src", "198.51.100.1")
    router.ip("route", "add", "198.51.100.1", "via", tor.address)
    router.ip("route", "add", "203.0.113.1", "via", "192.0.2.1")
    subprocess.run(
        ["nsenter", f"--net=/run/netns/{router.name}", "sysctl", "-qw", "net.ipv4.ip_forward=1",
         "net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.eth0.send_redirects=0"],
        check=True,
    )  # fmt: skip
    tor.start(
        "protocol bfd { multihop { interval 200 ms; multiplier 3; }; }",
        f"""protocol bgp far {{
	local 198.51.100.1 as {TOR_ASN}; neighbor 203.0.113.1 as 64512; multihop 2; ttl security on; bfd on;
	connect delay time 1; connect retry time 1; error wait time 1, 1;
	ipv4 {{ import all; export all; }};
}}""",
    )
    far = tor.peer(
        address="198.51.100.1", multihop=1, ttl_security=True, source_address="203.0.113.1", node="node-1"
    )
    alone.objects = [msgspec.structs.replace(far, spec=msgspec.structs.replace(far.spec, multihop=0))]
    one.start([one])

    def status() -> PeerStatus:
        (peer,) = one.run(one.speaker.peers())
        return peer

    eventually(lambda: "set multihop" in status().last_error)
    alone.objects = [far]
    one.follow([one])
    time.sleep(2)
    assert not status().established, "its packets come over one hop more than are allowed"
    alone.objects = [msgspec.structs.replace(far, spec=msgspec.structs.replace(far.spec, multihop=2, bfd=True))]
    one.follow([one])
    eventually(lambda: status().established and status().bfd == "Up")
    eventually(lambda: "10.244.1.0/24" in tor.routes_of("far"))


FRR = """\
hostname tor
router bgp {asn}
 bgp router-id {address}
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor 192.0.2.1 remote-as 64512
 neighbor 192.0.2.1 password hunter2
 address-family ipv4 unicast
  network 10.244.9.0/24
 exit-address-family
"""


def test_frr_as_a_peer(alone: Segment) -> None:
    (one,) = alone.add(1)
    tor = alone.outside(101)
    conf = tor.directory / "bgpd.conf"
    conf.write_text(FRR.format(asn=TOR_ASN, address=tor.address))
    tor.directory.chmod(0o777)
    bgpd = tor.popen(
        "/usr/lib/frr/bgpd", "-Z", "-f", str(conf), "-i", str(tor.directory / "pid"), "--vty_socket",
        str(tor.directory), "-P", "0", "-u", "root", "-g", "frrvty", stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        secret = Secret(metadata=Metadata(name="tor", namespace="default"), string_data={"key": "hunter2"})
        source = PasswordSource(secret=SecretKey(namespace="default", name="tor", key="key"))
        alone.objects = [secret, tor.peer(password=source, communities=("65000:7",))]
        one.start([one])
        eventually(lambda: one.routes().get("10.244.9.0/24", {}).get("gateway") == tor.address)

        def told() -> bool:
            shown = subprocess.run(
                [
                    "vtysh",
                    "--vty_socket",
                    tor.directory,
                    "-d",
                    "bgpd",
                    "-c",
                    "show bgp ipv4 unicast 10.244.1.0/24",
                ],
                capture_output=True,
                text=True,
            )
            return "Community: 65000:7" in shown.stdout

        eventually(told)
    finally:
        bgpd.kill()
        bgpd.communicate()


def test_no_more_is_taken_of_a_peer_than_is_said(alone: Segment) -> None:
    """What is too much is refused and told; when the peer advertises less, or more may be taken, all is there."""
    (one,) = alone.add(1)
    tor = alone.outside(101)
    every = [f"100.64.{number}.0/24" for number in range(10)]
    tor.start(tor.session(one), tells(*every))
    takes = PrefixRule(cidr="100.64.0.0/10", action="accept", max_length=24)
    alone.objects = [tor.peer(imports=(takes,), max_prefixes=4)]
    one.start([one])
    eventually(lambda: of_peer(one, tor).limit == 4)
    assert len(one.routes()) == of_peer(one, tor).imported == 4
    assert "more than the 4 routes" in of_peer(one, tor).last_error
    tor.start(tor.session(one), tells(*every[7:]))
    eventually(lambda: of_peer(one, tor).imported < 4)
    one.run(one.speaker.refill())
    eventually(lambda: one.routes().keys() == set(every[7:]))
    assert of_peer(one, tor).limit == 0
    tor.start(tor.session(one), tells(*every))
    eventually(lambda: of_peer(one, tor).limit == 4)
    since = of_peer(one, tor).since
    alone.objects = [tor.peer(imports=(takes,), max_prefixes=100)]
    one.follow([one])
    eventually(lambda: one.routes().keys() == set(every))
    assert (of_peer(one, tor).limit, of_peer(one, tor).since) == (0, since)
