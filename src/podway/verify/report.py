"""What verify found, as records; their JSON form is the documented schema."""

import enum
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from podway.prove.world import Absent

RULES: dict[int, str] = {
    1: "every pod has its own address, unique, inside one of its node's blocks",
    2: "every pod reaches every other by TCP, UDP and ICMP, without NAT, encapsulated as asked, unfragmented",
    3: "every node reaches every pod, and every pod every node",
}

DENIALS = 4
"""The number, in a report, of what is proved besides where policies deny something."""
RULES_OF_POLICY = "what policies deny does not arrive; of it the rules above do not speak"


class Verdict(enum.StrEnum):
    """Of one rule. `vacuous`: there is nothing it speaks of (one pod has no other pod to reach)."""

    PROVED = "proved"
    FAILED = "failed"
    UNPROVED = "unproved"
    VACUOUS = "vacuous"


class _Record(msgspec.Struct, frozen=True, rename="camel"):
    """Base of the report's parts: camelCase in JSON."""


class RuleReport(_Record, frozen=True):
    """One rule, or (number 4) what policies deny, or (number 5) Services.

    Of `total` things (addresses, ordered pairs per family, frontends for each node) `tried` were, and `proved`
    hold.
    """

    rule: int
    statement: str
    verdict: Verdict
    unit: Literal["addresses", "pairs", "conversations", "frontends"]
    proved: int
    tried: int
    total: int


class FailedPair(_Record, frozen=True):
    """Who could not reach whom as the rules demand, by what."""

    sender: str
    receiver: str
    family: str
    protocols: tuple[str, ...]

    @property
    def words(self) -> str:
        """The pair, for people."""
        return f"{self.sender} to {self.receiver} ({self.family} {', '.join(self.protocols)})"


class NodePairEncapsulation(_Record, frozen=True):
    """In which encapsulations pods' packets crossed from one node to another, and in which their pools ask for.

    An encapsulation is `none`, `vxlan`, `ipip`, or the name of a foreign encapsulation.
    """

    sender: str
    receiver: str
    family: str
    observed: tuple[str, ...]
    expected: tuple[str, ...]


class Finding(_Record, frozen=True):
    """One cause of failures and all that it hit: pairs, or (rule 1) points. Texts are one example's."""

    rules: tuple[int, ...]
    code: str
    problem: str
    advice: str
    last_seen: str = ""
    detail: str = ""
    pairs: tuple[FailedPair, ...] = ()
    points: tuple[str, ...] = ()


class Sample(_Record, frozen=True):
    """How pairs were chosen: at most `pairs` for each rule and family, by this seed."""

    pairs: int
    seed: int


class Report(_Record, frozen=True):
    """The outcome of one run of verify.

    `unproved` lists what should be there and could not be looked at. `retried` counts probes that were
    answered only at the second try. `packets` is how many packets were captured, `packets_missed` how many a
    capture lost. `encapsulations` tells how packets crossed between nodes, as it was seen on the wire. `duration`
    is in seconds.
    """

    nodes: int
    pods: int
    families: tuple[str, ...]
    rules: tuple[RuleReport, ...]
    findings: tuple[Finding, ...]
    unproved: tuple[Absent, ...]
    sample: Sample | None
    probes: int
    retried: int
    packets: int
    packets_missed: int
    duration: float
    encapsulations: tuple[NodePairEncapsulation, ...] = ()
    api_version: Literal["podway.io/v1"] = "podway.io/v1"
    kind: Literal["VerifyReport"] = "VerifyReport"

    @property
    def holds(self) -> bool:
        """Whether every rule is proved (or vacuous) and nothing was left out."""
        fine = (Verdict.PROVED, Verdict.VACUOUS)
        return not self.unproved and all(rule.verdict in fine for rule in self.rules)


def to_json(report: Report) -> str:
    """Return the report as JSON, indented; `holds` is among its fields."""
    head = {"apiVersion": "podway.io/v1", "kind": "VerifyReport", "holds": report.holds}
    return msgspec.json.format(msgspec.json.encode(head | msgspec.to_builtins(report)), indent=2).decode()


_SHOWN = 3
"""Of how many failures of one kind people are shown the names."""


Paint = Callable[[str, str], str]
"""Colours a text: takes it and what it is (`good`, `bad`, `cause`, `label`)."""

_HANGING = re.compile(r"\d  [A-Z]+ +|\d+\. |   (?:breaks|last seen|there|do): +| *")
"""What the first of several lines begins with; the others begin as far to the right."""
_RULE = re.compile(r"(\d  )([A-Z]+)")
_CAUSE = re.compile(r"\d+\. .*")
_LABEL = re.compile(r"(   )(breaks|last seen|there|do)(: +)")


def to_text(report: Report, *, width: int = 0, paint: Paint = lambda text, kind: text) -> str:
    """Return the report for people, in lines of at most `width` columns where words allow (0: of any length)."""
    return "\n".join(
        paint(part, "cause") if _CAUSE.match(line) else _painted(part, paint)
        for line in _lines(report)
        for part in _folded(line, width)
    )


def _folded(line: str, width: int) -> list[str]:
    if not width or len(line) <= width:
        return [line]
    found = _HANGING.match(line)
    margin = " " * (len(found[0]) if found else 0)
    # Commands and names are copied from here: never broken.
    return textwrap.wrap(line, width, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False)


def _painted(line: str, paint: Paint) -> str:
    if found := _RULE.match(line):
        good = found[2].lower() in (Verdict.PROVED, Verdict.VACUOUS)
        return found[1] + paint(found[2], "good" if good else "bad") + line[found.end() :]
    if found := _LABEL.match(line):
        return found[1] + paint(found[2], "label") + line[found.end(2) :]
    if line == ALL_HOLD:
        return paint(line, "good")
    return paint(line, "bad") if line == NOT_PROVED else line


ALL_HOLD, NOT_PROVED = "All three rules hold.", "The rules are not proved."


def _lines(report: Report) -> list[str]:
    lines = [_summary(report), ""]
    for rule in report.rules:
        lines.append(f"{rule.rule}  {rule.verdict.upper():<8}  {rule.statement}")
        lines.append(f"{'':13}{_count(rule)}")
    if report.sample and any(rule.tried < rule.total for rule in report.rules):
        lines.append(f"{'':13}pairs sampled with seed {report.sample.seed}")
    if any(
        encapsulation != "none"
        for pair in report.encapsulations
        for encapsulation in (*pair.observed, *pair.expected)
    ):
        lines += ["", "Between nodes:", *_encapsulations(report.encapsulations)]
    for number, finding in enumerate(report.findings, 1):
        lines += ["", *_paragraph(number, finding)]
    if report.unproved:
        lines += ["", "Not proved:"]
        lines += _unproved(report.unproved)
    if report.retried:
        lines += ["", f"{_number(report.retried, 'probe was', 'probes were')} answered only at the second try."]
    if report.packets_missed:
        missed = _number(report.packets_missed, "packet", "packets")
        lines += ["", f"The captures lost {missed}: failures to see a packet may be due to that. Try again."]
    lines += ["", ALL_HOLD if report.holds else NOT_PROVED]
    return lines


_PAIRS_SHOWN = 12
"""Up to how many pairs of nodes are told one by one; of more, how many crossed in which encapsulation."""


def _encapsulations(encapsulations: Sequence[NodePairEncapsulation]) -> list[str]:
    families: dict[tuple[str, str, str], list[str]] = {}
    for one in encapsulations:
        encapsulation = " and ".join(one.observed)
        if set(one.observed) != set(one.expected):
            encapsulation += f" (asked for: {' and '.join(one.expected)})"
        families.setdefault((one.sender, one.receiver, encapsulation), []).append(one.family)
    if len(families) <= _PAIRS_SHOWN:
        return [
            f"  {sender} -> {receiver}: {encapsulation} ({', '.join(of)})"
            for (sender, receiver, encapsulation), of in families.items()
        ]
    count: dict[tuple[str, str], int] = {}
    for (_, _, encapsulation), of in families.items():
        count[encapsulation, ", ".join(of)] = count.get((encapsulation, ", ".join(of)), 0) + 1
    return [
        f"  {encapsulation} ({of}): {_number(pairs, 'pair', 'pairs')} of nodes"
        for (encapsulation, of), pairs in count.items()
    ]


def _summary(report: Report) -> str:
    return (
        f"{_number(report.nodes, 'node', 'nodes')}, {_number(report.pods, 'pod', 'pods')}, "
        f"{' and '.join(report.families) or 'no addresses'}: {report.probes} conversations, "
        f"{report.packets} packets captured in {report.duration:.1f} s"
    )


def _count(rule: RuleReport) -> str:
    if rule.total == 0:
        return f"no {rule.unit} to prove it for"
    text = f"{rule.proved} of {rule.tried} {rule.unit}"
    return text if rule.tried == rule.total else f"{text} tried, of {rule.total}"


def _paragraph(number: int, finding: Finding) -> list[str]:
    lines = [f"{number}. {finding.problem}"]
    if finding.pairs:
        shown = "; ".join(pair.words for pair in finding.pairs[:_SHOWN])
        more = len(finding.pairs) - _SHOWN
        rest = f"; and {_number(more, 'other pair', 'other pairs')}" if more > 0 else ""
        lines.append(f"   breaks:    {shown}{rest}")
    if finding.last_seen:
        lines.append(f"   last seen: {finding.last_seen}")
    if finding.detail:
        lines.append(f"   there:     {finding.detail}")
    lines.append(f"   do:        {finding.advice}")
    return lines


def _unproved(absent: Iterable[Absent]) -> list[str]:
    subjects: dict[str, list[str]] = {}
    for entry in absent:
        subjects.setdefault(entry.reason, []).append(entry.subject)
    return [
        f"  {', '.join(names[:_SHOWN])}"
        + (f" and {_number(len(names) - _SHOWN, 'other', 'others')}" if len(names) > _SHOWN else "")
        + f": {reason}"
        for reason, names in subjects.items()
    ]


def _number(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
