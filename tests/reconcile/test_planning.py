"""What is planned step by step, only where something came of it, is what planning everything anew gives."""

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.bgp_peer import BGPPeer, BGPPeerSpec
from podway.api.kinds.ip_pool import Attach, Distribution, Encapsulation, IPPool
from podway.api.kinds.network_config import NatSettings
from podway.api.kinds.node import ACCEPTS, NAT_ADDRESSES, SENDS, Node
from podway.api.lease import Attachment, Lease
from podway.api.meta import Metadata
from podway.api.resource import Resource
from podway.cluster.change import Change
from podway.cluster.view import ClusterView
from podway.plan.changes import KINDS, merged, patched
from podway.plan.changes import Change as Difference
from podway.plan.host_facts import HostFacts
from podway.plan.mtu import pod_mtu
from podway.plan.node import NodeFacts, plan_all, section_of
from podway.plan.objects import NftTable, NodePlan, Route
from podway.plan.uplink import Uplink
from podway.reconcile.planning import Planning
from podway.reconcile.state import NodeState
from podway.reconcile.wanted import Owner, Wanted
from tests import builders

UPLINK = Uplink("eth0", 1500, (ip_interface("172.30.0.1/24"), ip_interface("fd30::1/64")))


NOTE = "example.org/note"


def node(name: str, number: int, modes: str = "vxlan", seen: int = 0, chosen: str = "") -> Node:
    notes = {ACCEPTS: modes, SENDS: modes, NOTE: str(seen), NAT_ADDRESSES: chosen}
    return builders.node(name, f"172.30.0.{number}/24", f"fd30::{number}/64", notes=notes)


def block(number: int, owner: str, version: int = 4) -> AddressBlock:
    cidr = f"10.244.{number}.0/24" if version == 4 else f"fd00:244::{number:x}:0/112"
    return builders.block(cidr, f"ipv{version}", owner)


def pools(
    encapsulation: Encapsulation, distribution: Distribution, attach: Attach = "routed", *, translated: bool = True
) -> list[IPPool]:
    return [
        builders.pool(
            f"ipv{version}",
            cidr,
            block_size=size,
            nat_outgoing=translated,
            encapsulation=encapsulation if version == 4 or encapsulation != "ipip" else "none",
            distribution=distribution,
            attach=attach,
        )
        for version, cidr, size in ((4, "10.244.0.0/16", 24), (6, "fd00:244::/96", 112))
    ]


def lease(number: int, attach: Any = "routed") -> Lease:
    addresses = (ip_address(f"10.244.1.{number}"), ip_address(f"fd00:244::1:{number:x}"))
    return Lease(Attachment(f"c{number}", "eth0"), f"default/{number}", "podway", "/run/x", addresses, attach)


def contents(plan: NodePlan) -> dict[str, dict[Any, Any]]:
    return {field: {obj.key: obj for obj in getattr(plan, field)} for field in KINDS.values()}


class Follower:
    """A node's state and planning, with what the kernel would have after each delta."""

    def __init__(self, encapsulation: Encapsulation, distribution: Distribution) -> None:
        modes = "" if encapsulation == "none" else encapsulation
        objects = [node("here", 1, modes), *pools(encapsulation, distribution), block(1, "here")]
        objects += [
            obj for n in (2, 3, 4) for obj in (node(f"n{n}", n, modes), block(n, f"n{n}"), block(n, f"n{n}", 6))
        ]
        self.state = NodeState("here", ClusterView.of(objects), UPLINK)
        self.state.sent = {} if encapsulation == "none" else {"ipv4": {encapsulation}, "ipv6": {encapsulation}}
        self.planning = Planning()
        self.kernel = NodePlan()
        self.plan()

    def plan(self) -> list[Difference]:
        changes: list[Difference] = []
        while (delta := self.planning.step(self.state.facts())) is not None:
            self.kernel = patched(self.kernel, delta)
            changes += delta
        return changes

    def hear(self, *changed: tuple[Resource, bool]) -> list[Difference]:
        changes: list[Change[Any]] = []
        view = self.state.view
        for obj, deleted in changed:
            changes.append(view.change(obj, deleted=deleted))
            view = view.after(changes[-1])
        self.state.follow(view)
        self.planning.heard(view, "here", changes)
        return self.plan()

    def check(self) -> None:
        anew = contents(plan_all(self.state.facts()))
        assert contents(self.planning.wanted.plan()) == anew
        assert contents(self.kernel) == anew
        for each in self.state.facts().leases.values():
            for field, made in contents(section_of(self.state.wiring(each))).items():
                assert {key: anew[field].get(key) for key in made} == made, "an ADD makes what is planned"


OBJECTS = st.one_of(
    st.builds(
        node,
        st.sampled_from(["n2", "n3", "n9", "here"]),
        st.sampled_from([1, 2, 3, 9]),
        st.sampled_from(["", "vxlan", "ipip", "ipip,vxlan"]),
        st.integers(0, 3),
        st.sampled_from(["", "192.0.2.7", "192.0.2.7,2001:db8::7"]),
    ),
    st.builds(
        block, st.sampled_from([1, 2, 3, 9]), st.sampled_from(["n2", "n3", "n9", "here"]), st.sampled_from([4, 6])
    ),
    st.just(builders.block("10.244.0.0/16", "ipv4", "n3")),
    st.sampled_from(
        [
            pool
            for encapsulation in ("none", "vxlan", "ipip")
            for distribution in ("store", "bgp")
            for attach in get_args(Attach)
            for translated in (True, False)
            for pool in pools(encapsulation, distribution, attach, translated=translated)
        ]
    ),
    st.sampled_from(
        [
            builders.config(),
            builders.config(nat=NatSettings(excluded=("198.51.100.0/24", "2001:db8::/32"))),
            builders.config(service_cidrs=("10.96.0.0/12",)),
        ]
    ),
    st.just(BGPPeer(metadata=Metadata(name="tor"), spec=BGPPeerSpec(address="172.30.0.254", asn=65001))),
)
"""Objects that come, change, go; two nodes may say that they have the same address, two own one range."""

STEPS = st.one_of(
    st.tuples(st.just("objects"), st.lists(st.tuples(OBJECTS, st.booleans()), min_size=1, max_size=3)),
    st.tuples(st.just("host"), st.sampled_from(["", "1", "2"])),
    st.tuples(st.just("uplink"), st.sampled_from([1400, 1500, 9000])),
    st.tuples(st.just("sent"), st.sampled_from(["none", "vxlan", "ipip"])),
    st.tuples(st.just("transitional"), st.sets(st.sampled_from([2, 3, 4]))),
    st.tuples(st.just("lingering"), st.sets(st.sampled_from(["ipv4", "ipv6"]))),
    st.tuples(st.just("withdrawn"), st.booleans()),
    st.tuples(st.just("pod"), st.tuples(st.integers(2, 4), st.sampled_from(["routed", "bridge"]))),
    st.tuples(st.just("gone"), st.integers(2, 4)),
)


def take(follower: Follower, what: str, value: Any) -> None:
    state = follower.state
    match what:
        case "objects":
            follower.hear(*value)
        case "host":
            state.host = HostFacts(all_rp_filter=value, accept_ra=value)
        case "uplink":
            state.uplink = Uplink("eth0", value, UPLINK.addresses)
        case "sent":
            state.sent = {"ipv4": {value}}
        case "transitional":
            state.transitional = frozenset(ip_network(f"10.244.{number}.0/24") for number in value)
        case "lingering":
            state.lingering = frozenset(value)
        case "withdrawn":
            state.withdraw({ip_network("10.244.1.0/24")} if value else set())
        case "pod":
            held = lease(*value)
            state.leases.pop(held.attachment, None)
            state.facts()
            follower.planning.look(state.facts())
            state.leases[held.attachment] = held
        case "gone":
            state.leases.pop(lease(value).attachment, None)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([("vxlan", "store"), ("none", "store"), ("none", "bgp"), ("ipip", "bgp")]),
    st.lists(STEPS, max_size=8),
)
def test_step_by_step_is_as_anew(kind: tuple[Encapsulation, Distribution], steps: list[tuple[str, Any]]) -> None:
    follower = Follower(*kind)
    follower.check()
    for what, value in steps:
        take(follower, what, value)
        gone = set(contents(follower.planning.wanted.plan())["links"])
        follower.plan()
        # What stands on the link of a pod that left goes with it, and what it had elsewhere by its release.
        left = gone - set(contents(follower.planning.wanted.plan())["links"])
        if left or what in {"pod", "gone"}:
            follower.kernel = follower.planning.wanted.plan()
        follower.check()


def test_a_node_that_leaves_takes_its_entries_and_routes_along_and_no_others() -> None:
    delta = Follower("vxlan", "store").hear((node("n3", 3), True))
    assert {(change.kind, change.action) for change in delta} == {
        ("neighbour", "remove"),
        ("forwarding entry", "remove"),
        ("route", "remove"),
        ("nft element", "remove"),
    }
    # A neighbour, a forwarding entry, two routes; two addresses that pods may not tunnel to; the node as a sender
    # of tunnelled packets, and what it may send from: two addresses, two blocks, which themselves are still there;
    # two addresses to which pods' packets are not translated.
    assert len(delta) == 2 + 2 + 2 + 1 + 4 + 2


def test_a_node_that_joins_costs_one_element_a_family_where_nothing_is_encapsulated() -> None:
    follower = Follower("none", "bgp")
    assert [(str(change.want), change.have) for change in follower.hear((node("n9", 9, ""), False))] == [
        ("element 172.30.0.9 of nft set ip podway-nat nodes", None),
        ("element fd30::9 of nft set ip6 podway-nat nodes", None),
    ]
    moved = follower.hear((node("n9", 8, ""), False))
    assert {(change.action, change.key.fields[0]) for change in moved} == {
        ("add", "172.30.0.8"),
        ("add", "fd30::8"),
        ("remove", "172.30.0.9"),
        ("remove", "fd30::9"),
    }


def test_translation_begins_when_all_nodes_are_known_and_ends_before_they_are_forgotten() -> None:
    follower = Follower("none", "bgp")
    off = follower.hear(*((pool, False) for pool in pools("none", "bgp", translated=False)))
    assert [(change.action, change.kind) for change in off] == [("replace", "nft table")] * 2
    assert not any("chain" in change.want.body for change in off)
    first = Planning()
    state = Follower("none", "bgp").state
    order = []
    while (delta := first.step(state.facts())) is not None:
        order += [change.want for change in delta if getattr(change.want, "table", "") == "podway-nat"]
        order += [change.want for change in delta if getattr(change.want, "name", "") == "podway-nat"]
    tables = [number for number, obj in enumerate(order) if isinstance(obj, NftTable)]
    assert len(tables) == 4
    assert tables == [0, 1, len(order) - 2, len(order) - 1]
    assert ["chain" in order[number].body for number in tables] == [False, False, True, True]


def test_a_note_that_alters_nothing_plans_nothing() -> None:
    follower = Follower("vxlan", "store")
    before = follower.planning.wanted.plan()
    assert follower.hear((node("n2", 2, seen=7), False), (node("here", 1, seen=7), False)) == []
    assert follower.planning.wanted.plan() is before
    assert follower.state.view.nodes["n2"].metadata.annotations[NOTE] == "7"


def test_a_block_of_ones_own_is_no_other_nodes_affair() -> None:
    follower = Follower("none", "store")
    assert [str(change.want) for change in follower.hear((block(9, "here"), False))] == [
        "route 10.244.9.0/24 blackhole"
    ]


def test_facts_stay_the_same_object_while_nothing_changes() -> None:
    state = Follower("none", "store").state
    assert state.facts() is state.facts()
    state.leases[lease(2).attachment] = lease(2)
    one = state.facts()
    assert one.leases.keys() == {lease(2).attachment}
    state.leaving.add(lease(2).attachment)
    assert state.facts().leases == {}
    assert one.leases.keys() == {lease(2).attachment}


def test_another_nodes_address_may_alter_the_mtu_of_pods() -> None:
    """A node of IPv4 alone holds nothing for one of IPv6 alone, but its pods' MTU is that of the whole cluster."""

    def with_addresses(name: str, *interfaces: str) -> Node:
        return builders.node(name, *interfaces, notes={ACCEPTS: "vxlan", SENDS: "vxlan"})

    here = with_addresses("here", "172.30.0.1/24")
    both, six = with_addresses("n2", "172.30.0.2/24", "fd30::2/64"), with_addresses("n2", "fd30::2/64")
    before = ClusterView.of([here, both, *pools("vxlan", "store")])
    change = before.change(six)
    after = before.after(change)
    uplink = Uplink("eth0", 1500, here.interface_addresses)
    assert (pod_mtu(before, uplink), pod_mtu(after, uplink)) == (1450, 1430)
    planning, leases = Planning(), {lease(2).attachment: lease(2)}
    for view in (before, after):
        planning.heard(view, "here", [change])
        while planning.step(NodeFacts(view, "here", uplink, leases)) is not None:
            pass
        assert [link.mtu for link in planning.wanted.plan().links] == [pod_mtu(view, uplink)]


ROUTES = st.builds(
    Route,
    st.sampled_from([ip_network("10.0.0.0/24"), ip_network("10.0.1.0/24")]),
    device=st.sampled_from(["a", "b"]),
)


@given(
    st.lists(
        st.tuples(st.builds(Owner, st.integers(0, 2), st.sampled_from(["x", "y"])), st.lists(ROUTES, max_size=3)),
        max_size=12,
    )
)
def test_what_several_want_stays_while_one_wants_it_and_the_last_has_its_way(steps: list[Any]) -> None:
    wanted, sections, kernel = Wanted(), {}, NodePlan()
    for owner, routes in steps:
        section = NodePlan(routes=tuple({route.key: route for route in routes}.values()))
        changes = wanted.put(owner, section)
        sections[owner] = section
        expected = contents(merged(sections[each] for each in sorted(sections)))
        kernel = patched(kernel, changes)
        assert contents(kernel) == contents(wanted.plan()) == expected
        assert not any(change.have == change.want for change in changes)


def test_an_add_makes_what_is_planned_while_a_block_is_on_its_way_back() -> None:
    """All ports of the bridge have one MTU: of the blocks that stay, whose packets are not made longer."""
    follower = Follower("none", "store")
    tunnelled = builders.pool("far", "10.9.0.0/16", encapsulation="vxlan", attach="bridge")
    own = builders.block("10.9.1.0/24", "far", "here")
    bridged = [(pool, False) for pool in pools("none", "store", "bridge")]
    follower.hear(*bridged, (tunnelled, False), (own, False))
    port = Lease(Attachment("c2", "eth0"), "default/2", "podway", "/run/x", (ip_address("10.244.1.2"),), "bridge")
    assert follower.state.wiring(port).link.mtu < UPLINK.mtu
    follower.state.withdraw({own.network})
    assert follower.state.wiring(port).link.mtu == UPLINK.mtu
    follower.state.leases[port.attachment] = port
    follower.plan()
    follower.check()
