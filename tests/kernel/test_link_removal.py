"""Links removed without waiting for RCU: gone when told, all of them, and nothing else."""

import asyncio
from typing import Any

import pytest

from podway.kernel.netlink import Connection
from podway.kernel.removal import LinkRemover
from podway.kernel.rtnl import links
from tests.namespaces import TestNamespace

pytestmark = pytest.mark.kernel


def _make(connection: Connection, pod_fd: int, *names: str) -> None:
    for number, name in enumerate(names):
        connection.transact([links.new_veth(name, links.Peer(f"eth{number}", pod_fd)), links.set_up(name)])


def test_a_removed_link_has_left_both_namespaces_when_told(node: TestNamespace, pod: Any) -> None:
    async def scenario() -> None:
        remover = LinkRemover(node.fd)
        try:
            with Connection(node.fd) as host, Connection(pod.fd) as inside:
                _make(host, pod.fd, "pwaya", "pwayb")
                assert await remover.remove("pwaya")
                assert {link.name for link in links.dump(host)} >= {"pwayb"}
                assert "pwaya" not in {link.name for link in links.dump(host)}
                assert {link.name for link in links.dump(inside)} == {"lo", "eth1"}
        finally:
            remover.close()

    asyncio.run(scenario())


def test_many_at_once_and_twice(node: TestNamespace, pod: Any) -> None:
    names = [f"pway{number}" for number in range(40)]

    async def scenario() -> list[bool]:
        remover = LinkRemover(node.fd)
        try:
            with Connection(node.fd) as host:
                _make(host, pod.fd, *names)
                gone = await asyncio.gather(*(remover.remove(name) for name in names))
                assert not [link.name for link in links.dump(host) if link.name.startswith("pway")]
            return [*gone, await remover.remove(names[0])]
        finally:
            remover.close()

    assert asyncio.run(scenario()) == [True] * 40 + [False]


def test_who_waits_is_told_before_the_kernel_has_tidied_up(node: TestNamespace, pod: Any) -> None:
    """The announcement, not the kernel's answer, ends the wait: the request's thread is still at work then."""

    async def scenario() -> int:
        remover, early = LinkRemover(node.fd), 0
        try:
            with Connection(node.fd) as host:
                for number in range(5):
                    _make(host, pod.fd, f"pway{number}")
                    await remover.remove(f"pway{number}")
                    early += remover.busy > 0
        finally:
            remover.close()
        return early

    assert asyncio.run(scenario()) >= 3


def test_a_port_of_a_bridge_has_left_its_namespace_when_told(node: TestNamespace, pod: Any) -> None:
    """A bridge tells earlier that the port left it, in the same words."""

    async def scenario() -> None:
        remover = LinkRemover(node.fd)
        try:
            with Connection(node.fd) as host:
                host.transact([links.new_bridge("br0")])
                for number in range(10):
                    name = f"pway{number}"
                    _make(host, pod.fd, name)
                    host.transact([links.change(name, master=links.find(host, "br0").index)])
                    assert await remover.remove(name)
                    assert not links.exists(host, name)
        finally:
            remover.close()

    asyncio.run(scenario())
