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
from podway.cluster.view import ClusterView
from podway.kernel import netns
from podway.kernel.node import Kernel
from podway.plan.uplink import Uplink
from podway.reconcile.pod_ends import PodEnds
from podway.reconcile.reconciler import Reconciler
from podway.reconcile.state import NodeState
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
        with netns.opened(netns.path_of(namespace)) as fd, Kernel.open(fd) as kernel:
            reconciler = Reconciler(kernel, state, PodEnds(kernel), run_dir=options.run_dir, audit_interval=60.0)
            follower = UplinkFollower(kernel.connection, state, options, reconciler)
            task = asyncio.ensure_future(follower.run())
            try:
                await asyncio.to_thread(ip, namespace, "link", "set", "eth0", "name", "ens5")
                await asyncio.to_thread(ip, namespace, "link", "set", "ens5", "mtu", "1400")
                async with asyncio.timeout(PATIENCE):
                    while (state.uplink.device, state.uplink.mtu) != ("ens5", 1400):
                        await follower.changed.wait()
                        follower.changed.clear()
                assert follower.problem == ""
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    asyncio.run(follow())
