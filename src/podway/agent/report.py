"""What an agent tells of itself: the methods of its socket, each answering with plain JSON values."""

import asyncio
import os
import time
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from podway import __version__
from podway.agent.capturing import Capturing
from podway.agent.checkup import Checkup
from podway.agent.components import Components
from podway.agent.dump import Dump
from podway.agent.routes import node_routes
from podway.agent.tracing import Tracing
from podway.api.addresses import Family
from podway.api.lease import LeaseRecord
from podway.api.resource import subject
from podway.bgp.status import PeerStatus
from podway.channel.admin import Method
from podway.cni.server import CniServer
from podway.errors import RoutingError
from podway.kernel.network import Connection, RouteRecord, dump_links, dump_routes
from podway.memory import resident
from podway.plan.outside import left_out
from podway.plan.topology import Topology, topology


class Reporter:
    """Answers `alive`, `status`, `leases`, `peers`, `routes`, `heard`, `steps`.

    Doctor, tracer and captures answer for theirs.
    """

    def __init__(self, components: Components, requests: CniServer) -> None:
        """`requests` serves the runtime."""
        self._components = components
        self._checkup = Checkup(components)
        self._dump = Dump(components, requests)
        self._tracing = Tracing(components.state, components.speaker, components.reconciler.enforcement)
        self._capturing = Capturing(components.state)
        self._started = time.time()

    @property
    def methods(self) -> Mapping[str, Method]:
        """The methods by name."""
        return {
            "alive": Method(self.alive),
            "status": Method(self.status, remote=True),
            "leases": Method(self.leases, remote=True),
            "peers": Method(self.peers, remote=True),
            "routes": Method(self.routes, remote=True),
            "heard": Method(self.heard, remote=True),
            "names": Method(self.names, remote=True),
            "steps": Method(self.steps),
            **self._components.flows.methods,
            **self._tracing.methods,
            **self._capturing.methods,
            **self._checkup.methods,
            **self._dump.methods,
        }

    async def alive(self) -> dict[str, Any]:
        """Return why no pod can be attached, empty if one can, and whether Services are served to all.

        Costs next to nothing (podway.channel.alive).
        """
        return {"problem": self._components.opening.problem, "serves": self._components.service_health.serves}

    async def names(self) -> list[dict[str, Any]]:
        """Return the names of domains in policies that addresses bear, and for how many seconds yet at least."""
        known, now = self._components.reconciler.enforcement.naming.known, self._components.state.now()
        return [
            {
                "name": bearer.name,
                "address": str(bearer.address).partition("/")[0],
                "seconds": max(0, round(until - now)),
            }
            for bearer, until in sorted(known.items().items())
        ]

    async def status(self) -> dict[str, Any]:
        """Return the state of the agent, its store, its blocks, BIRD's sessions, and drift."""
        problems, target = self._components.problems(), await self._topology()
        tables = self._components.tables()
        drift = await self._components.reconciler.differences()
        differing = await self._components.reconciler.policy_differences()
        try:
            peers = await self._peers(target)
        except RoutingError as error:
            peers, problems["routing"] = [], error.message
        return {
            "ready": True,
            "node": self._components.options.node,
            "version": __version__,
            "pid": os.getpid(),
            "started": self._started,
            "memory": resident(),
            "uplink": {
                "device": self._components.state.uplink.device,
                "mtu": self._components.state.uplink.mtu,
                "addresses": [str(address) for address in self._components.state.uplink.addresses],
                "problem": problems["uplink"],
            },
            "store": {
                "url": self._components.options.store,
                "problem": problems["store"],
                "rejected": {
                    subject(one.key): one.problem for one in self._components.state.view.rejected.values()
                },
            },
            "routing": {
                "problem": problems["routing"],
                "pending": problems["pending"],
                "bird": self._components.speaker.bird.pid or 0,
                "peers": peers,
                "topology": self._components.speaker.topology,
                "waits_for": list(self._components.speaker.waits_for),
                "reflectors": sorted(target.reflectors),
                "lost": sorted(target.lost),
                "left_out": dict(left_out(self._components.state.view, self._components.options.node)),
            },
            "pods": {"problem": problems["opening"]},
            "blocks": [
                {**msgspec.to_builtins(use, enc_hook=str), "free": use.free}
                for use in self._components.state.book.use(self._components.state.now())
            ],
            "leases": len(self._components.state.leases),
            "drift": {
                "now": [
                    *(str(change) for change in drift),
                    *differing,
                    *self._components.learned.lost,
                ],
                "repaired": [msgspec.to_builtins(repair) for repair in self._components.reconciler.repairs],
                "refused": [
                    *self._components.reconciler.failures,
                    *self._components.learned.failures,
                    *self._components.pods.unrepaired,
                ],
            },
            "encapsulation": self._components.encapsulation.status(),
            "ipip": self._components.kernel.ipip_counters(),
            "data_path": {
                **self._components.reconciler.enforcement.status(),
                "tables": msgspec.to_builtins(tables),
                "nearly_full": [name for name, table in tables.items() if table.is_nearly_full],
            },
            "flows": await self._components.flows.status(),
            "services": self._components.services(),
            "offloads": self._components.offloads.status(),
            "channel": self._components.channel.status(),
            "failures": [msgspec.to_builtins(failure) for failure in self._components.supervisor.failures],
            "kernel_writes": self._components.kernel.writes,
        }

    async def heard(self, objects: list[tuple[str, str, str]]) -> list[str]:
        """Return in which version the agent has heard of each of these objects, empty if it has not."""
        found = (self._components.state.view.find((kind, where, name)) for kind, where, name in objects)
        return [obj.metadata.resource_version if obj else "" for obj in found]

    async def steps(self) -> dict[str, float]:
        """Return how long the agent was at work at a stretch, in seconds, since this was asked last."""
        return self._components.steps.summary()

    async def leases(self) -> list[dict[str, Any]]:
        """Return every lease of the node."""
        return [
            {"link": lease.attachment.link, **msgspec.structs.asdict(LeaseRecord.of(lease))}
            for lease in self._components.state.leases.values()
        ]

    async def peers(self) -> list[dict[str, Any]]:
        """Return the node's BGP sessions as BIRD has them, and what the other end is to this node (`role`)."""
        return await self._peers(await self._topology())

    async def _topology(self) -> Topology:
        """Return what the cluster's settings ask for; in a thread, since reflectors are chosen among all nodes."""
        return await asyncio.to_thread(topology, self._components.state.view)

    async def _peers(self, target: Topology) -> list[dict[str, Any]]:
        return [
            {
                **msgspec.to_builtins(peer, enc_hook=str),
                "role": _role(peer, self._components.options.node, target.reflectors),
            }
            for peer in await self._components.speaker.peers()
        ]

    async def routes(self) -> list[dict[str, Any]]:
        """Return the node's routes to all blocks, and others of BGP's: see podway.agent.routes.NodeRoute."""
        state, known = self._components.state, await self._components.speaker.routes()
        records, names = await asyncio.to_thread(_kernel_routes)
        told = node_routes(state.view, state.node, records, names, known)
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
