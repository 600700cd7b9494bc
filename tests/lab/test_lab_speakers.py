"""BGP on the routers: their files, and BIRD and FRR that speak with a node they were told nothing of."""

import os
import subprocess
from ipaddress import ip_network
from pathlib import Path
from typing import Literal

import pytest

from podway.errors import LabError
from podway.lab import cluster, processes, speakers, topology
from podway.lab.fabric import Fabric
from podway.lab.speaker_files import render_bird, render_frr
from tests.lab.router_lab import BFD, RouterLab
from tests.patience import eventually

GOLDEN = Path(__file__).parent / "golden"
FABRIC = Fabric((ip_network("172.30.0.0/16"), ip_network("fd70:6f64:7761:7900::/56")), racks=3)
RENDER = {"bird": render_bird, "frr": render_frr}
CHECK = {
    "bird": ["bird", "-p", "-c"],
    "frr": ["/usr/lib/frr/bgpd", "--dryrun", "-u", "root", "-g", "frrvty", "-f"],
}

Speaker = Literal["bird", "frr"]
both = pytest.mark.parametrize("tor", ["bird", "frr"])


@both
def test_the_files_are_those_that_were_looked_over(tor: Speaker, tmp_path: Path) -> None:
    """With PODWAY_GOLDEN=write the files are written anew, to be looked over again."""
    golden = GOLDEN / f"tor2.{tor}.conf"
    text = RENDER[tor](FABRIC, 2, BFD)
    if os.environ.get("PODWAY_GOLDEN") == "write":
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.kernel
@both
def test_the_daemons_themselves_take_their_files(tor: Speaker, tmp_path: Path) -> None:
    conf = tmp_path / "tor.conf"
    conf.write_text(RENDER[tor](FABRIC, 2, BFD))
    # FRR makes a directory for crash reports even to check a file; this one is not the machine's.
    script = f'mount -t tmpfs none /var/tmp && exec {" ".join(CHECK[tor])} "$0"'
    command = ["unshare", "--mount", "sh", "-c", script, str(conf)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.kernel
@pytest.mark.usefixtures("untouched_root")
@both
def test_routers_carry_a_nodes_routes_to_other_racks_and_forget_a_dead_node(lab_name: str, tor: Speaker) -> None:
    lab = RouterLab(lab_name, nodes=4, tor=tor)
    for node in ("node1", "node2", "node3"):
        lab.speak(node)

    def known(node: str) -> str:
        return lab.on_node(node, "ip", "route").stdout + lab.on_node(node, "ip", "-6", "route").stdout

    for ways, node in (
        # Another rack's are the router's to reach; a neighbour's go to the neighbour itself.
        (("10.244.1.0/24 via 172.30.2.254", "fd00:0:0:1::/64 via fd70:6f64:7761:7902::fe"), "node3"),
        (("10.244.1.0/24 via 172.30.1.1", "fd00:0:0:1::/64 via fd70:6f64:7761:7901::1"), "node2"),
        (("10.244.3.0/24 via 172.30.1.254", "fd00:0:0:3::/64 via fd70:6f64:7761:7901::fe"), "node1"),
    ):
        for way in ways:
            eventually(lambda node=node, way=way: way in known(node), f"{node} lacks {way}: {known(node)}")
    ping = lab.on_node("node3", "ping", "-c1", "-W1", "10.244.1.1")
    assert "1 packets transmitted, 0 received" in ping.stdout, "what a blackhole swallows"
    topology.cut_node(lab_name, lab.places["node1"].index)
    detection = BFD.interval * BFD.multiplier / 1000
    gone = eventually(lambda: "10.244.1.0/24" not in known("node3"), "the routes of a dead node stay")
    assert gone < detection + 5, "BFD, not the hold time, tells"
    marked = processes.Members([], marked=lambda mark: mark.startswith(f"{lab_name}/"))
    ended = marked.pids()
    assert len(ended) >= 5, "two routers and three nodes"
    cluster.down(lab_name)
    assert topology.namespaces(lab_name) == []
    assert marked.pids() == []
    reports = [path.suffix for path in Path("/var/tmp/frr").glob("*")]
    assert not {f".{pid}" for pid in ended} & set(reports), "crash reports stay outside of the lab"


@pytest.mark.kernel
@both
def test_a_speaker_that_does_not_start_is_shown_with_its_words(
    lab_name: str, tor: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speakers, "render_bird", lambda *_: "nonsense\n")
    monkeypatch.setattr(speakers, "FRR", Path("/nowhere"))
    words = {
        "bird": r"its bird ended with status 1.*\n.*bird.conf:1:1 syntax",
        "frr": r"zebra ended.*\n.*/nowhere/zebra",
    }
    with pytest.raises(LabError, match=rf"router tor1: .*{words[tor]}"):
        RouterLab(lab_name, nodes=2, tor=tor)


@both
def test_what_is_not_installed_is_named_with_its_package(tor: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speakers, "FRR", Path("/nowhere"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LabError, match=f"--tor {tor}: .* is not installed") as caught:
        speakers.require(tor)
    assert {"bird": "bird2", "frr": "package frr"}[tor] in caught.value.hint
