"""Controllers on a store in a file, as processes: one works, the next takes over."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.node_lease import CONTROLLER, LEASES, LeaseSpec, NodeLease, micro_time
from podway.api.meta import Metadata
from podway.errors import NotFound
from podway.store.base import Store
from podway.store.sqlite import SqliteStore
from tests.api.test_judgement import block, node, pool
from tests.patience import PATIENCE, eventually


class Controllers:
    """Processes, and the store that they work on."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "store.db"
        self.directory = directory
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        command = [
            sys.executable,
            "-m",
            "podway",
            "--store",
            f"sqlite://{self.path}",
            "controller",
            "--name",
            name,
        ]
        with open(self.directory / f"{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(command, stderr=log)

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        process = self.running.pop(name)
        process.send_signal(number)
        process.wait(PATIENCE)

    def ask(self, work: Callable[[Store], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            store = SqliteStore(self.path)
            try:
                return await work(store)
            finally:
                await store.close()

        return asyncio.run(main())

    def holder(self) -> str:
        try:
            lease: NodeLease = self.ask(lambda store: store.get(NodeLease, CONTROLLER, namespace=LEASES))
        except NotFound:
            return ""
        return lease.spec.holder_identity

    def accepted(self, name: str) -> str:
        found: IPPool = self.ask(lambda store: store.get(IPPool, name))
        condition = found.status.condition("Accepted")
        return f"{condition.status} {condition.message}" if condition else ""


@pytest.fixture
def controllers(tmp_path: Path) -> Iterator[Controllers]:
    made = Controllers(tmp_path)
    yield made
    for process in made.running.values():
        process.kill()
        process.wait()


def test_one_works_and_the_next_takes_over(controllers: Controllers) -> None:
    controllers.ask(lambda store: store.create(pool("a", "10.0.0.0/16")))
    controllers.start("one")
    eventually(lambda: controllers.accepted("a").startswith("True"), "the pool is accepted")
    assert controllers.holder() == "one"
    controllers.start("two")
    controllers.ask(lambda store: store.create(pool("b", "10.0.0.0/17", 1)))
    eventually(
        lambda: "overlaps 10.0.0.0/16 of IPPool/a" in controllers.accepted("b"), "the second pool is refused"
    )
    assert controllers.holder() == "one"
    controllers.end("one")
    eventually(lambda: controllers.holder() == "two", "the other one takes over")
    controllers.ask(lambda store: store.delete(IPPool, "a"))
    eventually(lambda: controllers.accepted("b").startswith("True"), "what held it up is gone")


def test_what_removed_nodes_left_is_given_back_and_what_lives_stays(controllers: Controllers) -> None:
    def lease(name: str, renewed: float) -> NodeLease:
        spec = LeaseSpec(holder_identity="k", lease_duration_seconds=600, renew_time=micro_time(renewed))
        return NodeLease(metadata=Metadata(name=name, namespace=LEASES), spec=spec)

    async def make(store: Store) -> None:
        await store.create(pool("p", "10.0.0.0/16"))
        await store.create(node("here", "172.30.0.1"))
        for number, owner in enumerate(("here", "gone", "silent", "alive"), 1):
            await store.create(block(f"10.0.{number}.0/24", "p", owner))
        await store.create(lease("gone", 0.0))
        await store.create(lease("leased", 0.0))
        await store.create(lease("alive", time.time()))

    async def owners(store: Store) -> tuple[set[str], set[str]]:
        blocks = await store.list(AddressBlock)
        leases = await store.list(NodeLease, namespace=LEASES)
        return {one.spec.node for one in blocks.items}, {one.metadata.name for one in leases.items}

    controllers.ask(make)
    controllers.start("one")
    left = ({"here", "alive"}, {CONTROLLER, "alive"})
    eventually(lambda: controllers.ask(owners) == left, "all but what a living agent has is given back")
