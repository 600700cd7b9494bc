"""Which of a Service port's endpoints are used on a node, and why the others are not. Pure.

The rules are those of Kubernetes' own proxy (pkg/proxy/topology.go, CategorizeEndpoints), whose sources are
KEP-1669 (terminating endpoints), KEP-2086 (internalTrafficPolicy), KEP-2433 and KEP-3015 (hints).
"""

import enum
from collections.abc import Callable, Iterable
from typing import NamedTuple

from podway.services.endpoints import Candidate


class Where(NamedTuple):
    """The node at which connections begin, and the zone that it is in (empty: nobody says)."""

    node: str
    zone: str = ""


class Hints(enum.Enum):
    """Which of their hints endpoints are chosen by."""

    NONE = "none"
    NODE = "node"
    ZONE = "zone"


class Chosen(NamedTuple):
    """Who is used and, of the others, why they are not.

    `elsewhere` says that there are some whom only the traffic policy Local leaves out.
    """

    used: tuple[Candidate, ...]
    left_out: tuple[tuple[Candidate, str], ...]
    elsewhere: bool = False


def choose(every: Iterable[Candidate], where: Where, *, local: bool = False) -> Chosen:
    """Choose for connections that begin at a node; `local` is the traffic policy Local."""
    candidates = list(every)
    why_not = _local(candidates, where) if local else _cluster(candidates, where)
    used, left_out = [], []
    for one in candidates:
        reason = why_not(one)
        if reason:
            left_out.append((one, reason))
        else:
            used.append(one)
    elsewhere = local and not used and any(one.ready or one.last_resort for one in candidates)
    return Chosen(tuple(used), tuple(left_out), elsewhere)


_WhyNot = Callable[[Candidate], str]


def _local(candidates: list[Candidate], where: Where) -> _WhyNot:
    # Hints do not apply to the policy Local.
    mine = [one for one in candidates if one.node == where.node]
    resort = not any(one.ready for one in mine)

    def why_not(one: Candidate) -> str:
        if one.node != where.node:
            return f"on {f'node {one.node}' if one.node else 'no node'}, and the traffic policy is Local"
        return _not_fit(one, resort=resort)

    return why_not


def _cluster(candidates: list[Candidate], where: Where) -> _WhyNot:
    hints = hints_in_use(candidates, where)
    resort = not any(one.ready for one in candidates)

    def why_not(one: Candidate) -> str:
        if not resort and one.ready:
            if hints is Hints.NODE and where.node not in (one.nodes or ()):
                return f"meant for node {', '.join(one.nodes or ())}"
            if hints is Hints.ZONE and where.zone not in (one.zones or ()):
                return f"meant for zone {', '.join(one.zones or ())}"
        return _not_fit(one, resort=resort)

    return why_not


def _not_fit(one: Candidate, *, resort: bool) -> str:
    if one.ready or (resort and one.last_resort):
        return ""
    if one.last_resort:
        return "terminating, and others are ready"
    return "terminating, and does not serve any more" if one.terminating else "not ready"


def hints_in_use(candidates: Iterable[Candidate], where: Where) -> Hints:
    """Tell which hints decide: those that every ready endpoint has, if one of them is for this node or zone."""
    ready = [one for one in candidates if one.ready]
    if all(one.nodes for one in ready) and any(where.node in (one.nodes or ()) for one in ready):
        return Hints.NODE
    if where.zone and all(one.zones for one in ready) and any(where.zone in (one.zones or ()) for one in ready):
        return Hints.ZONE
    return Hints.NONE
