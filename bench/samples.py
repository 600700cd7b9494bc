"""Samples, and how they are told: in medians and high percentiles, since means hide what hurts."""

import statistics
from collections.abc import Sequence


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile: the smallest sample that `percent` % of all do not exceed.

    Raises ValueError if there is no sample.
    """
    if not samples:
        raise ValueError("a percentile of no samples")
    ordered = sorted(samples)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


median = statistics.median


def ms(seconds: float) -> str:
    """Write a time in milliseconds, to three digits."""
    return f"{_three_digits(seconds * 1e3)} ms"


def us(seconds: float) -> str:
    """Write a time in microseconds, to three digits."""
    return f"{_three_digits(seconds * 1e6)} µs"


def mib(size: float) -> str:
    """Write a size in bytes in MiB."""
    return f"{size / 2**20:.0f} MiB"


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
