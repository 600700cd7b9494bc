"""How long a cluster takes to come up, and how much memory its agents take."""

from collections.abc import Sequence

from bench.labs import Lab, lab
from bench.report import Row, Section
from bench.samples import median, mib
from podway.api.addresses import Family
from podway.kernel.rtnl import routes
from podway.lab import names, topology

SMALL, LARGE = 3, 50
ROUNDS = 5
SMALL_TARGET, LARGE_TARGET = 5.0, 90.0
MEMORY_TARGET = 60 << 20
RTPROT_BIRD = 12


def measure() -> Section:
    small = [_up(SMALL) for _ in range(ROUNDS)]
    large, large_memory = _up(LARGE)
    times = [seconds for seconds, _ in small]
    small_memory = [size for _, sizes in small for size in sizes]
    most = max(*small_memory, *large_memory)
    return Section(
        "Start-up and memory",
        f"`podway lab up`, the whole command, until every node's kernel has BIRD's route to every other node's "
        f"block (which is looked at once more from outside): {SMALL} nodes {ROUNDS} times, {LARGE} nodes once. "
        "Memory is VmRSS of each agent then.",
        (
            Row(
                f"{SMALL} nodes",
                f"{median(times):.1f} s (worst {max(times):.1f} s)",
                f"under {SMALL_TARGET:g} s",
                median(times) < SMALL_TARGET,
            ),
            Row(f"{LARGE} nodes, full mesh", f"{large:.1f} s", f"under {LARGE_TARGET:g} s", large < LARGE_TARGET),
            Row(
                "memory of an agent",
                f"{SMALL} nodes: {_sizes(small_memory)}; {LARGE} nodes: {_sizes(large_memory)}",
                f"under {mib(MEMORY_TARGET)}",
                most < MEMORY_TARGET,
            ),
        ),
    )


def _up(nodes: int) -> tuple[float, list[int]]:
    """Return how many seconds a lab takes to come up, and its agents' memory in bytes."""
    with lab(nodes) as cluster:
        for node in cluster.nodes:
            _require_routes(cluster, node)
        return cluster.took, [cluster.resident(node) for node in cluster.nodes]


def _require_routes(cluster: Lab, node: str) -> None:
    with topology.connection(names.node_netns(cluster.name, node)) as kernel:
        learned = routes.dump(kernel, Family.IPV4, protocol=RTPROT_BIRD)
    if len(learned) != len(cluster.nodes) - 1:
        raise RuntimeError(f"{node} has {len(learned)} routes of {len(cluster.nodes) - 1}")


def _sizes(sizes: Sequence[int]) -> str:
    return f"{mib(median(sizes))} (largest {mib(max(sizes))})"
