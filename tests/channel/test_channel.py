"""Agents asked over the network: who gets an answer, who does not and why, and certificates that change."""

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from podway.api.kinds.cluster_authority import AUTHORITY, ClusterAuthority, ClusterAuthoritySpec, KeyedCertificate
from podway.api.kinds.network_config import ChannelSettings, NetworkConfig
from podway.channel.admin import Method, reply
from podway.channel.remote import RemoteAgents, call_node
from podway.errors import AgentError, InvalidInput
from podway.identity.orders import is_operator, node_uri, operator_uri
from podway.identity.tls import Credentials
from podway.lab import agents, facts, names, state
from podway.lab.paths import lab_store
from podway.lab.reach import from_a_node
from podway.store.base import list_all
from tests.identity.authorities import HOUR, OTHER_CLUSTER, authority, operator
from tests.patience import PATIENCE

PORT = ChannelSettings().port


def _podway(*words: str, inside: str = "") -> "subprocess.CompletedProcess[str]":
    enter = ["nsenter", f"--net=/run/netns/{inside}"] if inside else []
    command = [*enter, sys.executable, "-m", "podway", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _remote(lab: str) -> RemoteAgents:
    listing = facts.ask(lab, list_all)
    return RemoteAgents(listing.items, reach=from_a_node(lab))


def _authorities(lab: str) -> ClusterAuthoritySpec:
    return facts.ask(lab, lambda store: store.get(ClusterAuthority, AUTHORITY)).spec


def _ask(lab: str, node: str, credentials: Credentials, *, at: str = "", timeout: float = PATIENCE) -> Any:
    addresses = [interface.ip for interface in state.load(lab).addresses(at or node)]
    return call_node(
        node, addresses, PORT, "status", credentials=credentials, reach=from_a_node(lab), timeout=timeout
    )


def _open_channels(lab: str) -> None:
    """Wait until both agents can be asked: they come to it after they are ready."""
    deadline = time.monotonic() + PATIENCE
    while not all(len(agents.status(lab, node)["channel"]["addresses"]) == 2 for node in ("node1", "node2")):
        assert time.monotonic() < deadline, [agents.status(lab, node)["channel"] for node in ("node1", "node2")]
        time.sleep(0.1)


@pytest.fixture
def channel(lab: str) -> str:
    _open_channels(lab)
    return lab


@pytest.mark.kernel
def test_every_agent_answers_for_its_own_node_over_both_families(channel: str) -> None:
    remote = _remote(channel)
    for node in ("node1", "node2"):
        told = remote.call(node, "status")
        assert told["node"] == node
        assert told["pid"] == agents.status(channel, node)["pid"]
        assert told["channel"]["cluster"] == _authorities(channel).cluster
        lifetime = (
            time.mktime(time.strptime(told["channel"]["certificate"][:19], "%Y-%m-%dT%H:%M:%S")) - time.time()
        )
        assert 23 * HOUR < lifetime <= 24 * HOUR
    credentials = operator(_authorities(channel).authorities[0], cluster=_authorities(channel).cluster)
    for interface in state.load(channel).addresses("node2"):
        told = call_node(
            "node2", [interface.ip], PORT, "routes", credentials=credentials, reach=from_a_node(channel)
        )
        assert {route["network"] for route in told} != set()


@pytest.mark.kernel
def test_a_command_on_one_node_asks_the_other_with_nothing_but_the_store(channel: str) -> None:
    inside = names.node_netns(channel, "node1")
    done = _podway("--store", lab_store(channel), "get", "routes", "node2", "-o", "json", inside=inside)
    assert done.returncode == 0, done.stderr
    assert {row["on"] for row in json.loads(done.stdout)["items"]} == {"node2"}


@pytest.mark.kernel
def test_the_agent_keeps_the_weight_of_certificates_out_of_its_process(channel: str) -> None:
    for node in ("node1", "node2"):
        assert "cryptography" not in Path(f"/proc/{agents.status(channel, node)['pid']}/maps").read_text()


@pytest.mark.kernel
def test_strangers_are_refused_and_both_sides_say_why(channel: str) -> None:
    spec = _authorities(channel)
    ours = spec.authorities[0]
    stranger = operator(authority(), cluster=spec.cluster, trusted=(ours,))
    late = operator(ours, cluster=spec.cluster, now=time.time() - 2 * HOUR)
    for credentials, we_hear, it_says in (
        (stranger, "refused us: our certificate is of another cluster", "certificate that is of another cluster"),
        (late, "refused us: our certificate has expired", "shows a certificate that has expired"),
    ):
        with pytest.raises(AgentError, match=rf"agent of node2 at 172\.30\.0\.2 port 9179 {we_hear}"):
            _ask(channel, "node2", credentials)
        assert it_says in agents.status(channel, "node2")["channel"]["last_refusal"]
    with pytest.raises(AgentError, match=r"node2 at .* shows a certificate that is of another cluster"):
        _ask(channel, "node2", operator(authority(OTHER_CLUSTER), cluster=OTHER_CLUSTER))


@pytest.mark.kernel
def test_nobody_without_a_certificate_and_tls_13_hears_anything(channel: str) -> None:
    reach = from_a_node(channel)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode, old.maximum_version = False, ssl.CERT_NONE, ssl.TLSVersion.TLSv1_2
    with (
        reach("172.30.0.2", PORT, 5) as connection,
        pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"),
    ):
        old.wrap_socket(connection)
    assert "does not speak TLS 1.3" in agents.status(channel, "node2")["channel"]["last_refusal"]

    nameless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nameless.check_hostname, nameless.verify_mode = False, ssl.CERT_NONE
    with reach("172.30.0.2", PORT, 5) as connection, nameless.wrap_socket(connection) as secure:
        secure.sendall(b'{"method": "status"}\n')
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
            secure.recv(100)
    assert "shows no certificate" in agents.status(channel, "node2")["channel"]["last_refusal"]

    refused = agents.status(channel, "node2")["channel"]["refused"]
    reach("172.30.0.2", PORT, 5).close()
    with reach("172.30.0.2", PORT, 5) as connection:
        connection.sendall(b'{"method": "status"}\n')
        assert b"result" not in connection.recv(1000)
    told = agents.status(channel, "node2")["channel"]
    assert (told["refused"], told["last_refusal"]) == (refused + 1, "172.30.0.1 does not speak TLS")


@pytest.mark.kernel
def test_an_agent_at_another_nodes_address_is_not_taken_for_it(channel: str) -> None:
    spec = _authorities(channel)
    credentials = operator(spec.authorities[0], cluster=spec.cluster)
    with pytest.raises(AgentError, match=r"not who was meant: its certificate is that of .*/node/node1"):
        _ask(channel, "node2", credentials, at="node1")


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.kernel
def test_one_agent_that_is_stuck_is_named_and_the_others_still_answer(channel: str) -> None:
    spec = _authorities(channel)
    credentials = operator(spec.authorities[0], cluster=spec.cluster)
    with _stopped(agents.status(channel, "node2")["pid"]):
        with pytest.raises(AgentError, match=r"agent of node2 at 172\.30\.0\.2 port 9179 did not answer `status`"):
            _ask(channel, "node2", credentials, timeout=0.5)
        done = _podway("--lab", channel, "status", "--remote", "-o", "json")
    answers = {item["node"]: item for item in json.loads(done.stdout)["items"]}
    assert done.returncode == 1
    assert answers["node1"]["ready"]
    assert "node2 at 172.30.0.2 port 9179 did not answer" in answers["node2"]["error"]


@pytest.mark.kernel
def test_unknown_nodes_and_unreachable_ones_are_told_apart(channel: str) -> None:
    remote = _remote(channel)
    with pytest.raises(InvalidInput, match="no node 'node3'"):
        remote.call("node3", "status")
    spec = _authorities(channel)
    credentials = operator(spec.authorities[0], cluster=spec.cluster)
    addresses = [interface.ip for interface in state.load(channel).addresses("node2")]
    with pytest.raises(AgentError, match=r"node2 cannot be reached \(172\.30\.0\.2 port 9: .*refused.*; fd70"):
        call_node("node2", addresses, 9, "status", credentials=credentials, reach=from_a_node(channel))


def test_what_is_for_the_node_itself_is_not_answered_to_others() -> None:
    async def secret() -> str:
        return "told"

    methods = {
        "secret": Method(secret),
        "open": Method(secret, remote=True),
        "people's": Method(secret, remote=True, operators=True),
    }

    def answer(method: str, *, remote: bool, operator: bool = False) -> Any:
        line = msgspec.json.encode({"method": method})
        return msgspec.json.decode(asyncio.run(reply(line, methods, remote=remote, operator=operator)))

    assert answer("secret", remote=False) == answer("open", remote=True) == {"result": "told"}
    assert answer("secret", remote=True)["error"] == "secret is answered on the node itself only"
    assert answer("secret", remote=True, operator=True)["error"] == "secret is answered on the node itself only"
    assert answer("people's", remote=True, operator=True) == answer("people's", remote=False) == {"result": "told"}
    assert answer("people's", remote=True)["error"] == "people's is answered to people only"


def test_an_operator_is_told_from_a_node_of_any_name() -> None:
    assert is_operator(operator_uri("c1"))
    for uri in (node_uri("c1", "operator"), node_uri("operator", "x"), "", "spiffe://c1", "spiffe:///x/operator"):
        assert not is_operator(uri), uri


def _set_lifetimes(lab: str, *, certificate: int, authority: int) -> None:
    async def change(store: Any) -> None:
        config = await store.get(NetworkConfig, "default")
        channel = ChannelSettings(certificate_lifetime_seconds=certificate, authority_lifetime_seconds=authority)
        spec = msgspec.structs.replace(config.spec, channel=channel)
        await store.update(msgspec.structs.replace(config, spec=spec))

    facts.ask(lab, change)


def _certified_by(lab: str, node: str, signer: KeyedCertificate) -> bool:
    """Tell whether an agent shows a certificate of this authority: to one who believes no other."""
    try:
        _ask(lab, node, operator(signer, cluster=_authorities(lab).cluster))
    except AgentError as error:
        assert "of another cluster" in error.message  # noqa: PT017 - anything else is a failure
        return False
    return True


@pytest.mark.kernel
@pytest.mark.slow
def test_certificates_and_authorities_change_under_way_and_no_call_fails(channel: str) -> None:
    pids = {node: agents.status(channel, node)["pid"] for node in ("node1", "node2")}
    before = _authorities(channel).authorities
    _set_lifetimes(channel, certificate=8, authority=48)
    certificates: set[tuple[str, str]] = set()
    deadline = time.monotonic() + 2 * PATIENCE
    newest = before[-1]
    while newest in before or not all(_certified_by(channel, node, newest) for node in pids):
        assert time.monotonic() < deadline
        remote = _remote(channel)
        for node, pid in pids.items():
            told = remote.call(node, "status")
            assert told["pid"] == pid
            certificates.add((node, told["channel"]["certificate"]))
        newest = _authorities(channel).authorities[-1]
        time.sleep(0.3)
    assert len(certificates) >= 6
    _set_lifetimes(channel, certificate=24 * HOUR, authority=365 * 24 * HOUR)


@pytest.mark.kernel
def test_an_authority_that_is_deleted_is_believed_no_more(channel: str) -> None:
    before = _authorities(channel)
    with_the_old = operator(before.authorities[-1], cluster=before.cluster)
    assert _podway("--lab", channel, "delete", "authority", "default").returncode == 0
    deadline = time.monotonic() + PATIENCE
    while {agents.status(channel, node)["channel"]["cluster"] for node in ("node1", "node2")} & {before.cluster}:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with pytest.raises(AgentError, match="of another cluster"):
        _ask(channel, "node2", with_the_old)
    assert _remote(channel).call("node2", "status")["node"] == "node2"


@pytest.mark.parametrize(
    "line", [b"\xff", b'{"method": "m", "params": {"x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}}"]
)
def test_what_is_no_request_is_answered_so(line: bytes) -> None:
    assert b"not a request" in asyncio.run(reply(line, {}))
