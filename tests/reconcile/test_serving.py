"""Services brought to a flow engine's maps: in steps as from scratch, found right again, emptied where not wanted.

The maps are in memory (tests.recorded_kernel): what packets make of them, the tests of the engine show.
"""

import errno
from collections.abc import Callable, Generator
from ipaddress import ip_interface
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings

from podway.api.kinds.network_config import NetworkConfig, NetworkConfigSpec
from podway.api.meta import Metadata
from podway.api.resource import key
from podway.cluster.change import Change
from podway.cluster.view import SERVING, ClusterView
from podway.errors import KernelError
from podway.plan.uplink import Uplink
from podway.reconcile.map_keeper import RETRY
from podway.reconcile.serving import Serving, Wrong
from podway.reconcile.state import NodeState
from podway.services.maps import Delta, Entries
from podway.services.maps import Maps as ServiceMaps
from podway.services.planner import ServicePlanner, summary
from tests.recorded_kernel import RecordedFlows, RecordedServices
from tests.services.clusters import NODE, endpoint, events, piece, service

UPLINK = Uplink("eth0", 1500, (ip_interface("172.30.0.1/24"),))
SERVED = NetworkConfig(
    metadata=Metadata(name="default"), spec=NetworkConfigSpec(data_path="ebpf", services="pods")
)
WEB = (service(), piece("s", endpoint("10.1.0.1"), endpoint("10.1.0.2")))


class Node:
    """A node that serves what it is told of."""

    def __init__(self, *objects: Any) -> None:
        self.flows = RecordedFlows()
        self.own = RecordedServices()
        self.time = 1000.0
        self.state = NodeState(NODE, ClusterView.of([SERVED, *objects]), UPLINK)
        self.state.now = lambda: self.time  # type: ignore[method-assign]
        self.start()

    def start(self) -> None:
        """Have an agent start, beside what the last one left."""
        self.flows.close()
        self.flows.open([], [], lambda: None)
        self.agent = Serving(self.flows, self.own, self.state)
        self.bring()

    def bring(self) -> None:
        for _ in self.agent.portions():
            pass

    def tell(self, *changes: Change[Any]) -> None:
        self.state.view = self.state.view.after(*changes)
        self.agent.heard(changes)
        self.bring()

    def put(self, obj: Any) -> None:
        self.tell(Change(key(obj), self.state.view.find(key(obj)), obj))

    def drop(self, obj: Any) -> None:
        self.tell(Change(key(obj), self.state.view.find(key(obj)), None))

    def configure(self, **spec: Any) -> None:
        self.put(msgspec.structs.replace(SERVED, spec=msgspec.structs.replace(SERVED.spec, **spec)))

    def mend(self) -> str:
        """Put right what an audit finds; say what it was."""
        steps = self.agent.mend(ended(self.agent.audit()))
        while True:
            try:
                next(steps)
            except StopIteration as end:
                told: str = end.value
                return told

    def serves(self) -> bool:
        return self.agent.in_force

    @property
    def written(self) -> Entries:
        return self.flows.services.entries


def ended(steps: Generator[None, None, Wrong | None]) -> Wrong | None:
    """What an audit returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Wrong | None = end.value
            return found


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Node], None]:
    """Has the next write of a node be refused."""

    def refuse(node: Node) -> None:
        write = node.flows.write_services

        def refused(_delta: Delta) -> Generator[None, None, None]:
            monkeypatch.setattr(node.flows, "write_services", write)
            yield
            raise KernelError("write", errno.ENOSPC)

        monkeypatch.setattr(node.flows, "write_services", refused)

    return refuse


@given(events)
@settings(max_examples=40, deadline=None)
def test_maps_are_those_of_all_facts_after_any_events(happened: list[Any]) -> None:
    node = Node()
    for what, obj in happened:
        if what == "put":
            node.put(obj)
        else:
            node.drop(obj)
    fresh = ServicePlanner(NODE)
    for table in node.state.view.tables.values():
        for obj in table.values():
            fresh.put(obj)
    fresh.settle()
    assert summary(node.written) == summary(fresh.entries)
    before = node.written
    assert ended(node.agent.audit()) == Wrong()
    node.start()  # what is right already stays, with its numbers
    assert summary(node.written) == summary(fresh.entries)
    assert {where: one.backends for where, one in node.written.frontends.items()} == {
        where: one.backends for where, one in before.frontends.items()
    }


def test_an_agent_that_starts_finds_what_changed_meanwhile() -> None:
    node = Node(*WEB)
    node.state.view = node.state.view.after(Change(key(WEB[1]), WEB[1], piece("s", endpoint("10.1.0.2"))))
    former = node.written.backends
    node.start()
    (kept,) = node.written.backends.items()
    assert kept in former.items()


def test_an_audit_puts_right_what_others_changed() -> None:
    node = Node(*WEB)
    right = node.written
    assert node.mend() == ""
    node.flows.services.apply(
        Delta(gone_frontends=tuple(right.frontends), backends={7: next(iter(right.backends.values()))})
    )
    assert node.mend() == "Services: not as planned: 2 frontends, 1 backends: put right"
    assert node.written == right


def test_what_is_told_while_an_audits_findings_are_written_is_not_overtaken_by_them() -> None:
    node = Node(*WEB)
    node.flows.services.backends.clear()
    found = ended(node.agent.audit())
    assert found
    assert len(found.pods.backends) == 2
    steps = node.agent.mend(found)
    next(steps)
    change = Change(key(WEB[1]), WEB[1], piece("s"))
    node.state.view = node.state.view.after(change)
    node.agent.heard([change])
    node.bring()
    for _ in steps:
        pass
    assert not node.written.backends
    assert ended(node.agent.audit()) == Wrong()


def test_what_was_refused_is_told_and_tried_again(refusing: Callable[[Node], None]) -> None:
    node = Node()
    refusing(node)
    for obj in WEB:
        node.put(obj)
    assert "write" in node.agent.status()["problem"]
    assert node.agent.retry == RETRY
    node.mend()
    assert not node.agent.problem
    assert len(node.written.backends) == 2


def test_a_beginning_that_is_refused_is_made_again_later(refusing: Callable[[Node], None]) -> None:
    node = Node()
    for obj in WEB:
        node.state.view = node.state.view.after(Change(key(obj), None, obj))
    refusing(node)
    node.start()
    assert node.agent.retry == RETRY
    assert not node.agent.busy
    node.time += RETRY
    node.mend()
    assert len(node.written.backends) == 2


@pytest.mark.parametrize("where", ["put", "settling", "gathered"])
def test_a_mistake_of_ours_is_told_leaves_the_maps_as_they_are_and_is_gone_with_its_cause(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(*WEB)
    before = ServiceMaps(node.written).entries
    with monkeypatch.context() as patch:
        patch.setattr(ServicePlanner, where, _fail)
        if where == "gathered":
            node.start()
        else:
            node.put(piece("s"))
        assert "ZeroDivisionError" in node.agent.status()["problem"]
        assert (node.serves(), node.agent.busy, node.agent.retry) == (False, False, RETRY)
        node.time += RETRY
        node.bring()  # and fails again
        assert not node.serves()
    assert node.written == before
    node.time += RETRY
    assert node.agent.busy
    node.bring()
    assert node.serves()
    assert not node.agent.status()["problem"]
    assert len(node.written.backends) == (2 if where == "gathered" else 0)


def _fail(*_: object) -> None:
    raise ZeroDivisionError


def test_a_failure_is_nobodys_problem_once_the_engine_is_closed(refusing: Callable[[Node], None]) -> None:
    node = Node()
    refusing(node)
    for obj in WEB:
        node.put(obj)
    assert node.agent.retry == RETRY
    node.flows.close()
    node.bring()
    assert not node.agent.retry


def test_nothing_is_served_where_settings_do_not_ask_for_it() -> None:
    node = Node(*WEB)
    assert node.serves()
    node.configure(services="off")
    assert not any(node.written)
    assert not node.serves()
    assert node.agent.status()["in_force"] == "off"
    node.configure(services="pods")
    assert len(node.written.backends) == 2


def test_without_the_engine_nothing_is_served_and_with_it_again_all() -> None:
    node = Node(*WEB)
    node.flows.close()
    node.put(piece("s"))
    assert not node.serves()
    node.flows.open([], [], lambda: None)
    node.bring()
    assert node.serves()
    assert not node.written.backends


def test_what_another_agent_wrote_stays_until_it_is_known_what_there_is() -> None:
    node = Node(*WEB)
    before = node.written
    node.state.view = node.state.view.unfollowed(SERVING)
    node.start()
    assert node.written == before
    assert "not listed yet: EndpointSlice, Service" in node.agent.status()["problem"]
    for kind in SERVING:
        node.state.view = node.state.view.relisted(kind, [one for one in WEB if isinstance(one, kind)])
    node.bring()
    assert node.serves()
    assert node.written == before


def test_what_is_told_while_it_begins_is_not_overtaken_by_what_was_known_before() -> None:
    many = [service(f"s{n}", cluster_ips=(f"10.97.{n // 250}.{n % 250}",)) for n in range(200)]
    node = Node()
    node.state.view = ClusterView.of([SERVED, *WEB, *many])
    node.flows.close()
    node.flows.open([], [], lambda: None)
    node.agent = Serving(node.flows, node.own, node.state)
    for number, _ in enumerate(node.agent.portions()):
        if number == 3:
            change = Change(key(WEB[1]), WEB[1], piece("s"))
            node.state.view = node.state.view.after(change)
            node.agent.heard([change])
    node.bring()
    assert not node.written.backends


@pytest.mark.parametrize("killed", [True, False])
def test_clients_of_a_backend_that_went_are_forgotten_even_if_that_failed_at_first(*, killed: bool) -> None:
    node = Node(service(session_affinity="ClientIP"), WEB[1])
    node.configure(services="all", service_cidrs=("10.96.0.0/16",))
    backends = {value for key, value in node.own.entries.items() if key.map == "backends"}
    (stays,) = (key for key in node.own.entries if key.map == "stays")
    node.own.clients[stays] = set(backends)
    node.own.refuses_to_forget = True
    node.put(piece("s", endpoint("10.1.0.1")))
    left = {value for key, value in node.own.entries.items() if key.map == "backends"}
    assert (len(left), node.own.clients[stays]) == (1, backends)
    node.mend()
    assert node.own.clients[stays] == backends, "it is refused still"
    node.own.refuses_to_forget = False
    if killed:
        node.start()
    else:
        node.time += RETRY
        assert node.mend() == "", "it is no fault of others"
    assert node.own.clients[stays] == left
    assert ended(node.agent.audit()) == Wrong()
