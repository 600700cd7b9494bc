"""What only the answers of several nodes show."""

from collections import Counter
from collections.abc import Iterator
from statistics import median

from podway.api.kinds.node import SILENT_AFTER
from podway.health.checks.bgp import cut_off
from podway.health.facts import ClusterFacts, PoolFill
from podway.health.finding import Problem, Severity, cluster_check

SKEW = 2.0
"""Seconds that clocks may be apart; an answer is under way for less."""

POOL_NEARLY = 0.9


@cluster_check(
    "agent",
    looks_at="whether every node's agent answers, and when each was last seen in the store",
    why="without its agent a node's pods keep running, but no pod starts there and nothing is repaired",
)
def agent(facts: ClusterFacts) -> Iterator[Problem]:
    """Nodes that were not asked, because nobody knows how to reach them, count by their last sign.

    That a dead node's agent is silent is told with its sessions.
    """
    dead = cut_off(facts)
    for name, reason in facts.silent.items():
        if name in dead:
            continue
        yield Problem(
            f"its agent does not answer: {reason}",
            "start it: systemctl start podway-agent (in a lab: podway lab node start NODE), and read its log",
            name,
        )
    if not facts.whole:
        return
    seen: dict[str, float] = {}
    for heard in facts.heard.values():
        for name, age in heard.summary.seen.items():
            seen[name] = min(age, seen.get(name, age))
    for name, age in sorted(seen.items()):
        if name not in {*facts.heard, *facts.silent, *dead} and age > SILENT_AFTER:
            yield Problem(
                f"nothing was heard of its agent for {age:.0f} s",
                f"start the node and its agent, or remove it: podway delete node {name}",
                name,
            )


@cluster_check(
    "objects",
    looks_at="objects of the store that cannot be read, or whose fields cannot be right",
    why="agents go on by such an object's last good state; one that starts anew may know of none",
)
def objects(facts: ClusterFacts) -> Iterator[Problem]:
    """All agents read the same store, so each object is told once."""
    wrong: dict[str, str] = {}
    for heard in facts.heard.values():
        wrong |= heard.summary.rejected
    for name, problem in sorted(wrong.items()):
        kind, *_, called = name.split("/")
        yield Problem(
            f"it is rejected: {problem}",
            f"`podway apply -f` a right one in its place, or podway delete {kind.lower()} {called}",
            name,
        )


@cluster_check(
    "versions",
    looks_at="the versions of all agents",
    why="agents of different versions may plan differently; apart for longer than an upgrade takes is a mistake",
)
def versions(facts: ClusterFacts) -> Iterator[Problem]:
    """The version that most have is taken for the right one."""
    by_node = {name: heard.summary.version for name, heard in facts.heard.items()}
    usual = Counter(sorted(by_node.values())).most_common(1)
    for name, version in by_node.items():
        if version != usual[0][0]:
            yield Problem(
                f"its agent is {version}, that of most nodes {usual[0][0]}",
                f"install the same version on {name} and restart its agent: no packet is lost",
                name,
                Severity.WARNING,
            )


@cluster_check(
    "clock",
    looks_at="every agent's clock when it answered, beside the middle one of all",
    why="certificates seem expired or not yet valid, heartbeats seem old, and logs cannot be compared",
)
def clock(facts: ClusterFacts) -> Iterator[Problem]:
    """A lone node is compared with this command's clock."""
    apart = {name: heard.summary.at - heard.received for name, heard in facts.heard.items()}
    if not apart:
        return
    middle = median(apart.values()) if len(apart) > 2 else min(apart.values(), key=abs)
    for name, offset in apart.items():
        if abs(offset - middle) > SKEW:
            ahead = "ahead" if offset > middle else "behind"
            yield Problem(
                f"its clock is {abs(offset - middle):.0f} s {ahead}",
                "synchronise it: timedatectl set-ntp true, or chronyc tracking",
                name,
                Severity.WARNING,
            )


@cluster_check(
    "pool",
    looks_at="claimed blocks of every pool",
    why="once all blocks are claimed, nodes cannot get more addresses, and new nodes none",
)
def pool(facts: ClusterFacts) -> Iterator[Problem]:
    """Every node tells the same of blocks, the fullest picture is the newest; each knows if it needs the pool."""
    fullest: dict[str, PoolFill] = {}
    needed: set[str] = set()
    for heard in facts.heard.values():
        for fill in heard.summary.pools:
            if not fill.relieved:
                needed.add(fill.name)
            if fill.name not in fullest or fill.claimed > fullest[fill.name].claimed:
                fullest[fill.name] = fill
    for fill in fullest.values():
        if fill.name in needed and fill.claimed >= POOL_NEARLY * fill.total:
            yield Problem(
                f"{fill.claimed} of {fill.total} blocks of {fill.cidr} are claimed",
                "add an IPPool (`podway apply`), or remove nodes that are gone (`podway delete node`)",
                f"IPPool/{fill.name}",
                Severity.WARNING,
            )


@cluster_check(
    "mtu-apart",
    looks_at="the MTU of pods' links on every node",
    why="a pod sends packets as large as its own link allows; on a node with less they are dropped",
)
def mtu_apart(facts: ClusterFacts) -> Iterator[Problem]:
    """Nodes with more than the smallest send what others may not take."""
    by_node = {name: heard.summary.pod_mtu for name, heard in facts.heard.items()}
    smallest = min(by_node.values(), default=0)
    larger = sorted(name for name, mtu in by_node.items() if mtu > smallest)
    if larger:
        least = sorted(name for name, mtu in by_node.items() if mtu == smallest)
        yield Problem(
            f"pods have an MTU of {smallest} on {', '.join(least)} and more on {', '.join(larger)}",
            f"give all uplinks the same MTU, or set spec.mtu of NetworkConfig/default to {smallest}",
            severity=Severity.WARNING,
        )


@cluster_check(
    "node-address",
    looks_at="the nodes' own addresses",
    why="two nodes with one address take each other's packets by turns",
    caused=False,
)
def node_address(facts: ClusterFacts) -> Iterator[Problem]:
    """The store refuses this for nodes that register; an address may still be added by hand."""
    holders: dict[str, list[str]] = {}
    for name, heard in facts.heard.items():
        for address in heard.summary.addresses:
            holders.setdefault(address, []).append(name)
    for address, names in holders.items():
        if len(names) > 1:
            yield Problem(
                f"{address} is an address of {' and '.join(names)}",
                "give each node an address of its own",
                address,
            )
