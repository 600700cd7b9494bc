"""What every Store promises (podway.store.base), whatever it is made of."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest

from podway.api.kinds import KINDS
from podway.api.kinds.bgp_peer import BGPPeer, BGPPeerSpec, PrefixRule
from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod, PodAddress, PodStatus
from podway.api.meta import Metadata
from podway.api.resource import R, Resource
from podway.errors import AlreadyExists, Conflict, InvalidObject, NotFound, ObjectDamaged, VersionExpired
from podway.store.base import Bookmark, Event, Store, list_all
from podway.store.notifier import SLOW_POLL
from tests.store.conftest import Scene, fact, unversioned


def machine(name: str, **labels: Any) -> Node:
    return Node(metadata=Metadata(name=name, labels=labels))


def pod(name: str, namespace: str = "default") -> Pod:
    return Pod(metadata=Metadata(name=name, namespace=namespace))


def labelled(obj: R, **labels: Any) -> R:
    return msgspec.structs.replace(obj, metadata=msgspec.structs.replace(obj.metadata, labels=labels))


async def take(watch: AsyncGenerator[Event | Bookmark, None], count: int) -> list[Event]:
    events: list[Event] = []
    async with contextlib.aclosing(watch), asyncio.timeout(10):
        async for event in watch:
            if isinstance(event, Event):
                events.append(event)
            if len(events) == count:
                break
    return events


def test_create_fills_in_identity_and_get_returns_the_same(scene: Scene) -> None:
    async def scenario(store: Store) -> None:
        pool = IPPool(metadata=Metadata(name="p", annotations={"a": "ü\n"}), spec=IPPoolSpec(cidr="fd00::/64"))
        created = await store.create(pool)
        meta = created.metadata
        assert meta.uid
        assert meta.resource_version
        assert meta.creation_timestamp.endswith("Z")
        assert created.spec == pool.spec
        assert await store.get(IPPool, "p") == created
        other = await store.create(machine("p"))  # a name is unique within its kind only
        assert other.metadata.uid != meta.uid

    scene.run(scenario)


def test_a_name_can_be_created_once_in_each_namespace(scene: Scene) -> None:
    async def scenario(store: Store) -> None:
        await store.create(pod("web", "a"))
        await store.create(pod("web", "b"))
        with pytest.raises(AlreadyExists, match="Pod/a/web"):
            await store.create(pod("web", "a"))

    scene.run(scenario)


def test_lists_are_ordered_and_filtered(scene: Scene) -> None:
    async def scenario(store: Store) -> None:
        for name, space in (("b", "y"), ("a", "y"), ("c", "x")):
            await store.create(pod(name, space))
        await store.create(machine("x"))
        listing = await store.list(Pod)
        found = [(p.metadata.namespace, p.metadata.name) for p in listing.items]
        assert found == [("x", "c"), ("y", "a"), ("y", "b")]
        assert [p.metadata.name for p in (await store.list(Pod, namespace="y")).items] == ["a", "b"]
        assert (await store.list(BGPPeer)).items == ()
        everything = await list_all(store)
        kinds = [obj.KIND for obj in everything.items]
        assert kinds == sorted(kinds)
        assert [kind for kind in kinds if kind in {"Node", "Pod"}] == ["Node", "Pod", "Pod", "Pod"]
        assert everything.versions.keys() == KINDS.keys()
        assert [obj.KIND for obj in (await list_all(store, [Node, BGPPeer])).items] == ["Node"]

    scene.run(scenario)


def test_update_needs_the_stored_version(scene: Scene) -> None:
    async def scenario(one: Store, two: Store) -> None:
        first = await one.create(machine("n"))
        seen = await two.get(Node, "n")
        second = await one.update(labelled(first, team="a"))
        assert second.metadata.resource_version != first.metadata.resource_version
        with pytest.raises(Conflict, match="Node/n"):
            await two.update(labelled(seen, team="b"))
        with pytest.raises(Conflict):
            await two.update(machine("n", team="b"))  # no version at all
        assert (await two.get(Node, "n")).metadata.labels == {"team": "a"}

    scene.run(scenario, handles=2)


def test_update_keeps_identity_and_an_equal_one_keeps_the_version(scene: Scene) -> None:
    async def scenario(store: Store) -> None:
        first = await store.create(machine("n", a="b"))
        version = (await store.list(Node)).version
        bare = Metadata(name="n", labels={"a": "b"}, resource_version=first.metadata.resource_version)
        assert await store.update(Node(metadata=bare)) == first
        changed = await store.update(labelled(Node(metadata=bare), a="c"))
        assert (await take(store.watch(Node, version), 1))[0].object == changed
        assert changed.metadata.uid == first.metadata.uid
        assert changed.metadata.creation_timestamp == first.metadata.creation_timestamp

    scene.run(scenario)


def test_what_does_not_exist_is_not_found(scene: Scene) -> None:
    async def scenario(store: Store) -> None:
        with pytest.raises(NotFound, match="Node/n"):
            await store.get(Node, "n")
        with pytest.raises(NotFound):
            await store.update(machine("n"))
        with pytest.raises(NotFound):
            await store.delete(Pod, "web", namespace="default")

    scene.run(scenario)


def test_delete_and_delete_if_unchanged(scene: Scene) -> None:
    async def scenario(store: Store) -> None:
        first = await store.create(machine("n"))
        second = await store.update(labelled(first, a="b"))
        with pytest.raises(Conflict):
            await store.delete(Node, "n", resource_version=first.metadata.resource_version)
        await store.delete(Node, "n", resource_version=second.metadata.resource_version)
        again = await store.create(machine("n"))
        assert again.metadata.uid != first.metadata.uid
        former = {first.metadata.resource_version, second.metadata.resource_version}
        assert again.metadata.resource_version not in former
        await store.delete(Node, "n")
        assert (await store.list(Node)).items == ()

    scene.run(scenario)


def test_watch_tells_what_was_and_what_comes(scene: Scene) -> None:
    async def scenario(one: Store, two: Store) -> None:
        start = (await one.list(Node)).version
        first = await one.create(machine("n"))
        second = await one.update(labelled(first, a="b"))
        following = asyncio.create_task(take(two.watch(Node, start), 4))
        await asyncio.sleep(0.05)
        await one.delete(Node, "n")
        third = await one.create(machine("n"))
        events = await following
        assert [event.type for event in events] == ["added", "modified", "deleted", "added"]
        assert [event.object for event in events[:2]] == [first, second]
        assert unversioned(fact(events[2])) == unversioned(second)
        assert events[3].object == third
        for number, event in enumerate(events[:-1], start=1):
            assert await take(one.watch(Node, event.version), 4 - number) == events[number:]

    scene.run(scenario, handles=2)


def test_a_change_reaches_a_waiting_watcher_long_before_any_poll(scene: Scene) -> None:
    async def scenario(one: Store, two: Store) -> None:
        delays = []
        for number in range(20):
            start = (await two.list(Node)).version
            waiting = asyncio.create_task(take(two.watch(Node, start), 1))
            await asyncio.sleep(0)
            began = asyncio.get_running_loop().time()
            await one.create(machine(f"n{number}"))
            await waiting
            delays.append(asyncio.get_running_loop().time() - began)
        assert sorted(delays)[10] < SLOW_POLL / 2, "told, not found by a poll"

    scene.run(scenario, handles=2)


def test_a_watch_tells_first_that_it_stands_and_then_its_own_kind_alone(scene: Scene) -> None:
    async def scenario(store: Store) -> None:
        start = (await store.list(Node)).version
        watch = store.watch(Node, start)
        first = await anext(watch)
        assert isinstance(first, Bookmark)
        await store.create(pod("web"))
        made = await store.create(machine("n"))
        assert fact(await anext(watch)) == made
        await watch.aclose()
        assert (await take(store.watch(Node, first.version), 1))[0].object == made

    scene.run(scenario)


@pytest.mark.parametrize("version", ["", "1", "-", "nonsense", "x-99999999999999999999999", "\N{SNOWMAN}-1"])
def test_what_is_no_version_of_the_store_must_list_again(scene: Scene, version: str) -> None:
    async def scenario(store: Store) -> None:
        await store.create(machine("n"))
        with pytest.raises(VersionExpired):
            await take(store.watch(Node, version), 1)

    scene.run(scenario)


def test_history_that_is_gone_is_told_of_its_own_kind_alone(scene: Scene) -> None:
    """Where a store forgets that of all kinds at once, it is told of each to who asks for that one."""

    async def scenario(store: Store) -> None:
        spaces, pods = (await store.list(Node)).version, (await store.list(Pod)).version
        for name in ("a", "b", "c"):
            await store.create(machine(name))
            await store.create(pod(name))
        scene.cluster.forget(Node)
        with pytest.raises(VersionExpired, match="Node"):
            await take(store.watch(Node, spaces), 3)
        if scene.cluster.together:
            with pytest.raises(VersionExpired, match="Pod"):
                await take(store.watch(Pod, pods), 3)
        else:
            told = await take(store.watch(Pod, pods), 3)
            assert [fact(event).metadata.name for event in told] == ["a", "b", "c"]
        listing = await store.list(Node)
        assert len(listing.items) == 3
        made = await store.create(machine("d"))
        assert [event.object for event in await take(store.watch(Node, listing.version), 1)] == [made]

    scene.run(scenario)


def test_a_watch_that_has_told_everything_goes_on_when_history_is_forgotten(scene: Scene) -> None:
    async def scenario(store: Store) -> None:
        watch = store.watch(Node, (await store.list(Node)).version)
        assert isinstance(await anext(watch), Bookmark)
        first = await store.create(machine("a"))
        assert fact(await anext(watch)) == first
        scene.cluster.forget(Node)
        second = await store.create(machine("b"))
        assert fact(await anext(watch)) == second
        await watch.aclose()

    scene.run(scenario)


@pytest.mark.parametrize("seed", range(3))
def test_watches_have_no_gap_while_many_write(scene: Scene, seed: int) -> None:
    """Whoever lists and then applies the events holds what the store holds."""

    async def scenario(*stores: Store) -> None:
        rng = random.Random(seed)
        watcher, *writers = stores
        await writers[0].create(machine("before"))
        listing = await watcher.list(Node)
        state: dict[str, Resource] = {obj.metadata.name: obj for obj in listing.items}
        versions = []

        async def follow() -> None:
            async for event in watcher.watch(Node, listing.version):
                if isinstance(event, Bookmark):
                    continue
                versions.append(event.version)
                obj = fact(event)
                if event.type == "deleted":
                    assert unversioned(state.pop(obj.metadata.name)) == unversioned(obj)
                else:
                    assert (event.type == "added") == (obj.metadata.name not in state)
                    state[obj.metadata.name] = obj
                if obj.metadata.name == "last":
                    break

        async def write(store: Store) -> None:
            for _ in range(60):
                name = f"n{rng.randrange(6)}"
                with contextlib.suppress(AlreadyExists, Conflict, NotFound):
                    match rng.choice(("create", "update", "update", "delete")):
                        case "create":
                            await store.create(machine(name))
                        case "update":
                            seen = await store.get(Node, name)
                            await store.update(labelled(seen, value=str(rng.random())))
                        case "delete":
                            await store.delete(Node, name)

        following = asyncio.create_task(follow())
        await asyncio.gather(*map(write, writers))
        await watcher.create(machine("last"))
        await following
        final = await watcher.list(Node)
        assert state == {obj.metadata.name: obj for obj in final.items}
        assert len(versions) == len(set(versions))

    scene.run(scenario, handles=4)


RUNNING = PodStatus(phase="Running", pod_ip="10.244.1.2", pod_ips=(PodAddress(ip="10.244.1.2"),))


def test_a_status_is_written_by_itself(scene: Scene) -> None:
    async def scenario(store: Store) -> None:
        with contextlib.suppress(AlreadyExists):
            await store.create(Namespace(metadata=Metadata(name="default")))
        made = await store.create(pod("web"))
        running = await store.update_status(labelled(msgspec.structs.replace(made, status=RUNNING), app="web"))
        assert (running.status, running.metadata.labels) == (RUNNING, {})
        named = await store.update(labelled(msgspec.structs.replace(running, status=PodStatus()), app="web"))
        assert (named.status, named.metadata.labels) == (RUNNING, {"app": "web"})
        with pytest.raises(Conflict):
            await store.update_status(msgspec.structs.replace(running, status=PodStatus()))
        idle = await store.update_status(msgspec.structs.replace(named, status=PodStatus()))
        assert idle == await store.get(Pod, "web", namespace="default")
        assert idle.status == PodStatus()

    scene.run(scenario)


def test_a_patch_changes_what_it_names(scene: Scene) -> None:
    async def scenario(one: Store, two: Store) -> None:
        start = (await one.list(Node)).version
        first = await one.create(machine("n", a="1", b="2"))
        second = await two.patch(Node, "n", {"metadata": {"labels": {"a": None, "c": "3"}, "uid": "forged"}})
        assert second.metadata.labels == {"b": "2", "c": "3"}
        assert second.metadata.uid == first.metadata.uid
        assert second == await one.get(Node, "n")
        # Nothing changes: no version, no event.
        assert await one.patch(Node, "n", {"metadata": {"labels": {"c": "3"}}}) == second
        stale = first.metadata.resource_version
        with pytest.raises(Conflict):
            await one.patch(Node, "n", {"metadata": {"labels": {"b": "4"}}}, resource_version=stale)
        fresh = second.metadata.resource_version
        third = await one.patch(Node, "n", {"metadata": {"labels": {"b": "4"}}}, resource_version=fresh)
        events = await take(two.watch(Node, start), 3)
        assert [event.object for event in events] == [first, second, third]
        with pytest.raises(NotFound, match="Node/m"):
            await one.patch(Node, "m", {"metadata": {"labels": {"b": "4"}}})

    scene.run(scenario, handles=2)


def test_a_patch_keeps_to_its_part_of_the_object(scene: Scene) -> None:
    async def scenario(store: Store) -> None:
        await store.create(pod("web"))
        both = {"metadata": {"labels": {"app": "web"}}, "status": {"phase": "Running"}}
        labelled_one = await store.patch(Pod, "web", both, namespace="default")
        assert (labelled_one.metadata.labels, labelled_one.status.phase) == ({"app": "web"}, PodStatus().phase)
        both = {"metadata": {"labels": {"app": None}}, "status": {"phase": "Running"}}
        running = await store.patch_status(Pod, "web", both, namespace="default")
        assert (running.metadata.labels, running.status.phase) == ({"app": "web"}, "Running")

    scene.run(scenario)


def test_a_patch_of_which_no_fact_would_come_changes_nothing(scene: Scene) -> None:
    async def scenario(store: Store) -> None:
        made = await store.create(IPPool(metadata=Metadata(name="p"), spec=IPPoolSpec(cidr="10.0.0.0/16")))
        for patch in ({"spec": {"blockSize": 99}}, {"spec": {"cidr": 7}}, {"spec": {"siez": 26}}):
            with pytest.raises(InvalidObject, match="IPPool/p"):
                await store.patch(IPPool, "p", patch)
        assert await store.get(IPPool, "p") == made

    scene.run(scenario)


CONDITION = {
    "type": "Accepted",
    "status": "False",
    "reason": "Invalid",
    "message": "so it is",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}


def test_of_a_judged_object_the_status_is_written_by_itself(scene: Scene) -> None:
    """Of one that is rejected, too: there it is said why."""

    async def scenario(store: Store) -> None:
        told = {"status": {"conditions": [CONDITION]}}
        await store.create(IPPool(metadata=Metadata(name="p"), spec=IPPoolSpec(cidr="10.0.0.0/16")))
        judged = await store.patch_status(IPPool, "p", told | {"spec": {"cidr": "10.9.0.0/16"}})
        assert judged.spec.cidr == "10.0.0.0/16"
        assert [one.message for one in judged.status.conditions] == ["so it is"]
        again = await store.patch_status(IPPool, "p", told)
        assert again.metadata.resource_version == judged.metadata.resource_version, "nothing was written"
        changed = await store.update(msgspec.structs.replace(judged, spec=IPPoolSpec(cidr="10.1.0.0/16")))
        assert changed.status == judged.status
        # A rule that can never match: no schema refuses it, but whoever reads it does.
        rules = tuple(PrefixRule(cidr="10.0.0.0/8", max_length=24, action=one) for one in ("accept", "reject"))
        never = BGPPeerSpec(address="192.0.2.1", asn=64512, imports=rules)
        with contextlib.suppress(ObjectDamaged):  # said after it was stored, or not
            await store.create(BGPPeer(metadata=Metadata(name="b"), spec=never))
        with pytest.raises(ObjectDamaged) as refused:
            await store.get(BGPPeer, "b")
        unfit = refused.value.found
        assert isinstance(unfit, BGPPeer)
        shown = await store.patch_status(BGPPeer, "b", told, resource_version=unfit.metadata.resource_version)
        assert (await store.list(BGPPeer)).rejected[0].found == shown
        assert [one.message for one in shown.status.conditions] == ["so it is"]

    scene.run(scenario)


OWNER = {"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "6c0f0a5e-2d2f-4f4e-9c0b-0c6f0f1b2a3d"}


def test_what_podway_does_not_know_of_an_object_survives_its_writes(scene: Scene) -> None:
    """What a newer Podway, Kubernetes or another controller wrote: finalizers, owners, fields of the spec."""

    async def scenario(store: Store) -> None:
        made = await store.create(pod("web"))
        foreign = {
            "metadata": {"finalizers": ["example.org/hold"], "ownerReferences": [OWNER]},
            "spec": {"activeDeadlineSeconds": 600},
        }
        await store.patch(Pod, "web", foreign, namespace="default")
        await store.patch_status(Pod, "web", {"status": {"qosClass": "BestEffort"}}, namespace="default")
        known = await store.get(Pod, "web", namespace="default")
        known = await store.update(labelled(known, app="web"))
        await store.update_status(msgspec.structs.replace(known, status=RUNNING))
        stored = scene.cluster.document(Pod, "web", namespace="default")
        assert stored["metadata"]["finalizers"] == ["example.org/hold"]
        assert stored["metadata"]["ownerReferences"] == [OWNER]
        assert stored["metadata"]["uid"] == made.metadata.uid
        assert stored["spec"]["activeDeadlineSeconds"] == 600
        assert stored["status"]["qosClass"] == "BestEffort"
        assert stored["status"]["phase"] == "Running"
        assert stored["metadata"]["labels"] == {"app": "web"}

    scene.run(scenario)


def test_a_part_of_which_podway_knows_nothing_survives_its_writes(scene: Scene) -> None:
    """A node's spec: to Podway's type it may be as by default, and what Podway reads there is not its to write."""

    async def scenario(store: Store) -> None:
        await store.create(machine("n", a="b"))
        taints = [{"key": "example.org/hold", "effect": "NoSchedule"}]
        owned = {"ownerReferences": [OWNER]}
        await store.patch(Node, "n", {"metadata": owned, "spec": {"unschedulable": True, "taints": taints}})
        known = await store.get(Node, "n")
        metadata = Metadata(name="n", labels={"a": "c"}, resource_version=known.metadata.resource_version)
        await store.update(Node(metadata=metadata))
        stored = scene.cluster.document(Node, "n")
        assert stored["metadata"]["labels"] == {"a": "c"}
        assert stored["metadata"]["ownerReferences"] == [OWNER]  # of which a manifest says nothing
        assert stored["spec"]["unschedulable"] is True
        assert [taint for taint in stored["spec"]["taints"] if taint["key"] == "example.org/hold"] == taints

    scene.run(scenario)
