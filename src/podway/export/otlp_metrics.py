"""An agent's metrics by OTLP over HTTP, in JSON: what a Prometheus server reads, for who has none.

Source: opentelemetry.io/docs/specs/otlp (1.9), opentelemetry-proto's metrics.proto.
"""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from podway import __version__
from podway.export.otlp import Collector, attributes, resource_of
from podway.export.target import Target
from podway.metrics.exposition import Histogram, Metric, Values

_CUMULATIVE = 2
"""AGGREGATION_TEMPORALITY_CUMULATIVE: sums since the agent started."""


class OtlpMetrics:
    """Sends metrics to a collector."""

    def __init__(self, target: Target, node: str) -> None:
        """Take whose metrics they are. Opens nothing yet."""
        self._collector = Collector(target, "/v1/metrics")
        self._resource = resource_of(node)
        self._started = time.time_ns()

    def send(self, families: Iterable[tuple[Metric, Values]]) -> None:
        """Send metrics with their values. Blocks, a few seconds at most. Raises OSError."""
        if self._collector.post(self.request(families)) is None:
            raise OSError("it refuses them: does it take OTLP in JSON there, and metrics?")

    def close(self) -> None:
        """Close the connection."""
        self._collector.close()

    def request(self, families: Iterable[tuple[Metric, Values]]) -> dict[str, Any]:
        """Return an ExportMetricsServiceRequest in JSON's shape."""
        moments = {"startTimeUnixNano": str(self._started), "timeUnixNano": str(time.time_ns())}
        metrics = [_metric(metric, values, moments) for metric, values in families]
        scope = {"scope": {"name": "podway.agent", "version": __version__}, "metrics": metrics}
        return {"resourceMetrics": [{"resource": self._resource, "scopeMetrics": [scope]}]}


def _metric(metric: Metric, values: Values, moments: Mapping[str, str]) -> dict[str, Any]:
    every = values if isinstance(values, Mapping) else {(): values}
    points = [
        {
            **moments,
            "attributes": attributes(dict(zip(metric.labels, labels, strict=True))),
            **(_buckets(value) if isinstance(value, Histogram) else {"asDouble": value}),
        }
        for labels, value in every.items()
    ]
    data: dict[str, Any] = {"dataPoints": points}
    if metric.kind != "gauge":
        data["aggregationTemporality"] = _CUMULATIVE
    if metric.kind == "counter":
        data["isMonotonic"] = True
    field = {"counter": "sum", "gauge": "gauge", "histogram": "histogram"}[metric.kind]
    return {"name": metric.name, "description": metric.help, field: data}


def _buckets(value: Histogram) -> dict[str, Any]:
    return {
        "count": str(sum(value.counts)),
        "sum": value.sum,
        "bucketCounts": list(map(str, value.counts)),
        "explicitBounds": list(value.limits),
    }
