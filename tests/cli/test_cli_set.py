"""`podway set` on a real store."""

import json
from typing import Any

import pytest
from click.testing import CliRunner

from podway.cli import main
from tests.cli.conftest import Podway

CONFIG = {"apiVersion": "podway.io/v1", "kind": "NetworkConfig", "metadata": {"name": "default"}, "spec": {}}
NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}
PEER = {
    "apiVersion": "podway.io/v1",
    "kind": "BGPPeer",
    "metadata": {"name": "tor"},
    "spec": {"address": "192.0.2.254", "asn": 64601},
}
POOL = {
    "apiVersion": "podway.io/v1",
    "kind": "IPPool",
    "metadata": {"name": "p"},
    "spec": {"cidr": "10.244.0.0/16"},
}


@pytest.fixture
def pool(podway: Podway) -> Podway:
    podway("apply", "-f", "-", stdin=json.dumps(POOL))
    return podway


def spec_of(podway: Podway) -> Any:
    return json.loads(podway("get", "pool", "p", "-o", "json"))["spec"]


def test_several_fields_change_at_once_and_the_rest_stays(pool: Podway) -> None:
    before = spec_of(pool)
    said = pool("set", "pool/p", "encapsulation=vxlan", "when=cross-subnet")
    assert said == "IPPool/p: encapsulation none → vxlan, when always → cross-subnet\n"
    assert spec_of(pool) == {**before, "encapsulation": "vxlan", "when": "cross-subnet"}
    assert pool("set", "pool/p", "encapsulation=vxlan") == "IPPool/p: unchanged\n"


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["encapsulation=gre"], ["spec.encapsulation", "'gre' is not possible", "vxlan"]),
        (["encapsulatoin=vxlan"], ["encapsulatoin", "is not a field here", "encapsulation"]),
        (["encapsulation=vxlan", "blockSize=8"], ["spec.blockSize", "/8 is not a block"]),
        (["when=cross-subnet"], ["spec.when", "encapsulation"]),
        (["blockSize=many"], ["spec.blockSize"]),
    ],
)
def test_what_cannot_be_right_is_refused_and_nothing_is_changed(
    pool: Podway, assignments: list[str], words: list[str]
) -> None:
    before = spec_of(pool)
    said = pool("set", "pool/p", *assignments, status=2)
    assert said.startswith("podway: IPPool/p: ")
    assert all(word in said for word in words), said
    assert "hint: " in said
    assert spec_of(pool) == before


def test_an_object_that_is_not_there(pool: Podway) -> None:
    assert "IPPool/q does not exist" in pool("set", "pool/q", "encapsulation=vxlan", status=1)
    assert "did you mean pool?" in pool("set", "pol/p", "encapsulation=vxlan", status=2)
    assert "write pool/NAME" in pool("set", "pool", "encapsulation=vxlan", status=2)
    assert "cannot be changed" in pool("set", "routes/n1", "encapsulation=vxlan", status=2)
    assert "what of pool/p?" in pool("set", "pool", "p", status=2)


def test_kind_and_name_may_be_two_words(pool: Podway) -> None:
    assert pool("set", "pool", "p", "encapsulation=vxlan") == "IPPool/p: encapsulation none → vxlan\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["set", "config", "bgp.bfdInterval=300"], ""),
        (["set", "config", "bgp.asn=64999", "bgp.port=1790"], "bgp.asn and bgp.port starts all BGP sessions anew"),
        (["set", "node/n1", "asn=64601"], "starts all BGP sessions of Node/n1 anew"),
        (["set", "bgppeer/tor", "maxPrefixes=20"], ""),
        (["set", "bgppeer/tor", "asn=64602"], "sessions with BGPPeer/tor start anew"),
        (["apply", "-f", "-"], "another bgp.asn starts all BGP sessions anew"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_changed_without_a_break_is_said(pool: Podway, command: list[str], words: str) -> None:
    """Both ends of a session must agree on AS numbers and ports. What is changed all the same is changed."""
    for manifest in (CONFIG, NODE, PEER):
        pool("apply", "-f", "-", stdin=json.dumps(manifest))
    other = {**CONFIG, "spec": {"bgp": {"asn": 65000}}}
    done = CliRunner().invoke(main.main, ["--store", pool.url, *command], input=json.dumps(other))
    assert done.exit_code == 0, done.output
    assert (words in done.stderr) if words else (done.stderr == "")
    assert "unchanged" not in done.stdout
