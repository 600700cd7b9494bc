"""Tab completion, as the shells ask for it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete, ShellComplete
from click.testing import Result

from podway.cli.completion import VARIABLE
from podway.cli.main import COMMANDS, main

Ask = Callable[..., list[str]]


@pytest.fixture
def ask(file: Path) -> Ask:
    """Complete the last of some words, with a snapshot for a store."""

    def complete(*words: str, store: str = f"snapshot:{file}") -> list[str]:
        asked = ShellComplete(main, {}, "podway", VARIABLE)
        *before, last = words
        return [item.value for item in asked.get_completions(["--store", store, *before], last)]

    return complete


def test_commands(ask: Ask) -> None:
    assert ask("") == list(COMMANDS)
    assert ask("si") == ["simulate"]
    assert ask("get", "--sel") == ["--selector"]


def test_kinds_by_their_usual_name_and_by_any_if_asked(ask: Ask) -> None:
    assert ask("get", "po") == ["pods", "pools"]
    assert ask("get", "nod") == ["nodes"]
    assert ask("get", "ippo") == ["ippools", "ippool"]


def test_names_of_the_kind_that_are_not_there_yet(ask: Ask) -> None:
    assert ask("get", "nodes", "") == ["node-000000", "node-000001", "node-000002"]
    assert ask("get", "node", "node-000000", "") == ["node-000001", "node-000002"]
    assert ask("get", "pods", "pod-1") == ["pod-1"]
    assert ask("delete", "pool", "") == ["four", "six"]
    assert ask("get", "pods", "-n", "shop", "") == []
    assert ask("get", "routes", "node-000002") == ["node-000002"]


def test_a_kind_and_a_name_in_one_word(ask: Ask) -> None:
    assert ask("get", "node/node-00000") == ["node/node-000000", "node/node-000001", "node/node-000002"]
    assert ask("get", "no/") == ["no/node-000000", "no/node-000001", "no/node-000002"]
    assert ask("get", "pod/pod-1", "pod/pod-2") == ["pod/pod-2"]
    assert ask("describe", "po") == ["pods", "pools"]
    assert ask("describe", "nodes", "") == ["node-000000", "node-000001", "node-000002"]


def test_a_namespace_and_a_name_in_one_word(ask: Ask) -> None:
    assert ask("get", "pods", "default/pod-3") == ["default/pod-3"]
    assert ask("get", "pods", "shop/") == []
    assert ask("lab", "exec", "default/pod-3") == ["default/pod-3"]
    assert ask("lab", "rm", "default/pod-3") == ["default/pod-3"]


def test_fields_and_values_of_set(ask: Ask) -> None:
    assert "encapsulation=" in ask("set", "pool/four", "")
    assert ask("set", "pool/four", "encapsulation=v") == ["encapsulation=vxlan"]
    assert ask("set", "pool", "four", "encapsulation=v") == ["encapsulation=vxlan"]
    assert ask("set", "pool", "f") == ["four"]
    assert ask("set", "config", "bgp.topo") == ["bgp.topology="]


def test_the_store_may_stand_behind_the_command(file: Path) -> None:
    asked = ShellComplete(main, {}, "podway", VARIABLE)
    found = asked.get_completions(["get", "--store", f"snapshot:{file}", "pool"], "")
    assert [item.value for item in found] == ["four", "six"]


def test_labs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from podway.cli import options

    (tmp_path / "six").mkdir()
    (tmp_path / "seven").mkdir()
    monkeypatch.setattr(options, "LABS", tmp_path)
    asked = ShellComplete(main, {}, "podway", VARIABLE)
    for words in (["--lab"], ["get", "pods", "--lab"], ["lab", "down"], ["lab", "up", "--lab"]):
        assert [item.value for item in asked.get_completions(words, "s")] == ["seven", "six"], words


def test_places_where_a_pod_or_node_is_meant(ask: Ask) -> None:
    assert ask("status", "node-00000") == ["node-000000", "node-000001", "node-000002"]
    assert ask("lab", "exec", "pod-") == [f"pod-{number}" for number in range(5)]
    assert ask("lab", "node", "node-000001") == ["node-000001"]
    assert "kill" in ask("lab", "node", "")
    assert ask("plan", "--delete", "pool/") == ["pool/four", "pool/six"]
    assert ask("completion", "") == ["bash", "zsh", "fish"]


@pytest.mark.parametrize("store", ["sqlite:///nowhere/store.db", "nonsense", "snapshot:/nowhere", "sqlite:////"])
def test_silence_where_there_is_no_cluster(ask: Ask, store: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert ask("get", "pods", "", store=store) == []
    assert ask("status", "", store=store) == []
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_no_command_is_imported_to_complete_its_name() -> None:
    code = (
        "import sys; from podway.cli.main import main; from click.shell_completion import ShellComplete as S;"
        "S(main, {}, 'podway', '_X').get_completions([], 'p');"
        "print([m for m in sys.modules if m.startswith('podway.cli.') or m in ('msgspec', 'asyncio', 'rich')])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, text=True, capture_output=True)
    assert sorted(eval(done.stdout)) == [f"podway.cli.{name}" for name in ("help", "main", "mistakes", "options")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_ask_podway(podway: Callable[..., Result], shell: str) -> None:
    script = podway("completion", shell).stdout
    assert f"{VARIABLE}={shell}_complete" in script


def test_bash_itself_completes_by_the_script(tmp_path: Path, file: Path) -> None:
    script = BashComplete(main, {}, "podway", VARIABLE).source()
    words = f'COMP_WORDS=(podway --store "snapshot:{file}" get pods pod-) COMP_CWORD=5'
    code = f'{script}\n{words}\n_podway_completion podway; printf "%s\\n" "${{COMPREPLY[@]}}"'
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", code], text=True, capture_output=True, env=environment)
    assert done.stdout.split() == [f"pod-{number}" for number in range(5)], done.stderr


def test_every_command_has_examples(podway: Callable[..., Result]) -> None:
    def walk(command: click.Command, words: list[str]) -> Iterator[tuple[list[str], click.Command]]:
        if isinstance(command, click.Group):
            context = command.make_context("podway", [], resilient_parsing=True)
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                yield from walk(found, [*words, name])
        else:
            yield words, command

    for words, command in walk(main, []):
        text = command.get_help(command.make_context("podway", [], resilient_parsing=True))
        assert f"Examples:\n    podway {words[0]}" in text or "Examples:" in text, words
        assert " ".join(words) in text or words[-1] in text


def test_help_tells_the_exit_status(podway: Callable[..., Result]) -> None:
    assert "Exit status:" in podway("--help").stdout
