"""The uplink is looked at again without any event, in a real namespace."""

import asyncio
import secrets
import subprocess
from collections.abc import Iterator
from ipaddress import ip_interface
from pathlib import Path

import pytest

from podway.agent.following import UplinkFollower
from podway.agent.options import AgentOptions
from podway.agent.state import NodeState
from podway.cluster.view import ClusterView
from podway.kernel import netns
from podway.kernel.rtnl.netlink import Connection
from podway.plan.uplink import Uplink
from tests.patience import PATIENCE

pytestmark = pytest.mark.kernel


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"podway-following-{secrets.token_hex(4)}"
    netns.create(name)
    try:
        ip(name, "link", "add", "eth0", "up", "type", "veth", "peer", "far")
        ip(name, "link", "set", "far", "up")
        ip(name, "address", "add", "192.0.2.1/24", "dev", "eth0")
        yield name
    finally:
        netns.delete(name)


def ip(namespace: str, *arguments: str) -> None:
    subprocess.run(["ip", "-n", namespace, *arguments], check=True)


def test_what_no_event_told_is_found_all_the_same(namespace: str) -> None:
    uplink = Uplink("eth0", 1500, (ip_interface("192.0.2.1/24"),))
    state = NodeState("a", ClusterView.of(()), uplink)
    options = AgentOptions(node="a", store="", run_dir=Path("/nowhere"), resync_interval=0.1)

    async def follow() -> None:
        found = asyncio.Event()

        async def changed() -> None:
            found.set()

        with netns.opened(netns.path_of(namespace)) as fd, Connection(fd) as connection:
            follower = UplinkFollower(connection, state, options, changed=changed, bring_to_plan=lambda: None)
            task = asyncio.ensure_future(follower.run())
            try:
                await asyncio.to_thread(ip, namespace, "link", "set", "eth0", "name", "ens5")
                await asyncio.to_thread(ip, namespace, "link", "set", "ens5", "mtu", "1400")
                async with asyncio.timeout(PATIENCE):
                    while (state.uplink.device, state.uplink.mtu) != ("ens5", 1400):
                        await found.wait()
                        found.clear()
                assert follower.problem == ""
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    asyncio.run(follow())
