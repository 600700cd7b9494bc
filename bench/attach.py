"""ADD and DEL one at a time, against the reference plugins in turn: on an empty node, and on a full one."""

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from bench.execution import timed
from bench.labs import lab
from bench.plugins import Plugin, new_container, plugins, sandboxes
from bench.report import Row, Section
from bench.samples import median, mib, ms, percentile

ROUNDS = 150
FULL_ROUNDS = 50
WARM_UP = 5
SETTLE = 0.02
"""Seconds between runs: the kernel finishes the removal of one plugin's link outside the next one's time."""
TARGET = 0.4
FULL = 110
"""Pods: as many as a kubelet runs on a node unless told otherwise (`maxPods`)."""

Place = tuple[Plugin, Path]
Times = dict[tuple[str, str], list[float]]


def measure() -> Section:
    with (
        lab(nodes=3) as cluster,
        plugins(cluster, "node1") as known,
        sandboxes(len(known) + FULL) as paths,
    ):
        places = list(zip(known.values(), paths, strict=False))
        empty = cluster.inside("node1", lambda: alternate(places, ROUNDS))
        cluster.inside("node1", lambda: _fill(known["podway"], paths[len(known) :]))
        full = cluster.inside("node1", lambda: alternate(places, FULL_ROUNDS))
        resident = cluster.resident("node1")
    return Section(
        "CNI ADD and DEL, one at a time",
        "Whole process from spawn to exit (for Podway shim, agent and kernel; for the others with host-local), in "
        f"one node of a three-node lab. {ROUNDS} rounds, in each every plugin once, in rotating order: medians. "
        f"Then the same with {FULL} pods of Podway's on the node, {FULL_ROUNDS} rounds.",
        (
            *(_compare(verb, empty) for verb in ("ADD", "DEL")),
            *(Row(f"{verb} by bridge", _words(empty["bridge", verb])) for verb in ("ADD", "DEL")),
            *(Row(f"{verb} beside {FULL} pods", against_ptp(verb, full)) for verb in ("ADD", "DEL")),
            Row(f"memory of the agent with {FULL} pods", mib(resident)),
        ),
    )


def alternate(places: Sequence[Place], rounds: int) -> Times:
    """Add and delete a pod by each plugin in turn; return the seconds that each took, by plugin and verb."""
    times: Times = defaultdict(list)
    for number in range(-WARM_UP, rounds):
        turn = number % len(places)
        for plugin, path in (*places[turn:], *places[:turn]):
            container = new_container()
            for verb in ("ADD", "DEL"):
                took = timed(plugin.command(verb, container, path))
                time.sleep(SETTLE)
                if number >= 0:
                    times[plugin.name, verb].append(took)
    return times


def _fill(plugin: Plugin, paths: Sequence[Path]) -> None:
    for path in paths:
        timed(plugin.command("ADD", new_container(), path))


def _compare(verb: str, times: Times) -> Row:
    return Row(verb, against_ptp(verb, times), f"at most {TARGET} of ptp", ratio(verb, times) <= TARGET)


def against_ptp(verb: str, times: Times) -> str:
    """Tell what a verb took, beside the reference plugin's."""
    ours, theirs = _words(times["podway", verb]), _words(times["ptp", verb])
    return f"{ours}; ptp {theirs}; ratio {ratio(verb, times):.2f}"


def ratio(verb: str, times: Times) -> float:
    """Return the ratio of what a verb took to the reference plugin's."""
    return median(times["podway", verb]) / median(times["ptp", verb])


def _words(samples: Sequence[float]) -> str:
    return f"{ms(median(samples))} (p95 {ms(percentile(samples, 95))})"
