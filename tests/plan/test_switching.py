"""How nodes go from one encapsulation to another: every order of events, with nodes that act on old news."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podway.api.kinds.node import ACCEPTS, SENDS, Node
from podway.api.meta import Metadata
from podway.cluster.change import Change
from podway.cluster.view import ClusterView
from podway.plan.changes import between
from podway.plan.fabric import (
    DEVICES,
    TunnelMode,
    accepted_modes,
    desired_mode,
    mode_of_device,
    mode_to,
    planned_modes,
    pool_modes,
    possible_modes,
    required_modes,
    share_underlay,
)
from podway.plan.learned import METRIC as BIRD_METRIC
from podway.plan.node import plan_node
from podway.plan.objects import NodePlan, Route
from podway.plan.switching import (
    InstalledModes,
    concerns,
    impossible,
    lingering,
    missing_modes,
    missing_routes,
    modes_to_advertise,
    needs_look,
    redirected,
    sent_modes,
    unconverged,
    waiting,
)
from podway.plan.uplink import Uplink
from tests.plan.test_fabric import block, node, pool, view

HERE = node("here", "172.30.1.1/24", accepts="vxlan", sends="vxlan")
THERE = node("there", "172.30.1.2/24", accepts="vxlan", sends="vxlan")
BLOCK = "10.244.2.0/24"
NETWORK = ip_network(BLOCK)
UPLINK = Uplink("eth0", 1500, HERE.interface_addresses)


def cluster(**spec: Any) -> ClusterView:
    one = pool(**spec)
    return view(HERE, THERE, one, block(BLOCK, "there", one))


def test_a_block_is_bridged_while_birds_route_has_another_form() -> None:
    wanted = cluster(encapsulation="vxlan")
    assert unconverged(wanted, "here", InstalledModes(learned={NETWORK: "none"})) == {NETWORK}
    assert (
        unconverged(wanted, "here", InstalledModes(learned={NETWORK: "vxlan"}, own={NETWORK: "vxlan"}))
        == frozenset()
    )


def test_a_block_keeps_the_stores_route_until_bird_has_one() -> None:
    wanted = cluster()
    assert unconverged(wanted, "here", InstalledModes(own={NETWORK: "none"})) == {NETWORK}
    assert unconverged(wanted, "here", InstalledModes()) == frozenset(), (
        "a block of which nobody told yet is no change"
    )
    assert unconverged(cluster(distribution="store"), "here", InstalledModes(own={NETWORK: "none"})) == frozenset()


def test_pools_linger_while_birds_routes_stand_whatever_way_they_lead() -> None:
    told = cluster(distribution="store", encapsulation="vxlan")
    assert lingering(told, InstalledModes(learned={NETWORK: "none"})) == set(told.pools)
    assert lingering(told, InstalledModes(learned={NETWORK: "vxlan"})) == set(told.pools)
    assert lingering(told, InstalledModes(own={NETWORK: "vxlan"})) == frozenset()
    assert lingering(cluster(encapsulation="vxlan"), InstalledModes(learned={NETWORK: "none"})) == frozenset()


def test_only_a_change_of_other_nodes_needs_no_look_at_all_routes() -> None:
    one = pool()
    other, own = (
        Change.of(node(name, "172.30.1.2/24"), node(name, "172.30.1.2/24", accepts="vxlan"))
        for name in ("there", "here")
    )
    came = Change.of(None, THERE)
    assert [needs_look("here", [change]) for change in (other, came, own, Change.of(None, one))] == [
        *(False, False),
        *(True, True),
    ]


MODE_SETS = st.sets(st.sampled_from(["vxlan", "ipip"])).map(lambda modes: ",".join(sorted(modes)))


@given(
    accepts=MODE_SETS,
    sends=MODE_SETS,
    spec=st.fixed_dictionaries(
        {
            "encapsulation": st.sampled_from(["vxlan", "ipip"]),
            "when": st.sampled_from(["always", "cross-subnet"]),
            "distribution": st.sampled_from(["bgp", "store"]),
        }
    ),
    lost=st.booleans(),
)
def test_no_device_that_goes_leaves_a_block_to_birds_route_from_before(
    accepts: str, sends: str, spec: dict[str, Any], lost: bool
) -> None:
    """Take all overlay devices away from a kernel that has BIRD's bare route still, with ours ahead of it."""
    here = node("here", "172.30.1.1/24", accepts=accepts, sends=sends)
    one = pool(**spec)
    there = node("there", *(["fd00::2/64"] if lost else ["172.30.1.2/24"]), accepts=accepts, sends=sends)
    wanted = view(here, there, one, block(BLOCK, "there", one))
    bare = Route(NETWORK, device="eth0", gateway=ip_address("172.30.1.2"), metric=BIRD_METRIC)
    installed = InstalledModes(learned={NETWORK: "none"})
    planned = plan_node(
        wanted,
        "here",
        UPLINK,
        (),
        transitional=unconverged(wanted, "here", installed),
        lingering=lingering(wanted, installed),
    ).routes

    def way(*gone: str) -> Route:
        matching = [each for each in (*planned, bare) if each.destination == NETWORK and each.device not in gone]
        return min(matching, key=lambda each: each.metric or 0)

    if way().device == "eth0":
        assert mode_to(one, here, there) == "none", "it is what the two have agreed on"
    else:
        assert way(*DEVICES.values()).type == "unreachable"


OTHERS = {
    "far": ("10.244.3.0/24", "172.31.0.9/24"),
    "near": ("10.244.2.0/24", "172.30.1.2/24"),
    "six": ("10.244.4.0/24", "fd00::2/64"),
}


@given(
    st.fixed_dictionaries({name: st.tuples(MODE_SETS, MODE_SETS, MODE_SETS, MODE_SETS) for name in OTHERS}),
    st.sets(st.sampled_from([*OTHERS, "new", "gone"])),
    st.sampled_from(["none", "vxlan", "ipip"]),
    st.sampled_from(["always", "cross-subnet"]),
    st.sampled_from(["bgp", "store"]),
)
def test_what_changes_redirect_is_what_a_look_at_all_routes_would_find(
    words: dict[str, tuple[str, str, str, str]], heard: set[str], encapsulation: str, when: str, distribution: str
) -> None:
    one = pool(encapsulation=encapsulation, when=when, distribution=distribution)
    here = node("here", "172.30.1.1/24", accepts="vxlan,ipip", sends="vxlan,ipip")
    blocks = [block(cidr, name, one) for name, (cidr, _) in OTHERS.items()]
    nodes = {
        name: (
            node(name, OTHERS[name][1], accepts=said[0], sends=said[1]),
            node(name, OTHERS[name][1], accepts=said[2], sends=said[3]),
        )
        for name, said in words.items()
    }
    gone, new = node("gone", "172.30.1.7/24"), node("new", "172.30.1.8/24", accepts="vxlan", sends="vxlan")
    before = view(here, gone, *(old for old, _ in nodes.values()), one, *blocks)
    changes = [
        *(Change.of(*nodes[name]) for name in OTHERS if name in heard),
        *([Change.of(gone, None)] if "gone" in heard else []),
        *([Change.of(None, new)] if "new" in heard else []),
    ]
    after = before.after(*changes)
    learned = {each.network: mode_to(one, here, before.nodes[each.spec.node]) for each in blocks}
    expected = unconverged(after, "here", InstalledModes(learned=learned))
    assert redirected(before, after, "here", changes) == expected


def test_what_the_kernels_routes_lead_to_is_still_sent() -> None:
    bare = cluster()
    (name,) = bare.pools
    planned = planned_modes(bare, "here")
    assert sent_modes(bare, planned, InstalledModes()) == {}
    assert sent_modes(bare, planned, InstalledModes(learned={NETWORK: "vxlan"})) == {name: {"vxlan"}}
    assert modes_to_advertise(bare, {name: frozenset({"ipip"})}) == {"ipip"}
    assert modes_to_advertise(cluster(encapsulation="vxlan"), {}) == {"vxlan"}


def test_a_form_is_not_accepted_while_the_kernel_lacks_a_part() -> None:
    plan = plan_node(cluster(encapsulation="vxlan"), "here", UPLINK, ())
    assert missing_modes(plan, ()) == {"vxlan6", "ipip"}
    assert missing_modes(NodePlan(), ()) == {"vxlan", "vxlan6", "ipip"}
    for kind in ("devices", "sysctls"):
        short = msgspec.structs.replace(plan, **{kind: ()})
        missing = [change for change in between(short, plan) if "podway-vxlan" in str(change)]
        assert missing_modes(plan, missing) == {"vxlan", "vxlan6", "ipip"}
    assert missing_modes(plan, between(plan, NodePlan())) == {"vxlan6", "ipip"}, "what is too much is no lack"


def test_each_vxlan_device_has_parts_of_its_own() -> None:
    nodes = (node("here", "172.30.1.1/24", "fd00::1/64"), node("there", "fd00::2/64"))
    uplink = Uplink("eth0", 1500, nodes[0].interface_addresses)
    plan = plan_node(view(*nodes, pool(encapsulation="vxlan")), "here", uplink, ())
    assert missing_modes(plan, ()) == {"ipip"}
    short = msgspec.structs.replace(plan, tables=tuple(one for one in plan.tables if one.family != "ip6"))
    missing = [one for one in between(short, plan) if "podway-vxlan" in str(one)]
    assert missing_modes(plan, missing) == {"vxlan6", "ipip"}


def test_routes_that_the_store_tells_are_missed() -> None:
    told = cluster(distribution="store")
    assert list(missing_routes(told, "here", UPLINK, InstalledModes())) == [NETWORK]
    assert list(missing_routes(told, "here", UPLINK, InstalledModes(own={NETWORK: "none"}))) == []
    assert list(missing_routes(cluster(), "here", UPLINK, InstalledModes())) == []


def test_who_is_waited_for_is_named() -> None:
    (said,) = waiting(cluster(encapsulation="ipip"), "here")
    assert "there to accept ipip" in said
    assert "gets vxlan" in said
    assert list(waiting(cluster(encapsulation="vxlan"), "here")) == []


def test_a_plain_cluster_is_of_no_concern() -> None:
    plain = view(node("here", "172.30.1.1/24"), pool())
    assert not concerns(plain, "here")
    assert concerns(cluster(), "here"), "nodes still say that they accept"
    assert concerns(view(node("here", "172.30.1.1/24"), pool(distribution="store")), "here")


def test_what_an_uplink_cannot_give_is_told() -> None:
    six = Uplink("eth0", 1300, node("six", "fd00::1/64").interface_addresses)
    assert any("no IPv4 address" in said for said in impossible(cluster(encapsulation="ipip"), six))
    small = view(pool("fd00:10:244::/56", encapsulation="vxlan"))
    assert any("1230" in said and "1280" in said for said in impossible(small, six))
    assert list(impossible(small, UPLINK)) == []


@pytest.mark.parametrize(
    ("device", "mode"),
    [("podway-vxlan", "vxlan"), ("podway-vxlan6", "vxlan6"), ("podway-ipip", "ipip"), ("eth0", "none")],
)
def test_a_tunnel_mode_is_known_by_its_device(device: str, mode: str) -> None:
    assert mode_of_device(device) == mode


INTERFACES = {"a": ("10.0.0.1/24", "fd01::1/64"), "b": ("10.0.0.2/24", "fd01::2/64")}
KINDS = {"pool": "pools", "a": "nodes", "b": "nodes"}


class Simulated:
    """A store with one order of changes for each kind, and nodes that have heard of more or less of each."""

    def __init__(self) -> None:
        self.history: dict[str, list[dict[str, Any]]] = {
            "pools": [{"pool": pool()}],
            "nodes": [{name: node(name, *interfaces) for name, interfaces in INTERFACES.items()}],
        }
        self.heard = {name: dict.fromkeys(self.history, 0) for name in ("a", "b")}
        self.devices: dict[str, set[str]] = {"a": set(), "b": set()}
        self.used: dict[str, TunnelMode] = {"a": "none", "b": "none"}
        self.written = {"a": 0, "b": 0}
        """The place in the order of nodes at which each wrote its last words."""

    def write(self, name: str, obj: Any) -> None:
        history = self.history[KINDS[name]]
        history.append({**history[-1], name: obj})

    def nodes(self, name: str) -> dict[str, Any]:
        """Return what a node has heard of nodes; its own addresses it knows at once."""
        heard, latest = self.history["nodes"][self.heard[name]["nodes"]], self.history["nodes"][-1][name]
        return {**heard, name: msgspec.structs.replace(heard[name], status=latest.status)}

    def seen(self, name: str, **mine: Any) -> ClusterView:
        pools = self.history["pools"][self.heard[name]["pools"]]
        return view(*{**pools, **self.nodes(name), **mine}.values())

    def hear(self, name: str, kind: str, *, relist: bool = False) -> None:
        """One node hears of one more change of a kind, or lists it anew, and brings its kernel to it."""
        newest = len(self.history[kind]) - 1
        self.heard[name][kind] = newest if relist else min(self.heard[name][kind] + 1, newest)
        self.bring_to_plan(name)

    def bring_to_plan(self, name: str) -> None:
        """Bring a node's kernel to what it has heard: devices, then routes, then removals."""
        seen, other = self.as_advertised(name), "b" if name == "a" else "a"
        held = required_modes(seen, name) & possible_modes(seen.nodes[name].internal_addresses)
        self.devices[name] |= held
        (one,) = seen.pools.values()
        mode = mode_to(one, seen.nodes[name], seen.nodes[other])
        # What cannot cross is not sent at all.
        self.used[name] = (
            mode if mode == "none" or share_underlay(mode, seen.nodes[name], seen.nodes[other]) else "none"
        )
        self.devices[name] &= held

    def waits(self, name: str) -> bool:
        """Tell whether a node's last words have not come back."""
        return self.heard[name]["nodes"] < self.written[name]

    def as_advertised(self, name: str) -> ClusterView:
        """Return what a node has heard, with its own last words in it."""
        if not self.waits(name):
            return self.seen(name)
        known, said = self.nodes(name)[name], self.history["nodes"][self.written[name]][name]
        notes = {
            ACCEPTS: ",".join(sorted(known.accepts | said.accepts)),
            SENDS: ",".join(sorted(known.sends & said.sends)),
        }
        notes = {**known.metadata.annotations, **notes}
        return self.seen(
            name, **{name: msgspec.structs.replace(known, metadata=Metadata(name=name, annotations=notes))}
        )

    def say(self, name: str) -> None:
        """One node writes what is true of it, as of what it has heard, unless its last words are to come back."""
        if self.waits(name):
            return
        seen = self.seen(name)
        used = self.used[name]
        sends = modes_to_advertise(seen, {} if used == "none" else {"pool": frozenset({used})})
        words = {
            ACCEPTS: ",".join(sorted(accepted_modes(seen, name) & self.devices[name])),
            SENDS: ",".join(sorted(sends)),
        }
        stored: Node = self.history["nodes"][-1][name]
        metadata = Metadata(name=name, annotations={**stored.metadata.annotations, **words})
        if metadata != stored.metadata:
            self.write(name, msgspec.structs.replace(stored, metadata=metadata))
            self.written[name] = len(self.history["nodes"]) - 1

    def undeliverable(self) -> Iterator[str]:
        for name, other in (("a", "b"), ("b", "a")):
            mode = self.used[name]
            if mode == "none" or mode not in possible_modes(self.history["nodes"][-1][other].internal_addresses):
                continue  # what goes to an address that is gone arrives in no mode
            if mode not in self.devices[other]:
                yield f"{name} sends {mode}, which {other} cannot take off"

    def move(self, name: str, *interfaces: str) -> None:
        """One node gets and loses addresses, acts on it and writes it; it advertises the same modes as before."""
        stored: Node = self.history["nodes"][-1][name]
        fresh = node(name, *interfaces)
        words = {each: stored.metadata.annotations.get(each, "") for each in (ACCEPTS, SENDS)}
        metadata = msgspec.structs.replace(stored.metadata, annotations={**fresh.metadata.annotations, **words})
        self.write(name, msgspec.structs.replace(fresh, metadata=metadata))
        self.bring_to_plan(name)

    def come_to_rest(self) -> None:
        for _ in range(10):
            for name in ("a", "b"):
                for kind, history in self.history.items():
                    while self.heard[name][kind] < len(history) - 1:
                        self.hear(name, kind)
                self.say(name)


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["hear nodes", "hear pools", "relist nodes", "relist pools", "say", "hear nodes, say"]),
        st.sampled_from(["a", "b"]),
    ),
    max_size=16,
)


FAMILIES = st.sampled_from([(0, 2), (0, 1), (1, 2)])
"""Which of its addresses a node has, from and to: both, or those of one family."""


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(["none", "vxlan"]),
    st.lists(st.tuples(st.sampled_from(["none", "vxlan", "ipip"]) | FAMILIES, MOVES), max_size=4),
)
def test_in_no_order_of_events_is_a_form_sent_that_is_not_taken_off(
    first: str, changes: list[tuple[str | tuple[int, int], list[tuple[str, str]]]]
) -> None:
    world = Simulated()
    world.write("pool", pool(encapsulation=first))
    world.come_to_rest()
    for change, moves in changes:
        if isinstance(change, str):
            world.write("pool", pool(encapsulation=change))
        else:
            world.move("b", *INTERFACES["b"][slice(*change)])
        for what, who in moves:
            for kind in world.history:
                if kind in what:
                    world.hear(who, kind, relist="relist" in what)
            if "say" in what:
                world.say(who)
            assert list(world.undeliverable()) == []
    world.come_to_rest()
    told, nodes = world.history["pools"][-1]["pool"], world.history["nodes"][-1]
    wanted = desired_mode(told, nodes["a"], nodes["b"])
    possible = wanted == "none" or share_underlay(wanted, nodes["a"], nodes["b"])
    assert set(world.used.values()) == {wanted if possible else "none"}
    asked = pool_modes(world.seen("a"))
    for name, one in nodes.items():
        assert world.devices[name] == asked & possible_modes(one.internal_addresses)
