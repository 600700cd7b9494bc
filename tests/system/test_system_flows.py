"""What nodes record of flows, and how it is asked for: of real connections, by real agents."""

import base64
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from podway.agent.dump import COMMANDS
from podway.api.kinds.cluster_authority import ClusterAuthority
from podway.cli.sysdump import ASKED
from podway.lab.agents import LOG
from tests.patience import PATIENCE, eventually
from tests.system.policy_lab import FAMILIES, POLICY, PolicyLab
from tests.system.system_lab import SystemLab

pytestmark = pytest.mark.kernel

PORT = 80


@pytest.fixture(scope="module")
def lab() -> Iterator[PolicyLab]:
    """Two nodes with a pod each, web on the first and client on the second; the engine was off before."""
    lab = SystemLab()
    lab.up(2)
    try:
        off = lab.podway("flows", check=False)
        made = PolicyLab(lab)
        made.run("web", "node1", PORT, labels={"app": "web"})
        made.run("client", "node2", labels={"app": "client"})
        made.off = off  # type: ignore[attr-defined]
        yield made
        made.close()
    finally:
        lab.down()


def flows(lab: PolicyLab, *options: str) -> list[dict[str, Any]]:
    """The records that are found."""
    text = lab.lab.podway("flows", *options, "-o", "jsonl", check=False)
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def connect(lab: PolicyLab, family: int = socket.AF_INET) -> int:
    """Connect from client to web, if it can be, and reset that; return the port that it was from."""
    with lab.pods["client"].open(family) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 0))
        with contextlib.suppress(TimeoutError):
            client.connect((lab.pods["web"].address(family), PORT))
        return int(client.getsockname()[1])


def of(lab: PolicyLab, port: int, *options: str) -> list[dict[str, Any]]:
    """The records of a connection from a port."""
    return [one for one in flows(lab, *options) if one["source"].get("port") == port]


def test_where_the_engine_is_off_that_is_said_and_what_to_do(lab: PolicyLab) -> None:
    said = lab.off  # type: ignore[attr-defined]
    assert "flows are not recorded on node1, node2: the flow engine, which tells of flows, is off" in said
    assert "podway set config dataPath=ebpf" in said


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connection_is_seen_by_both_nodes_with_the_names_of_both_pods(lab: PolicyLab, family: int) -> None:
    port = connect(lab, family)

    def seen() -> bool:
        found = [one for one in of(lab, port) if one["event"] in ("new", "end")]
        assert {(one["node"], one["event"]) for one in found} == {
            (node, event) for node in ("node1", "node2") for event in ("new", "end")
        }
        for one in found:
            assert one["source"]["who"] == {
                "kind": "pod",
                "name": "client",
                "namespace": "default",
                "node": "node2",
            }
            assert one["destination"]["who"]["name"] == "web"
            assert (one["verdict"], one["protocol"], one["destination"]["port"]) == ("allowed", "tcp", PORT)
            assert one["direction"] == ("ingress" if one["node"] == "node1" else "egress")
            if one["event"] == "end":
                assert one["packets"] >= 2
                assert one["packets_back"] >= 1
                assert one["rtt"] > 0
                assert one["rtt_back"] > 0
        return True

    eventually(seen)


def test_a_denied_connection_names_the_policy_that_isolates_and_who_allows_is_named_too(lab: PolicyLab) -> None:
    lab.policy("closed", podSelector={"matchLabels": {"app": "web"}})

    def denied() -> bool:
        port = connect(lab)
        eventually(lambda: any(one["event"] == "drop" for one in of(lab, port, "--verdict", "denied")), within=3)
        [*_, one] = of(lab, port, "--policy", "default/closed")
        assert (one["node"], one["event"], one["reason"]) == ("node1", "drop", "DENIED_INGRESS")
        assert one["ingress"]["isolates"] == ["NetworkPolicy/default/closed"]
        assert one["ingress"]["revision"]
        return True

    eventually(denied)
    text = lab.lab.podway("flows", "--verdict", "denied")
    assert "DENIED_INGRESS: isolated by NetworkPolicy/default/closed, and no rule allows it" in text
    rows = json.loads(lab.lab.podway("flows", "--by", "policy", "-o", "json"))["items"]
    assert any(row["key"] == "NetworkPolicy/default/closed" and row["denied"] for row in rows)

    peers = [{"podSelector": {"matchLabels": {"app": "client"}}}]
    lab.policy("closed", podSelector={"matchLabels": {"app": "web"}}, ingress=[{"from": peers}])

    def allowed() -> bool:
        port = connect(lab)
        found = of(lab, port, "--policy", "closed", "--verdict", "allowed", "--node", "node1")
        assert found
        assert found[0]["ingress"]["rule"] == "ingress[0]"
        return True

    eventually(allowed)
    lab.forget_policies()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_audited_policy_lets_everything_pass_and_says_what_it_would_deny(lab: PolicyLab, family: int) -> None:
    lab.policy("closed", podSelector={"matchLabels": {"app": "web"}})
    assert "NetworkPolicy/default/closed: only reports from now on" in lab.lab.podway(
        "policy", "audit", "default/closed"
    )

    def reported() -> bool:
        port = connect(lab, family)
        eventually(lambda: bool(of(lab, port, "--event", "audit", "--policy", "closed")), within=3)
        [one] = of(lab, port, "--verdict", "audited")
        assert (one["node"], one["event"], one["reason"]) == ("node1", "audit", "DENIED_INGRESS")
        assert one["ingress"]["isolates"] == ["NetworkPolicy/default/closed"]
        assert any(
            each["event"] == "new" and each["node"] == "node1" for each in of(lab, port, "--verdict", "allowed")
        )
        assert not of(lab, port, "--verdict", "denied")
        return True

    eventually(reported)
    said = lab.lab.podway("policy", "audit").splitlines()
    assert any(line.split()[:2] == ["NetworkPolicy/default/closed", "reports"] for line in said), said
    explained = lab.lab.podway("policy", "explain", "client", "web", "--port", str(PORT))
    assert "audited policies would deny it" in explained
    assert "allowed" in explained.splitlines()[0]
    assert "audited: it only reports" in lab.lab.podway("policy", "list", "web")
    assert "already" in lab.lab.podway("policy", "audit", "default/closed")

    assert "holds from now on" in lab.lab.podway("policy", "audit", "default/closed", "--enforce")
    eventually(lambda: any(one["event"] == "drop" for one in of(lab, connect(lab, family), "--verdict", "denied")))
    lab.forget_policies()


def test_what_was_seen_is_held_against_policies_and_makes_some(lab: PolicyLab, tmp_path: Path) -> None:
    port = connect(lab)
    eventually(lambda: of(lab, port, "--node", "node1"))
    closed = tmp_path / "closed.yaml"
    spec = {"podSelector": {"matchLabels": {"app": "web"}}}
    closed.write_text(json.dumps({**POLICY, "metadata": {"name": "closed", "namespace": "default"}, "spec": spec}))
    said = lab.lab.podway("plan", "-f", str(closed), "--flows", "1h")
    assert f"- would be denied: default/client -> default/web tcp port {PORT}" in said
    assert "isolated by NetworkPolicy/default/closed" in said
    found = json.loads(lab.lab.podway("plan", "-f", str(closed), "--flows", "1h", "-o", "json"))["items"]
    assert {(one["would"], one["port"]) for one in found} == {("denied", PORT)}
    text = lab.lab.podway("policy", "suggest", "default")
    lab.lab.podway("apply", "-f", "-", stdin=text)
    try:
        eventually(lambda: lab.data_path("node1")["rule_sets"] and lab.data_path("node2")["rule_sets"])
        before = connect(lab)
        eventually(lambda: of(lab, before, "--event", "new", "--node", "node1"))
        assert "0 would be otherwise" in lab.lab.podway("plan", "-f", "-", "--flows", "1h", stdin=text)
        gone = lab.lab.podway("plan", "--delete", "netpol/" + names_of(text)[-1], "--flows", "1h")
        assert "would be denied" not in gone
    finally:
        lab.forget_policies()
    assert "has no pods" in lab.lab.podway("policy", "suggest", "nowhere", check=False)


def names_of(text: str) -> list[str]:
    """The policies of some documents, NAMESPACE/NAME."""
    found = [one["metadata"] for one in yaml.safe_load_all(text)]
    return [f"{one['namespace']}/{one['name']}" for one in found]


def test_what_a_killed_agent_had_written_is_there_and_what_came_meanwhile_too_all_of_it_once(
    lab: PolicyLab,
) -> None:
    before = connect(lab)
    eventually(lambda: of(lab, before, "--node", "node1"))
    lab.lab.kill_agent("node1")
    meanwhile = connect(lab)
    lab.lab.start_agent("node1")
    after = connect(lab)
    for port in (before, meanwhile, after):

        def once(port: int = port) -> bool:
            found = of(lab, port, "--node", "node1", "--last", "1000")
            assert sorted(one["event"] for one in found if one["event"] != "lives") == ["end", "new"]
            assert all(one["source"]["who"]["name"] == "client" for one in found)
            return True

        eventually(once)
    assert lab.lab.status("node1")["flows"]["lost"] == 0


def test_a_node_that_does_not_answer_is_said_and_the_rest_is_shown(lab: PolicyLab) -> None:
    port = connect(lab)
    eventually(lambda: of(lab, port, "--node", "node1"))
    lab.lab.kill_agent("node2")
    try:
        text = lab.lab.podway("flows", "--last", "50", check=False)
        assert "node2/agent.sock" in text
        assert f":{port} " in text
    finally:
        lab.lab.start_agent("node2")
    assert flows(lab, "--node", "node2")


def test_nodes_are_asked_over_the_network_too_and_filters_hold_there(lab: PolicyLab) -> None:
    port = connect(lab)
    options = ("--remote", "--pod", "client", "--port", str(PORT), "-l", "app=web", "-n", "default")
    eventually(lambda: {one["node"] for one in of(lab, port, *options)} == {"node1", "node2"})
    assert not of(lab, port, *options, "--protocol", "udp")
    assert not of(lab, port, "-l", "app=nobody")
    assert not of(lab, port, "--to", "default/client")


def test_flows_are_followed_until_somebody_ends_it(lab: PolicyLab) -> None:
    command = [sys.executable, "-m", "podway", "--lab", lab.lab.name, "flows", "--follow", "--event", "new"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as told:
        assert told.stdout
        seen: list[str] = []

        def heard() -> bool:
            port = connect(lab)
            for line in told.stdout or ():
                seen.append(line)
                if f"default/client:{port} " in line:
                    return True
            return False

        assert heard(), seen
        told.send_signal(signal.SIGINT)
        assert told.wait(PATIENCE) == 130


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--since", "soon"), "--since: cannot read 'soon'"),
        (("--reason", "bad-luck"), "there are MALFORMED"),
        (("--protocol", "tcpp"), "--protocol: 'tcpp'"),
        (("--cidr", "10.0.0.0/33"), "--cidr"),
        (("--from", "a/b/c"), "--from"),
        (("--follow", "-o", "json"), "-o jsonl"),
        (("--follow", "--by", "pod"), "--follow goes on"),
        (("--top", "3"), "--by"),
        (("-l", "a=b=c"), "-l: cannot read"),
        (("--node", "node9"), "there is no node 'node9'"),
    ],
)
def test_what_cannot_be_asked(lab: PolicyLab, options: tuple[str, ...], said: str) -> None:
    assert said in lab.lab.podway("flows", *options, check=False)


PLANTED = ("sesame-open-now", "hunter2-hunter2", "0123456789abcdef0123", "MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v")


def dumped(path: Path) -> dict[str, str]:
    """The files of a dump."""
    found = {}
    with tarfile.open(path) as archive:
        for entry in archive:
            file = archive.extractfile(entry)
            assert file
            found[entry.name.removeprefix("podway-sysdump/")] = file.read().decode()
    return found


def test_a_dump_has_what_helps_and_no_secret_in_it(lab: PolicyLab, tmp_path: Path) -> None:
    password = "correct horse battery staple"
    encoded = base64.b64encode(password.encode()).decode()
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": "bgp",
            "namespace": "default",
            "annotations": {"last-applied": json.dumps({"data": encoded})},
        },
        "data": {"password": encoded},
    }
    planted = {
        "note": "token: sesame-open-now",
        "url": "https://admin:hunter2-hunter2@registry.example/",
        "said": "Authorization: Bearer 0123456789abcdef0123",
        "key": "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v\n-----END PRIVATE KEY-----",
    }
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "vault", "annotations": planted}}
    lab.apply(manifest)
    lab.apply(space)
    authority = lab.lab.store(lambda store: store.get(ClusterAuthority, ClusterAuthority.ONLY))
    keys = [line for one in authority.spec.authorities for line in one.private_key.splitlines()[1:-1]]
    assert keys
    with (lab.lab.run_dir("node1") / LOG).open("a") as log:
        log.write(f"peer password={password}\n" + "\n".join(planted.values()))
    path = tmp_path / "dump.tar.gz"
    said = lab.lab.podway("sysdump", "-o", str(path), "--no-doctor")
    assert str(path) in said
    assert path.stat().st_mode & 0o777 == 0o600
    files = dumped(path)
    own = ("metrics", "log", "programs", "engine", *COMMANDS)
    wanted = [f"nodes/{node}/{name}.json" for node in ("node1", "node2") for name in ASKED]
    wanted += [f"nodes/{node}/{name}.txt" for node in ("node1", "node2") for name in own]
    assert {"README.txt", "cluster.json", "nodes/node1/agent.log", *wanted} == files.keys() - {
        "nodes/node2/agent.log"
    }
    for name, text in files.items():
        for secret in (password, encoded, *keys, *PLANTED):
            assert secret not in text, name
    assert json.loads(files["nodes/node1/status.json"])["node"] == "node1"
    for name, words in (
        ("routes", "proto 112"),
        ("nftables", "table ip podway"),
        ("qdiscs", "qdisc"),
        ("metrics", "podway_leases 1"),
        ("log", "ready"),
        ("programs", "from wire"),
        ("engine", "pod default/web EndpointRules"),
    ):
        assert words in files[f"nodes/node1/{name}.txt"], name
    (tmp_path / "cluster.json").write_text(files["cluster.json"])
    assert "client" in lab.lab.podway("--store", f"snapshot:{tmp_path / 'cluster.json'}", "get", "pods", "-A")


def test_a_dump_says_what_it_lacks(lab: PolicyLab, tmp_path: Path) -> None:
    lab.lab.kill_agent("node2")
    try:
        path = tmp_path / "dump.tar.gz"
        said = lab.lab.podway("sysdump", "-o", str(path), "--no-doctor", check=False)
        assert "not in the dump: status of node2" in said
        files = dumped(path)
        assert "status of node2" in files["README.txt"]
        assert "nodes/node1/status.json" in files
    finally:
        lab.lab.start_agent("node2")
    assert "No such file" in lab.lab.podway("sysdump", "-o", str(tmp_path / "no/dump"), "--no-doctor", check=False)
