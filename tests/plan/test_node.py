from ipaddress import ip_address, ip_interface, ip_network

import msgspec

from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.network_config import NetworkConfigSpec
from podway.api.lease import ALIAS_BYTES, MAX_CONTAINER_ID, Attachment, Lease
from podway.cluster.change import Change
from podway.cluster.view import ClusterView
from podway.plan.host_facts import HostFacts
from podway.plan.mtu import pod_mtu
from podway.plan.node import plan_node
from podway.plan.objects import Route
from podway.plan.uplink import Uplink
from tests import builders

UPLINK = Uplink("eth0", 9000, (ip_interface("172.30.0.2/24"), ip_interface("fd30::2/64")))


def block(cidr: str, owner: str) -> AddressBlock:
    return builders.block(cidr, "default", owner)


def lease(container: str = "c1", *addresses: str) -> Lease:
    return Lease(
        Attachment(container, "eth0"),
        "default/web",
        "podway",
        "/run/netns/x",
        tuple(map(ip_address, addresses)),
    )


def test_a_node_blackholes_its_own_blocks_only() -> None:
    view = ClusterView.of([block("10.244.0.0/24", "a"), block("10.244.1.0/24", "b"), block("fd00::/122", "a")])
    plan = plan_node(view, "a", UPLINK, [])
    assert [str(r.destination) for r in plan.routes] == ["10.244.0.0/24", "fd00::/122"]
    assert {r.type for r in plan.routes} == {"blackhole"}


def test_a_dual_stack_pod_has_one_route_an_address_from_the_nodes_own_address() -> None:
    plan = plan_node(ClusterView.of([]), "a", UPLINK, [lease("c1", "10.244.0.2", "fd00::2")])
    link = plan.links[0].name
    assert plan.routes == (
        Route(ip_network("10.244.0.2/32"), device=link, source=ip_address("172.30.0.2"), scope="link"),
        Route(ip_network("fd00::2/128"), device=link, source=ip_address("fd30::2")),
    )
    assert {n.mac for n in plan.neighbours} == {Attachment("c1", "eth0").mac}


def test_the_view_follows_events() -> None:
    view = ClusterView.of([]).after(Change.of(None, block("10.244.0.0/24", "a")))
    assert len(view.blocks_of("a")) == 1
    moved = view.after(view.change(block("10.244.0.0/24", "b")))
    assert not moved.blocks_of("a")
    assert not moved.after(moved.change(block("10.244.0.0/24", "b"), deleted=True)).blocks


def test_pod_mtu_is_the_uplinks_unless_the_cluster_wants_less() -> None:
    view = ClusterView.of([])
    assert pod_mtu(view, UPLINK) == 9000
    assert pod_mtu(msgspec.structs.replace(view, config=NetworkConfigSpec(mtu=1400)), UPLINK) == 1400
    assert pod_mtu(msgspec.structs.replace(view, config=NetworkConfigSpec(mtu=9500)), UPLINK) == 9000


def test_a_lease_reads_back_from_what_the_kernel_keeps() -> None:
    original = lease("a.b-c_d", "10.244.0.2")
    assert Lease.from_kernel(original.attachment.altname, original.alias, ("10.244.0.2",)) == original
    assert Lease.from_kernel("eth0", "", ()) is None
    nameless = Lease(Attachment("x", "net1"), "", "podway", "/run/a path", ())
    assert Lease.from_kernel(nameless.attachment.altname, nameless.alias, ()) == nameless


def test_names_that_are_too_long_for_the_kernel_are_cut_and_stay_distinct() -> None:
    long = [
        Lease(Attachment("c", "eth0"), f"{'n' * 63}/{'p' * 252}{last}", "podway", "/run/netns/x", ())
        for last in "12"
    ]
    aliases = {one.alias for one in long}
    assert len(aliases) == 2
    assert all(len(alias) <= ALIAS_BYTES for alias in aliases)
    widest = Attachment("c" * MAX_CONTAINER_ID, "i" * 15)
    assert len(widest.altname) == 127
    assert len(widest.link) == 15


def test_ipv4_needs_a_rule_against_spoofing_only_where_the_host_is_loose() -> None:
    view = ClusterView.of([])
    for value, early in (("0", {"ip6"}), ("1", {"ip6"}), ("2", {"ip", "ip6"})):
        tables = plan_node(view, "a", UPLINK, [], facts=HostFacts(all_rp_filter=value)).tables
        chains = {table.family: table.body.partition("chain pod {")[2] for table in tables}
        assert {family for family, chain in chains.items() if "fib saddr" in chain} == early


def test_an_uplink_that_listens_to_routers_goes_on_doing_so_when_it_forwards() -> None:
    view = ClusterView.of([])
    path = "net/ipv6/conf/eth0/accept_ra"
    for value, wanted in (("0", None), ("1", "2"), ("2", None)):
        sysctls = {
            s.path: s.value for s in plan_node(view, "a", UPLINK, [], facts=HostFacts(accept_ra=value)).sysctls
        }
        assert sysctls.get(path) == wanted
    ipv4_only = Uplink("eth0", 1500, UPLINK.addresses[:1])
    assert path not in {
        s.path for s in plan_node(view, "a", ipv4_only, [], facts=HostFacts(accept_ra="1")).sysctls
    }
