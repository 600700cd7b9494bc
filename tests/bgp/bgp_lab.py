"""Nodes as network namespaces on a bridge that is in a namespace too, each with an event loop of its own."""

import asyncio
import contextlib
import ctypes
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from podway.api.kinds.bgp_peer import BGPPeer, BGPPeerSpec
from podway.api.kinds.ip_pool import Encapsulation, IPPool, IPPoolSpec
from podway.api.kinds.network_config import BgpSettings, NetworkConfig, NetworkConfigSpec
from podway.api.kinds.node import BGP_READY, INTERFACE_ADDRESSES, Node, NodeAddress, NodeStatus
from podway.api.meta import Metadata
from podway.api.resource import Resource
from podway.bgp.speaker import BgpSpeaker
from podway.cluster.view import ClusterView
from podway.plan.bgp import BgpPlan, plan_bgp
from podway.plan.uplink import Uplink
from tests.patience import PATIENCE, eventually

T = TypeVar("T")
CLONE_NEWNET = 0x40000000

TOR_ASN = 64601

POOLS = ("10.244.0.0/16", "fd00:10:244::/112")

# One datagram a millisecond, numbered; the receiver prints how many different ones came.
FLOW = """
import socket, sys, time
role, source, port, count, target = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
sock = socket.socket(socket.AF_INET6 if ":" in source else socket.AF_INET, socket.SOCK_DGRAM)
if role == "send":
    sock.bind((source, 0))
    start = time.monotonic()
    for number in range(count):
        sock.sendto(b"%d" % number, (target, port))
        time.sleep(max(0, start + (number + 1) / 1000 - time.monotonic()))
else:
    sock.bind((source, port))
    print("ready", flush=True)
    sock.settimeout(60)
    seen = set()
    try:
        while len(seen) < count:
            seen.add(sock.recv(64))
            sock.settimeout(10)
    except TimeoutError:
        pass
    print(len(seen), flush=True)
"""


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


class Namespace:
    """A network namespace with a thread in it that runs an event loop."""

    def __init__(self, name: str) -> None:
        self.name = name
        ip("netns", "add", name)
        self._processes: list[subprocess.Popen[str]] = []
        self.loop = asyncio.new_event_loop()
        ready = threading.Event()
        self.thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self.thread.start()
        ready.wait()

    def _serve(self, ready: threading.Event) -> None:
        with open(f"/run/netns/{self.name}") as namespace:
            assert ctypes.CDLL(None).setns(namespace.fileno(), CLONE_NEWNET) == 0
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(ready.set)
        self.loop.run_forever()
        for task in (left := asyncio.all_tasks(self.loop)):
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self.loop.close()

    def ip(self, *arguments: str) -> str:
        return ip("-n", self.name, *arguments)

    def routes(self, protocol: str = "bird") -> dict[str, dict[str, Any]]:
        """The main table's routes of one protocol, by destination."""
        found = [
            route
            for family in ("-4", "-6")
            for route in json.loads(self.ip(family, "-j", "route", "show", "proto", protocol) or "[]")
        ]
        return {route["dst"]: route for route in found}

    def run(self, coroutine: Coroutine[Any, Any, T], *, within: float = PATIENCE) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(within)

    def popen(self, *command: str, **options: Any) -> "subprocess.Popen[str]":
        """Start a command inside; `close` ends it if nobody has."""
        process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.name}", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )
        self._processes.append(process)
        return process

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(PATIENCE)
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()
        ip("netns", "del", self.name)


def mac(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


class LabNode(Namespace):
    """A node: address .N on the segment, blocks 10.244.N.0/24 and fd00:10:244::N:0/122 with a pod address."""

    def __init__(self, segment: "Segment", number: int) -> None:
        super().__init__(f"{segment.prefix}-{number}")
        self.number = number
        self.node = f"node-{number}"
        self.notes: dict[str, str] = {}
        self.segment = segment
        self.block4, self.pod4 = f"10.244.{number}.0/24", f"10.244.{number}.1"
        self.block6, self.pod6 = f"fd00:10:244::{number}00/122", f"fd00:10:244::{number}01"
        self.run_dir = segment.directory / str(number)
        segment.plug(self, number)
        self.ip("link", "set", "lo", "up")
        self.ip("address", "add", f"192.0.2.{number}/24", "dev", "eth0")
        self.ip("address", "add", f"2001:db8::{number}/64", "dev", "eth0", "nodad")
        self.ip("link", "set", "eth0", "up")
        # The kernel's neighbour tables are shared by all namespaces, and may be full of others' entries
        # (gc_thresh3); permanent ones always find room.
        for other in {*range(1, 10), 101, 102} - {number}:
            for address in (f"192.0.2.{other}", f"2001:db8::{other}"):
                self.ip("neigh", "add", address, "lladdr", mac(other), "dev", "eth0", "nud", "permanent")
        for pod, block in ((self.pod4, self.block4), (self.pod6, self.block6)):
            self.ip("address", "add", pod, "dev", "lo")
            self.ip("route", "add", "blackhole", block, "proto", "112")
        self.speaker = BgpSpeaker(self.run_dir)
        self.uplink: Uplink | None = Uplink("eth0", 1500, self.resource.interface_addresses)
        self.agent: asyncio.Task[None] | None = None

    @property
    def resource(self) -> Node:
        addresses = (f"192.0.2.{self.number}", f"2001:db8::{self.number}")
        interfaces = f"{addresses[0]}/24,{addresses[1]}/64"
        return Node(
            metadata=Metadata(name=self.node, annotations={INTERFACE_ADDRESSES: interfaces, **self.notes}),
            status=NodeStatus(
                addresses=tuple(NodeAddress(type="InternalIP", address=address) for address in addresses)
            ),
        )

    def start(self, nodes: Sequence["LabNode"], *, as_before: bool = False) -> None:
        async def start() -> None:
            self.speaker = BgpSpeaker(self.run_dir)
            plan, secrets = self.segment.plan(self, nodes), self.segment.view(nodes).secrets
            await self.speaker.start(plan, secrets, as_before=as_before)
            self.agent = asyncio.ensure_future(self.speaker.run())

        self.run(start())

    def follow(self, nodes: Sequence["LabNode"]) -> None:
        """Do what an agent does when the cluster changed: take over the plan, and say if the node is ready."""
        self.run(self.speaker.apply(self.segment.plan(self, nodes), self.segment.view(nodes).secrets))
        ready = self.run(self.speaker.ready())
        if ready:
            self.notes[BGP_READY] = ready

    def stop_agent(self) -> None:
        """End the agent's tasks; BIRD runs on."""

        async def stop() -> None:
            if self.agent:
                self.agent.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self.agent
                self.agent = None

        self.run(stop())

    @property
    def bird(self) -> int:
        return int((self.run_dir / "bird.pid").read_text())

    def kill_bird(self) -> None:
        os.kill(self.bird, signal.SIGKILL)

    def cut(self) -> None:
        """Unplug the node: nothing gets out any more."""
        self.segment.switch.ip("link", "set", f"p{self.number}", "down")

    def flow_to(self, other: "LabNode", *, seconds: int, ipv6: bool = False) -> Callable[[], int]:
        """Send 1000 datagrams a second from pod to pod; return what waits and tells how many were lost."""
        source, target = (self.pod6, other.pod6) if ipv6 else (self.pod4, other.pod4)
        count = seconds * 1000
        common = (sys.executable, "-c", FLOW)
        receiver = other.popen(*common, "receive", target, "7007", str(count), "-")
        assert receiver.stdout
        assert receiver.stdout.readline() == "ready\n"
        sender = self.popen(*common, "send", source, "7007", str(count), target)

        def lost() -> int:
            assert sender.wait(seconds + PATIENCE) == 0
            sender.communicate()
            return count - int(receiver.communicate(timeout=PATIENCE)[0])

        return lost

    def route_changes(self) -> Callable[[], list[str]]:
        """Record changes of routes that are not the kernel's own; return what ends that and tells them."""
        monitor = self.popen("ip", "monitor", "route")
        # A line of a netlink socket: sk, protocol, port id, groups (net/netlink/af_netlink.c).
        sockets = Path(f"/proc/{monitor.pid}/net/netlink")
        eventually(
            lambda: any(
                line[2] == str(monitor.pid) and int(line[3], 16)
                for line in map(str.split, sockets.read_text().splitlines()[1:])
            )
        )

        def changes() -> list[str]:
            monitor.terminate()
            return [line for line in monitor.communicate()[0].splitlines() if "proto kernel" not in line]

        return changes

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(super().close)
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
                self.kill_bird()
            self.stop_agent()


def tells(*networks: str) -> str:
    """What has a BIRD tell of networks."""
    routes = "".join(f"route {network} blackhole; " for network in networks)
    return f"protocol static told {{ ipv4; {routes}}}\n"


class OutsidePeer(Namespace):
    """A speaker outside the cluster, at address .NUMBER of the segment: a BIRD that a test configures."""

    def __init__(self, segment: "Segment", number: int) -> None:
        super().__init__(f"{segment.prefix}-{number}")
        self.directory = segment.directory / f"outside-{number}"
        self.directory.mkdir()
        self.address = f"192.0.2.{number}"
        segment.plug(self, number)
        self.ip("link", "set", "lo", "up")
        self.ip("address", "add", f"{self.address}/24", "dev", "eth0")
        self.ip("link", "set", "eth0", "up")
        self.bird: subprocess.Popen[str] | None = None

    def peer(self, **spec: Any) -> BGPPeer:
        """What the cluster is told of it."""
        fields = {"address": self.address, "asn": TOR_ASN, **spec}
        return BGPPeer(metadata=Metadata(name=f"tor-{self.address[-3:]}"), spec=BGPPeerSpec(**fields))

    def session(self, node: LabNode, *options: str, channel: str = "import all; export all;") -> str:
        """What it is told of a node; the session is named `node<NUMBER>`."""
        lines = "".join(f"\t{option};\n" for option in options)
        return f"""
protocol bgp node{node.number} {{
	local as {TOR_ASN};
	neighbor 192.0.2.{node.number} as 64512;
	connect delay time 1; connect retry time 1; error wait time 1, 1;
{lines}	ipv4 {{ {channel} }};
}}
"""

    def start(self, *protocols: str) -> None:
        """Start BIRD, or give it another configuration."""
        conf = self.directory / "bird.conf"
        head = f"log stderr {{ fatal }};\nrouter id {self.address};\nprotocol device {{}}\n"
        conf.write_text(head + "\n".join(protocols))
        if self.bird:
            self.birdc("configure")
        else:
            files = ("-c", str(conf), "-s", str(self.directory / "ctl"), "-P", str(self.directory / "pid"))
            self.bird = self.popen("/usr/sbin/bird", "-f", *files)
            eventually((self.directory / "ctl").exists)

    def birdc(self, *command: str) -> str:
        program = ("/usr/sbin/birdc", "-s", str(self.directory / "ctl"))
        return subprocess.run([*program, *command], capture_output=True, text=True, check=True).stdout

    def routes_of(self, session: str) -> str:
        """What a session has told, with all attributes."""
        return self.birdc("show", "route", "all", "protocol", session)

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(super().close)
            if self.bird:
                self.bird.kill()
                self.bird.communicate()


class Segment:
    """A layer-2 segment with nodes on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.prefix = f"pwbgp-{os.getpid()}-{secrets.token_hex(2)}"
        self.switch = Namespace(f"{self.prefix}-sw")
        self.nodes: list[LabNode] = []
        self.others: list[OutsidePeer] = []
        self.pools: tuple[str, ...] = POOLS
        self.bgp = BgpSettings()
        self.encapsulation: Encapsulation = "none"
        self.objects: list[Resource] = []
        self.switch.ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        self.switch.ip("link", "set", "br0", "up")

    def plug(self, namespace: Namespace, number: int) -> None:
        """Give a namespace an eth0 on the segment."""
        peer = ("peer", "name", "eth0", "address", mac(number), "netns", namespace.name)
        self.switch.ip("link", "add", f"p{number}", "type", "veth", *peer)
        self.switch.ip("link", "set", f"p{number}", "master", "br0", "up")

    def outside(self, number: int) -> OutsidePeer:
        """Add a speaker outside the cluster."""
        self.others.append(OutsidePeer(self, number))
        return self.others[-1]

    def add(self, count: int) -> list[LabNode]:
        first = len(self.nodes) + 1
        for number in range(first, first + count):
            self.nodes.append(LabNode(self, number))
        return self.nodes

    def view(self, nodes: Sequence[LabNode]) -> ClusterView:
        pools = [
            IPPool(metadata=Metadata(name=f"pool-{number}"), spec=spec)
            for number, spec in enumerate(
                IPPoolSpec(cidr=cidr, encapsulation=self.encapsulation) for cidr in self.pools
            )
        ]
        config = NetworkConfig(metadata=Metadata(name="default"), spec=NetworkConfigSpec(bgp=self.bgp))
        return ClusterView.of([*(each.resource for each in nodes), *pools, config, *self.objects])

    def plan(self, node: LabNode, nodes: Sequence[LabNode]) -> BgpPlan:
        return plan_bgp(self.view(nodes), node.node, node.speaker.running, uplink=node.uplink)

    def start(self, count: int) -> list[LabNode]:
        """Add nodes, start their speakers and wait until all have each other's routes."""
        nodes = self.add(count)
        for node in nodes:
            node.start(nodes)
        for node in nodes:
            eventually(partial(self.complete, node))
        return nodes

    def go_over(self, *, within: float = PATIENCE) -> None:
        """Have all agents switch to the topology of `bgp`, until each has ended what it needs no more."""

        def done() -> bool:
            for node in self.nodes:
                node.follow(self.nodes)
            view = self.view(self.nodes)
            targets = [plan_bgp(view, node.node) for node in self.nodes]
            wanted = [(frozenset(peer.node for peer in plan.peers), plan.reflects) for plan in targets]
            return wanted == [(node.speaker.running.nodes, node.speaker.running.reflects) for node in self.nodes]

        eventually(done, within=within, every=0.2)

    def complete(self, node: LabNode) -> bool:
        """Whether a node has every other's blocks."""
        families = [0 if ":" not in pool else 1 for pool in self.pools]
        wanted = {(o.block4, o.block6)[f] for o in self.nodes if o is not node for f in families}
        return node.routes().keys() == wanted

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self.switch.close)
            for namespace in (*self.nodes, *self.others):
                stack.callback(namespace.close)
