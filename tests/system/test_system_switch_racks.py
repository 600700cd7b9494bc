"""Between racks packets are encapsulated, inside a rack they are not: seen on the wire."""

import subprocess
from collections.abc import Iterator

import pytest

from podway.kernel import netns
from podway.lab import names
from tests.patience import PATIENCE, eventually
from tests.system.switch_traffic import Packets
from tests.system.system_lab import PodUnderTest, SystemLab

pytestmark = pytest.mark.kernel

ENCAPSULATIONS = {"vxlan": "udp port 4789", "ipip": "ip proto 4"}


@pytest.fixture(scope="module")
def racks() -> Iterator[SystemLab]:
    """Two racks of two nodes each; the routers between them know nothing of pods."""
    lab = SystemLab()
    lab.podway("lab", "up", "--racks", "2", "--nodes", "4", "--encapsulation", "vxlan", "--when", "cross-subnet")
    try:
        yield lab
    finally:
        lab.down()


def seen(lab: SystemLab, source: PodUnderTest, target: PodUnderTest, expression: str, *, within: float) -> bool:
    """Tell whether a ping between two pods is seen so on the uplink of the source's node, in so many seconds."""
    node = str(netns.path_of(names.node_netns(lab.name, source.node)))
    command = ["nsenter", f"--net={node}", "tcpdump", "-i", "eth0", "-c", "1", "-l", "-n", expression]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as capture:
        assert capture.stderr is not None
        while "listening" not in capture.stderr.readline():
            pass
        assert source.reaches(target.addresses[0])
        try:
            capture.wait(within)
        except subprocess.TimeoutExpired:
            capture.terminate()
            return False
        return True


@pytest.mark.parametrize("encapsulation", ENCAPSULATIONS)
def test_only_what_crosses_to_another_rack_is_encapsulated(racks: SystemLab, encapsulation: str) -> None:
    pods = [racks.add(f"node{number}") for number in (1, 2, 3)]
    here, near, far = pods
    eventually(lambda: all(here.reaches(pod.addresses[0], within=1) for pod in (near, far)))
    with Packets(pods) as packets:
        racks.podway("set", "pool/ipv4", f"encapsulation={encapsulation}", "--wait")
        # The hook of IPIP stops the uplink's queue for a moment.
        assert len(packets.lost()) <= (60 if encapsulation == "ipip" else 0)
    bare = f"icmp and host {near.addresses[0]}"
    assert seen(racks, here, near, bare, within=PATIENCE)
    assert not seen(racks, here, near, ENCAPSULATIONS[encapsulation], within=0.3)
    assert seen(racks, here, far, ENCAPSULATIONS[encapsulation], within=PATIENCE)
    assert not seen(racks, here, far, f"icmp and host {far.addresses[0]}", within=0.3)
    racks.remove_pods()


def test_a_switch_that_cannot_work_between_racks_is_refused(racks: SystemLab) -> None:
    said = racks.podway("set", "pool/ipv4", "distribution=store", "encapsulation=none", "when=always", check=False)
    assert "different subnets" in said
    assert "cross-subnet" in said
