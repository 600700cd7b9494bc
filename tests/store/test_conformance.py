"""What every Store promises (podway.store.base), whatever it is made of."""

import asyncio
import contextlib
import random

import msgspec
import pytest

from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.meta import Metadata
from podway.errors import AlreadyExists, Conflict, NotFound, RevisionGone
from podway.store.bell import SLOW_POLL


def namespace(name, **labels):
    return Namespace(metadata=Metadata(name=name, labels=labels))


def pod(name, namespace="default"):
    return Pod(metadata=Metadata(name=name, namespace=namespace))


def labelled(obj, **labels):
    return msgspec.structs.replace(obj, metadata=msgspec.structs.replace(obj.metadata, labels=labels))


async def take(watch, count):
    events = []
    async with contextlib.aclosing(watch), asyncio.timeout(10):
        async for event in watch:
            events.append(event)
            if len(events) == count:
                break
    return events


def test_create_fills_in_identity_and_get_returns_the_same(scene):
    async def scenario(store):
        pool = IPPool(metadata=Metadata(name="p", annotations={"a": "ü\n"}), spec=IPPoolSpec(cidr="fd00::/64"))
        created = await store.create(pool)
        meta = created.metadata
        assert meta.uid
        assert meta.resource_version
        assert meta.creation_timestamp.endswith("Z")
        assert created.spec == pool.spec
        assert await store.get(IPPool, "p") == created
        other = await store.create(namespace("p"))  # a name is unique within its kind only
        assert other.metadata.uid != meta.uid

    scene.run(scenario)


def test_a_name_can_be_created_once_in_each_namespace(scene):
    async def scenario(store):
        await store.create(pod("web", "a"))
        await store.create(pod("web", "b"))
        with pytest.raises(AlreadyExists, match="Pod/a/web"):
            await store.create(pod("web", "a"))

    scene.run(scenario)


def test_lists_are_ordered_and_filtered(scene):
    async def scenario(store):
        for name, space in (("b", "y"), ("a", "y"), ("c", "x")):
            await store.create(pod(name, space))
        await store.create(namespace("x"))
        listing = await store.list(Pod)
        found = [(p.metadata.namespace, p.metadata.name) for p in listing.items]
        assert found == [("x", "c"), ("y", "a"), ("y", "b")]
        assert [p.metadata.name for p in (await store.list(Pod, namespace="y")).items] == ["a", "b"]
        assert (await store.list(Node)).items == ()
        everything = await store.list_all()
        assert len(everything.items) == 4
        assert everything.revision == listing.revision

    scene.run(scenario)


def test_update_needs_the_stored_version(scene):
    async def scenario(one, two):
        first = await one.create(namespace("n"))
        seen = await two.get(Namespace, "n")
        second = await one.update(labelled(first, team="a"))
        assert int(second.metadata.resource_version) > int(first.metadata.resource_version)
        with pytest.raises(Conflict, match="Namespace/n"):
            await two.update(labelled(seen, team="b"))
        with pytest.raises(Conflict):
            await two.update(namespace("n", team="b"))  # no version at all
        assert (await two.get(Namespace, "n")).metadata.labels == {"team": "a"}

    scene.run(scenario, handles=2)


def test_update_keeps_identity_and_an_equal_one_keeps_the_version(scene):
    async def scenario(store):
        first = await store.create(namespace("n", a="b"))
        revision = (await store.list_all()).revision
        bare = Metadata(name="n", labels={"a": "b"}, resource_version=first.metadata.resource_version)
        assert await store.update(Namespace(metadata=bare)) == first
        assert (await store.list_all()).revision == revision
        changed = await store.update(labelled(Namespace(metadata=bare), a="c"))
        assert changed.metadata.uid == first.metadata.uid
        assert changed.metadata.creation_timestamp == first.metadata.creation_timestamp

    scene.run(scenario)


def test_what_does_not_exist_is_not_found(scene):
    async def scenario(store):
        with pytest.raises(NotFound, match="Node/n"):
            await store.get(Node, "n")
        with pytest.raises(NotFound):
            await store.update(namespace("n"))
        with pytest.raises(NotFound):
            await store.delete(Pod, "web", namespace="default")

    scene.run(scenario)


def test_delete_and_delete_if_unchanged(scene):
    async def scenario(store):
        first = await store.create(namespace("n"))
        second = await store.update(labelled(first, a="b"))
        with pytest.raises(Conflict):
            await store.delete(Namespace, "n", resource_version=first.metadata.resource_version)
        await store.delete(Namespace, "n", resource_version=second.metadata.resource_version)
        again = await store.create(namespace("n"))
        assert again.metadata.uid != first.metadata.uid
        assert int(again.metadata.resource_version) > int(second.metadata.resource_version)
        await store.delete(Namespace, "n")
        assert (await store.list(Namespace)).items == ()

    scene.run(scenario)


def test_watch_tells_what_was_and_what_comes(scene):
    async def scenario(one, two):
        start = (await one.list_all()).revision
        first = await one.create(namespace("n"))
        second = await one.update(labelled(first, a="b"))
        following = asyncio.create_task(take(two.watch(start), 4))
        await asyncio.sleep(0.05)
        await one.delete(Namespace, "n")
        third = await one.create(namespace("n"))
        events = await following
        assert [event.type for event in events] == ["added", "modified", "deleted", "added"]
        assert [event.object for event in events] == [first, second, second, third]
        revisions = [event.revision for event in events]
        assert revisions == sorted(set(revisions))
        assert revisions[-1] == (await two.list_all()).revision

    scene.run(scenario, handles=2)


def test_a_change_reaches_a_waiting_watcher_long_before_any_poll(scene):
    async def scenario(one, two):
        delays = []
        for number in range(20):
            start = (await two.list_all()).revision
            waiting = asyncio.create_task(take(two.watch(start), 1))
            await asyncio.sleep(0)
            began = asyncio.get_running_loop().time()
            await one.create(namespace(f"n{number}"))
            await waiting
            delays.append(asyncio.get_running_loop().time() - began)
        assert sorted(delays)[10] < SLOW_POLL / 2, "told, not found by a poll"

    scene.run(scenario, handles=2)


def test_a_watch_from_the_future_must_list_again(scene):
    async def scenario(store):
        with pytest.raises(RevisionGone):
            await take(store.watch((await store.list_all()).revision + 1), 1)

    scene.run(scenario)


@pytest.mark.parametrize("seed", range(3))
def test_watches_have_no_gap_while_many_write(scene, seed):
    """Whoever lists and then applies the events holds what the store holds."""

    async def scenario(*stores):
        rng = random.Random(seed)
        watcher, *writers = stores
        await writers[0].create(namespace("before"))
        listing = await watcher.list_all()
        state = {obj.metadata.name: obj for obj in listing.items}
        revisions = [listing.revision]

        async def follow():
            async for event in watcher.watch(listing.revision):
                revisions.append(event.revision)
                if event.type == "deleted":
                    assert state.pop(event.object.metadata.name) == event.object
                else:
                    assert (event.type == "added") == (event.object.metadata.name not in state)
                    state[event.object.metadata.name] = event.object
                if event.object.metadata.name == "last":
                    break

        async def write(store):
            for _ in range(60):
                name = f"n{rng.randrange(6)}"
                with contextlib.suppress(AlreadyExists, Conflict, NotFound):
                    match rng.choice(("create", "update", "update", "delete")):
                        case "create":
                            await store.create(namespace(name))
                        case "update":
                            seen = await store.get(Namespace, name)
                            await store.update(labelled(seen, value=str(rng.random())))
                        case "delete":
                            await store.delete(Namespace, name)

        following = asyncio.create_task(follow())
        await asyncio.gather(*map(write, writers))
        await watcher.create(namespace("last"))
        await following
        final = await watcher.list_all()
        assert revisions[-1] == final.revision
        assert state == {obj.metadata.name: obj for obj in final.items}
        assert revisions == sorted(set(revisions))

    scene.run(scenario, handles=4)
