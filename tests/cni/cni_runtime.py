"""A runtime and an agent for the plugin's tests: the real shim, the real server, a network without a kernel."""

import asyncio
import json
import os
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from podway.api.lease import Attachment, Lease
from podway.cni.request import Add, Check, Delete, GarbageCollect
from podway.cni.server import CniServer
from podway.cni.spec import Code
from podway.errors import CniError, PoolExhausted
from podway.plan.objects import PodWiring
from podway.plan.wiring import wire


@dataclass
class Answer:
    """What the runtime gets: exit status, stdout as JSON (None if empty), stderr."""

    status: int
    output: Any
    stderr: str


@dataclass
class Runtime:
    """Executes the plugin as libcni does."""

    shim: Path
    directory: Path

    @property
    def socket(self) -> Path:
        return self.directory / "cni.sock"

    @property
    def spool(self) -> Path:
        return self.directory / "deletes"

    @property
    def spooled(self) -> list[str]:
        return sorted(os.listdir(self.spool)) if self.spool.exists() else []

    def environment(self, command: str, **variables: str | None) -> dict[str, str]:
        merged = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/opt/cni/bin",
            "PODWAY_CNI_SOCKET": str(self.socket),
            "PODWAY_CNI_SPOOL": str(self.spool),
            **variables,
        }
        return {name: value for name, value in merged.items() if value is not None}

    def run(self, command: str, config: Any = None, **variables: str | None) -> Answer:
        config = {"cniVersion": "1.1.0", "name": "podway", "type": "podway"} if config is None else config
        stdin = config if isinstance(config, bytes) else json.dumps(config).encode()
        done = subprocess.run(
            [self.shim],
            env=self.environment(command, **variables),
            input=stdin,
            capture_output=True,
            timeout=120,
        )
        return Answer(done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr.decode())


@dataclass
class MemoryNetwork:
    """A network that keeps its attachments in a table; it gives out 10.244.1.1 to 10.244.1.<size>."""

    size: int = 250
    leases: dict[Attachment, Lease] = field(default_factory=dict)
    requests: list[Any] = field(default_factory=list)
    before_add: Callable[[], Coroutine[Any, Any, None]] | None = None

    async def add(self, request: Add, netns: int) -> PodWiring:
        assert os.readlink(f"/proc/self/fd/{netns}").startswith("net:")
        self.requests.append(request)
        if self.before_add:
            await self.before_add()
        if request.attachment not in self.leases:
            taken = {lease.addresses for lease in self.leases.values()}
            offered = ((ip_address(f"10.244.1.{n}"),) for n in range(1, self.size + 1))
            free = next((addresses for addresses in offered if addresses not in taken), None)
            if free is None:
                raise PoolExhausted("pool default is full", hint="add a pool")
            self.leases[request.attachment] = Lease(
                request.attachment, str(request.pod), request.network, request.netns, free
            )
        return wire(self.leases[request.attachment], mtu=1500, node_addresses=())

    async def delete(self, request: Delete) -> None:
        self.requests.append(request)
        self.leases.pop(request.attachment, None)

    async def check(self, request: Check, netns: int) -> None:
        lease = self.leases.get(request.attachment)
        if lease is None:
            raise CniError(Code.UNKNOWN_CONTAINER, "no such attachment")
        if request.previous.addresses(request.attachment.ifname) != lease.addresses:
            raise CniError(Code.CHECK_FAILED, "prevResult has other addresses")

    async def collect_garbage(self, request: GarbageCollect) -> None:
        self.leases = {key: lease for key, lease in self.leases.items() if key in request.valid}

    async def status(self) -> None:
        if len(self.leases) >= self.size:
            raise CniError(Code.NOT_AVAILABLE, "no address left")


@contextmanager
def serving(runtime: Runtime, network: Any) -> Iterator[CniServer]:
    """Run the agent's server in a thread, from its start to its close."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def call(coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result(20)

    server = CniServer(network, socket_path=runtime.socket, spool=runtime.spool)
    try:
        call(server.start())
        yield server
    finally:
        call(server.close())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
