"""Connections that nodes have seen, for commands that judge them."""

import time
from typing import TYPE_CHECKING

import click

from podway.cli.agents import PATIENCE, agents, ask_all
from podway.cli.flows import Notes, moment_of, plain, read_answer
from podway.cli.options import GlobalOptions
from podway.errors import AgentError

if TYPE_CHECKING:
    from podway.preview.flows import Connection

DAY = "24h"


def seen(options: GlobalOptions, option: str, since: str, namespace: str = "") -> "tuple[Connection, ...]":
    """Return the connections that all nodes have seen since then, of one namespace or of all.

    What is not known is told on standard error. Raises AgentError if no node answers, InvalidArgument.
    """
    from podway.flows.query import AgentSums, Sums
    from podway.preview.flows import connections

    before, notes = time.time(), Notes()
    params = {"since": moment_of(option, since, before), **({"namespaces": [namespace]} if namespace else {})}
    given = ask_all(agents(options), "flows.sums", timeout=PATIENCE, by="connection", **params)
    answers = {node: read_answer(node, answer, AgentSums) for node, answer in given.items()}
    silent = [answer for answer in answers.values() if isinstance(answer, AgentError)]
    if len(silent) == len(answers):
        raise silent[0]
    found: list[Sums] = []
    for node, answer in answers.items():
        if isinstance(answer, AgentError):
            click.echo(f"podway: {plain(answer.message)}", err=True)
            continue
        notes.take(node, answer, before)
        found.append(answer)
        if answer.more:
            click.echo(f"podway: {node} has seen {answer.more} more connections than it tells", err=True)
    for note in notes.lines():
        click.echo(f"podway: {note}", err=True)
    return connections(found)
