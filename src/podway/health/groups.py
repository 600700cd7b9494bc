"""What is said once of many: pairs of nodes, told by the groups that they fall into. Pure."""

from collections.abc import Iterable, Sequence

NAMED = 4
"""Of how many of a group the names are told."""


def names(of: Sequence[str]) -> str:
    """Return names in words, the first few and how many more."""
    shown = ", ".join(of[:NAMED])
    return f"{shown} and {len(of) - NAMED} more" if len(of) > NAMED else shown


def between(pairs: Iterable[tuple[str, str]]) -> str:
    """Return pairs in words, whichever way round: `node1, node2 - node3, node4` where each meets each.

    Pairs that fall into no two such groups are told one by one.
    """
    met: dict[str, set[str]] = {}
    for one, other in pairs:
        met.setdefault(one, set()).add(other)
        met.setdefault(other, set()).add(one)
    groups: dict[frozenset[str], list[str]] = {}
    for name in sorted(met):
        groups.setdefault(frozenset(met[name]), []).append(name)
    if len(groups) == 2:
        return " - ".join(names(group) for group in groups.values())
    alone = {tuple(sorted((one, other))) for one, others in met.items() for other in others}
    told = [f"{one} - {other}" for one, other in sorted(alone)]
    if len(met) > 2 and len(told) == len(met) * (len(met) - 1) // 2:
        return f"any two of {names(sorted(met))}"
    return names(told)
