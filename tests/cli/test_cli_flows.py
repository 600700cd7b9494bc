"""What `podway flows` shows of answers that no honest agent gives: no letter acts, and all others are shown."""

import time
from collections.abc import Mapping
from typing import Any

import click
import msgspec
import pytest

from podway.cli import flows
from podway.cli.agents import Ask
from podway.errors import AgentError
from podway.flows.record import End, FlowRecord, Rule, Who

ODD = "\x1b[2J\x9b31m\r\n\u202e"


def record(text: str = "", **fields: Any) -> Any:
    """A record as it comes, whose texts are all the same."""
    one = End(text or "10.1.0.1", 1, Who("pod", text or "web", text or "shop", text))
    made = FlowRecord(
        time.time(), text or "node1", 1, "new", "allowed", one, one, text or "tcp", text, text, lost=7,
        egress=Rule(text, text, text), message=text, how=text, path=text, device=text,
    )  # fmt: skip
    return {**msgspec.to_builtins(made), **fields}


def answer(*records: Any, **fields: Any) -> dict[str, Any]:
    known = {"records": records, "next": 2, "complete": True, "reached": 0.0, "note": "", "now": time.time()}
    return {**known, **fields}


def asked(answers: Mapping[str, Any]) -> dict[str, Ask]:
    return {node: lambda _method, _given=given, **_: _given for node, given in answers.items()}


@pytest.mark.parametrize("output", [None, "wide"])
def test_no_text_of_an_agent_does_anything_to_the_terminal(
    output: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    given = asked({"node1": answer(record(ODD), note=ODD)})
    flows._show(given, {"limit": 10}, output, said=True, follow=False)
    shown = capsys.readouterr()
    assert "\\x1b[2J" in shown.out
    lines = "".join((click.unstyle(shown.out) + shown.err).split("\n"))
    assert lines.isprintable(), lines
    assert len(shown.out.splitlines()) == 2


ODDITIES: list[Any] = [
    None,
    [],
    {},
    answer(now="soon"),
    answer(next=None),
    answer(record(time="now")),
    answer(record(time=1e300)),
    answer(record(began=-1e300)),
    answer(record(verdict="perhaps")),
    answer(record(source=None)),
    answer(3),
]


@pytest.mark.parametrize("odd", ODDITIES)
def test_a_node_whose_answer_cannot_be_read_is_told_and_the_others_are_shown(
    odd: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    given = asked({"node1": answer(record()), "node2": odd})
    assert flows._show(given, {"limit": 10}, None, said=True, follow=False) == 1
    shown = capsys.readouterr()
    assert "shop/web" in shown.out
    assert "podway: node2: its agent's answer cannot be read" in shown.err
    with pytest.raises(AgentError, match="cannot be read"):
        flows._show(asked({"node2": odd}), {"limit": 10}, None, said=True, follow=False)


@pytest.mark.parametrize("odd", [{}, {"rows": [{"key": 1}]}, {"rows": [], "note": "", "now": 1e300}])
def test_so_are_sums(odd: Any, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"key": ODD, "flows": 3, "last": time.time()}
    right = {"rows": [row], "more": 0, "complete": True, "reached": 0.0, "note": "", "now": time.time()}
    given = asked({"node1": right, "node2": odd})
    assert flows._show_sums(given, "pod", 10, None, {}) == 1
    shown = capsys.readouterr()
    assert "\\x1b[2J" in shown.out
    assert "podway: node2: its agent's answer cannot be read" in shown.err
