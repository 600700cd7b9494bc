"""The doctor inside the command: joins the agents' answers, and judges what only all of them show."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from podway.errors import AgentError
from podway.health import checks
from podway.health.doctor import NodeReport
from podway.health.facts import ClusterFacts, Heard
from podway.health.finding import Finding, Severity
from podway.health.groups import names

AT_ONCE = 16
"""How many agents are asked at the same time."""


class Diagnosis(msgspec.Struct, frozen=True):
    """What was found on these nodes, errors first; `silent` are those whose agents did not answer."""

    nodes: tuple[str, ...]
    silent: tuple[str, ...]
    findings: tuple[Finding, ...]

    def count(self, severity: Severity) -> int:
        """Return how many findings are of this severity."""
        return sum(finding.severity is severity for finding in self.findings)

    @property
    def healthy(self) -> bool:
        """Whether there is no error; warnings do not count."""
        return self.count(Severity.ERROR) == 0


def examine(agents: Mapping[str, Callable[[str], Any]], *, whole: bool) -> Diagnosis:
    """Ask these agents (how to call each one's methods), and judge; `whole` if they are all that there are."""
    reports: dict[str, NodeReport] = {}
    heard: dict[str, Heard] = {}
    silent: dict[str, str] = {}

    def ask(name: str) -> None:
        try:
            report = msgspec.convert(agents[name]("doctor"), NodeReport)
        except AgentError as error:
            silent[name] = error.message
        except msgspec.ValidationError as error:
            silent[name] = f"its answer cannot be read, it is of another version: {error}"
        else:
            node = report.summary.node
            reports[node], heard[node] = report, Heard(report.summary, time.time())

    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(ask, agents))
    found = [finding for name in sorted(reports) for finding in reports[name].findings]
    facts = ClusterFacts(heard, silent, whole)
    found += [finding for check in checks.of_clusters() for finding in check.examine(facts)]
    found = merged(found)
    found.sort(key=lambda finding: finding.severity is not Severity.ERROR)
    return Diagnosis(tuple(sorted(heard)), tuple(sorted(silent)), tuple(found))


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """Make one finding of those that say the same of several nodes or objects: they have one cause.

    Subjects whose objects are the same are told by their nodes: `node1, node2: eth0`.
    """
    groups: dict[tuple[str, str, str, str], list[Finding]] = {}
    for one in findings:
        groups.setdefault((one.check, one.severity, one.found, one.advice), []).append(one)
    return [
        msgspec.structs.replace(group[0], subject=_together([one.subject for one in group]))
        if len(group) > 1
        else group[0]
        for group in groups.values()
    ]


def _together(subjects: Sequence[str]) -> str:
    objects: dict[str, list[str]] = {}
    for subject in subjects:
        node, _, rest = subject.partition(": ")
        objects.setdefault(rest, []).append(node)
    return "; ".join(f"{names(nodes)}: {rest}" if rest else names(nodes) for rest, nodes in objects.items())
