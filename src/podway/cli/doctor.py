"""`podway doctor`: what is wrong on the nodes, why it matters, and what to do about it."""

import json
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import click

from podway.cli.agents import agents
from podway.cli.complete import complete_nodes
from podway.cli.help import examples
from podway.cli.options import GlobalOptions, cluster_options

if TYPE_CHECKING:
    from podway.health.cluster import Diagnosis
    from podway.health.finding import Finding

COLOURS = {"error": "red", "warning": "yellow"}


@click.command(
    epilog=examples(
        "podway doctor",
        "podway doctor node1 node2 -o json",
        "podway doctor --list                        # what is checked",
    )
)
@click.argument("nodes", metavar="[NODE]...", nargs=-1, shell_complete=complete_nodes)
@click.option("--list", "only_list", is_flag=True, help="Say what is checked and why, and check nothing.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the report.")
@click.option("--remote", is_flag=True, help="Ask over the network, also an agent on this machine.")
@cluster_options
@click.pass_obj
def doctor(
    options: GlobalOptions,
    *,
    nodes: tuple[str, ...],
    only_list: bool,
    output: Literal["text", "json"],
    remote: bool,
) -> None:
    """Find what is wrong on the nodes: settings, firewalls, routes, sessions, tables that run full.

    Each finding says what was found, why it matters, and what to do about it. Nothing is changed.

    Exit status 0: no errors (there may be warnings). 1: errors, or no agent at all.
    """
    if only_list:
        checks = {"apiVersion": "podway.io/v1", "kind": "DoctorCheckList", "items": list(_declared_shapes())}
        click.echo("\n".join(_declared()) if output == "text" else json.dumps(checks, indent=2))
        return
    from podway.health.cluster import examine

    diagnosis = examine(agents(options, nodes, remote=remote), whole=not nodes)
    if output == "json":
        click.echo(json.dumps(shape_of(diagnosis), indent=2))
    else:
        click.echo("\n".join(_lines(diagnosis)))
    click.get_current_context().exit(0 if diagnosis.healthy else 1)


def _lines(diagnosis: "Diagnosis") -> Iterator[str]:
    from podway.health.checks import every
    from podway.health.finding import Severity

    for finding in diagnosis.findings:
        yield from _told(finding)
        yield ""
    counts = [
        f"{count} {severity.value}{'s' if count != 1 else ''}"
        for severity in Severity
        if (count := diagnosis.count(severity))
    ]
    asked = f"{len(every())} checks on {_number(len(diagnosis.nodes), 'node')}"
    if diagnosis.silent:
        asked += f", {_number(len(diagnosis.silent), 'agent')} silent"
    verdict = ", ".join(counts) or click.style("nothing wrong", fg="green")
    yield f"{asked}: {verdict}"


def _told(finding: "Finding") -> Iterator[str]:
    severity = click.style(finding.severity.value, fg=COLOURS[finding.severity.value], bold=True)
    yield f"{severity} {click.style(finding.subject or 'cluster', bold=True)} ({finding.check})"
    for label, text in (("found", finding.found), ("why", finding.why), ("do", finding.advice)):
        yield from _paragraph(label, text)


def _paragraph(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        _width(),
        initial_indent=f"  {label:<6} ",
        subsequent_indent=" " * 9,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _width() -> int:
    import shutil
    import sys

    return max(40, min(120, shutil.get_terminal_size().columns)) if sys.stdout.isatty() else 100


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def shape_of(diagnosis: "Diagnosis") -> dict[str, Any]:
    """Return a diagnosis in the shape of its JSON form (docs/doctor.md)."""
    import msgspec

    from podway.health.finding import Severity

    return {
        "apiVersion": "podway.io/v1",
        "kind": "DoctorReport",
        "healthy": diagnosis.healthy,
        "nodes": list(diagnosis.nodes),
        "silent": list(diagnosis.silent),
        "errors": diagnosis.count(Severity.ERROR),
        "warnings": diagnosis.count(Severity.WARNING),
        "findings": [msgspec.to_builtins(finding) for finding in diagnosis.findings],
    }


def _declared() -> Iterator[str]:
    from podway.health.checks import every

    for check in every():
        yield click.style(check.name, bold=True)
        yield from _paragraph("looks", f"at {check.looks_at}")
        yield from _paragraph("why", check.why)


def _declared_shapes() -> Iterator[dict[str, str]]:
    from podway.health.checks import every

    for check in every():
        yield {"check": check.name, "looksAt": check.looks_at, "why": check.why}
