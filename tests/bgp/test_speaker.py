"""Real BIRDs in namespaces: what is told, what is not, and that neither agent nor mistake disturbs it."""

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from podway import census
from podway.api.addresses import Family
from podway.bgp.daemon import Bird
from podway.bgp.render import render
from podway.errors import RoutingError, UnsupportedSystem
from tests.bgp.bgp_lab import LabNode, Segment
from tests.patience import PATIENCE, eventually

pytestmark = pytest.mark.kernel


def test_blocks_reach_every_kernel_and_nothing_else_does(segment: Segment) -> None:
    one, two, three = segment.start(3)
    for number, node in ((1, one), (2, two), (3, three)):
        for other in {1, 2, 3} - {number}:
            route = node.routes()[f"10.244.{other}.0/24"]
            assert (route["gateway"], route["prefsrc"]) == (f"192.0.2.{other}", f"192.0.2.{number}")
            route = node.routes()[f"fd00:10:244::{other}00/122"]
            assert (route["gateway"], route["prefsrc"]) == (f"2001:db8::{other}", f"2001:db8::{number}")
    # A pod's route, a resting address, a prefix outside the pools, one of a wrong length, one not ours.
    two.ip("route", "add", "10.244.2.7", "dev", "lo", "proto", "112")
    two.ip("route", "add", "blackhole", "10.244.2.8", "proto", "112")
    two.ip("route", "add", "blackhole", "10.99.0.0/24", "proto", "112")
    two.ip("route", "add", "blackhole", "10.244.64.0/20", "proto", "112")
    two.ip("route", "add", "blackhole", "10.244.66.0/24", "proto", "static")
    two.ip("route", "add", "blackhole", "10.244.77.0/24", "proto", "112")
    eventually(lambda: "10.244.77.0/24" in one.routes())
    blocks = {three.block4, three.block6, two.block4, two.block6, "10.244.77.0/24"}
    assert one.routes().keys() == blocks
    two.ip("route", "del", "blackhole", "10.244.77.0/24")
    eventually(lambda: one.routes().keys() == blocks - {"10.244.77.0/24"})


def test_an_own_block_beats_a_peers_claim(segment: Segment) -> None:
    one, two = segment.start(2)
    two.ip("route", "add", "blackhole", one.block4, "proto", "112")
    two.ip("route", "add", "blackhole", one.block6, "proto", "112")

    def claims() -> bool:
        told = [route for route in one.run(one.speaker.routes()) if not route.best]
        return {str(route.network) for route in told} == {one.block4, one.block6}

    eventually(claims)
    assert one.routes().keys() == {two.block4, two.block6}


def test_status_of_sessions_and_routes(segment: Segment) -> None:
    one, two = segment.start(2)
    eventually(lambda: all(peer.bfd == "Up" for peer in one.run(one.speaker.peers())))
    eventually(lambda: all(peer.exported for peer in one.run(one.speaker.peers())))
    peers = one.run(one.speaker.peers())
    assert [(peer.node, str(peer.address), peer.state, peer.imported, peer.exported) for peer in peers] == [
        ("node-2", "192.0.2.2", "Established", 1, 1),
        ("node-2", "2001:db8::2", "Established", 1, 1),
    ]
    assert all(abs(peer.since.timestamp() - time.time()) < 60 for peer in peers)
    routes = {str(route.network): route for route in one.run(one.speaker.routes())}
    assert routes[one.block4].type == "blackhole"
    assert routes[two.block6].protocol == "node-2.ipv6"
    assert [(str(hop.gateway), hop.device) for hop in routes[two.block6].next_hops] == [("2001:db8::2", "eth0")]


def test_bfd_may_be_off(segment: Segment) -> None:
    segment.bgp = msgspec.structs.replace(segment.bgp, bfd=False, port=1790, asn=65001)
    one, _ = segment.start(2)
    assert {(peer.bfd, peer.asn) for peer in one.run(one.speaker.peers())} == {("", 65001)}


def test_a_node_joins_and_leaves_without_disturbing_others(segment: Segment) -> None:
    one, two = segment.start(2)
    (since,) = (peer.since for peer in one.run(one.speaker.peers()) if peer.family is Family.IPV4)
    three = segment.add(1)[-1]
    three.start(segment.nodes)
    for node in (one, two):
        assert node.run(node.speaker.apply(segment.plan(node, segment.nodes)))
    eventually(lambda: segment.complete(one) and segment.complete(three))
    assert one.run(one.speaker.apply(segment.plan(one, [one, two])))
    eventually(lambda: one.routes().keys() == {two.block4, two.block6})
    (peer,) = (peer for peer in one.run(one.speaker.peers()) if peer.family is Family.IPV4)
    assert abs(peer.since - since) < timedelta(seconds=0.1), "the session was never restarted"


def test_the_same_plan_changes_nothing(segment: Segment) -> None:
    one, two = segment.start(2)
    pid, log = one.bird, one.run_dir / "bird.log"
    logged = log.stat().st_size
    assert one.run(one.speaker.apply(segment.plan(one, segment.nodes))) is False
    assert "Reconfig" not in log.read_text()[logged:]
    # A new agent adopts the running BIRD and writes nothing to the kernel.
    changes = one.route_changes()
    one.stop_agent()
    one.start(segment.nodes)
    assert one.bird == pid
    time.sleep(0.5)
    assert changes() == []
    assert all(peer.established for peer in two.run(two.speaker.peers()))


def test_a_rejected_configuration_leaves_the_running_one(segment: Segment) -> None:
    one, two = segment.start(2)
    bird, good = one.speaker.bird, one.speaker.bird.conf.read_text()
    with pytest.raises(RoutingError, match=r"bird\.new:2:1 syntax error"):
        one.run(bird.load("router id 192.0.2.1;\nnonsense;\n"))
    assert bird.conf.read_text() == good
    assert sorted(path.name for path in one.run_dir.iterdir()) == ["bird.conf", "bird.ctl", "bird.log", "bird.pid"]
    assert all(peer.established for peer in one.run(one.speaker.peers()))
    one.kill_bird()  # what is started again is the good one
    eventually(lambda: all(peer.established for peer in two.run(two.speaker.peers())))
    assert segment.complete(two)


AGENT = """
import asyncio, sys
from pathlib import Path
from podway.api.addresses import Family
from podway.bgp.daemon import Bird
async def main():
    bird = Bird(Path(sys.argv[1]))
    await bird.start(Path(sys.argv[2]).read_text())
    print(bird.pid, flush=True)
    await bird.keep_alive()
asyncio.run(main())
"""


def test_bird_outlives_a_killed_agent(segment: Segment, tmp_path: Path) -> None:
    (one,) = segment.add(1)
    conf = tmp_path / "first.conf"
    conf.write_text(render(segment.plan(one, [one]), one.run_dir / "bird.log"))
    agent = one.popen(sys.executable, "-c", AGENT, str(one.run_dir), str(conf), start_new_session=True)
    assert agent.stdout
    pid = int(agent.stdout.readline())
    os.killpg(agent.pid, signal.SIGKILL)  # the session that the agent leads, as a terminal's hangup would
    agent.wait()
    assert agent.stdout.read() == "", "BIRD holds no pipe of the agent"
    agent.stdout.close()
    one.start([one])
    assert one.speaker.bird.pid == pid == one.bird


def start_and_kill_at_once(segment: Segment, one: LabNode, directory: Path) -> None:
    """Kill an agent while the BIRD that it starts reads its configuration, which takes a while here."""
    conf, slow = directory / "first.conf", directory / "bird"
    conf.write_text(render(segment.plan(one, [one]), one.run_dir / "bird.log"))
    path = os.environ["PATH"]
    slow.write_text(f"#!/bin/sh\ntouch '{directory}/begun'\nsleep 1\nPATH='{path}:/usr/sbin' exec bird \"$@\"\n")
    slow.chmod(0o755)
    environment = {**os.environ, "PATH": f"{directory}:{path}"}
    command = (sys.executable, "-c", AGENT, str(one.run_dir), str(conf))
    agent = one.popen(*command, start_new_session=True, env=environment)
    eventually((directory / "begun").exists)
    os.killpg(agent.pid, signal.SIGKILL)
    agent.wait()


def birds_of(one: LabNode) -> list[int]:
    """Return the processes that serve a node's control socket, or are about to."""

    def serves(pid: int) -> bool:
        return str(one.run_dir / "bird.ctl") in Path(f"/proc/{pid}/cmdline").read_text().split("\0")

    return census.find(serves, deadline=time.monotonic() + PATIENCE)


def test_a_bird_that_a_killed_agent_has_just_started_is_adopted(segment: Segment, tmp_path: Path) -> None:
    (one,) = segment.add(1)
    start_and_kill_at_once(segment, one, tmp_path)
    one.start([one])
    assert birds_of(one) == [one.speaker.bird.pid] == [one.bird]


def test_a_bird_that_a_killed_agent_has_just_started_is_retired(segment: Segment, tmp_path: Path) -> None:
    (one,) = segment.add(1)
    start_and_kill_at_once(segment, one, tmp_path)
    assert one.run(Bird(one.run_dir).retire())
    assert birds_of(one) == []


def test_a_bird_whose_pid_file_is_lost_is_adopted(segment: Segment) -> None:
    (one,) = segment.add(1)
    one.start([one])
    former = one.bird
    one.stop_agent()
    (one.run_dir / "bird.pid").unlink()
    one.start([one])
    assert one.speaker.bird.pid == former == one.bird


def test_a_session_that_an_older_plan_lacks_stays_for_an_agent_that_goes_by_it(segment: Segment) -> None:
    one, two = segment.start(2)
    before = (one.run_dir / "bird.conf").read_text()
    one.stop_agent()
    one.start([one], as_before=True)
    assert (one.run_dir / "bird.conf").read_text() == before
    assert {peer.node for peer in one.run(one.speaker.peers()) if peer.established} == {"node-2"}
    assert two.block4 in one.routes()
    one.follow([one, two])
    assert one.run(one.speaker.apply(segment.plan(one, [one, two]))) is False, "nothing had to be done"


def test_a_bird_of_a_former_namespace_is_replaced(segment: Segment) -> None:
    """Its namespace was deleted and made anew under the same name, while BIRD held on to the old one."""
    one, two = segment.add(2)
    one.start([one])
    former = one.bird
    one.stop_agent()
    two.run_dir = one.run_dir
    two.start([two])
    assert two.bird != former
    # Dead, though perhaps not yet collected by its foster parent: a zombie has no command line.
    command = Path(f"/proc/{former}/cmdline")
    assert not command.exists() or command.read_text() == ""


def test_a_stuck_bird_is_replaced_by_the_next_agent(segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("podway.bgp.control.BirdControl.__init__.__kwdefaults__", {"timeout": 0.3})
    (one,) = segment.add(1)
    one.start([one])
    former = one.bird
    one.stop_agent()
    os.kill(former, signal.SIGSTOP)
    one.start([one])
    assert one.bird != former


def test_the_pid_file_may_name_somebody_else(segment: Segment) -> None:
    (one,) = segment.add(1)
    one.run_dir.mkdir()
    (one.run_dir / "bird.pid").write_text(f"{os.getpid()}\n")
    one.start([one])
    assert one.bird != os.getpid()


def test_routes_altered_by_hand_are_mended(segment: Segment) -> None:
    one, two = segment.start(2)
    one.ip("route", "del", two.block4)
    one.ip("-6", "route", "del", two.block6)
    one.run(one.speaker.repair_kernel_routes())
    eventually(lambda: segment.complete(one))


def test_stop_makes_peers_forget(segment: Segment) -> None:
    one, two = segment.start(2)
    one.run(one.speaker.stop())
    eventually(lambda: not two.routes())
    assert not (one.run_dir / "bird.pid").exists()
    with pytest.raises(RoutingError, match="cannot be reached"):
        one.run(one.speaker.peers())


def test_bird_missing(tmp_path: Path, segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = segment.add(1)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(UnsupportedSystem, match="apt install bird2"):
        one.start([one])


def test_a_configuration_that_bird_cannot_start_with(segment: Segment) -> None:
    (one,) = segment.add(1)

    async def start() -> None:
        await Bird(one.run_dir).start("nonsense;\n")

    with pytest.raises(RoutingError, match=r"bird\.conf:1:1 syntax error"):
        one.run(start())


def test_a_run_directory_too_deep_for_a_socket(tmp_path: Path) -> None:
    with pytest.raises(RoutingError, match="at most 107 bytes"):
        Bird(tmp_path / ("d" * 100))
