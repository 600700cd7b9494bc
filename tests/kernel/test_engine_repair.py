"""Tampering with each kind of object, and putting it right; what is not ours stays as it is."""

import contextlib
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, ip_address, ip_interface, ip_network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.api.addresses import Family
from podway.api.lease import Attachment, Lease
from podway.kernel.netlink import constants as c
from podway.kernel.netlink.connection import messages, open_socket
from podway.kernel.node import Kernel
from podway.kernel.rtnl import addresses, links, routes
from podway.plan.changes import Change, compare
from podway.plan.objects import LinkAddress, Neighbour, NftTable, NodePlan, Route, Sysctl
from podway.plan.wiring import wire
from tests.namespaces import TestNamespace

V4, V6 = ip_address("10.244.1.7"), ip_address("fd00:10:244::7")
NODE = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
LEASE = Lease(Attachment("c0ffee", "eth0"), "default/web", "podway", "/run/netns/x", (V4, V6))
POD = LEASE.attachment.link
TABLE = NftTable(
    "inet",
    "podway",
    """
    set blocked { type ipv4_addr; flags interval; elements = { 10.9.0.0/16, 10.3.0.0/24 } }
    map verdicts { type ipv4_addr : verdict; elements = { 10.0.0.2 : accept, 10.0.0.1 : drop } }
    set seen { type ipv4_addr; size 100; flags dynamic; }
    chain forward {
        type filter hook forward priority 0; policy accept;
        ip saddr @blocked counter drop
        ip daddr 10.244.0.0/16 tcp dport { 443, 80 } counter accept comment "web"
        add @seen { ip saddr }
        ip saddr vmap @verdicts
    }
    """,
)


@given(st.dictionaries(st.integers(), st.integers()), st.dictionaries(st.integers(), st.integers()))
def test_carrying_out_all_changes_makes_the_one_into_the_other(have: dict[int, int], want: dict[int, int]) -> None:
    result = dict(have)
    for change in compare("number", have, want):
        assert change.have != change.want
        if change.action == "remove":
            del result[change.key]
        else:
            assert (change.action == "replace") == (change.key in have)
            result[change.key] = change.want
    assert result == want


@given(st.dictionaries(st.integers(), st.integers()), st.dictionaries(st.integers(), st.integers()))
def test_a_kind_that_is_only_mended_is_never_made_or_removed(have: dict[int, int], want: dict[int, int]) -> None:
    changes = list(compare("number", have, want, repairs_only=True))
    assert {change.action for change in changes} <= {"replace"}


@pytest.fixture
def kernel(node: TestNamespace) -> Iterator[Kernel]:
    with Kernel.open(node.fd) as kernel:
        kernel.connection.transact(
            [addresses.add(LinkAddress("lo", ip_interface(address)), links.LOOPBACK) for address in NODE]
        )
        yield kernel


@pytest.fixture
def plan(kernel: Kernel, pod: TestNamespace) -> NodePlan:
    """A node with one pod, blackholes for its blocks, settings and a table: applied."""
    wiring = wire(LEASE, mtu=1500, node_addresses=NODE)
    kernel.wire(wiring, pod.fd)
    plan = NodePlan(
        links=(wiring.link,),
        addresses=(*wiring.addresses, LinkAddress("lo", ip_interface("192.0.2.9/32"))),
        neighbours=wiring.neighbours,
        sysctls=(*wiring.sysctls, Sysctl("net/ipv4/ip_forward", "1"), Sysctl("net/ipv4/ping_group_range", "0 10")),
        routes=(
            *wiring.routes,
            Route(ip_network("10.244.1.0/24"), "blackhole"),
            Route(ip_network("fd00:10:244::/64"), "blackhole"),
        ),
        tables=(TABLE,),
    )
    report = kernel.apply(plan)
    assert report.failures == ()
    return plan


@pytest.mark.kernel
def test_a_correct_node_costs_no_write_not_even_for_a_new_agent(
    kernel: Kernel, node: TestNamespace, plan: NodePlan
) -> None:
    before = kernel.writes
    assert kernel.diff(plan) == []
    assert kernel.apply(plan).changes == ()
    assert kernel.writes == before
    with Kernel.open(node.fd) as again:
        assert again.apply(plan).changes == ()
        assert again.writes == 0


TAMPERINGS = {
    f"ip link set {POD} mtu 1400": f"link {POD} was altered (mtu 1400, not 1500): put right",
    f"ip link set {POD} address 02:00:00:00:00:99": "(mac 02:00:00:00:00:99, not 02:70:77:61:79:01)",
    f"ip link set {POD} group 5": "(group 5, not",
    f"ip link set {POD} alias nonsense": "(alias nonsense, not default/web podway /run/netns/x)",
    f"ip link property del dev {POD} altname {LEASE.attachment.altname}": "(altname none, not pod.c0ffee:eth0)",
    f"ip link set {POD} down": "(up no, not yes)",
    f"ip link set {POD} down; ip link set {POD} name renamed; ip link set renamed up": "(name renamed, not",
    f"ip addr del 169.254.1.1/32 dev {POD}": f"address 169.254.1.1/32 on {POD} was missing: added",
    f"ip -6 addr del fe80::1/128 dev {POD}": f"address fe80::1/128 on {POD} was missing: added",
    f"ip addr add 10.9.9.9/32 dev {POD}": f"address 10.9.9.9/32 on {POD} was not in the plan: removed",
    "ip addr del 192.0.2.9/32 dev lo": "address 192.0.2.9/32 on lo was missing: added",
    f"ip neigh del {V4} dev {POD}": f"neighbour {V4} on {POD} was missing: added",
    f"ip neigh replace {V6} lladdr 02:00:00:00:00:99 dev {POD}": "(mac 02:00:00:00:00:99, not",
    f"ip neigh add 10.9.9.9 lladdr 02:00:00:00:00:99 dev {POD}": "neighbour 10.9.9.9",
    f"ip route del {V4}": f"route {V4}/32 dev {POD} src 192.0.2.1",
    f"ip -6 route del {V6}": f"route {V6}/128 dev {POD} src 2001:db8::1",
    f"ip route replace {V4} dev lo proto 112": f"route {V4}/32 dev {POD}",
    f"ip -6 route replace {V6} dev lo proto 112": f"route {V6}/128 dev {POD}",
    f"ip route change {V4} dev {POD} proto 112 scope link src 192.0.2.1 mtu 999": "(mtu 999, not 0)",
    f"ip -6 route change {V6} dev {POD} proto 112 mtu 1300": "mtu 1300, not 0)",
    "ip route del blackhole 10.244.1.0/24": "route 10.244.1.0/24 blackhole",
    "ip -6 route del blackhole fd00:10:244::/64": "route fd00:10:244::/64 blackhole",
    "ip -6 route replace unreachable fd00:10:244::/64 proto 112": "(type unreachable, not blackhole)",
    "ip route replace 10.244.1.0/24 dev lo proto 112": "route 10.244.1.0/24 blackhole",
    "ip -6 route replace fd00:10:244::/64 dev lo proto 112": "route fd00:10:244::/64 blackhole",
    "ip route add 10.7.0.0/16 dev lo proto 112": "route 10.7.0.0/16 dev lo was not in the plan: removed",
    "ip route add 10.7.0.0/16 dev lo proto 112 table 99 tos 0x10": "was not in the plan: removed",
    f"ip route append {V4} dev lo proto 112": "was not in the plan: removed",
    f"ip -6 route append fd00:7::/64 via fe80::7 dev {POD} proto 112": "was not in the plan: removed",
    "ip -6 route add fd00:8::/64 proto 112 "
    f"nexthop via fe80::7 dev {POD} nexthop via fe80::8 dev {POD}": "was not in the plan: removed",
    f"echo 0 > /proc/sys/net/ipv4/conf/{POD}/rp_filter": "rp_filter was altered (value 0, not 1)",
    "echo 0 > /proc/sys/net/ipv4/ip_forward": "sysctl net/ipv4/ip_forward",
    "nft delete table inet podway": "nft table inet podway was missing: added",
    "nft flush chain inet podway forward": "nft table inet podway was altered",
    "nft add element inet podway blocked '{ 10.4.0.0/16 }'": "nft table inet podway was altered",
    "nft delete element inet podway verdicts '{ 10.0.0.1 : drop }'": "nft table inet podway was altered",
    "nft insert rule inet podway forward accept": "nft table inet podway was altered",
    "nft add table ip podway": "nft table ip podway was not in the plan: removed",
}


@pytest.mark.kernel
@pytest.mark.parametrize("command", TAMPERINGS)
def test_tampering_is_found_told_and_put_right(
    kernel: Kernel, node: TestNamespace, plan: NodePlan, command: str
) -> None:
    node.sh(command)
    before = kernel.writes
    assert TAMPERINGS[command] in "\n".join(map(str, kernel.diff(plan)))
    assert kernel.writes == before
    report = kernel.apply(plan)
    assert report.failures == ()
    assert TAMPERINGS[command] in "\n".join(map(str, report.changes))
    assert kernel.diff(plan) == []
    assert kernel.leases() == [LEASE]
    with node.udp(NODE[0]) as sock:
        assert sock  # the node's own address outlived the repair


@pytest.mark.kernel
def test_what_a_change_takes_along_is_told_apart_from_what_somebody_did(
    kernel: Kernel, node: TestNamespace, plan: NodePlan
) -> None:
    address = LinkAddress(POD, ip_interface("169.254.1.1/32"))
    without = msgspec.structs.replace(plan, addresses=tuple(each for each in plan.addresses if each != address))
    node.sh("ip route del blackhole 10.244.1.0/24; nft add table ip podway")
    report = kernel.carry_out([Change("address", address.key, address, None)], lambda: without, removes=False)
    assert report.failures == ()
    assert [str(change) for change in report.found] == ["route 10.244.1.0/24 blackhole was missing: added"]
    # With its last IPv4 address the link loses its IPv4 routes.
    assert f"route {V4}/32 dev {POD} src 192.0.2.1 was missing: added" in map(str, report.changes)
    assert [str(change) for change in kernel.diff(without)] == ["nft table ip podway was not in the plan: removed"]


@pytest.mark.kernel
@pytest.mark.parametrize(
    "routes", [f"ip route del {V4}", f"ip -6 route del {V6}", f"ip route del {V4}; ip -6 route del {V6}"]
)
def test_a_lease_outlives_its_host_routes(
    kernel: Kernel, node: TestNamespace, plan: NodePlan, routes: str
) -> None:
    node.sh(f"{routes}; ip neigh add 10.9.9.9 lladdr 02:00:00:00:00:99 dev {POD} nud permanent")
    assert kernel.leases() == [LEASE]
    assert kernel.apply(plan).failures == ()
    assert kernel.leases() == [LEASE]


FOREIGN = """
    ip link add foreign type veth peer name far; ip link set foreign up; ip link set far up
    ip link set foreign group 5 alias "somebody else's" mtu 1300
    ip addr add 198.51.100.1/24 dev foreign; ip -6 addr add 2001:db8:9::1/64 dev foreign nodad
    ip neigh add 198.51.100.9 lladdr 02:00:00:00:00:09 dev foreign
    ip route add 10.6.0.0/16 dev foreign; ip route add 10.5.0.0/16 dev foreign proto bird metric 32
    ip route add blackhole 10.4.0.0/16 proto static; ip -6 route add blackhole fd99::/64 proto static
    ip route add 10.3.0.0/16 dev foreign table 200
    nft add table inet other; nft add table ip podway2; nft add chain inet other c
    echo 1 > /proc/sys/net/ipv4/conf/foreign/rp_filter
    ip link add pwaynotours type veth peer name far2
"""
LOOK = """
    for dev in foreign far pwaynotours; do ip -o link show $dev; ip -o addr show $dev; done
    ip neigh show nud permanent dev foreign
    ip route show table all | grep -v 'proto 112\\|^local\\|^broadcast\\|pway'
    ip -6 route show table all | grep -v 'proto 112\\|^local\\|^multicast\\|^anycast\\|pway'
    nft list table inet other; nft list table ip podway2
    cat /proc/sys/net/ipv4/conf/foreign/rp_filter
"""


@pytest.mark.kernel
def test_what_lacks_our_mark_is_never_touched(kernel: Kernel, node: TestNamespace, plan: NodePlan) -> None:
    node.sh(FOREIGN)
    before = node.sh(LOOK)
    assert kernel.diff(plan) == []
    empty = NodePlan()
    report = kernel.apply(empty)
    assert report.failures == ()
    assert {change.kind for change in report.changes} == {"route", "nft table"}
    assert node.sh(LOOK) == before
    assert "192.0.2.9/32" in node.sh("ip addr show lo")  # an address on a link of others has no mark


@pytest.mark.kernel
def test_a_pod_wired_after_the_plan_was_made_is_left_alone(
    kernel: Kernel, plan: NodePlan, new_netns: Callable[[], TestNamespace]
) -> None:
    later = Lease(
        Attachment("beef", "eth0"), "default/late", "podway", "/run/netns/y", (ip_address("10.244.1.8"),)
    )
    wiring = wire(later, mtu=1500, node_addresses=NODE)
    kernel.wire(wiring, new_netns().fd)
    assert kernel.apply(plan).changes == ()
    own = NodePlan(
        links=(wiring.link,),
        addresses=wiring.addresses,
        neighbours=wiring.neighbours,
        sysctls=wiring.sysctls,
        routes=wiring.routes,
    )
    assert [c for c in kernel.diff(own) if c.action != "remove"] == []
    assert later in kernel.leases()


@pytest.mark.kernel
def test_a_foreign_route_in_our_place_is_a_failure_and_stays(kernel: Kernel, node: TestNamespace) -> None:
    node.sh("ip route add 10.244.1.0/24 dev lo proto static")
    plan = NodePlan(
        routes=(Route(ip_network("10.244.1.0/24"), "blackhole"), Route(ip_network("10.244.2.0/24"), "blackhole"))
    )
    report = kernel.apply(plan)
    assert [str(change) for change in report.changes] == ["route 10.244.2.0/24 blackhole was missing: added"]
    (failure,) = report.failures
    assert "add route 10.244.1.0/24 blackhole" in str(failure)
    assert "proto static" in node.sh("ip route show 10.244.1.0/24")


@pytest.mark.kernel
def test_one_failure_does_not_stop_the_rest(kernel: Kernel, plan: NodePlan) -> None:
    spoiled = msgspec.structs.replace(
        plan,
        addresses=(*plan.addresses, LinkAddress("nosuch", ip_interface("10.1.1.1/32"))),
        neighbours=(*plan.neighbours, Neighbour("nosuch", ip_address("10.1.1.1"), "02:00:00:00:00:01")),
        routes=(
            *plan.routes,
            Route(ip_network("10.1.1.1/32"), device="nosuch"),
            Route(ip_network("10.1.2.0/24"), gateway=ip_address("203.0.113.1")),
            Route(ip_network("10.1.3.0/24"), "blackhole"),
        ),
        sysctls=(*plan.sysctls, Sysctl("net/ipv4/nosuch", "1")),
        tables=(msgspec.structs.replace(TABLE, body="chain broken { nonsense }"),),
    )
    report = kernel.apply(spoiled)
    assert [str(change) for change in report.changes] == ["route 10.1.3.0/24 blackhole was missing: added"]
    told = "\n".join(map(str, report.failures))
    assert len(report.failures) == 6
    for words in ("address 10.1.1.1/32 on nosuch", "neighbour 10.1.1.1", "dev nosuch", "via 203.0.113.1"):
        assert words in told
    assert "net/ipv4/nosuch" in told
    assert "load nft table inet podway" in told
    assert "syntax error" in told
    assert kernel.diff(plan) == kernel.diff(plan)


@pytest.mark.kernel
def test_a_refused_table_leaves_the_old_one_in_place(kernel: Kernel, node: TestNamespace, plan: NodePlan) -> None:
    before = node.sh("nft list table inet podway")
    broken = msgspec.structs.replace(TABLE, body="chain c { jump nowhere\n }")
    assert kernel.apply(msgspec.structs.replace(plan, tables=(broken,))).failures
    assert node.sh("nft list table inet podway") == before


@pytest.mark.kernel
def test_a_table_that_the_kernel_does_not_take_keeps_no_other_from_standing(
    kernel: Kernel, node: TestNamespace, plan: NodePlan
) -> None:
    lacking = NftTable("ip", "podway-nat", "chain c { type filter hook output priority 0; no such expression; }")
    report = kernel.apply(msgspec.structs.replace(plan, tables=(lacking, TABLE)))
    (failure,) = report.failures
    assert "podway-nat" in failure.message
    assert "chain forward" in node.sh("nft list table inet podway")
    assert "podway-nat" not in node.sh("nft list tables")


@pytest.mark.kernel
def test_packets_that_pass_are_no_drift(kernel: Kernel, node: TestNamespace, plan: NodePlan) -> None:
    """Counters count and dynamic sets fill: neither was altered by anybody."""
    node.sh("nft add element inet podway seen '{ 10.0.0.9 }'")
    assert kernel.diff(plan) == []


@pytest.mark.kernel
def test_ten_thousand_routes_are_compared_and_mended(kernel: Kernel, node: TestNamespace) -> None:
    plan = NodePlan(
        routes=tuple(Route(IPv4Network((0x0B000000 + (i << 8), 24)), "blackhole") for i in range(10_000))
    )
    assert len(kernel.apply(plan).changes) == 10_000
    node.sh("ip route del blackhole 11.0.5.0/24; ip route del blackhole 11.1.0.0/24")
    assert len(kernel.apply(plan).changes) == 2
    assert kernel.diff(plan) == []
    assert len(kernel.apply(NodePlan()).changes) == 10_000
    assert node.sh("ip route show proto 112") == ""


@pytest.mark.kernel
@pytest.mark.parametrize("family", Family)
def test_what_makes_packets_unreachable_comes_behind_the_way_and_goes_ahead_of_it(
    kernel: Kernel, node: TestNamespace, family: Family
) -> None:
    """It stands between our way and another's: a packet that met it in the middle of a change would be lost."""
    node.sh("ip link add wire type veth peer far; ip link set far up; ip link set wire up")
    pool = {Family.IPV4: "10.244.{}.0/24", Family.IPV6: "fd00:244:{}::/64"}[family]
    blocks = [ip_network(pool.format(number)) for number in (2, 3)]
    ways = [Route(block, device="wire", metric=30) for block in blocks]
    guards = [Route(block, "unreachable", metric=31) for block in blocks]
    group = {Family.IPV4: c.RTNLGRP_IPV4_ROUTE, Family.IPV6: c.RTNLGRP_IPV6_ROUTE}[family]
    with open_socket(c.NETLINK_ROUTE, node.fd) as told:
        told.setsockopt(c.SOL_NETLINK, c.NETLINK_ADD_MEMBERSHIP, group)
        told.setblocking(False)  # the kernel tells before it acknowledges

        def order() -> list[int | None]:
            found = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    found += [routes.read(each) for each in messages(told.recv(1 << 16))]
            return [record.metric for record in found if record.destination in blocks]

        assert kernel.apply(NodePlan(routes=(*guards, *ways))).failures == ()
        assert order() == [30, 30, 31, 31]
        assert kernel.apply(NodePlan()).failures == ()
        assert order() == [31, 31, 30, 30]
