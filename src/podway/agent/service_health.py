"""Answers load balancers that ask the node by HTTP: for a Service's endpoints, and for the node as a whole.

They ask at all addresses of the node, and some at the Service's own, so it is listened at all of them. What is
said is found when somebody asks; only ports have to be followed. A port that another process holds is tried again.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any

import structlog

from podway.api.addresses import Family
from podway.api.kinds.service import Service
from podway.metrics.http_server import HttpServer, Page
from podway.reconcile.map_keeper import RETRY
from podway.reconcile.serving import Serving
from podway.reconcile.state import NodeState
from podway.services.health import PROXY_PORT, WEIGHT, HealthCheck, endpoints_here, health_checks, stays, told_of

log = structlog.get_logger(__name__)

STALE = 60.0
"""Seconds for which a change may wait for the data path before the node says that it does not serve: as long as
kube-proxy's two periods."""

_HEADERS = {"X-Content-Type-Options": "nosniff"}
_JSON = "application/json"

_Place = tuple[int, int]
"""A port, and the IP version at whose addresses it is listened at."""


class ServiceHealth:
    """Keeps the ports open that settings and Services ask for."""

    def __init__(self, state: NodeState, serving: Serving) -> None:
        self._state = state
        self._serving = serving
        self._wanted = asyncio.Event()
        self._servers: dict[_Place, tuple[HealthCheck | None, HttpServer]] = {}
        self.problem = ""
        """Which ports cannot be listened at, in words; empty if all can."""

    def trigger(self) -> None:
        """Ask for a look at Services and settings."""
        self._wanted.set()

    @property
    def ports(self) -> list[int]:
        """The ports at which load balancers are answered, in order."""
        return sorted({port for port, _ in self._servers})

    async def run(self) -> None:
        """Follow for ever; no port is left open."""
        try:
            while True:
                await self._adjust()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RETRY if self.problem else None):
                        await self._wanted.wait()
                self._wanted.clear()
        finally:
            for _, server in self._servers.values():
                server.close()
            self._servers.clear()

    def _asked(self) -> Iterator[tuple[_Place, HealthCheck | None]]:
        """Yield what is to be listened at, and for which Service; None: for the node."""
        view = self._state.view
        if view.config.services != "all":
            return
        versions = {source.version for source in self._state.uplink.sources}
        for version in sorted(versions):
            yield (PROXY_PORT, version), None
        for check in health_checks(view.namespaced_table(Service).values()):
            for version in versions.intersection(check.versions):
                if check.port != PROXY_PORT:
                    yield (check.port, version), check

    async def _adjust(self) -> None:
        asked = dict(self._asked())
        for place in [place for place, (check, _) in self._servers.items() if asked.get(place, ()) != check]:
            self._servers.pop(place)[1].close()
        refused = {}
        for (port, version), check in asked.items():
            if (port, version) in self._servers:
                continue
            pages = self._of_node if check is None else partial(self._of_service, check, version)
            server = HttpServer(pages)
            try:
                await server.start("", port, family=Family(version).af)
            except OSError as error:
                refused[port] = f"port {port} for {_whose(check)} cannot be listened at: {error.strerror or error}"
            else:
                self._servers[port, version] = check, server
        problem = "; ".join(refused.values())
        if problem != self.problem:
            self.problem = problem
            if problem:
                log.warning("load balancers are not answered", problem=problem)

    @property
    def serves(self) -> bool:
        """Whether Services are served to all, and no change waits for it too long."""
        serving = self._serving
        return serving.in_force and serving.node.in_force and serving.waits < STALE

    async def _of_service(self, check: HealthCheck, version: int, path: str) -> Page:
        del path
        planner, serves = self._serving.planner, self.serves
        count = endpoints_here(planner, check.service, version) if planner else 0
        status = HTTPStatus.OK if count and serves else HTTPStatus.SERVICE_UNAVAILABLE
        text = told_of(check.service, count, serving=serves)
        return Page(text, _JSON, status, {**_HEADERS, WEIGHT: str(count)})

    async def _of_node(self, path: str) -> Page:
        if path not in ("/healthz", "/livez"):
            return Page("there is /healthz, and /livez\n", status=HTTPStatus.NOT_FOUND)
        now = time.time()
        serves, here = self.serves, stays(self._state.view.nodes.get(self._state.node))
        told: dict[str, Any] = {
            "lastUpdated": _time(now if serves else now - self._serving.waits),
            "currentTime": _time(now),
        }
        if path == "/healthz":
            told["nodeEligible"] = here
        well = serves and (here or path == "/livez")
        status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
        return Page(json.dumps(told), _JSON, status, _HEADERS)


def _whose(check: HealthCheck | None) -> str:
    return f"health checks of Service {'/'.join(check.service)}" if check else "health checks of the node"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
