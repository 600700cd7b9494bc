"""The console of a real lab: the real command, over HTTP."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import islice

import pytest

from podway.lab import cluster
from tests.console.console_process import ConsoleProcess, console
from tests.patience import eventually
from tests.system.policy_lab import PolicyLab, policy_lab
from tests.system.test_system_flows import PORT, connect

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def lab() -> Iterator[PolicyLab]:
    """Two nodes with a pod each, web on the first and client on the second."""
    with policy_lab() as made:
        made.run("web", "node1", PORT, labels={"app": "web"})
        made.run("client", "node2", labels={"app": "client"})
        yield made


@pytest.fixture(scope="module")
def shown(lab: PolicyLab) -> Iterator[ConsoleProcess]:
    with console("--lab", lab.lab.name) as process:
        yield process


def test_the_page_is_served(shown: ConsoleProcess) -> None:
    for path in ("", "flows?verdict=denied", "trace"):
        with shown.open(path) as page:
            assert b'<div id="app">' in page.read()
    with shown.open("app.js") as script:
        assert script.headers["Content-Type"].startswith("text/javascript")


def test_the_map_has_nodes_sessions_and_routes(lab: PolicyLab, shown: ConsoleProcess) -> None:
    def whole() -> bool:
        found = shown.ask("network")
        assert [(node["name"], node["state"]) for node in found["nodes"]] == [("node1", "well"), ("node2", "well")]
        assert found["pods"] == 2
        assert {(one["on"], one["node"], one["state"]) for one in found["sessions"]} == {
            ("node1", "node2", "Established"),
            ("node2", "node1", "Established"),
        }
        ways = {(way["source"], way["target"]): way for way in found["ways"]}
        assert ways["node1", "node2"]["inKernel"] == ways["node1", "node2"]["routes"] == 2
        return True

    eventually(whole, every=0.5)
    node = shown.ask("nodes/node1")
    assert {route["network"] for route in node["routes"] if route.get("node") == "node2"} == set(
        shown.ask("nodes/node2")["node"]["blocks"]
    )
    assert "secret" not in str(shown.ask("network")).lower()


def test_live_flows_come_with_names_and_go_on_from_the_last_one(lab: PolicyLab, shown: ConsoleProcess) -> None:
    with shown.follow("pod=web&event=new") as events:
        ports = [connect(lab) for _ in range(2)]
        seen: dict[int, set[str]] = {port: set() for port in ports}
        last = ""
        for name, event, value in events:
            last = name or last
            if event == "record" and value["source"].get("port") in seen:
                seen[value["source"]["port"]].add(value["node"])
                assert value["destination"]["who"]["name"] == "web"
            if last and all(nodes == {"node1", "node2"} for nodes in seen.values()):
                break
    port = connect(lab)
    with shown.follow("pod=web&event=new", last) as events:
        after = [value for _, event, value in islice(events, 2) if event == "record"]
        assert {(one["source"]["port"], one["node"]) for one in after} == {(port, "node1"), (port, "node2")}


def test_what_is_denied_is_shown_on_the_map_of_workloads_with_its_policy(
    lab: PolicyLab, shown: ConsoleProcess
) -> None:
    lab.policy("closed", podSelector={"matchLabels": {"app": "web"}})

    def denied() -> bool:
        connect(lab)
        found = shown.ask("talk?since=1h")
        edge = next(
            one for one in found["edges"] if (one["source"], one["target"]) == ("default/client", "default/web")
        )
        assert edge["flows"] > 0
        assert edge["denied"] > 0
        return True

    eventually(denied, every=1.0)
    eventually(lambda: shown.ask("policies")["policies"], every=0.5)
    [policy] = shown.ask("policies")["policies"]
    assert (policy["key"], policy["pods"]) == ("NetworkPolicy/default/closed", ["default/web"])
    past = shown.ask("flows?verdict=denied&policy=default/closed&since=1h")
    assert past["records"]
    assert past["records"][-1]["ingress"]["isolates"] == ["NetworkPolicy/default/closed"]
    rows = shown.ask("flows/sums?by=policy&since=1h")["rows"]
    assert any(row["key"] == policy["key"] and row["denied"] for row in rows)


def test_a_trace_is_that_of_the_command(lab: PolicyLab, shown: ConsoleProcess) -> None:
    found = shown.ask("trace?from=client&to=node1&family=4")
    assert (found["kind"], found["delivered"]) == ("TraceReport", True)
    [family] = found["families"]
    assert [hop["pod"] or hop["node"] for hop in family["there"]["hops"]] == ["default/client", "node2", "node1"]
    assert all(hop["seen"] for hop in family["there"]["hops"])
    refused = shown.ask("trace?from=nobody&to=node1")
    assert "nobody" in refused["error"]


def test_findings_are_the_doctors(lab: PolicyLab, shown: ConsoleProcess) -> None:
    found = shown.ask("doctor")
    assert (found["kind"], found["nodes"], found["silent"]) == ("DoctorReport", ["node1", "node2"], [])


def test_a_node_that_does_not_answer_is_said_and_the_rest_shown(lab: PolicyLab, shown: ConsoleProcess) -> None:
    cluster.kill_node(lab.lab.name, "node1")

    def silent() -> bool:
        found = {node["name"]: node for node in shown.ask("network")["nodes"]}
        assert (found["node1"]["state"], found["node2"]["name"]) == ("silent", "node2")
        assert found["node1"]["problems"]
        return True

    eventually(silent, every=0.5)
    past = shown.ask("flows?last=10")
    assert "node1" in past["silent"]
    assert past["records"]
    assert {one["node"] for one in past["records"]} == {"node2"}
    cluster.start_node(lab.lab.name, "node1", lambda _: None)

    def well() -> bool:
        changes = [(one["node"], one["state"]) for one in reversed(shown.ask("network")["changes"])]
        assert ("node1", "silent") in changes
        assert changes[-1] == ("node1", "well")
        return True

    eventually(well, every=0.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--listen", "0.0.0.0:0"), "other machines may reach 0.0.0.0, and the console asks for no password"),
        (("--listen", ":0"), "other machines may reach all addresses"),
        (("--listen", "here:0"), "is no address and port"),
        (("--lab", "nosuchlab"), "no lab 'nosuchlab'"),
    ],
)
def test_what_cannot_be_served_is_said(options: tuple[str, ...], words: str) -> None:
    command = [sys.executable, "-m", "podway", "console", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2)
    assert words in done.stderr
