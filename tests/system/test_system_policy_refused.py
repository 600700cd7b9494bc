"""A node that cannot have the flow engine says so, and pretends to enforce nothing; it has it once it can."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import pytest

from podway.errors import KernelError
from podway.kernel import netns
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf import tcx
from podway.lab import names
from tests.patience import eventually
from tests.system.policy_lab import PolicyLab
from tests.system.system_lab import SystemLab, running_lab

pytestmark = pytest.mark.kernel


@pytest.fixture
def lab() -> Iterator[SystemLab]:
    with running_lab(2) as lab:
        yield lab


SHUT = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "shut", "namespace": "default"},
    "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
}
PASS = bytes.fromhex("b7000000ffffffff 9500000000000000")
"""r0 = -1 (TC_ACT_UNSPEC); exit"""
SCHED_CLS = 3


class Hook:
    """What hangs on the ingress of a node's uplink."""

    def __init__(self, lab: SystemLab, node: str) -> None:
        self.path = netns.path_of(names.node_netns(lab.name, node))
        self.index = int(lab.sh(node, "ip -o link show eth0").partition(":")[0])

    def fill(self) -> list[int]:
        """Hang programs of somebody else's there until no other has room; return their ids."""
        made: list[int] = []
        while True:
            fd = bpf.checked("load", bpf.library().bpf_prog_load(SCHED_CLS, b"foreign", b"GPL", PASS, 2, None))
            try:
                self._inside(partial(tcx.put, self.index, "ingress", fd, None, label="foreign", last=True))
                made.append(bpf.program_id(fd))
            except KernelError as error:
                if error.errno != errno.ERANGE:
                    raise
                return made
            finally:
                os.close(fd)

    def make_room(self, program: int) -> None:
        """Take one of them away."""
        self._inside(partial(tcx.detach, self.index, "ingress", program, label="foreign"))

    def _inside(self, what: Callable[[], None]) -> None:
        with netns.opened(self.path) as fd:
            netns.run(fd, what)


def test_where_auto_falls_back_everybody_says_what_is_not_enforced(lab: SystemLab) -> None:
    """The other node enforces its pods' policies, and the proof is of what each of them does."""
    Hook(lab, "node1").fill()
    told = lab.podway("set", "config", "dataPath=auto", "--wait", check=False)
    assert "note: node1 does without the flow engine: attach flow program" in told
    assert "node2 does without" not in told
    assert lab.status("node2")["data_path"]["in_force"] == "ebpf"
    for name, node in (("a", "node1"), ("b", "node2")):
        lab.podway("lab", "run", name, "--node", node, "--serve", "80")
    lab.podway("apply", "-f", "-", stdin=json.dumps(SHUT))
    eventually(lambda: lab.status("node2")["data_path"]["rule_sets"])

    def traced(*ends: str) -> Any:
        said = lab.podway("trace", *ends, "--port", "80", "-o", "json", "-4", check=False)
        (family,) = json.loads(said)["families"]
        return family

    held, free = traced("a", "b"), traced("b", "a")
    assert (held["there"]["verdict"]["code"], held["enforced"]) == ("denied", True)
    assert (free["there"]["verdict"]["outcome"], free["enforced"]) == ("delivered", False)
    (said,) = (one for one in free["policy"] if not one["allowed"])
    assert said["unenforced"].startswith("node node1: attach flow program podway_from_wire")

    report = json.loads(lab.podway("verify", "-o", "json", check=False))
    assert report["findings"] == []
    (unproved,) = report["unproved"]
    assert unproved["subject"] == "policies on node node1"
    assert not report["holds"]
    doctor = json.loads(lab.podway("doctor", "-o", "json", check=False))
    (found,) = (one for one in doctor["findings"] if one["check"] == "policies")
    assert found["severity"] == "warning"
    assert "nothing enforces the cluster's policies here" in found["found"]


def test_a_full_hook_is_told_and_room_on_it_is_taken(lab: SystemLab) -> None:
    hook = Hook(lab, "node1")
    foreign = hook.fill()
    lab.podway("set", "config", "dataPath=ebpf")
    eventually(lambda: lab.status("node2")["data_path"]["in_force"] == "ebpf")
    eventually(lambda: lab.status("node1")["data_path"]["problem"])
    told = lab.status("node1")["data_path"]
    assert told["in_force"] == "kernel"
    assert "attach flow program podway_from_wire" in told["problem"]
    assert "attach flow program podway_from_wire" in " ".join(lab.podway("doctor", "node1", check=False).split())
    assert "nothing enforces policies on node1" in lab.podway("policy", "lint", check=False)
    assert lab.add("node1").reaches(lab.add("node2").addresses[0]), "pods go on as without an engine"
    hook.make_room(foreign[0])
    with closing(PolicyLab(lab)) as made:
        web = made.run("web", "node1", 80)
        made.run("client", "node2")
        made.policy()
        made.reached_by(web, "node1")
