"""BGP and BFD sessions, seen from both ends."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import msgspec

from podway.api.addresses import Family
from podway.bgp.passwords import NO_PASSWORD
from podway.health.facts import ClusterFacts, NodeFacts, Session
from podway.health.finding import Problem, Severity, cluster_check, node_check
from podway.health.groups import names
from podway.plan.outside import left_out
from podway.plan.reflectors import REDUNDANT


class Reason(msgspec.Struct, frozen=True):
    """Why a session is probably down; of two ends' reasons the one of the smaller rank says more.

    `at` is the node whose fault it is, and `root` what is wrong there: the same for all of its sessions.
    """

    rank: int
    words: str
    advice: str
    at: str = ""
    root: str = ""


Pair: TypeAlias = tuple[str, str]


@cluster_check(
    "bgp-session",
    looks_at="sessions that are not established, from both ends: BIRD's last error, a half-opened TCP connection "
    "to the port, a ping, a route lookup, and segments dropped for their signature",
    why="without the session each of the two nodes loses its routes to the other's pods",
)
def bgp_session(facts: ClusterFacts) -> Iterator[Problem]:
    """One problem for both ends and families of a session with one reason, and for all sessions of a dead node."""
    down = _by_pair(facts, lambda session: not session.established)
    reasons = {key: _reasons(ends, facts) for key, ends in down.items()}
    blamed = Counter(blame for found in reasons.values() for blame in {(each.at, each.root) for each in found})
    told: dict[tuple[str, ...], list[tuple[Pair, Family]]] = {}
    chosen: dict[tuple[str, ...], Reason] = {}
    for (pair, family), found in reasons.items():
        reason = min(found, key=lambda each: (each.rank, -blamed[each.at, each.root]))
        cause: tuple[str, ...] = (reason.at, reason.root) if reason.root else (*pair, reason.words)
        told.setdefault(cause, []).append((pair, family))
        chosen.setdefault(cause, reason)
    for cause, keys in told.items():
        reason, families = chosen[cause], ", ".join(sorted({family.label for _, family in keys}))
        pairs = list(dict.fromkeys(pair for pair, _ in keys))
        if len(pairs) > 1:
            others = [one if other == reason.at else other for one, other in pairs]
            lost = f"{reason.root}; its sessions with {names(others)} are down ({families})"
            yield Problem(lost, reason.advice, reason.at)
        else:
            states = ", ".join(f"on {name} {_state(session)}" for name, session in down[keys[0]])
            yield Problem(f"{states}: {reason.words}", reason.advice, f"{' - '.join(pairs[0])} {families}")


def _reasons(ends: Iterable[tuple[str, Session]], facts: ClusterFacts) -> list[Reason]:
    """Return the likeliest reason that each end knows."""
    ordered = sorted(ends, key=lambda end: end[0])
    # Of a segment that is dropped for its signature only its receiver knows, and only one end dials.
    signatures = max(session.signatures for _, session in ordered)
    return [why_down(name, msgspec.structs.replace(end, signatures=signatures), facts) for name, end in ordered]


def cut_off(facts: ClusterFacts) -> frozenset[str]:
    """Return the nodes whose death `bgp_session` tells: all that have sessions with them find them silent."""
    alive, silent = set[str](), set[str]()
    for heard in facts.heard.values():
        for session in heard.summary.sessions:
            lost = not session.established and not session.ping and session.answer != "open"
            (silent if lost else alive).add(session.node)
    return frozenset(silent - alive)


def _by_pair(
    facts: ClusterFacts, concerned: Callable[[Session], bool]
) -> dict[tuple[Pair, Family], list[tuple[str, Session]]]:
    """Return sessions by their two ends and family, each with the nodes that tell of it."""
    found: dict[tuple[Pair, Family], list[tuple[str, Session]]] = {}
    for name, heard in facts.heard.items():
        for session in heard.summary.sessions:
            if concerned(session):
                one, other = sorted((name, session.node))
                found.setdefault(((one, other), session.family), []).append((name, session))
    return found


def why_down(name: str, session: Session, facts: ClusterFacts) -> Reason:
    """Return the likeliest reason why a session of this node is down."""
    there, port = session.node, f"TCP port {session.port}"
    if session.last_error.startswith(NO_PASSWORD):
        return Reason(0, f"{name} has {session.last_error}", f"put it there, or change spec.password of {there}")
    if session.way:
        return Reason(
            0,
            f"no route from {name} to {session.address}: {session.way}",
            f"on {name}: ip route get {session.address}; give its uplink the address and subnet that it lost",
        )
    if not session.ping and session.answer != "open":
        agent = " and its agent does not answer either" if there in facts.silent else ""
        gone = f"delete {there}" if session.outside else f"podway delete node {there}"
        return Reason(
            1,
            f"{there} ({session.address}) answers neither ping nor {port}{agent}: it is dead or cut off",
            f"start {there}, or look at its link; if it is gone for good: {gone}",
            there,
            f"answers neither ping nor {port}{agent}: it is dead or cut off",
        )
    if session.answer == "refused" and session.outside:
        return Reason(
            2,
            f"{there} ({session.address}) answers ping, but nothing listens on its {port}",
            f"start its BGP speaker and have it know {name}, or correct spec.port of {there}",
        )
    if session.answer == "refused":
        return Reason(
            2,
            f"{there} answers ping, but nothing listens on its {port}: BIRD does not run there",
            f"on {there}: start the agent, which starts BIRD (`podway status {there}`)",
            there,
            f"answers ping, but nothing listens on its {port}: BIRD does not run there",
        )
    if session.answer == "silent" and session.signatures:
        return Reason(
            3,
            f"the ends' passwords differ, or only one end has a password ({session.signatures} segments "
            "were dropped for their MD5 signature)",
            "give both ends the same password, or none: compare `password` in their bird.conf",
        )
    if session.answer in {"silent", "unreachable"}:
        return Reason(
            4,
            f"{there} answers ping, but not {port} from {name}: the port is filtered",
            f"let {port} pass between nodes both ways; see what `firewall` found, and filters between them",
        )
    return _in_bgp(name, session)


def _in_bgp(name: str, session: Session) -> Reason:
    """TCP works, so it is BGP itself, of which BIRD's last error tells (RFC 4271, section 6)."""
    error = session.last_error
    if "AS" in error.split():
        return Reason(
            2,
            f"{name} and {session.node} disagree about their AS numbers (BIRD: {error})",
            f"compare spec.asn of {session.node} and `as` in bird.conf of {name} with what the peer is told"
            if session.outside
            else "compare `asn` of NetworkConfig/default with `as` in both nodes' bird.conf, and restart the "
            "agent that has another",
        )
    if session.state in {"OpenSent", "Connect"}:
        return Reason(
            5,
            f"BIRD of {session.node} takes connections and then is silent: it hangs",
            f"on {session.node}: kill the process named in bird.pid; its agent starts another one",
        )
    said = f"BIRD: {error}" if error else "BIRD has told no error yet"
    return Reason(6, said, f"see bird.log on {name} and {session.node}")


def _state(session: Session) -> str:
    return f"{session.state} since {session.since:%H:%M:%S}"


@node_check(
    "bgp-peer",
    looks_at="BGPPeers that the node leaves out, since two have one address there, and sessions whose peer tells "
    "more routes than are taken of it",
    why="what such a peer should tell is not known on the node, and nothing else says so",
)
def bgp_peer(facts: NodeFacts) -> Iterator[Problem]:
    """An address is in use once on a node; and a limit that is reached leaves out routes without choosing."""
    for name, obstacle in left_out(facts.memory.view, facts.memory.node).items():
        yield Problem(
            f"the node has no session with it: {obstacle}",
            f"give BGPPeer/{name} another spec.address, or nodes apart (spec.node, spec.nodeSelector, and the "
            "node's labels)",
            f"BGPPeer/{name}",
        )
    for session in facts.routing.sessions:
        if session.limit:
            yield Problem(
                f"it advertises more than the {session.limit} routes that are taken of it; the rest are refused, "
                "whichever they are",
                f"reject what is not needed by spec.import of {session.node}, raise its spec.maxPrefixes, or "
                "correct what it advertises"
                if session.outside
                else f"look at what {session.node} tells: `podway get routes`",
                session.node,
            )


@cluster_check(
    "reflectors",
    looks_at="which route reflectors the nodes have lost, how many still work, and if these are in one rack",
    why="nodes hear of each other by reflectors alone: with the last one's death all routes between nodes go, "
    "until others have been chosen",
)
def reflectors(facts: ClusterFacts) -> Iterator[Problem]:
    """What the agent says that answered last: all read the same words in the store."""
    last = max(facts.heard.values(), key=lambda heard: heard.summary.at, default=None)
    if last is None or not last.summary.reflectors:
        return
    # An older agent names all nodes among the seen ones.
    every, nodes = last.summary.reflectors, last.summary.nodes or tuple(last.summary.seen)
    for each in every:
        if each.lost_by:
            some = ", ".join(each.lost_by[:3]) + (" and others" if len(each.lost_by) > 3 else "")
            instead = "others reflect in its place" if each.lost else "other nodes still have theirs"
            yield Problem(
                f"{len(each.lost_by)} of {len(nodes) - 1} nodes have lost this route reflector ({some}); "
                f"{instead}",
                f"see `podway status {each.node}`; if it is gone for good: podway delete node {each.node}",
                each.node,
                Severity.WARNING,
            )
    working = [each for each in every if not each.lost]
    left = ", ".join(each.node for each in working)
    enough = min(REDUNDANT, len(nodes))
    if len(working) < enough:
        yield Problem(
            f"only {len(working)} route reflector{'' if len(working) == 1 else 's'} left"
            f"{f' ({left})' if left else ''}, and {REDUNDANT} should be",
            "set spec.bgp.reflectors.count of NetworkConfig/default to 2 at least, or give a second node the "
            "labels of its nodeSelector; bring lost reflectors back",
            "reflectors",
            Severity.WARNING if working else Severity.ERROR,
        )
    elif len({each.rack for each in working}) == 1 < last.summary.racks:
        yield Problem(
            f"all route reflectors ({left}) are in one rack, and fail with it",
            "give nodes of other racks the labels of spec.bgp.reflectors.nodeSelector too, or leave it out",
            "reflectors",
            Severity.WARNING,
        )


@cluster_check(
    "bfd",
    looks_at="BFD sessions that are down although the BGP session beside them stands",
    why="a node's death is then noticed only after BGP's hold time (9 s), and its routes stay so long",
)
def bfd(facts: ClusterFacts) -> Iterator[Problem]:
    """A session that is down as a whole is told by `bgp-session`."""
    down = _by_pair(facts, lambda session: session.established and session.bfd not in {"", "Up"})
    families: dict[Pair, list[Family]] = {}
    for pair, family in down:
        families.setdefault(pair, []).append(family)
    for pair, concerned in families.items():
        ends = ", ".join(f"on {name} {session.bfd}" for name, session in down[pair, concerned[0]])
        yield Problem(
            f"BFD is {ends}, while BGP works",
            "let UDP ports 3784 and 3785 pass between nodes in both directions; on a slow machine raise "
            "spec.bgp.bfdInterval of NetworkConfig/default",
            f"{' - '.join(pair)} {', '.join(family.label for family in sorted(concerned))}",
            Severity.WARNING,
        )
