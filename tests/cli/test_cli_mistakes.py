"""What is said of a wrong command line: one style, exit status 2, and what to write instead."""

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner

from podway.cli import main as root
from podway.cli.kinds import KUBERNETES_OWN, MEANT
from podway.cli.mistakes import ELSEWHERE
from podway.cli.views import VIEW_BY_NAME, VIEWS, View
from tests.cli.conftest import Podway

STYLE = re.compile(r"podway: [^\n]+\n  hint: [^\n]+\n\Z")


def mistake(*words: str, env: dict[str, str] | None = None) -> str:
    """Run a wrong command line; return what was said on standard error."""
    result = CliRunner().invoke(root.main, list(words), env=env)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert STYLE.match(result.stderr), result.stderr
    return result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["gett"], "did you mean `podway get`"),
        (["pods"], "did you mean `podway get pods`?"),
        (["up"], "did you mean `podway lab up`?"),
        (["ping"], "did you mean `podway trace FROM TO`?"),
        (["zzz"], "there are get, describe, apply"),
        (["lab", "upp"], "did you mean `podway lab up`?"),
        (["lab", "node", "--foo"], "podway lab node --help"),
        (["--foo"], "no such option '--foo'"),
        (["get"], "missing argument 'KIND"),
        (["get", "nods"], "did you mean nodes?"),
        (["get", "deployments"], "kubectl get deployments"),
        (["get", "ipamblocks"], "did you mean `podway get blocks`?"),
        (["get", "agent"], "did you mean `podway status`?"),
        (["get", "pods", "--output", "xml"], "'xml' is not one of"),
        (["get", "pods,nodes", "x"], "several kinds"),
        (["get", "pod/a/b/c"], "write NAMESPACE/NAME"),
        (["get", "pods", "shop/web", "-n", "default"], "leave one of the two out"),
        (["get", "node/"], "write node/NAME"),
        (["get", "nodes", "x/node1"], "write NAME"),
        (["get", "pods", "-A", "web"], "-A goes with neither"),
        (["get", "pods", "-l", "a=b=c"], "a=b, a!=b"),
        (["get", "routes", "-o", "name"], "routes have no names"),
        (["get", "peers", "-l", "a=b"], "peers have no labels"),
        (["get", "pods", "-w", "-o", "json"], "--watch"),
        (["describe", "routes"], "podway get routes"),
        (["delete"], "either"),
        (["delete", "pods"], "delete which pods?"),
        (["set", "pool/x"], "missing argument"),
        (["set", "x/y", "a=b"], "nodes, peers, pods"),
        (["apply"], "-f FILE"),
        (["apply", "-f", "/nowhere.yaml"], "/nowhere.yaml: No such file"),
        (["plan"], "name a change"),
        (["snapshot", "-o", "/nowhere/x.json", "--store", "snapshot:/nowhere"], "/nowhere: No such file"),
        (["simulate", "--nodes", "1"], "1 is not in the range"),
        (["simulate", "--pool", "10.1.0.0/8"], "did you mean 10.0.0.0/8?"),
        (["verify", "--sample", "-1"], "not in the range"),
        (["trace", "a"], "missing argument 'TO'"),
        (["trace", "a", "b", "--port", "99999"], "99999 is not in the range"),
        (["status", "a", "b"], "unexpected extra argument"),
        (["doctor", "--bar"], "no such option '--bar'"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
        (["agent"], "missing option '--node'"),
        (["agent", "--node", "n"], "name the cluster's store"),
        (["agent", "--node", "n", "--store", "redis://x"], "sqlite:///absolute/path"),
        (["get", "pods", "--store", "nonsense"], "sqlite:///absolute/path"),
        (["get", "pods", "--lab", "../etc"], "lower-case letters and digits"),
        (["status", "--lab", "../etc"], "lower-case letters and digits"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_told_in_one_style(words: list[str], told: str) -> None:
    assert told in mistake(*words, env={"PODWAY_LAB": "", "PODWAY_STORE": ""})


def test_every_word_that_is_meant_otherwise_is_none_of_ours() -> None:
    assert not (set(MEANT) | KUBERNETES_OWN) & set(VIEW_BY_NAME)
    assert not set(ELSEWHERE) & set(root.COMMANDS)


@pytest.mark.parametrize("meant", sorted(set(MEANT.values())))
def test_what_is_suggested_is_a_kind(meant: str) -> None:
    assert {words.split()[0] for words in re.findall("`podway get (.*?)`", meant)} <= set(VIEW_BY_NAME)


@pytest.mark.parametrize("view", [view for view in VIEWS if view.kind], ids=lambda view: view.names[0])
def test_a_manifests_kind_is_a_name_of_the_kind(view: View) -> None:
    assert view.kind is not None
    assert VIEW_BY_NAME[view.kind.KIND.lower()] is view
    assert VIEW_BY_NAME[re.sub("ys$", "ies", f"{view.kind.KIND.lower()}s")] is view


def test_the_cluster_may_be_named_behind_the_command_too(podway: Podway) -> None:
    def names(*words: str) -> str:
        result = CliRunner().invoke(root.main, words)
        assert result.exit_code == 0, result.output
        return result.stdout

    podway("apply", "-f", "-", stdin='{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}')
    before = names("--store", podway.url, "get", "namespaces", "-o", "name")
    assert before == "namespace/shop\n"
    assert names("get", "namespaces", "-o", "name", "--store", podway.url) == before
    assert names("--store", "sqlite:///nowhere/x.db", "get", "ns", f"--store={podway.url}", "-o", "name") == before


def test_an_interrupt_is_no_traceback(podway: Podway, monkeypatch: pytest.MonkeyPatch) -> None:
    podway("apply", "-f", "-", stdin='{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}')
    # Tests that run in the background ignore interrupts, and so would what they start.
    interruptible = ["env", "--default-signal=INT", sys.executable, "-m", "podway"]
    with subprocess.Popen(
        [*interruptible, "--store", podway.url, "get", "ns", "-w"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        try:
            assert watching.stdout is not None
            assert watching.stdout.readline().split() == ["NAME", "AGE"]
            assert watching.stdout.readline().split()[0] == "shop"
            watching.send_signal(2)
            _, told = watching.communicate(timeout=60)
        finally:
            watching.kill()
    assert told.strip() == "podway: interrupted"
    assert watching.returncode == 130


def test_what_is_watched_comes_changes_and_goes(podway: Podway) -> None:
    def node(name: str, **labels: Any) -> str:
        return json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})

    podway("apply", "-f", "-", stdin=node("one"))
    with subprocess.Popen(
        [sys.executable, "-m", "podway", "--store", podway.url, "get", "nodes", "-w", "-o", "wide"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "20"},
    ) as watching:
        try:
            assert watching.stdout is not None
            line = watching.stdout.readline
            assert line().split()[0] == "NAME"
            assert line().split()[0] == "one"
            podway("apply", "-f", "-", stdin=node("two"))
            assert line().split()[0] == "two"
            podway("apply", "-f", "-", stdin=node("one", disk="ssd"))
            changed = line().split()
            assert (changed[0], changed[-1]) == ("one", "disk=ssd")
            podway("delete", "node", "two")
            gone = line().split()
            assert (gone[0], gone[-1]) == ("two", "(gone)")
        finally:
            watching.kill()
