"""`podway set` on a real store."""

import json

import pytest
from click.testing import CliRunner

from podway.cli import main as root

POOL = {
    "apiVersion": "podway.io/v1",
    "kind": "IPPool",
    "metadata": {"name": "p"},
    "spec": {"cidr": "10.244.0.0/16"},
}


class Podway:
    def __init__(self, directory):
        self.url = f"sqlite://{directory}/store.db"

    def __call__(self, *args, stdin=None, status=0):
        result = CliRunner().invoke(root.main, ["--store", self.url, *args], input=stdin)
        assert result.exit_code == status, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.stdout if status == 0 else result.stderr

    def spec(self):
        return json.loads(self("get", "pool", "p", "-o", "json"))["spec"]


@pytest.fixture
def podway(tmp_path):
    podway = Podway(tmp_path)
    podway("apply", "-f", "-", stdin=json.dumps(POOL))
    return podway


def test_several_fields_change_at_once_and_the_rest_stays(podway):
    before = podway.spec()
    said = podway("set", "pool/p", "encapsulation=vxlan", "when=cross-subnet")
    assert said == "IPPool/p: encapsulation none → vxlan, when always → cross-subnet\n"
    assert podway.spec() == {**before, "encapsulation": "vxlan", "when": "cross-subnet"}
    assert podway("set", "pool/p", "encapsulation=vxlan") == "IPPool/p: unchanged\n"


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
def test_what_cannot_be_right_is_refused_and_nothing_is_changed(podway, assignments, words):
    before = podway.spec()
    said = podway("set", "pool/p", *assignments, status=1)
    assert said.startswith("podway: IPPool/p: ")
    assert all(word in said for word in words), said
    assert "hint: " in said
    assert podway.spec() == before


def test_an_object_that_is_not_there(podway):
    assert "IPPool/q does not exist" in podway("set", "pool/q", "encapsulation=vxlan", status=1)
    assert "'pol/p' names no object" in podway("set", "pol/p", "encapsulation=vxlan", status=1)
    assert "write pool/NAME" in podway("set", "pool", "encapsulation=vxlan", status=1)
