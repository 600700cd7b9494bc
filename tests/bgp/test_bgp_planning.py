"""A BGP plan that is kept in step with the cluster is the one that is made anew, and so is its text."""

from pathlib import Path

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from podway.api.addresses import Family
from podway.api.kinds.bgp_peer import BGPPeer, BGPPeerSpec
from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.network_config import BgpSettings, NetworkConfig, NetworkConfigSpec, ReflectorSettings
from podway.api.kinds.node import (
    ACCEPTS,
    ASN,
    BGP_LOST,
    BGP_READY,
    INTERFACE_ADDRESSES,
    RACK,
    SENDS,
    Node,
    NodeAddress,
    NodeStatus,
)
from podway.api.meta import LabelSelector, Metadata
from podway.api.resource import Resource
from podway.bgp.render import Renderer, render, running
from podway.cluster.change import Change
from podway.cluster.view import ClusterView
from podway.plan.bgp import BgpPlanning, plan_bgp
from podway.plan.topology import RunningTopology, topology

HERE = "n3"
LOG = Path("bird.log")
NAMES = [f"n{number}" for number in range(7)]
FAMILIES = st.sampled_from([(Family.IPV4,), (Family.IPV6,), (Family.IPV4, Family.IPV6)])
WORDS = st.sampled_from(["", "vxlan", "ipip,vxlan"])
SPREAD = ReflectorSettings(count=2)
BGP = [
    BgpSettings(topology="mesh"),
    BgpSettings(topology="none"),
    BgpSettings(mesh_limit=4, reflectors=SPREAD),
    BgpSettings(topology="reflectors", reflectors=SPREAD, bfd=False),
    BgpSettings(
        topology="reflectors",
        reflectors=msgspec.structs.replace(SPREAD, node_selector=LabelSelector(match_labels={"role": "rr"})),
    ),
]
POOLS = [
    IPPoolSpec(cidr="10.244.0.0/16"),
    IPPoolSpec(cidr="10.244.0.0/16", encapsulation="vxlan", when="cross-subnet"),
    IPPoolSpec(cidr="10.244.0.0/16", encapsulation="ipip"),
    IPPoolSpec(cidr="10.244.0.0/16", distribution="store"),
    IPPoolSpec(cidr="fd00:10:244::/112"),
    IPPoolSpec(cidr="fd00:10:244::/112", encapsulation="vxlan"),
]
PEER = BGPPeer(metadata=Metadata(name="tor"), spec=BGPPeerSpec(address="192.0.2.250", asn=65000))


@st.composite
def members(draw: st.DrawFn, name: str) -> Node:
    """Return a node of any kind that plans tell apart; now and then at the address of another one."""
    number = draw(st.sampled_from([NAMES.index(name), NAMES.index(name), 5]))
    subnet = draw(st.sampled_from([0, 0, 1]))
    text = {Family.IPV4: f"192.0.{subnet}.{number}", Family.IPV6: f"2001:db8:{subnet}::{number}"}
    addresses = {family: text[family] for family in draw(FAMILIES)}
    notes = {
        INTERFACE_ADDRESSES: ",".join(f"{each}/{24 if ':' not in each else 64}" for each in addresses.values()),
        ACCEPTS: draw(WORDS),
        SENDS: draw(WORDS),
        ASN: draw(st.sampled_from([""] * 20 + ["65001"])),
        BGP_LOST: draw(st.sampled_from(["", "", "n1", "n0,n2"])),
    }
    every: list[dict[str, str]] = [{}, {}, {"role": "rr"}, {RACK: "a"}, {RACK: "b"}]
    said = {key: note for key, note in notes.items() if note}
    return Node(
        metadata=Metadata(name=name, annotations=said, labels=draw(st.sampled_from(every))),
        status=NodeStatus(
            addresses=tuple(NodeAddress(type="InternalIP", address=address) for address in addresses.values())
        ),
    )


class PlanInStep(RuleBasedStateMachine):
    """Changes of a cluster, and after each the plan of one node, whose BIRD takes some of the plans."""

    @initialize(data=st.data(), bgp=st.sampled_from(BGP))
    def begin(self, data: st.DataObject, bgp: BgpSettings) -> None:
        pool = IPPool(metadata=Metadata(name="one"), spec=POOLS[0])
        config = NetworkConfig(metadata=Metadata(name="default"), spec=NetworkConfigSpec(bgp=bgp))
        self.view = ClusterView.of([*(data.draw(members(name)) for name in NAMES), pool, config])
        self.planning, self.renderer = BgpPlanning(HERE), Renderer(LOG)
        self.running: RunningTopology | None = None
        self.changed: set[str] | None = None

    def _put(self, new: Resource) -> None:
        change = self.view.change(new)
        self._follow(change)

    def _follow(self, change: Change[Resource]) -> None:
        self.view = self.view.after(change)
        if change.kind == Node.KIND and self.changed is not None:
            self.changed.add(change.key[2])

    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def node_comes_or_changes(self, data: st.DataObject, name: str) -> None:
        self._put(data.draw(members(name)))

    @rule(name=st.sampled_from([name for name in NAMES if name != HERE]))
    def node_leaves(self, name: str) -> None:
        if name in self.view.nodes:
            self._follow(self.view.change(self.view.nodes[name], deleted=True))

    @rule(part=st.integers(1, 7))
    def nodes_are_ready(self, part: int) -> None:
        target = topology(self.view).name
        for node in tuple(self.view.nodes.values())[:part]:
            notes = {**node.metadata.annotations, BGP_READY: target}
            self._put(
                msgspec.structs.replace(node, metadata=msgspec.structs.replace(node.metadata, annotations=notes))
            )

    @rule(name=st.sampled_from(["one", "two"]), spec=st.sampled_from(POOLS))
    def pool_changes(self, name: str, spec: IPPoolSpec) -> None:
        if all(pool.spec.cidr != spec.cidr for key, pool in self.view.pools.items() if key != name):
            self._put(IPPool(metadata=Metadata(name=name), spec=spec))

    @rule(bgp=st.sampled_from(BGP))
    def settings_change(self, bgp: BgpSettings) -> None:
        self._put(NetworkConfig(metadata=Metadata(name="default"), spec=NetworkConfigSpec(bgp=bgp)))

    @rule(there=st.booleans())
    def peer_comes_or_goes(self, there: bool) -> None:
        self._follow(self.view.change(PEER, deleted=not there))

    @rule()
    def bird_takes_the_plan(self) -> None:
        self.running = running(render(plan_bgp(self.view, HERE, self.running), LOG))

    @invariant()
    def it_is_the_whole_plan(self) -> None:
        plan = self.planning.plan(self.view, self.running, changed=self.changed)
        self.changed = set()
        whole = plan_bgp(self.view, HERE, self.running)
        assert plan == whole
        assert list(plan.sections) == sorted(plan.sections)
        assert self.renderer.render(plan) == render(whole, LOG)


PlanInStep.TestCase.settings = settings(
    max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestPlanInStep = PlanInStep.TestCase
