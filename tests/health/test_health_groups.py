"""Pairs and findings that have one cause are told once."""

import pytest

from podway.health.cluster import merged
from podway.health.finding import Finding, Severity
from podway.health.groups import between, names

ACROSS = [(one, other) for one in ("n1", "n2") for other in ("n3", "n4")]


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([("n1", "n2")], "n1 - n2"),
        ([("n2", "n1"), ("n1", "n2")], "n1 - n2"),
        (ACROSS, "n1, n2 - n3, n4"),
        ([("n1", f"n{number}") for number in range(2, 9)], "n1 - n2, n3, n4, n5 and 3 more"),
        ([("n1", "n2"), ("n2", "n3"), ("n1", "n3")], "any two of n1, n2, n3"),
        ([("n1", "n2"), ("n3", "n4")], "n1 - n2, n3 - n4"),
        ([*ACROSS, ("n1", "n2")], "n1 - n2, n1 - n3, n1 - n4, n2 - n3 and 1 more"),
    ],
)
def test_pairs_are_told_by_the_groups_that_they_fall_into(pairs: list[tuple[str, str]], words: str) -> None:
    assert between(pairs) == words
    assert between([(other, one) for one, other in reversed(pairs)]) == words


def test_names_are_told_up_to_a_few() -> None:
    assert names(["a", "b"]) == "a, b"
    assert names(["a", "b", "c", "d", "e", "f"]) == "a, b, c, d and 2 more"


def test_what_is_wrong_on_many_nodes_is_one_finding() -> None:
    def finding(subject: str, found: str = "x is 0", severity: Severity = Severity.ERROR) -> Finding:
        return Finding("forwarding", severity, subject, found, "why", "advice")

    found = merged(
        [
            finding("node1: eth0"),
            finding("node2: eth0"),
            finding("node2: eth0", "y is 1"),
            finding("node3: ens1"),
            finding("node3: eth0", severity=Severity.WARNING),
        ]
    )
    assert [one.subject for one in found] == ["node1, node2: eth0; node3: ens1", "node2: eth0", "node3: eth0"]
