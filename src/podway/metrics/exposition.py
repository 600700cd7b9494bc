"""Metrics as text: Prometheus' text format, version 0.0.4 (prometheus.io, "Exposition formats"). Pure.

A library for this takes 74 ms to import and several MiB, and holds values of its own. Here the values are where
they always were, and are read when somebody asks: nothing is counted twice, and nobody pays who is not asked.
Labels have few values: none is the name of a pod, nor of another node.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

import msgspec

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The limits of buckets for times."""


class Metric(msgspec.Struct, frozen=True):
    """A metric: its name, what it is, what kind, and the names of its labels."""

    name: str
    help: str
    kind: Literal["counter", "gauge", "histogram"] = "gauge"
    labels: tuple[str, ...] = ()


class Histogram:
    """How often something took how long; times are in seconds."""

    def __init__(self, limits: tuple[float, ...] = SECONDS) -> None:
        self.limits = limits
        self.counts = [0] * (len(limits) + 1)
        self.sum = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        """Count one, or several that took the same."""
        self.counts[bisect_left(self.limits, seconds)] += times
        self.sum += seconds * times


Value: TypeAlias = float | Histogram
Values: TypeAlias = Value | Mapping[tuple[str, ...], Value]
"""One value, or one for each combination of the labels' values."""


def expose(families: Iterable[tuple[Metric, Values]]) -> str:
    """Return metrics with their values as text."""
    return "".join(line for metric, values in families for line in _family(metric, values))


def _family(metric: Metric, values: Values) -> Iterable[str]:
    every = values if isinstance(values, Mapping) else {(): values}
    if not every:
        return
    yield f"# HELP {metric.name} {_escaped(metric.help)}\n"
    yield f"# TYPE {metric.name} {metric.kind}\n"
    for labels, value in every.items():
        named = tuple(zip(metric.labels, labels, strict=True))
        if isinstance(value, Histogram):
            seen = 0
            for limit, count in zip((*map(str, value.limits), "+Inf"), value.counts, strict=True):
                seen += count
                yield _sample(f"{metric.name}_bucket", (*named, ("le", limit)), seen)
            yield _sample(f"{metric.name}_sum", named, value.sum)
            yield _sample(f"{metric.name}_count", named, seen)
        else:
            yield _sample(metric.name, named, value)


def _sample(name: str, labels: tuple[tuple[str, str], ...], value: float) -> str:
    inside = ",".join(f'{label}="{_escaped(text, quoted=True)}"' for label, text in labels)
    return f"{name}{{{inside}}} {value!r}\n" if inside else f"{name} {value!r}\n"


def _escaped(text: str, *, quoted: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quoted else text
