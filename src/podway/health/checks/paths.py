"""The paths between nodes, probed."""

from collections.abc import Iterator

from podway.api.addresses import Family
from podway.bgp.probe import SMALLEST
from podway.health.facts import ClusterFacts, NarrowPath, NodeFacts
from podway.health.finding import Problem, Severity, cluster_check, node_check
from podway.health.groups import between
from podway.plan.fabric import SMALLEST_IPV6_MTU

HEADER = {Family.IPV4: 28, Family.IPV6: 48}
"""Bytes that an echo request has besides what `ping -s` counts."""


@cluster_check(
    "path-mtu",
    looks_at="whether packets of the pods' MTU with don't-fragment reach other nodes (from each node up to 64), "
    "and where they do not, how large ones do",
    why="where a path is narrower than pods think, large packets are lost; where nobody says so, connections "
    "open and then hang: a black hole (RFC 2923)",
)
def path_mtu(facts: ClusterFacts) -> Iterator[Problem]:
    """One problem for one size that fits: what all these paths have in common is most likely one link."""
    found: dict[int, list[tuple[str, NarrowPath]]] = {}
    for name, heard in sorted(facts.heard.items()):
        for path in heard.summary.narrow:
            found.setdefault(path.fits, []).append((name, path))
    if len(found) == 2:  # the same that was measured on some of them
        found = {max(found): [one for paths in found.values() for one in paths]} if 0 in found else found
    for fits, paths in found.items():
        needed = max(path.size for _, path in paths)
        headers = max(facts.heard[name].summary.headers for name, _ in paths)
        families = sorted({path.family.label for _, path in paths})
        example, less = paths[0][1], fits - headers
        smallest = SMALLEST_IPV6_MTU if Family.IPV6.label in families else SMALLEST[Family.IPV4]
        most = f"only packets of up to {fits} bytes pass" if fits else "large packets are lost, small ones pass"
        told = all(path.told for _, path in paths)
        who = "and routers say so" if told else "and nobody says so"
        pods = f" ({needed - headers} of a pod and {headers} of outer headers)" if headers else ""
        yield Problem(
            f"{most} ({', '.join(families)}), {who}; pods' largest cross in {needed}{pods}",
            f"raise the MTU of what lies between to {needed} (find it: {_tracepath(example)})"
            + (f"; or have pods send less: podway set config mtu={less}" if less >= smallest else ""),
            between((name, path.node) for name, path in paths),
            Severity.WARNING if told else Severity.ERROR,
        )


@node_check(
    "ping",
    looks_at="whether nodes whose BGP session stands answer ICMP echo",
    why="a node whose BFD session fails is asked by ping before its routes are dropped; "
    "where ping is filtered, every short failure counts as the node's death",
)
def ping(facts: NodeFacts) -> Iterator[Problem]:
    """A node that is dead has no session; that is for `bgp-session` to tell."""
    standing = {session.address for session in facts.routing.sessions if session.established}
    for path in facts.routing.paths:
        if not path.small and str(path.address) in standing:
            yield Problem(
                f"no answer to ICMP echo from {path.address}, though BGP works",
                "let ICMP (ICMPv6) echo pass between nodes",
                f"to {path.node}",
                Severity.WARNING,
            )


def _tracepath(path: NarrowPath) -> str:
    """Return the command that shows where a path becomes narrow, by the answers of routers or by their absence."""
    size = path.size - HEADER[path.family]
    return f"`tracepath {path.address}`, or `ping -M do -s {size} {path.address}`"
