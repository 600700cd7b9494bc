"""Fifty ADDs at once: what a node sees when it starts, or a deployment is scaled up."""

import time
from collections import defaultdict
from pathlib import Path

from bench.execution import timed_at_once
from bench.labs import lab
from bench.plugins import Plugin, new_container, plugins, sandboxes
from bench.report import Row, Section
from bench.samples import median, mib, ms, percentile

PODS = 50
ROUNDS = 8
SETTLE = 1.0
"""Seconds after a burst, for the kernel to finish the removal of the links."""

Times = dict[tuple[str, str], list[float]]


def measure() -> Section:
    with lab(nodes=3) as cluster, plugins(cluster, "node1") as known, sandboxes(PODS) as paths:
        compared = [known["podway"], known["ptp"]]
        times = cluster.inside("node1", lambda: _alternate(compared, paths))
        resident = cluster.resident("node1")
    add, delete = (_compare(verb, times) for verb in ("ADD", "DEL"))
    ours, theirs = (percentile(times[name, "ADD"], 99) for name in ("podway", "ptp"))
    return Section(
        f"{PODS} ADDs at once",
        f"{PODS} processes started as fast as one thread can, each timed from its spawn to its exit; then {PODS} "
        f"DELs likewise. {ROUNDS} interleaved rounds, percentiles over all of them.",
        (
            Row("ADD", add, "p99 at most that of ptp", ours <= theirs),
            Row("DEL", delete),
            Row(f"resident memory of the agent after {(ROUNDS + 1) * PODS} ADDs", mib(resident)),
        ),
    )


def _alternate(compared: list[Plugin], paths: list[Path]) -> Times:
    times: Times = defaultdict(list)
    for number in range(-1, ROUNDS):
        for plugin in compared if number % 2 else compared[::-1]:
            containers = [new_container() for _ in paths]
            for verb in ("ADD", "DEL"):
                took = timed_at_once(
                    [plugin.command(verb, *place) for place in zip(containers, paths, strict=True)]
                )
                time.sleep(SETTLE)
                if number >= 0:  # the first round warms up
                    times[plugin.name, verb] += took
    return times


def _compare(verb: str, times: Times) -> str:
    def words(name: str) -> str:
        samples = times[name, verb]
        return f"p50 {ms(median(samples))}, p99 {ms(percentile(samples, 99))}"

    return f"{words('podway')}; ptp {words('ptp')}"
