"""The recorder of flows beside the loop: it holds that for moments only, and any descriptor serves it."""

import asyncio
import fcntl
import os
import resource
from collections.abc import Generator, Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from podway.agent.flow_recorder import AT_A_TIME, FlowRecorder
from podway.agent.options import AgentOptions
from podway.api.kinds.service import Service, ServicePort, ServiceSpec
from podway.api.meta import Metadata, OwnerReference
from podway.cluster.view import ClusterView
from podway.flows.learn import Asked
from podway.flows.record import Frontend, Who
from podway.flows.store import FlowStore
from podway.kernel.flow_events import Counted
from podway.plan.uplink import Uplink
from podway.policy.maps import Prefix
from podway.policy.names import Bearer, LearnedNames
from podway.reconcile.state import NodeState
from tests import builders
from tests.flows.flow_events import event, names
from tests.patience import PATIENCE

UPLINK = Uplink("eth0", 1500, (ip_interface("172.30.0.1/24"),))


def recorder(*objects: Any, known: Any = ()) -> FlowRecorder:
    """A recorder of a node that knows these objects, and has no engine."""
    state = NodeState("node1", ClusterView.of(objects), UPLINK)
    nobody: Any = SimpleNamespace(
        flow=SimpleNamespace(devices=dict, opening=None, events=lambda: None),
        enforcement=SimpleNamespace(planner=None, problem="", naming=SimpleNamespace(known=known)),
    )
    return FlowRecorder(AgentOptions(node="node1", store=""), state, nobody, nobody)


def test_others_go_first_while_many_addresses_are_looked_up() -> None:
    many = [str(ip_address("10.0.0.0") + number) for number in range(20 * AT_A_TIME)]
    pod = builders.pod("web", "node9", many[7], namespace="shop")

    async def main() -> tuple[int, Any]:
        looking = asyncio.ensure_future(recorder(pod)._meaning(Asked(frozenset(many), frozenset(), frozenset())))
        turns = 0
        while not looking.done():
            await asyncio.sleep(0)
            turns += 1
        return turns, looking.result()

    turns, meant = asyncio.run(main())
    assert turns >= 20
    assert meant.addresses == {many[7]: Who("pod", "web", "shop", "node9")}


def test_names_are_those_of_workloads_services_and_dns() -> None:
    learned = LearnedNames()
    for name in ("www.example.com", "api.example.com"):
        learned.learn(Bearer(Prefix.host_of(ip_address("192.0.2.9")), name), 1e9)
    owner = OwnerReference(kind="ReplicaSet", name="web-5d4f8", controller=True)
    pod = builders.pod("web-5d4f8-x2x4z", "node9", "10.0.0.7", namespace="shop")
    labels = {"pod-template-hash": "5d4f8"}
    pod = replace(pod, metadata=replace(pod.metadata, labels=labels, owner_references=(owner,)))
    port = ServicePort(name="http", port=80)
    spec = ServiceSpec(cluster_ips=("10.96.0.10", "fd00::10"), external_ips=("192.0.2.80",), ports=(port,))
    service = Service(metadata=Metadata(name="web", namespace="shop"), spec=spec)
    every = frozenset({"10.0.0.7", "192.0.2.9", "10.96.0.10", "fd00::10", "192.0.2.80", "192.0.2.1"})
    one = recorder(pod, service, known=learned)
    meant = asyncio.run(one._meaning(Asked(every, frozenset(), frozenset())))
    assert meant.addresses == {
        "10.0.0.7": Who("pod", "web-5d4f8-x2x4z", "shop", "node9", "Deployment/web"),
        "192.0.2.9": Who(names=("api.example.com", "www.example.com")),
    }
    front = (Frontend("shop", "web", "tcp", 80, "http"),)
    assert meant.services == dict.fromkeys(("10.96.0.10", "fd00::10", "192.0.2.80"), front)


def test_nothing_is_on_the_disk_of_a_node_that_never_had_the_engine_and_what_was_there_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "flows"
    monkeypatch.setattr(AgentOptions, "flow_dir", place)

    async def asked() -> Any:
        one = recorder()
        running = asyncio.ensure_future(one.run())
        async with asyncio.timeout(PATIENCE):
            while True:
                await asyncio.sleep(0.01)
                if one._store is not None or not place.exists():
                    break
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return await one.status()

    assert "records" not in asyncio.run(asked())
    assert not place.exists()
    before = FlowStore(place, "node1", 64 << 20)
    before.append(event(), names())
    before.close()
    assert asyncio.run(asked())["records"] == 1


@pytest.fixture
def many_descriptors() -> Iterator[int]:
    """A number from which on descriptors may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    yield 2000
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_recorder_works_with_descriptors_of_any_number(many_descriptors: int) -> None:
    (ring, writer), (stop, told) = os.pipe(), os.pipe()
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, many_descriptors) for fd in (ring, stop)]
    taken: list[bytes] = []

    class Events:
        """Stands where a ring is: something that becomes readable."""

        fd = high[0]

        def peek(self) -> bytes:
            taken.append(os.read(self.fd, 1) if not taken else b"")
            if len(taken) == 1:
                os.close(told)
            return b""

        def advance(self) -> None:
            pass

    one = recorder()
    one._store = cast(Any, SimpleNamespace(is_due=False))
    os.write(writer, b"x")
    one._work(cast(Any, Events()), high[1], cast(Any, None))
    assert taken[0] == b"x"
    for fd in (ring, writer, stop, *high):
        os.close(fd)


def test_a_survey_ends_when_recording_does_and_what_it_took_out_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It may take long, and another agent looks at the same table by then."""
    monkeypatch.setattr("podway.agent.flow_recorder.SURVEY", -1.0)
    (ring, writer), (stop, told) = os.pipe(), os.pipe()
    steps: list[bool | None] = []

    class Events:
        """Stands where an engine is whose table has no end."""

        fd = ring
        counted = Counted

        def peek(self) -> bytes:
            return b""

        def advance(self) -> None:
            pass

        def survey(self, now: int) -> Generator[None, bool | None, bytes]:
            while not (steps and steps[-1]) and len(steps) < 1000:
                if len(steps) == 3:
                    os.close(told)
                steps.append((yield))
            return event()

    async def main() -> None:
        one = recorder()
        one._store = FlowStore(tmp_path, "node1", 64 << 20)
        arguments = cast(Any, Events()), stop, asyncio.get_running_loop()
        await asyncio.get_running_loop().run_in_executor(one._worker, one._work, *arguments)
        assert one._store.next == 1

    asyncio.run(main())
    assert steps == [False, False, False, True]
    for fd in (ring, writer, stop):
        os.close(fd)


def test_what_was_opened_is_closed_if_recording_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, int]:
        raise RuntimeError("not to be expected")

    monkeypatch.setattr("podway.agent.flow_recorder.drop_reasons", broken)
    closed: list[bool] = []

    async def main() -> tuple[set[str], set[str]]:
        one = recorder()
        events: Any = SimpleNamespace(close=lambda: closed.append(True))
        await asyncio.to_thread(lambda: None)  # the loop opens what it needs for threads
        before = set(os.listdir("/proc/self/fd"))
        with pytest.raises(RuntimeError, match="not to be expected"):
            await one._record(events, None)
        assert not (await one.status())["recording"]
        return before, set(os.listdir("/proc/self/fd"))

    before, after = asyncio.run(main())
    assert closed == [True]
    assert before == after


def test_a_recorder_sleeps_until_the_engine_is_opened() -> None:
    async def main() -> list[int]:
        one = recorder()
        looks: list[int] = []
        flow: Any = one._kernel.flow
        flow.events = lambda: looks.append(len(looks))
        running = asyncio.ensure_future(one.run())
        counts = []
        for _ in range(2):
            await asyncio.sleep(1.2)
            counts.append(len(looks))
            flow.on_change()
        await asyncio.sleep(0.01)
        counts.append(len(looks))
        running.cancel()
        return counts

    assert asyncio.run(main()) == [1, 2, 3]
