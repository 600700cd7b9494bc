"""The page of verify: words stay whole, commands too, and only colours differ with colours."""

import pytest

from podway.verify.report import FailedPair, Finding, Report, RuleReport, Verdict, to_text

COMMAND = "`nsenter --net=/run/netns/podway-lab-node1 nft list ruleset`"


def report() -> Report:
    rules = (
        RuleReport(
            1,
            "every pod has its own address, unique, in one of its node's blocks",
            Verdict.PROVED,
            "addresses",
            2,
            2,
            2,
        ),
        RuleReport(
            2, "every pod reaches every other by TCP, UDP and ICMP, without NAT", Verdict.FAILED, "pairs", 0, 2, 2
        ),
    )
    finding = Finding(
        (2,),
        "lost",
        "node node1 drops packets from other nodes to its pods, though it has the right route: a rule does it",
        f"{COMMAND}, and look for drop and reject",
        "the request of UDP from pod default/a to pod default/b: entering by eth0 of node node1",
        pairs=(FailedPair("pod default/a", "pod default/b", "IPv4", ("UDP", "ICMP")),),
    )
    return Report(2, 2, ("IPv4",), rules, (finding,), (), None, 12, 0, 99, 0, 1.5)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_words_stay_whole(width: int) -> None:
    folded, plain = to_text(report(), width=width), to_text(report())
    assert folded.split() == plain.split()
    longest = max(map(len, COMMAND.split()))
    assert all(len(line) <= max(width, longest + len("   do:        ")) for line in folded.splitlines())
    assert f"   do:        {COMMAND.split(maxsplit=1)[0]}" in folded
    lines = folded.splitlines()
    second = lines[lines.index(next(line for line in lines if line.startswith("1. "))) + 1]
    assert second.startswith("   "), "what follows hangs below the words of its first line"


def test_only_the_colours_differ_with_colours() -> None:
    painted: list[tuple[str, str]] = []

    def paint(text: str, kind: str) -> str:
        painted.append((text, kind))
        return f"<{text}>"

    page = to_text(report(), width=80, paint=paint)
    assert page.replace("<", "").replace(">", "") == to_text(report(), width=80)
    assert ("PROVED", "good") in painted
    assert ("FAILED", "bad") in painted
    assert ("The rules are not proved.", "bad") in painted
    assert {text for text, kind in painted if kind == "cause"} >= {
        line for line in to_text(report(), width=80).splitlines() if line.startswith("1. ")
    }
