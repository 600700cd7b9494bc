"""What an agent tells of itself: the methods of its socket, each answering with plain JSON values."""

import asyncio
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from podway import __version__
from podway.agent.checkup import Checkup
from podway.agent.parts import Parts
from podway.agent.told import told_routes
from podway.agent.tracing import Tracing
from podway.api.addresses import Family
from podway.api.resource import subject
from podway.bgp.status import PeerStatus
from podway.channel.admin import Method
from podway.errors import RoutingError
from podway.kernel.network import Connection, RouteRecord, dump_links, dump_routes
from podway.plan.outside import left_out
from podway.plan.topology import topology


class Reporter:
    """Answers `status`, `leases`, `peers`, `routes`, `heard`, `steps`; doctor and tracer answer for theirs."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._checkup = Checkup(parts)
        self._tracing = Tracing(parts.state, parts.speaker)
        self._started = time.time()

    @property
    def methods(self) -> Mapping[str, Method]:
        """The methods by name."""
        return {
            "status": Method(self.status, remote=True),
            "leases": Method(self.leases, remote=True),
            "peers": Method(self.peers, remote=True),
            "routes": Method(self.routes, remote=True),
            "heard": Method(self.heard, remote=True),
            "steps": Method(self.steps),
            **self._tracing.methods,
            **self._checkup.methods,
        }

    async def status(self) -> dict[str, Any]:
        """Return the state of the agent, its store, its blocks, BIRD's sessions, and drift."""
        problems, target = self._parts.problems(), topology(self._parts.state.view)
        drift = await self._parts.reconciler.differences()
        try:
            peers = await self.peers()
        except RoutingError as error:
            peers, problems["routing"] = [], error.message
        return {
            "ready": True,
            "node": self._parts.options.node,
            "version": __version__,
            "pid": os.getpid(),
            "started": self._started,
            "memory": _resident(),
            "uplink": {
                "device": self._parts.state.uplink.device,
                "mtu": self._parts.state.uplink.mtu,
                "addresses": [str(address) for address in self._parts.state.uplink.addresses],
                "problem": problems["uplink"],
            },
            "store": {
                "url": self._parts.options.store,
                "problem": problems["store"],
                "aside": {subject(one.key): one.problem for one in self._parts.state.view.aside.values()},
            },
            "routing": {
                "problem": problems["routing"],
                "pending": problems["pending"],
                "bird": self._parts.speaker.bird.pid or 0,
                "peers": peers,
                "topology": self._parts.speaker.topology,
                "waits_for": list(self._parts.speaker.waits_for),
                "reflectors": sorted(target.reflectors),
                "lost": sorted(target.lost),
                "left_out": dict(left_out(self._parts.state.view, self._parts.options.node)),
            },
            "blocks": [
                {**msgspec.to_builtins(use, enc_hook=str), "free": use.free}
                for use in self._parts.state.book.use(self._parts.state.now())
            ],
            "leases": len(self._parts.state.leases),
            "drift": {
                "now": [
                    *(str(change) for change in drift),
                    *self._parts.learned.lost,
                ],
                "repaired": [msgspec.to_builtins(repair) for repair in self._parts.reconciler.repairs],
                "refused": [
                    *self._parts.reconciler.failures,
                    *self._parts.learned.failures,
                    *self._parts.pods.unmended,
                ],
            },
            "crossing": self._parts.crossing.status(),
            "ipip": self._parts.kernel.ipip_counters(),
            "offloads": self._parts.offloads.status(),
            "channel": self._parts.channel.status(),
            "failures": [msgspec.to_builtins(failure) for failure in self._parts.supervisor.failures],
            "kernel_writes": self._parts.kernel.writes,
        }

    async def heard(self, objects: list[tuple[str, str, str]]) -> list[str]:
        """Return in which version the agent has heard of each of these objects, empty if it has not."""
        found = (self._parts.state.view.find((kind, where, name)) for kind, where, name in objects)
        return [obj.metadata.resource_version if obj else "" for obj in found]

    async def steps(self) -> dict[str, float]:
        """Return how long the agent was at work at a stretch, in seconds, since this was asked last."""
        return self._parts.steps.told()

    async def leases(self) -> list[dict[str, Any]]:
        """Return every lease of the node."""
        return [
            {
                "pod": lease.pod,
                "container": lease.attachment.container,
                "ifname": lease.attachment.ifname,
                "network": lease.network,
                "netns": lease.netns,
                "link": lease.attachment.link,
                "addresses": [str(address) for address in lease.addresses],
                "attach": lease.attach,
            }
            for lease in self._parts.state.leases.values()
        ]

    async def peers(self) -> list[dict[str, Any]]:
        """Return the node's BGP sessions as BIRD has them, and what the other end is to this node (`role`)."""
        view = self._parts.state.view
        reflectors = topology(view).reflectors
        return [
            {**msgspec.to_builtins(peer, enc_hook=str), "role": _role(peer, self._parts.options.node, reflectors)}
            for peer in await self._parts.speaker.peers()
        ]

    async def routes(self) -> list[dict[str, Any]]:
        """Return the node's routes to all blocks, and what BGP told besides: see podway.agent.told.ToldRoute."""
        state, known = self._parts.state, await self._parts.speaker.routes()
        records, names = await asyncio.to_thread(_kernel_routes)
        told = told_routes(state.view, state.node, records, names, known)
        return [msgspec.to_builtins(route, enc_hook=str) for route in told]


def _role(peer: PeerStatus, node: str, reflectors: Collection[str]) -> str:
    if not peer.node:
        return "outside"
    if peer.node in reflectors:
        return "reflector"
    return "client" if node in reflectors else "node"


def _kernel_routes() -> tuple[list[RouteRecord], dict[int, str]]:
    with Connection() as connection:
        found = [route for family in Family for route in dump_routes(connection, family)]
        return found, {link.index: link.name for link in dump_links(connection)}


def _resident() -> int:
    """Return this process's memory in bytes. (getrusage's ru_maxrss is inherited from whoever started it.)"""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
