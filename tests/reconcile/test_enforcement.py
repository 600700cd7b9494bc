"""Policies brought to a flow engine's maps: in steps as from scratch, found right again, closed where in doubt.

The maps are in memory (tests.recorded_kernel): what a kernel makes of them, the tests of the lab show.
"""

import asyncio
import errno
import threading
from collections.abc import Generator
from ipaddress import ip_address, ip_interface
from itertools import product
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podway.api.checked import RejectedObject
from podway.api.kinds.network_config import DataPath, NetworkConfig, NetworkConfigSpec
from podway.api.kinds.pod import Pod
from podway.api.lease import Attachment, Lease
from podway.api.meta import Metadata
from podway.api.resource import key
from podway.cluster.change import Change
from podway.cluster.view import ClusterView
from podway.errors import AgentError, KernelError, ObjectDamaged, StoreError, StoreForbidden, StoreUnavailable
from podway.kernel.flow import FlowWrites
from podway.plan.uplink import Uplink
from podway.policy.maps import CLOSED, NO_RULES, Prefix
from podway.policy.names import FLOOR, Answer, Bearer
from podway.policy.planner import PolicyPlanner
from podway.reconcile.enforcement import INTERRUPTED, MANY, SOON, Enforcement
from podway.reconcile.map_keeper import RETRY
from podway.reconcile.naming import IN_USE, LISTENS
from podway.reconcile.state import NodeState
from tests.policy.clusters import IPS, SPACES, cluster_policy, namespace, network_policy, objects, pod, resource
from tests.recorded_kernel import RecordedFlows

UPLINK = Uplink("eth0", 1500, (ip_interface("172.30.0.1/24"),))
EBPF = NetworkConfig(metadata=Metadata(name="default"), spec=NetworkConfigSpec(data_path="ebpf"))
OFF = NetworkConfig(metadata=Metadata(name="default"), spec=NetworkConfigSpec(data_path="kernel"))
WEB = pod("x", "web", IPS[0])
DENY = network_policy("deny", policyTypes=["Ingress", "Egress"])


class Node:
    """A node that judges by the objects that it is told."""

    def __init__(self, *manifests: Any) -> None:
        self.flows = RecordedFlows()
        self.state = NodeState("n1", ClusterView.of([EBPF, *map(resource, manifests)]), UPLINK)
        self.start()

    def start(self) -> None:
        """Have an agent start, beside what the last one left."""
        self.flows.close()
        self.state.engine = False
        self.agent = Enforcement(self.flows, self.state)
        self.agent.start()

    def tell(self, *changes: Change[Any]) -> None:
        self.state.view = self.state.view.after(*changes)
        self.agent.heard(changes)
        self.agent.bring()

    def put(self, manifest: Any) -> None:
        obj = resource(manifest)
        self.tell(Change(key(obj), self.state.view.find(key(obj)), obj))

    def drop(self, manifest: Any) -> None:
        obj = resource(manifest)
        self.tell(Change(key(obj), self.state.view.find(key(obj)), None))

    def lease(self, manifest: Any) -> Lease:
        """Have a pod's link."""
        meta = manifest["metadata"]
        addresses = tuple(ip_address(one["ip"]) for one in manifest["status"]["podIPs"])
        made = Lease(
            Attachment(f"c-{meta['namespace']}-{meta['name']}", "eth0"),
            f"{meta['namespace']}/{meta['name']}",
            "podway",
            "/run/x",
            addresses,
        )
        self.state.leases[made.attachment] = made
        self.agent.bring()
        return made

    def later(self, seconds: float) -> None:
        """Have so much time pass."""
        moment = self.state.now() + seconds
        self.state.now = lambda: moment  # type: ignore[method-assign]

    def rules(self, address: str = IPS[0]) -> tuple[int, int]:
        """The rule sets of who has an address."""
        found = self.flows.entries.endpoints[ip_address(address)]
        return found.rules.ingress, found.rules.egress

    def right(self) -> bool:
        """Whether an audit finds nothing."""
        found = ended(self.agent.audit())
        assert found is not None
        return found.empty

    def enforces(self) -> tuple[bool, bool]:
        """Whether the engine is wanted in the plan, and whether it is open."""
        return self.state.engine, self.flows.is_open

    def writes(self) -> int:
        return len(self.flows.log)


def ended(steps: Generator[None, None, FlowWrites | None]) -> FlowWrites | None:
    """What an audit returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: FlowWrites | None = end.value
            return found


def admit(node: Node, name: str, found: Pod | None = None, uid: str = "") -> None:
    async def find(_namespace: str, _name: str) -> Pod | None:
        return found

    asyncio.run(node.agent.admit(name, uid, find))


@given(st.lists(st.tuples(st.booleans(), objects), max_size=20))
@settings(deadline=None, max_examples=60)
def test_after_any_events_the_maps_are_right_and_who_starts_anew_writes_nothing(steps: Any) -> None:
    node = Node()
    for number, (space, name) in enumerate(product(SPACES, "abcdef")):
        node.lease(pod(space, name, f"10.9.0.{number}"))
    for put, manifest in steps:
        (node.put if put else node.drop)(manifest)
        assert node.right()
    before = node.writes()
    node.start()
    assert node.writes() == before
    assert node.right()


def test_what_others_changed_is_put_right_and_told() -> None:
    node = Node(WEB, DENY)
    node.lease(WEB)
    (number,) = node.flows.entries.rule_sets.keys() & {node.rules()[0]}
    node.flows._rules.clear()
    told = node.agent.repair()
    assert "rules" in told
    assert any(entry.rule_set == number for entry in node.flows.entries.rules)
    assert node.agent.repair() == ""


def test_packets_of_a_pod_whose_link_somebody_limits_are_the_stacks_as_long_as_it_is() -> None:
    node = Node(WEB)
    lease = node.lease(WEB)
    for limits in (frozenset({lease.attachment.link, "other"}), frozenset[str]()):
        node.flows.limits, ways = limits, node.flows.ways
        node.agent.look_for_limits()
        assert node.flows.entries.endpoints[ip_address(IPS[0])].limited == bool(limits)
        assert node.flows.ways == ways + 1, "open connections find another way"
        before = node.writes()
        node.agent.look_for_limits()
        node.start()
        assert node.writes() == before
        assert node.right()


def test_an_audit_tells_nothing_of_what_was_written_while_it_went_on() -> None:
    node = Node(WEB, DENY)
    node.lease(WEB)
    steps = node.agent.audit()
    next(steps)
    node.put(network_policy("more", ingress=[{}]))
    assert ended(steps) is None
    assert node.right()


def test_a_pod_whose_object_goes_is_cut_off_and_stays_so_for_the_next_agent() -> None:
    node = Node(WEB, DENY)
    node.lease(WEB)
    assert CLOSED not in node.rules()
    node.drop(WEB)
    assert node.rules() == (CLOSED, CLOSED)
    assert node.agent.shut == ("x/web",)
    node.start()
    assert node.rules() == (CLOSED, CLOSED)
    node.put(WEB)
    assert CLOSED not in node.rules()


@pytest.mark.parametrize("wrong", [{"phase": "Succeeded"}, {"node": "n2"}])
def test_a_pod_that_ended_or_is_said_to_be_elsewhere_is_cut_off(wrong: Any) -> None:
    node = Node(WEB)
    node.lease(WEB)
    assert node.rules() == (NO_RULES, NO_RULES)
    node.put(pod("x", "web", IPS[0], **wrong))
    assert node.rules() == (CLOSED, CLOSED)


def test_an_older_file_changes_nothing_in_the_maps_until_the_store_has_told_of_everything() -> None:
    new = pod("x", "new", IPS[2])
    node = Node(namespace("x"), WEB, new)
    node.lease(WEB)
    old = node.state.view
    node.put(DENY)
    known, before, rules = node.state.view, node.writes(), node.rules()
    assert rules != (NO_RULES, NO_RULES)
    node.state.view, node.state.recalled = old, frozenset({Pod.KIND})
    node.start()
    assert (node.rules(), node.writes()) == (rules, before)
    assert node.right()
    assert "has not answered" in node.agent.status()["problem"]
    node.put(pod("x", "web", IPS[0], labels={"a": "2"}))  # some of it is told already
    assert (node.rules(), node.writes()) == (rules, before)
    node.lease(new)
    assert node.rules(IPS[2]) == (CLOSED, CLOSED), "who comes is cut off"
    assert node.agent.shut == ("x/new",)
    node.state.view, node.state.recalled = known, frozenset()
    node.agent.all_listed()
    node.agent.bring()
    assert node.rules() == node.rules(IPS[2]) == rules
    assert node.agent.status()["problem"] == ""
    assert node.right()


def test_who_has_the_name_of_a_former_pod_is_cut_off_until_the_store_has_told_of_everything() -> None:
    node = Node(namespace("x"), pod("x", "web", IPS[0], uid="1"))
    node.lease(WEB)
    assert node.rules() == (NO_RULES, NO_RULES)
    node.state.recalled = frozenset({Pod.KIND})
    node.start()
    assert node.rules() == (NO_RULES, NO_RULES)
    admit(node, "x/web", resource(pod("x", "web", labels={"app": "b"}, uid="2")), uid="2")
    node.lease(WEB)
    assert node.rules() == (CLOSED, CLOSED)


def test_an_engine_whose_maps_know_no_pod_is_filled_from_a_file_rather_than_cut_pods_off() -> None:
    """As after an upgrade to another layout of maps."""
    node = Node(namespace("x"), WEB)
    node.lease(WEB)
    node.flows.forget_endpoints()
    node.state.recalled = frozenset({Pod.KIND})
    node.start()
    assert node.rules() == (NO_RULES, NO_RULES)


def test_a_pod_without_an_object_has_no_policy_also_for_the_next_agent() -> None:
    node = Node(DENY)
    admit(node, "x/web")
    node.lease(WEB)
    assert node.rules() == (NO_RULES, NO_RULES)
    node.start()
    assert node.rules() == (NO_RULES, NO_RULES)
    node.put(WEB)
    assert NO_RULES not in node.rules()


def test_a_pod_of_which_the_agent_has_not_heard_is_asked_for_before_it_is_let_in() -> None:
    node = Node(DENY)
    admit(node, "x/web", resource(WEB))
    node.lease(WEB)
    assert {NO_RULES, CLOSED}.isdisjoint(node.rules())


def test_a_pod_that_bears_the_name_of_another_has_its_own_rules() -> None:
    policy = network_policy("deny", podSelector={"matchLabels": {"app": "a"}})
    node = Node(pod("x", "web", uid="1", creationTimestamp="2026-01-01T00:00:00Z"), policy)
    admit(node, "x/web", resource(pod("x", "web", labels={"app": "a"}, uid="2")), uid="2")
    node.lease(WEB)
    assert node.rules()[0] not in {NO_RULES, CLOSED}


def test_a_pod_that_nobody_can_be_asked_for_is_let_in_where_there_is_no_policy() -> None:
    """Should one come, the pod is cut off until it is known whether that selects it."""
    node = Node(WEB)

    async def find(_namespace: str, _name: str) -> Pod | None:
        raise StoreUnavailable("the store is away")

    other = pod("x", "other", IPS[1])
    asyncio.run(node.agent.admit("x/other", "", find))
    node.lease(other)
    assert node.rules(IPS[1]) == (NO_RULES, NO_RULES)
    assert not node.agent.shut
    elsewhere = network_policy("deny", where="y", policyTypes=["Ingress"])
    node.put(elsewhere)
    assert node.rules(IPS[1]) == (CLOSED, CLOSED)
    assert node.agent.shut == ("x/other",)
    assert node.right()
    node.put(other)
    assert node.rules(IPS[1]) == (NO_RULES, NO_RULES)


@pytest.mark.parametrize("is_there", [True, False])
def test_what_the_store_said_of_a_pod_or_did_not_is_known_after_all_was_compiled_anew(is_there: bool) -> None:
    """Maps tell no difference between who has no object and who was let in because there was no policy."""
    node = Node(WEB)

    async def find(_namespace: str, _name: str) -> Pod | None:
        if is_there:
            raise StoreUnavailable("the store is away")
        return None

    other = pod("x", "other", IPS[1])
    asyncio.run(node.agent.admit("x/other", "", find))
    node.lease(other)
    node.agent.fail(ValueError("a mistake"))
    node.later(SOON + 1)
    node.agent.bring()
    assert node.rules(IPS[1]) == (NO_RULES, NO_RULES)
    node.put(network_policy("deny", where="y", policyTypes=["Ingress"]))
    assert node.rules(IPS[1]) == ((CLOSED, CLOSED) if is_there else (NO_RULES, NO_RULES))
    assert node.right()


@pytest.mark.parametrize(
    "error",
    [
        StoreForbidden("pods are none of yours"),
        ObjectDamaged("Pod x/other: spec.nodeName: is no name"),
    ],
)
def test_a_pod_that_a_store_at_work_does_not_give_is_not_let_in(error: StoreError) -> None:
    """Nor where there is no policy: that lets in a pod only while the store is away."""
    node = Node(WEB)

    async def find(_namespace: str, _name: str) -> Pod | None:
        raise error

    with pytest.raises(type(error)):
        asyncio.run(node.agent.admit("x/other", "", find))


def test_a_pod_that_nobody_can_be_asked_for_is_not_let_in_where_there_are_policies() -> None:
    node = Node(WEB, network_policy("deny", where="y", policyTypes=["Ingress"]))

    async def find(_namespace: str, _name: str) -> Pod | None:
        raise StoreUnavailable("the store is away")

    with pytest.raises(StoreUnavailable):
        asyncio.run(node.agent.admit("x/other", "", find))
    asyncio.run(node.agent.admit("x/web", "", find))  # who is known waits for nobody


def test_a_policy_that_cannot_be_read_isolates_its_namespace_until_it_can_or_is_gone() -> None:
    node = Node(WEB)
    node.lease(WEB)
    unread = RejectedObject(("NetworkPolicy", "x", "deny"), "spec.podSelector: is no selector")
    for end in (resource(DENY), None):
        before = node.state.view
        node.state.view = before.without(unread)
        assert node.agent.heard(())
        node.agent.bring()
        assert {NO_RULES, CLOSED}.isdisjoint(node.rules())
        node.tell(Change(unread.key, None, end))
        assert (NO_RULES in node.rules()) is (end is None)
        node.drop(DENY)
    assert node.rules() == (NO_RULES, NO_RULES)


def test_a_cluster_policy_that_cannot_be_read_denies_its_subject_all_until_it_can_or_is_gone() -> None:
    node = Node(WEB, namespace("x"))
    node.lease(WEB)
    wrong: dict[str, Any] = {
        "apiVersion": "policy.networking.k8s.io/v1beta1",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "guests"},
        "spec": {
            "tier": "Admin",
            "priority": 5000,
            "subject": {"namespaces": {}},
            "ingress": [{"action": "Accept", "from": [{"namespaces": {}}]}],
        },
    }
    found = resource(wrong)
    unread = RejectedObject(("ClusterNetworkPolicy", "", "guests"), "spec.priority: is 5000", found)
    before = node.state.view
    node.state.view = before.without(unread)
    assert node.agent.heard(())
    node.agent.bring()
    ingress, egress = node.rules()
    assert ingress not in {NO_RULES, CLOSED}
    assert egress == NO_RULES, "it has no rules for that direction"
    wrong["spec"]["subject"] = {"namespaces": {"matchLabels": {"is": "nowhere"}}}
    elsewhere = resource(wrong)
    node.state.view = before.without(msgspec.structs.replace(unread, found=elsewhere))
    assert node.agent.heard(())
    node.agent.bring()
    assert node.rules() == (NO_RULES, NO_RULES), "another state that cannot be read counts from now on"
    for end, known in ((found, True), (found, False)):
        node.state.view = before.without(msgspec.structs.replace(unread, found=end if known else None))
        node.agent.heard(())
        node.agent.bring()
        assert (node.rules()[0] == NO_RULES) is not known


def test_an_engine_that_cannot_be_had_is_told_and_pretends_nothing() -> None:
    node = Node(WEB)
    node.flows = RecordedFlows()
    node.flows.refuses = lambda: KernelError("load the eBPF object podway", errno.EACCES)
    node.start()
    assert not node.state.engine
    assert not node.agent.in_force
    assert "eBPF object" in node.agent.problem
    admit(node, "x/web")


def test_an_engine_that_an_agent_left_goes_on_where_the_next_one_cannot_have_it() -> None:
    node = Node(WEB)
    node.lease(WEB)
    node.flows.refuses = lambda: KernelError("open eBPF program 1", errno.EPERM)
    node.start()
    assert node.state.engine, "its programs stay in the plan"
    with pytest.raises(AgentError, match="cannot be enforced"):
        admit(node, "x/web")


def refused(_: FlowWrites) -> Any:
    """What a write does that the kernel refuses."""
    yield
    raise KernelError("write the flow engine's map of rules", errno.ENOMEM)


def test_what_was_refused_stays_pending_until_an_audit_brought_it(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(WEB)
    node.lease(WEB)
    with monkeypatch.context() as patch:
        patch.setattr(node.flows, "write", refused)
        node.put(DENY)
    node.put(pod("y", "more", IPS[1], node="n2"))
    assert node.rules() == (NO_RULES, NO_RULES), "the write was lost"
    assert (node.agent.pending, node.agent.busy, node.agent.retry) == (True, False, SOON)
    assert node.agent.repair() == "", "nobody else changed anything"
    assert NO_RULES not in node.rules()
    assert (node.agent.pending, node.agent.problem) == (False, "")


def test_an_audit_that_others_writes_make_worthless_again_and_again_is_made_in_one_go() -> None:
    node = Node(WEB)
    node.lease(WEB)
    for number in range(INTERRUPTED):
        steps = node.agent.audit()
        next(steps)
        node.put(network_policy(f"p{number}", ingress=[{}]))
        assert ended(steps) is None
    with pytest.raises(StopIteration) as end:
        next(node.agent.audit())
    assert end.value.value.empty


def test_an_engine_of_which_nobody_can_tell_whether_it_works_is_not_taken_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = Node(WEB)
    node.lease(WEB)

    def untold() -> Any:
        raise KernelError("open eBPF program 1", errno.EMFILE)

    monkeypatch.setattr(node.flows, "is_attached", untold)
    node.flows.refuses = lambda: KernelError("open eBPF program 1", errno.EMFILE)
    node.start()
    assert node.state.engine, "its programs stay in the plan"
    with pytest.raises(AgentError, match="cannot be enforced"):
        admit(node, "x/web")


def test_an_entry_that_is_refused_as_an_agent_starts_leaves_the_others_in_force(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = Node(WEB, DENY)
    node.lease(WEB)
    node.flows = RecordedFlows()
    with monkeypatch.context() as patch:
        patch.setattr(node.flows, "write", refused)
        node.start()
    assert node.enforces() == (True, True)
    assert (node.agent.pending, "map of rules" in node.agent.problem) == (True, True)
    node.agent.repair()
    assert (node.agent.pending, node.agent.problem) == (False, "")
    assert {NO_RULES, CLOSED}.isdisjoint(node.rules())


def test_a_mistake_in_the_middle_of_a_change_has_all_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(WEB)
    node.lease(WEB)
    for method in ("put", "settle"):
        with monkeypatch.context() as patch:
            patch.setattr(PolicyPlanner, method, mistaken)
            before = node.flows.entries
            node.put(DENY)
            node.agent.bring()
            assert "ZeroDivisionError" in node.agent.problem
            assert (node.agent.in_force, node.agent.busy) == (False, False)
            assert 0 < node.agent.retry <= SOON
            with pytest.raises(AgentError, match="cannot be enforced"):
                admit(node, "x/web")
            node.later(SOON)
            node.agent.bring()  # to begin fails as well
            assert SOON < node.agent.retry <= RETRY
            assert node.flows.entries == before, "what is in force stays so"
        node.later(RETRY)
        node.agent.bring()
        assert not node.agent.problem
        assert {NO_RULES, CLOSED}.isdisjoint(node.rules())
        assert node.right()
        node.drop(DENY)


def test_a_mistake_as_an_agent_begins_leaves_no_half_of_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(WEB, DENY)
    node.lease(WEB)
    node.flows._rules.clear()
    with monkeypatch.context() as patch:
        patch.setattr(node.flows, "write", mistaken)
        node.start()
    assert "ZeroDivisionError" in node.agent.problem
    assert node.enforces() == (True, False), "what another agent left goes on"
    with pytest.raises(AgentError, match="cannot be enforced"):
        admit(node, "x/web")
    node.start()
    assert node.right()


def test_after_a_mistake_nobody_is_let_in_where_nothing_judges_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node()
    node.flows = RecordedFlows()
    with monkeypatch.context() as patch:
        patch.setattr(PolicyPlanner, "settle", mistaken)
        node.start()
        with pytest.raises(AgentError, match="cannot be enforced"):
            admit(node, "x/web")
        with pytest.raises(AgentError, match="cannot be enforced"):
            node.agent.enter(node.lease(WEB))
    node.later(RETRY)
    node.agent.bring()
    admit(node, "x/web")


def test_whoever_asks_is_refused_if_the_mistake_is_in_what_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("put", "settle"):
        node = Node(DENY)
        with monkeypatch.context() as patch:
            patch.setattr(PolicyPlanner, method, mistaken)
            with pytest.raises(AgentError, match="cannot be enforced"):
                admit(node, "x/web", resource(WEB))
        assert (node.agent.in_force, node.agent.busy) == (False, False)


def mistaken(*_: Any) -> Any:
    raise ZeroDivisionError


def test_what_is_heard_of_a_pod_while_the_store_is_asked_for_it_is_newer_than_the_answer() -> None:
    node = Node()

    async def find(_namespace: str, _name: str) -> Pod:
        node.put(WEB)
        node.drop(WEB)
        obj: Pod = resource(WEB)
        return obj

    asyncio.run(node.agent.admit("x/web", "", find))
    node.lease(WEB)
    assert node.rules() == (CLOSED, CLOSED)


@pytest.mark.parametrize("heard", ["it ends", "it changes"])
def test_what_is_heard_of_a_pods_former_namesake_is_older_than_the_answer(heard: str) -> None:
    policy = network_policy("deny", podSelector={"matchLabels": {"app": "a"}})
    former = pod("x", "web", uid="1", creationTimestamp="2026-01-01T00:00:00Z")
    node = Node(former, policy)

    async def find(_namespace: str, _name: str) -> Pod:
        if heard == "it ends":
            node.drop(former)
        else:
            node.put(pod("x", "web", uid="1", creationTimestamp="2026-01-01T00:00:00Z", labels={"old": "yes"}))
        obj: Pod = resource(pod("x", "web", labels={"app": "a"}, uid="2"))
        return obj

    asyncio.run(node.agent.admit("x/web", "2", find))
    node.lease(WEB)
    assert node.rules()[0] not in {NO_RULES, CLOSED}


def test_an_answer_that_comes_after_all_was_compiled_anew_is_not_believed() -> None:
    """The pod may have been deleted meanwhile, of which nobody was told. Once it is heard of it is open."""
    node = Node()

    async def find(_namespace: str, _name: str) -> Pod:
        node.agent._anew = True
        node.agent.bring()
        obj: Pod = resource(WEB)
        return obj

    asyncio.run(node.agent.admit("x/web", "", find))
    node.lease(WEB)
    assert node.rules() == (CLOSED, CLOSED)
    node.put(WEB)
    assert node.rules() == (NO_RULES, NO_RULES)


@pytest.mark.parametrize("path", ["auto", "ebpf"])
@pytest.mark.parametrize("unsupported", ["", "its kernel has no tcx"])
def test_an_add_waits_for_no_policies_that_this_kernel_could_not_enforce(path: DataPath, unsupported: str) -> None:
    """Nobody can list them yet. With `ebpf` somebody wanted them enforced everywhere."""
    node = Node()
    node.flows.unsupported = unsupported
    config = NetworkConfig(metadata=Metadata(name="default"), spec=NetworkConfigSpec(data_path=path))
    node.state.view = ClusterView.of([config]).unfollowed()
    node.state.engine = False
    node.agent = Enforcement(node.flows, node.state)
    if path == "auto" and unsupported:
        admit(node, "x/web")
    else:
        with pytest.raises(AgentError, match="not listed yet"):
            admit(node, "x/web")


NO_TCX = "its kernel has no tcx"


@pytest.mark.parametrize(
    ("path", "refused", "unsupported", "told"),
    [
        ("auto", None, NO_TCX, NO_TCX),
        ("auto", KernelError("attach it", errno.ERANGE), "", "attach it"),
        ("auto", None, "", ""),
        ("ebpf", KernelError("attach it", errno.ERANGE), "", ""),
        ("kernel", None, NO_TCX, ""),
    ],
)
def test_a_node_that_may_do_without_the_engine_says_why(
    path: DataPath, refused: KernelError | None, unsupported: str, told: str
) -> None:
    """Also before it has tried; but not where it is to have it, as is expected of it."""
    node = Node()
    node.flows = RecordedFlows()
    node.flows.unsupported = unsupported
    node.flows.refuses = lambda: KernelError(unsupported, errno.EINVAL) if unsupported else refused
    config = NetworkConfig(metadata=Metadata(name="default"), spec=NetworkConfigSpec(data_path=path))
    node.state.view, node.state.engine = ClusterView.of([config]), False
    node.agent = Enforcement(node.flows, node.state)
    assert node.agent.fallback == unsupported * (path == "auto")
    node.agent.start()
    assert told in node.agent.fallback
    assert bool(node.agent.fallback) == bool(told)


def test_where_an_engine_is_still_at_work_nobody_does_without() -> None:
    node = Node(WEB, DENY)
    node.lease(WEB)
    auto = NetworkConfig(metadata=Metadata(name="default"), spec=NetworkConfigSpec(data_path="auto"))
    node.state.view = node.state.view.after(Change(key(EBPF), EBPF, auto))
    node.flows.refuses = lambda: KernelError("attach it", errno.ERANGE)
    node.start()
    assert "attach it" in node.agent.problem
    assert (node.agent.in_force, node.agent.fallback) == (False, "")


def test_what_a_node_lacks_is_known_while_it_tries_again() -> None:
    """Its programs are loaded anew for that, which takes a while."""
    node = Node()
    node.flows = RecordedFlows()
    node.flows.refuses = lambda: KernelError("attach it", errno.ERANGE)
    auto = NetworkConfig(metadata=Metadata(name="default"), spec=NetworkConfigSpec(data_path="auto"))
    node.state.view, node.state.engine = ClusterView.of([auto]), False
    node.agent = Enforcement(node.flows, node.state)

    async def find(_namespace: str, _name: str) -> Pod | None:
        return None

    async def main() -> None:
        loading, loaded = threading.Event(), threading.Event()

        def load() -> None:
            loading.set()
            assert loaded.wait(60)

        node.agent.start()
        node.flows.load = load
        node.later(2 * RETRY)
        node.agent.bring()
        assert await asyncio.to_thread(loading.wait, 60)
        told = node.agent.status()
        assert "attach it" in told["fallback"]
        assert (told["problem"], told["pending"]) == (told["fallback"], False)
        node.flows.refuses = lambda: None
        loaded.set()
        await node.agent.admit("x/web", "", find)
        told = node.agent.status()
        assert (told["in_force"], told["fallback"], told["problem"]) == ("ebpf", "", "")

    asyncio.run(main())


def test_policies_may_be_switched_off_while_the_store_is_asked_for_a_pod() -> None:
    node = Node(DENY)

    async def find(_namespace: str, _name: str) -> Pod:
        node.tell(Change(key(EBPF), EBPF, OFF))
        obj: Pod = resource(WEB)
        return obj

    asyncio.run(node.agent.admit("x/web", "", find))
    assert node.enforces() == (False, False)


def test_others_go_on_while_an_add_waits_for_what_is_to_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(WEB)
    monkeypatch.setattr(node.flows, "write", lambda _: iter([None] * 100))
    turns = 0

    async def find(_namespace: str, _name: str) -> Pod | None:
        return None

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        task = asyncio.create_task(other())
        node.agent.heard([Change(key(resource(DENY)), None, resource(DENY))])
        await node.agent.admit("x/web", "", find)
        task.cancel()

    node.lease(WEB)
    asyncio.run(main())
    assert turns >= 100


@pytest.mark.parametrize("worked", [True, False])
def test_others_go_on_while_programs_are_loaded_and_an_add_waits_for_them(*, worked: bool) -> None:
    node = Node(WEB, DENY)
    node.lease(WEB)
    if not worked:
        node.flows = RecordedFlows()

    async def find(_namespace: str, _name: str) -> Pod | None:
        return None

    async def main() -> None:
        loaded, woken = threading.Event(), asyncio.Event()

        def load() -> None:
            assert loaded.wait(60)

        node.flows.close()
        node.flows.load, node.state.engine = load, False
        node.agent = Enforcement(node.flows, node.state, woken.set)
        node.agent.start()
        node.put(network_policy("more", ingress=[{}]))
        assert node.enforces() == (worked, False), "what another agent left goes on"
        assert node.agent.status()["pending"]
        add = asyncio.create_task(node.agent.admit("x/web", "", find))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not add.done()
        loaded.set()
        await add
        await woken.wait()
        node.agent.bring()
        assert node.enforces() == (True, True)
        assert not node.agent.status()["pending"]
        assert node.right()

    asyncio.run(main())


@pytest.mark.parametrize("worked", [True, False])
def test_settings_that_were_never_readable_leave_the_engine_as_it_was(*, worked: bool) -> None:
    node = Node(WEB, DENY)
    node.lease(WEB)
    if not worked:
        node.flows = RecordedFlows()
    unread = RejectedObject(key(EBPF), "spec.dataPath: is no data path")
    node.state.view = ClusterView.of([resource(WEB), resource(DENY)], rejected=[unread])
    node.start()
    assert node.enforces() == (worked, worked)
    node.put(network_policy("more", ingress=[{}]))
    assert node.enforces() == (worked, worked)
    node.tell(Change(key(EBPF), None, OFF))
    assert node.enforces() == (False, False)


def test_a_pod_is_not_wired_unjudged_when_the_engine_is_lost_after_it_was_admitted() -> None:
    node = Node(WEB)
    lease = node.lease(WEB)
    admit(node, "x/web")
    node.flows.refuses = lambda: KernelError("open eBPF program 1", errno.EPERM)
    node.start()
    with pytest.raises(AgentError, match="cannot be enforced"):
        node.agent.enter(lease)


def test_a_pod_of_which_the_store_was_asked_is_asked_for_again_after_all_was_compiled_anew() -> None:
    """What the store said is forgotten by then: unknown is not the same as without policies."""
    node = Node(DENY)
    admit(node, "x/web", resource(WEB))
    node.agent._anew = True
    made = node.lease(WEB)
    del node.state.leases[made.attachment]
    with pytest.raises(AgentError, match="not known any more"):
        node.agent.enter(made)


def test_of_ever_more_pods_without_an_object_each_is_let_in() -> None:
    """Of the many that are gone some are forgotten, of those that are being wired none."""
    node = Node(DENY)
    for number in range(3 * MANY):
        admit(node, f"x/p{number}")
        made = Lease(Attachment(f"c-{number}", "eth0"), f"x/p{number}", "podway", "/run/x", (ip_address(IPS[0]),))
        node.agent.enter(made)
        assert node.rules() == (NO_RULES, NO_RULES)
        node.agent.entered(made.attachment)


def test_an_audit_that_the_engine_was_begun_anew_under_finds_nothing() -> None:
    node = Node(WEB, DENY)
    node.lease(WEB)
    steps = node.agent.audit()
    next(steps)
    node.agent._anew = True
    node.agent.bring()
    assert ended(steps) is None
    assert node.right()


def test_without_the_setting_nothing_is_enforced_and_with_it_again_all_is() -> None:
    node = Node(WEB, DENY)
    node.lease(WEB)
    node.tell(Change(key(EBPF), EBPF, OFF))
    assert node.enforces() == (False, False)
    node.tell(Change(key(EBPF), OFF, EBPF))
    assert node.enforces() == (True, True)
    assert node.right()


NAMED = cluster_policy(
    egress=[
        {"action": "Accept", "to": [{"domainNames": ["www.example.com"]}]},
        {"action": "Deny", "to": [{"networks": ["0.0.0.0/0"]}]},
    ]
)
RESOLVER = pod("kube-system", "dns", IPS[2], labels={"k8s-app": "kube-dns"}, node="n2")
FAR = Prefix.host("192.0.2.80")
SAID = Answer("www.example.com", frozenset({FAR}), 5)


def with_names() -> Node:
    """A node with a pod whose policy names a domain, of which an answer told just now."""
    node = Node(namespace("x"), WEB, NAMED, RESOLVER)
    node.lease(WEB)
    node.later(0)
    node.agent.hear(SAID, node.state.now())
    node.agent.bring()
    return node


def fade(node: Node, *used: Prefix) -> None:
    due = node.agent.names_due(node.state.now())
    node.agent.fade(due, frozenset(one for one in due if one.address in used), node.state.now())
    node.agent.bring()


def test_a_pod_whose_policies_name_domains_is_listened_for_before_its_answers_pass() -> None:
    node = with_names()
    assert node.flows.entries.endpoints[ip_address(IPS[0])].names
    assert node.flows.resolvers.keys() == {ip_address(IPS[2])}
    assert max(node.flows.resolvers.values()) <= node.state.now() + LISTENS
    node.drop(NAMED)
    assert not node.flows.entries.endpoints[ip_address(IPS[0])].names
    assert node.right()


def test_a_name_is_known_to_the_next_agent_and_ends_with_its_time() -> None:
    node = with_names()
    assert node.flows.entries.identities[FAR] != node.flows.entries.identities[Prefix(4, 0, 0)]
    before = node.writes()
    node.start()
    assert node.writes() == before
    node.later(FLOOR - 1)
    fade(node)
    assert FAR in node.flows.entries.identities
    node.later(2)
    fade(node)
    assert FAR not in node.flows.entries.identities
    assert not node.flows.names
    assert node.right()


def test_an_address_stays_as_long_as_connections_to_it_are_open() -> None:
    node = with_names()
    node.later(FLOOR + 1)
    fade(node, FAR)
    assert FAR in node.flows.entries.identities
    assert node.flows.names == {Bearer(FAR, "www.example.com"): node.state.now() + IN_USE}
    node.later(IN_USE + 1)
    fade(node)
    assert FAR not in node.flows.entries.identities


def test_an_answer_that_comes_while_it_is_looked_for_connections_is_not_forgotten() -> None:
    node = with_names()
    node.later(FLOOR + 1)
    due = node.agent.names_due(node.state.now())
    node.agent.hear(SAID, node.state.now())
    node.agent.fade(due, frozenset(), node.state.now())
    node.agent.bring()
    assert FAR in node.flows.entries.identities
    assert node.right()
