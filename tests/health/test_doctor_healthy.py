"""A lab in which nothing is wrong, and what the command prints."""

import contextlib
import json
import subprocess
import sys

import pytest

from tests.health.health_lab import HealthLab

pytestmark = pytest.mark.kernel


def test_a_healthy_lab_has_no_finding(lab: HealthLab) -> None:
    report = lab.doctor()
    assert report["findings"] == []
    assert report["nodes"] == ["node1", "node2"]
    assert report["kind"] == "DoctorReport"
    text = lab.podway("doctor")
    assert text.returncode == 0
    assert "nothing wrong" in text.stdout


def test_pods_start_while_the_doctor_looks(lab: HealthLab) -> None:
    command = ["podway", "--lab", lab.name, "doctor"]
    with contextlib.ExitStack() as stack:
        looking = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True)
            )
            for _ in range(2)
        ]
        done = lab.podway("lab", "run", "while-looking", "--node", "node1")
        found = [process.communicate()[0] for process in looking]
        assert [process.returncode for process in looking] == [0, 0], found
    assert done.returncode == 0, done.stderr
    assert lab.podway("lab", "rm", "while-looking").returncode == 0


def test_agents_may_be_asked_over_the_network(lab: HealthLab) -> None:
    report = lab.doctor("--remote")
    assert report["nodes"] == ["node1", "node2"]
    assert report["findings"] == []


def test_one_node_may_be_asked_alone(lab: HealthLab) -> None:
    assert lab.doctor("node2")["nodes"] == ["node2"]
    unknown = lab.podway("doctor", "node22")
    assert unknown.returncode == 1
    assert "did you mean node2" in unknown.stderr


def test_an_agent_that_does_not_answer_is_a_finding(lab: HealthLab) -> None:
    lab.stop_agent("node2")
    try:
        lab.finding("agent", "node2", "does not answer", "podway lab node start")
        assert lab.podway("doctor").returncode == 1
    finally:
        lab.start_agent("node2")


def test_the_report_in_text_names_subject_reason_and_remedy(lab: HealthLab) -> None:
    lab.sh("node1", "ip link add cni0 type bridge")
    try:
        text = lab.podway("doctor", "node1")
    finally:
        lab.sh("node1", "ip link del cni0")
    assert text.returncode == 0, "a warning alone is no failure"
    for words in (
        "warning node1: cni0 (leftovers)",
        "found  ",
        "why    ",
        "do     ",
        "ip link delete cni0",
        "1 warning",
    ):
        assert words in text.stdout


def test_the_list_of_checks_needs_no_lab() -> None:
    command = [sys.executable, "-m", "podway", "--lab", "nosuchlab", "doctor", "--list", "-o", "json"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["items"]
    assert {"check", "looksAt", "why"} == set(listed[0])
    assert len({check["check"] for check in listed}) == len(listed) > 30
