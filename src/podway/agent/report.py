"""What an agent tells of itself: the methods of its socket, each answering with plain JSON values."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from podway import __version__
from podway.agent.admin import Method
from podway.agent.channel import Channel
from podway.agent.checkup import Checkup
from podway.agent.learned import LearnedRoutes
from podway.agent.options import AgentOptions
from podway.agent.reconciler import Reconciler
from podway.agent.state import NodeState
from podway.agent.tracing import Tracing
from podway.bgp.speaker import BgpSpeaker
from podway.errors import RoutingError
from podway.kernel.node import Kernel


class Reporter:
    """Answers `status`, `leases`, `peers` and `routes`. `problems` tells what is wrong with store and routing."""

    def __init__(
        self,
        options: AgentOptions,
        state: NodeState,
        kernel: Kernel,
        reconciler: Reconciler,
        speaker: BgpSpeaker,
        learned: LearnedRoutes,
        channel: Channel,
        checkup: Checkup,
        *,
        problems: Callable[[], dict[str, str]],
    ) -> None:
        self._options = options
        self._state = state
        self._kernel = kernel
        self._reconciler = reconciler
        self._speaker = speaker
        self._learned = learned
        self._problems = problems
        self._channel = channel
        self._checkup = checkup
        self._tracing = Tracing(state, speaker)
        self._started = time.time()

    @property
    def methods(self) -> Mapping[str, Method]:
        """The methods by name."""
        return {
            "status": Method(self.status, remote=True),
            "leases": Method(self.leases, remote=True),
            "peers": Method(self.peers, remote=True),
            "routes": Method(self.routes, remote=True),
            **self._tracing.methods,
            **self._checkup.methods,
        }

    async def status(self) -> dict[str, Any]:
        """Return the state of the agent, its store, its blocks, BIRD's sessions, and drift."""
        problems = self._problems()
        try:
            peers = await self.peers()
        except RoutingError as error:
            peers, problems["routing"] = [], error.message
        return {
            "ready": True,
            "node": self._options.node,
            "version": __version__,
            "pid": os.getpid(),
            "started": self._started,
            "memory": _resident(),
            "uplink": {
                "device": self._state.uplink.device,
                "mtu": self._state.uplink.mtu,
                "addresses": [str(address) for address in self._state.uplink.addresses],
            },
            "store": {"url": self._options.store, "problem": problems["store"]},
            "routing": {"problem": problems["routing"], "bird": self._speaker.bird.pid or 0, "peers": peers},
            "blocks": [
                {**msgspec.to_builtins(use, enc_hook=str), "free": use.free}
                for use in self._state.book.use(self._state.now())
            ],
            "leases": len(self._state.leases),
            "drift": {
                "now": [str(change) for change in self._kernel.diff(self._state.plan())],
                "repaired": [msgspec.to_builtins(repair) for repair in self._reconciler.repairs],
                "refused": [*self._reconciler.failures, *self._learned.failures],
            },
            "channel": self._channel.status(),
            "kernel_writes": self._kernel.writes,
        }

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
            }
            for lease in self._state.leases.values()
        ]

    async def peers(self) -> list[dict[str, Any]]:
        """Return the node's BGP sessions as BIRD has them."""
        return [msgspec.to_builtins(peer, enc_hook=str) for peer in await self._speaker.peers()]

    async def routes(self) -> list[dict[str, Any]]:
        """Return the routes to blocks that BIRD knows, own and learned."""
        return [msgspec.to_builtins(route, enc_hook=str) for route in await self._speaker.routes()]


def _resident() -> int:
    """Return this process's memory in bytes. (getrusage's ru_maxrss is inherited from whoever started it.)"""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
