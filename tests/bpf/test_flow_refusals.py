"""Writes that come to no good end: refused entries close their sets, flows are told of what was cut off."""

import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from podway.errors import KernelError
from podway.kernel.bpf import flow_programs
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_layout import pack_policy_prefix, pack_rule_key
from podway.kernel.flow import FlowEngine, FlowWrites, _set
from podway.kernel.netlink import Connection
from podway.kernel.rtnl import links
from podway.policy.maps import Columns, Prefix, Rule, RuleKey, Verdict

pytestmark = pytest.mark.kernel

SET, FRONT = 7, 50
DENY, ALLOW = Rule(Verdict.DENY, 0, 100), Rule(Verdict.ALLOW, 1, 101)
ISOLATED, WEB, MORE = RuleKey(SET), RuleKey(SET, 0, 6, 80, 16), RuleKey(SET, 0, 6, 81, 16)
BLOCKED = RuleKey(SET, FRONT)
RULES: dict[RuleKey, Columns] = {ISOLATED: (None, DENY, None), WEB: (None, ALLOW, None)}
SETS = {SET: 1 << 16}
FAR = Prefix(4, 0x0A000001, 32)


@pytest.fixture
def engine(new_netns: Callable[[], Any]) -> Iterator[FlowEngine]:
    """The engine's real maps; its programs hang nowhere."""
    with Connection(new_netns().fd) as connection:
        engine = FlowEngine(connection, dict)
        engine.open((), (), lambda: None)
        yield engine
        engine.stop()


def generation(engine: FlowEngine) -> int:
    assert engine._engine is not None
    return _set(engine._engine.maps["rule_sets"], SET).generation


@pytest.fixture
def agents(new_netns: Callable[[], Any]) -> Iterator[Callable[[], FlowEngine]]:
    """Begins agents one after the other, whose programs hang on a device."""
    netns = new_netns()
    netns.run("ip", "link", "add", "wire", "type", "veth", "peer", "name", "pod")
    with Connection(netns.fd) as connection:

        def begin() -> FlowEngine:
            engine = FlowEngine(connection, dict)
            engine.open(["wire"], ["pod"], lambda: None)
            return engine

        yield begin


@pytest.mark.parametrize("cut", [False, True], ids=["ended", "cut off"])
def test_flows_are_judged_again_if_an_agent_was_killed_as_it_wrote(
    agents: Callable[[], FlowEngine], monkeypatch: pytest.MonkeyPatch, *, cut: bool
) -> None:
    monkeypatch.setattr("podway.kernel.flow.PORTION", 1)
    one = agents()
    write(one, rules={**RULES, MORE: (None, ALLOW, None)})
    before = generation(one)
    steps = one.write(FlowWrites({}, SETS, {}, {}, gone_rules=(MORE,)))
    assert one._engine is not None
    while bpf.lookup(one._engine.maps["rules"], pack_rule_key(MORE)):
        next(steps)
    assert generation(one) == before, "the entry is gone, and no flow knows of it"
    if not cut:
        for _ in steps:
            pass
    before = generation(one)
    one.close()
    two = agents()
    assert (generation(two) != before) is cut
    assert two.writes == cut
    two.close()
    three = agents()
    assert three.writes == 0
    three.stop()


class Killed(BaseException):
    """An agent's end in the middle of its work."""


def killed(*_: Any) -> None:
    raise Killed


def test_programs_that_a_killed_agent_never_had_begin_are_not_taken_for_those_that_work(
    new_netns: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    netns = new_netns()
    netns.run("ip", "link", "add", "wire", "type", "veth", "peer", "name", "pod")
    with Connection(netns.fd) as connection:
        engine = FlowEngine(connection, dict)
        with pytest.raises(Killed):
            engine.open(["wire"], ["pod"], killed)
        with monkeypatch.context() as patch:  # what the next one is killed at is to take the idle ones off
            patch.setattr(flow_programs, "detach", killed)
            with pytest.raises(Killed):
                engine.open(["wire"], ["pod"], lambda: write(engine, rules=RULES))
        engine.open(["wire"], ["pod"], lambda: None)
        assert is_open(engine), "these are the maps that were written"
        numbers = [link.index for link in links.dump(connection)]
        assert len(flow_programs.attached(connection, numbers)) == 3
        engine.stop()


def write(engine: FlowEngine, **changes: Any) -> None:
    nothing: dict[str, Any] = {"rules": {}, "rule_sets": SETS, "identities": {}, "endpoints": {}}
    for _ in engine.write(FlowWrites(**{**nothing, **changes})):
        pass


def is_open(engine: FlowEngine) -> bool:
    steps = engine.read()
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return SET in end.value.rule_sets


def refuse(monkeypatch: pytest.MonkeyPatch, function: str, key: bytes) -> None:
    """Have the kernel refuse one entry, as if it had no memory just then."""
    real = getattr(bpf, function)

    def short_of_memory(fd: int, entry: bytes, *value: bytes) -> None:
        if entry == key:
            raise KernelError("write an eBPF map", 12)
        real(fd, entry, *value)

    monkeypatch.setattr(bpf, function, short_of_memory)


def test_a_tracer_of_drops_begins_whatever_becomes_of_the_engine_meanwhile(engine: FlowEngine) -> None:
    before = len(os.listdir("/proc/self/fd"))
    events = engine.events()
    assert events is not None
    tracer = engine.trace_drops(os.stat("/proc/self/ns/net").st_ino, [], 0)
    with contextlib.closing(events), contextlib.closing(tracer):
        engine.close()
        tracer.begin()
    assert len(os.listdir("/proc/self/fd")) < before, "nothing is held any more"


def test_a_set_that_lacks_an_entry_stays_closed_whatever_else_is_written(
    engine: FlowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        refuse(patch, "insert", pack_rule_key(ISOLATED))
        with pytest.raises(KernelError):
            write(engine, rules=RULES)
    assert not is_open(engine)
    write(engine, rules={MORE: (None, ALLOW, None)})
    assert not is_open(engine)
    write(engine, rules=RULES, compared=True)
    assert is_open(engine)


def test_a_set_that_keeps_an_entry_that_should_go_is_closed(
    engine: FlowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(engine, rules=RULES)
    with monkeypatch.context() as patch:
        refuse(patch, "delete", pack_rule_key(WEB))
        with pytest.raises(KernelError):
            write(engine, gone_rules=(WEB,))
    assert not is_open(engine)
    write(engine, gone_rules=(WEB,), compared=True)
    assert is_open(engine)


def test_what_finds_no_room_is_told_with_the_room_and_closes_its_set(
    new_netns: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"rules": 3, "identities": 2}
    monkeypatch.setattr(flow_programs, "take_over", partial(flow_programs.take_over, sizes=sizes))
    rules = {**RULES, BLOCKED: (DENY, None, None)}
    addresses = {Prefix(4, 0x0A000100 + number, 32): FRONT for number in range(sizes["identities"])}
    with Connection(new_netns().fd) as connection:
        engine = FlowEngine(connection, dict)
        engine.open((), (), lambda: None)
        with contextlib.closing(engine):
            write(engine, rules=rules, identities=addresses)
            assert is_open(engine)
            with pytest.raises(KernelError, match="map of identities, which takes 2 entries"):
                write(engine, rule_sets={}, identities={FAR: FRONT})
            assert not is_open(engine)
            write(engine, rules=rules, compared=True)
            assert is_open(engine)
            with pytest.raises(KernelError, match="map of rules, which takes 3 entries"):
                write(engine, rules={MORE: (None, ALLOW, None)})
            assert not is_open(engine)


def test_a_system_that_forbids_ebpf_says_so() -> None:
    """As root of a user namespace only, nobody may use bpf(2)."""
    script = """
        from podway.kernel.flow import FlowEngine, why_not
        from podway.kernel.netlink import Connection
        from podway.errors import UnsupportedSystem
        print(why_not())
        with Connection() as connection:
            engine = FlowEngine(connection, dict)
            try:
                engine.open((), (), lambda: None)
            except UnsupportedSystem as error:
                print(error.message, engine.is_open)
    """
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", textwrap.dedent(script)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert said == ["this system forbids eBPF", "the flow engine cannot be had: this system forbids eBPF False"]


def test_an_address_that_cannot_be_told_closes_the_sets_that_tell_it(
    engine: FlowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(engine, rules={**RULES, BLOCKED: (DENY, None, None)})
    with monkeypatch.context() as patch:
        refuse(patch, "insert", pack_policy_prefix(FAR))
        with pytest.raises(KernelError):
            write(engine, rule_sets={}, identities={FAR: FRONT})
    assert not is_open(engine)
    write(engine, identities={FAR: FRONT}, compared=True)
    assert is_open(engine)
