"""The engine outlives its agent, and a new agent goes on with it: no packet is lost, no flow forgotten."""

import contextlib
import importlib.util
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from podway.errors import KernelError
from podway.kernel.bpf import flow_programs
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_layout import FLOW, Hook
from tests.bpf.flow_nodes import Lab, Node
from tests.bpf.flow_under_way import Caller, Stream, isolate
from tests.patience import eventually

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[2]
AGENT = """
import sys, time
from podway.kernel.bpf import flow_programs
from podway.kernel.bpf.flow_layout import Hook
from podway.kernel.bpf.flow_programs import Place
from podway.kernel.netlink import Connection

places = [Place(int(device), Hook(int(hook))) for device, hook in (one.split(":") for one in sys.argv[1:])]
with Connection() as connection, flow_programs.take_over(connection, places):
    print("ready", flush=True)
    time.sleep(1000)
"""


@pytest.fixture
def lab(new_netns: Callable[[], Any]) -> Iterator[Lab]:
    with contextlib.ExitStack() as stack:
        yield Lab(stack, new_netns)


def maps(node: Node) -> dict[str, int]:
    """The ids of the maps at work."""
    assert node.engine
    return {name: bpf.map_info(fd).id for name, fd in node.engine.maps.items()}


def programs(node: Node) -> set[tuple[Any, int]]:
    places = {place.device for place in node.places}
    return {(one.place, one.program) for one in flow_programs.attached(node.connection, places)}


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_killed_agent_is_not_missed(lab: Lab, family: int) -> None:
    """Between SIGKILL and the next agent everything goes on; that one changes nothing."""
    lab.start()
    isolate(lab)
    before, there = maps(lab.one), programs(lab.one)
    arguments = [f"{place.device}:{place.hook}" for place in lab.one.places]
    command = ["nsenter", f"--net={lab.one.netns.path}", sys.executable, "-c", AGENT, *arguments]
    with Stream(lab, family) as stream, Caller(lab, family) as caller:
        eventually(lambda: stream.heard and caller.took, "it works before")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent:
            assert agent.stdout
            assert agent.stdout.readline() == "ready\n"
            lab.one.release()
            agent.send_signal(signal.SIGKILL)
        made = len(caller.took)
        eventually(lambda: len(caller.took) > made + 20, "connections are made while there is no agent")
        lab.one.take_over()
        eventually(lambda: len(caller.took) > made + 40, "connections are made with the new agent")
        assert stream.lost() == set()
    assert (maps(lab.one), programs(lab.one)) == (before, there)


def compiled_otherwise(scratch: Path, name: str, former: str, changed: str) -> flow_programs.Image:
    """Compile the engine with another text in one of its headers."""
    source = scratch / "bpf"
    shutil.copytree(ROOT / "src/podway/bpf", source)
    header = source / "flow" / name
    text = header.read_text()
    assert former in text
    header.write_text(text.replace(former, changed))
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    target = source / "bin/flow.o"
    subprocess.run([*module.program_command(target), "-o", str(target)], check=True, cwd=source)
    return flow_programs.Image(target.read_bytes())


def other_layout(scratch: Path) -> flow_programs.Image:
    """The engine with another struct flow: eight bytes more, at its beginning."""
    return compiled_otherwise(scratch, "flow.h", "struct flow {\n", "struct flow {\n\t__u64 another;\n")


def unverifiable(scratch: Path) -> flow_programs.Image:
    """The engine with a pointer that is not looked at before it is used, which no verifier takes."""
    return compiled_otherwise(scratch, "counters.h", "\tif (value)\n\t\t++*value;\n", "\t++*value;\n")


@pytest.mark.parametrize("change", ["larger tables", "another layout"])
def test_another_build_takes_over_between_two_packets(lab: Lab, tmp_path: Path, change: str) -> None:
    """Flows and rules go along, nothing under way is lost, connections begun meanwhile are answered."""
    family = 0
    lab.start()
    isolate(lab)
    options: dict[str, Any] = {"sizes": {"flows": 270_000, "rules": 270_000, "identities": 270_000}}
    if change == "another layout":
        options = {
            "image": other_layout(tmp_path),
            "converters": {"flows": lambda key, value: (key, bytes(8) + value)},
        }
    before = maps(lab.one)
    with Stream(lab, family) as stream, Caller(lab, family) as caller:
        eventually(lambda: stream.heard and caller.took, "it works before")
        made = len(caller.took)
        for node in (lab.one, lab.two):
            node.take_over(**options)
        eventually(lambda: len(caller.took) > made + 40, "connections are made by the new build")
        assert stream.lost() == set()
    after = maps(lab.one)
    assert after["flows"] != before["flows"]
    assert after["endpoints"] == before["endpoints"]
    assert lab.one.engine
    assert bpf.map_info(lab.one.engine.maps["flows"]).value_size == FLOW.size + (8 if "image" in options else 0)
    # Only the new build's programs are left.
    builds = {one.build for one in flow_programs.attached(lab.one.connection, [p.device for p in lab.one.places])}
    assert builds == {lab.one.engine.build}
    assert len(programs(lab.one)) == len(lab.one.places)


def test_a_take_over_that_fails_leaves_the_former_build_at_work(lab: Lab, tmp_path: Path) -> None:
    lab.start()
    isolate(lab)
    before = programs(lab.one)
    with pytest.raises(KernelError, match="read the eBPF object"):
        lab.one.take_over(image=flow_programs.Image(b"no object"))
    with pytest.raises(KernelError, match="load the eBPF object") as refused:
        lab.one.take_over(image=unverifiable(tmp_path))
    assert "the kernel's verifier says:" in refused.value.hint
    assert "invalid mem access" in refused.value.hint
    assert programs(lab.one) == before
    with Stream(lab, 0) as stream:
        assert stream.lost() == set()


def test_calls_that_are_made_while_another_build_comes_go_along(lab: Lab) -> None:
    """Like their flows: without its call an open connection to a Service would be led elsewhere."""
    lab.start()
    assert lab.one.engine
    names = ("calls", "tcp_calls", "callers")
    former = lab.one.engine.maps
    infos = [bpf.map_info(former[name]) for name in names]
    entries = [(bytes([1]) * info.key_size, bytes([2]) * info.value_size) for info in infos]

    def call(_: flow_programs.Engine) -> None:
        for name, (key, value) in zip(names, entries, strict=True):
            bpf.insert(former[name], key, value)

    lab.one.take_over(sizes=dict.fromkeys(names, 70_000), fill=call)
    now = lab.one.engine.maps
    for name, (key, value) in zip(names, entries, strict=True):
        assert bpf.map_info(now[name]).max_entries == 70_000
        assert bpf.lookup(now[name], key) == value


def test_programs_may_hang_there_ahead_and_none_twice(lab: Lab) -> None:
    """Also where the same build is at work on some devices: a node without pods has none for their links."""
    node = lab.one
    wires = [place for place in node.places if place.hook is Hook.FROM_WIRE]

    def brought(places: list[flow_programs.Place]) -> bool:
        load = flow_programs.loading(node.connection, places)
        fresh = load() if load is not None else None
        flow_programs.take_over(node.connection, places, fresh=fresh).close()
        if fresh is not None:
            fresh.engine.close()
        found = flow_programs.attached(node.connection, {place.device for place in places})
        assert sorted(one.place for one in found) == sorted(places)
        assert flow_programs.works(node.connection, {place.device for place in places})
        return load is not None

    assert [brought(places) for places in (wires, wires, node.places, node.places)] == [True, True, True, False]
