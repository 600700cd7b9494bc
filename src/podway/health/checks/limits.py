"""Tables and limits of the kernel that fill up."""

from collections.abc import Iterator

from podway.health.facts import (
    CONNTRACK_COUNT,
    CONNTRACK_MAX,
    INOTIFY_TRIED,
    NEARLY,
    NodeFacts,
    neighbour_overflows,
)
from podway.health.finding import Problem, Severity, node_check


@node_check(
    "conntrack",
    looks_at="tracked connections beside nf_conntrack_max, and connections dropped since the last look",
    why="when the table is full, the first packet of every new connection is dropped",
    caused=False,
)
def conntrack(facts: NodeFacts) -> Iterator[Problem]:
    """The limit holds for each namespace, though only the first one may set it."""
    count, limit = facts.settings.number(CONNTRACK_COUNT), facts.settings.number(CONNTRACK_MAX)
    dropped = facts.settings.grown("conntrack.drop") + facts.settings.grown("conntrack.early_drop")
    if not count or not limit:
        return
    full = count >= limit
    if count >= NEARLY * limit or dropped:
        lost = f", {dropped} dropped since the last look" if dropped else ""
        yield Problem(
            f"{count} of {limit} connections{lost}",
            f"sysctl -w net.netfilter.nf_conntrack_max={2 * limit}; `conntrack -S` and `conntrack -L` show whose "
            "they are",
            severity=Severity.ERROR if full or dropped else Severity.WARNING,
        )


@node_check(
    "neighbours",
    looks_at="learned neighbour entries beside gc_thresh3, and how often the table overflowed since the last look",
    why="when the table is full, packets to neighbours that are not in it are dropped, other nodes among them",
    caused=False,
)
def neighbours(facts: NodeFacts) -> Iterator[Problem]:
    """Permanent entries, which pods have, do not count against the limit (neigh_alloc, net/core/neighbour.c)."""
    for table in facts.network.neighbours:
        overflows = facts.settings.grown(neighbour_overflows(table.family))
        if table.entries >= NEARLY * table.room or overflows:
            tree = "ipv4" if table.family == 4 else "ipv6"
            lost = f"; it overflowed {overflows} times since the last look" if overflows else ""
            yield Problem(
                f"{table.entries} of {table.room} entries{lost}",
                f"sysctl -w net.{tree}.neigh.default.gc_thresh3={4 * table.room} "
                f"net.{tree}.neigh.default.gc_thresh2={2 * table.room}",
                f"{table.family.label} neighbour table",
                Severity.ERROR if overflows else Severity.WARNING,
            )


@node_check(
    "flow-tables",
    looks_at="entries of the flow engine's tables beside what these take",
    why="what finds no room is not in force: new policies deny all to those whom they are about, new pods are "
    "refused, new Services are not served; flows take the place of those that were silent for longest",
    caused=False,
)
def flow_tables(facts: NodeFacts) -> Iterator[Problem]:
    """Told before they are full; what was refused then is told by the check of policies."""
    for name, table in facts.memory.tables.items():
        if table.is_nearly_full:
            yield Problem(
                f"{table.used} of {table.room} entries",
                _TABLE_ADVICE.get(name, "have fewer of what it holds on this node, or in the cluster"),
                f"table {name}",
                Severity.ERROR if table.used >= table.room else Severity.WARNING,
            )


_TABLE_ADVICE = {
    "flows": "see who has so many: `podway flows --by pod`; each pod's share of connections is bounded",
    "rules": "allow ranges of ports and labels rather than many single ports and networks",
    "rule_sets": "have fewer different combinations of policies select this node's pods",
    "identities": "have fewer networks in policies (`podway policy list POD` says whose rules a pod has)",
    "endpoints": "have fewer pods on this node",
    "frontends": "have fewer ports of Services",
    "choices": "have fewer endpoints behind Services",
}


@node_check(
    "inotify",
    looks_at=f"whether {INOTIFY_TRIED} more inotify instances can be opened",
    why="the agent and the kubelet follow files by inotify; without it they miss or delay changes",
)
def inotify(facts: NodeFacts) -> Iterator[Problem]:
    """Limits are per user: another program of root's may have used them up."""
    room = facts.settings.inotify_room
    if room is not None and room < INOTIFY_TRIED:
        yield Problem(
            f"only {room} more inotify instances can be opened",
            "sysctl -w fs.inotify.max_user_instances=1024 fs.inotify.max_user_watches=524288",
            severity=Severity.WARNING if room else Severity.ERROR,
        )


@node_check(
    "checksums",
    looks_at="TCP, UDP and ICMPv6 packets with a wrong checksum received since the last look (the agent's start)",
    why="a faulty checksum offload corrupts packets that seem to have been sent well: pings pass, TCP hangs",
)
def checksums(facts: NodeFacts) -> Iterator[Problem]:
    """This sees corruption on arrival. What a device hands to pods unchecked is not seen: see `podway verify`."""
    names = ("Tcp.InCsumErrors", "Udp.InCsumErrors", "Udp6InCsumErrors", "Icmp.InCsumErrors", "Icmp6InCsumErrors")
    grown = {name: facts.settings.grown(name) for name in names}
    if any(grown.values()):
        told = ", ".join(f"{name} +{count}" for name, count in grown.items() if count)
        device = facts.memory.uplink.device
        yield Problem(
            f"packets with a wrong checksum arrived: {told}",
            f"on the sending node: `ethtool -K {device} tx-checksum-ip-generic off`, and see whether this stops; "
            "`podway verify` names the pairs",
            device,
            Severity.WARNING,
        )
