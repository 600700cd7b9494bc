"""Sends the agent's metrics to an OpenTelemetry collector, every minute.

They are totals and states of now: whoever missed one is told all by the next.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from podway.errors import explain
from podway.export.target import Target
from podway.metrics.exposition import Metric, Values

log = structlog.get_logger(__name__)

PERIOD = 60.0
"""Seconds between, as OpenTelemetry's own SDKs have it (OTEL_METRIC_EXPORT_INTERVAL)."""


class MetricsExport:
    """Sends what `collect` returns, to a target if there is one."""

    def __init__(
        self,
        target: Target | None,
        node: str,
        collect: Callable[[], Awaitable[Sequence[tuple[Metric, Values]]]],
        period: float = PERIOD,
    ) -> None:
        """Open nothing yet; `period` is in seconds."""
        self._target = target
        self._node = node
        self._collect = collect
        self._period = period
        self._problem = ""

    async def run(self) -> None:
        """Send them for ever."""
        target = self._target
        if target is None:
            await asyncio.Event().wait()
            return
        from podway.export.otlp_metrics import OtlpMetrics

        sink = OtlpMetrics(target, self._node)
        try:
            while True:
                problem = ""
                try:
                    await asyncio.to_thread(sink.send, await self._collect())
                except OSError as error:
                    problem = explain(error)
                self._note(target.url, problem)
                await asyncio.sleep(self._period)
        finally:
            sink.close()

    def _note(self, url: str, problem: str) -> None:
        if problem and problem != self._problem:
            log.error("metrics cannot be exported", target=url, problem=problem)
        elif self._problem and not problem:
            log.info("metrics are exported again", target=url)
        self._problem = problem
