"""The paths between nodes, probed."""

from collections.abc import Iterator

from podway.health.facts import NodeFacts, Path
from podway.health.finding import Problem, Severity, node_check

HEADER = {4: 28, 6: 48}
"""Bytes that an echo request has besides what `ping -s` counts."""


@node_check(
    "path-mtu",
    looks_at="whether packets of the pods' MTU with don't-fragment reach other nodes (from each node up to 64)",
    why="a path that silently drops large packets lets connections open and then hang: a black hole (RFC 2923)",
)
def path_mtu(facts: NodeFacts) -> Iterator[Problem]:
    """Only a node that answers small requests proves that size is what is wrong."""
    for path in facts.routing.paths:
        if path.small and not path.full:
            yield Problem(
                f"packets of {path.size} bytes to {path.address} are lost, small ones answered",
                f"raise the MTU of what lies between to {path.size}, or state what fits: spec.mtu of "
                f"NetworkConfig/default; find it: {_ping(path)}",
                f"to {path.node}",
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


def _ping(path: Path) -> str:
    return f"ping -M do -s {path.size - HEADER[path.address.version]} {path.address}"
