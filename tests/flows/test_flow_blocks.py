"""Blocks of events: what their records say, and that nothing changes on the way to bytes and back."""

import json
import zlib
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podway.flows import reasons
from podway.flows.block import Block, DamagedBlock, Names
from podway.flows.record import Called, Frontend, Rule, Who
from podway.kernel.bpf.flow_layout import EventKind, FlowFlag, FlowState, Hook, Reason, Way
from tests.flows.flow_events import CLIENT, OUTSIDE, PODS, SECOND, WEB, event, names

EPOCH = 1_700_000_000 * SECOND


def test_a_new_flow_has_names_time_and_direction() -> None:
    found = Block.of("node1", 5, event(rules=(0, 77)), names(EPOCH)).record(0)
    assert (found.event, found.verdict, found.sequence, found.node) == ("new", "allowed", 5, "node1")
    assert (found.time, found.began) == (1_700_000_001.0, 1_700_000_001.0)
    assert (found.source.label, found.source.port) == ("shop/client", 40000)
    assert (found.destination.label, found.destination.address) == ("shop/web", WEB)
    assert (found.direction, found.protocol, found.path) == ("ingress", "tcp", "routed")
    assert found.ingress == Rule("rule 0x0000004d")  # of which nobody could say what it meant


VIP = "10.96.0.10"
FRONTENDS = (
    Frontend("shop", "web", "tcp", 443, "https"),
    Frontend("shop", "web", "tcp", 80, "http"),
    Frontend("shop", "web", "udp", 80, "quic"),
)


@pytest.mark.parametrize("backwards", [False, True])
def test_the_service_that_was_called_stands_beside_the_backend_that_was_chosen(*, backwards: bool) -> None:
    said = names()
    said.services.append((0, VIP, FRONTENDS))
    data = event(service=(VIP, 80), ports=(40000, 8080))
    if backwards:
        data = event(service=(VIP, 80), source=WEB, destination=CLIENT, ports=(8080, 40000), flags=FlowFlag.REPLY)
    whole = Block.of("node2", 0, data, said)
    for block in (whole, Block.unseal(whole.seal())):
        found = block.record(0)
        assert found.service == Called(VIP, 80, "shop", "web", "http")
        assert (found.destination.label, found.destination.port) == ("shop/web", 8080)


def test_a_service_is_named_as_far_as_it_is_known() -> None:
    said = names()
    said.services.append((1, VIP, FRONTENDS))
    no_port, drop = Reason.SERVICE_NO_PORT, EventKind.PACKET_DROPPED
    events = (
        event(service=("10.96.0.99", 80)),  # which nobody could say anything of
        event(drop, reason=no_port, destination=VIP, ports=(40000, 443)),
        event(drop, reason=no_port, destination=VIP, ports=(40000, 9)),
        event(),
    )
    block = Block.of("node2", 0, b"".join(events), said)
    assert [block.record(at).service for at in range(block.count)] == [
        Called("10.96.0.99", 80),
        Called(VIP, 443, "shop", "web", "https"),
        Called(VIP, 9, "shop", "web"),
        None,
    ]


@pytest.mark.parametrize(("node", "direction"), [("node1", "ingress"), ("node2", "egress"), ("node3", "")])
def test_direction_is_seen_from_the_pod_of_the_node(node: str, direction: str) -> None:
    assert Block.of(node, 0, event(), names()).record(0).direction == direction


def test_what_the_called_end_sent_is_shown_in_the_direction_of_who_called() -> None:
    data = event(
        EventKind.FLOW_END,
        source=WEB,
        destination=CLIENT,
        ports=(80, 40000),
        flags=FlowFlag.REPLY,
        state=FlowState.RESET,
        counts=(4, 400, 5, 500),
        rtt=(200, 3000),
        retransmitted=(1, 2),
    )
    found = Block.of("node1", 0, data, names()).record(0)
    assert (found.rtt, found.rtt_back, found.round_trip) == (3000, 200, 3200)
    assert (found.retransmitted, found.retransmitted_back) == (2, 1)
    assert (found.source.label, found.source.port, found.destination.port) == ("shop/client", 40000, 80)
    assert (found.packets, found.octets, found.packets_back, found.octets_back) == (5, 500, 4, 400)
    assert (found.how, found.reply) == ("reset", False)


def test_an_answer_that_is_dropped_says_so_and_counts_itself() -> None:
    data = event(
        EventKind.PACKET_DROPPED,
        source=WEB,
        destination=CLIENT,
        flags=FlowFlag.REPLY,
        reason=Reason.DENIED_INGRESS,
        counts=(1, 60, 0, 0),
    )
    found = Block.of("node1", 0, data, names()).record(0)
    assert (found.verdict, found.reason, found.reply, found.packets, found.octets) == (
        "denied",
        "DENIED_INGRESS",
        True,
        1,
        60,
    )


def test_of_icmp_type_and_code_are_no_ports() -> None:
    found = Block.of("node1", 0, event(protocol=1, ports=(5, 8 << 8)), names()).record(0)
    assert (found.protocol, found.message, found.source.port, found.destination.port) == ("icmp", "8/0", 0, 0)


@pytest.mark.parametrize(
    ("kind", "state", "how"),
    [
        (EventKind.FLOW_END, FlowState.CLOSED, "closed"),
        (EventKind.FLOW_END, FlowState.RESET, "reset"),
        (EventKind.FLOW_END, FlowState.HALF_OPEN, "unanswered"),
        (EventKind.FLOW_END, FlowState.ASSURED, "idle"),
        (EventKind.FLOW_EVICTED, FlowState.OPEN, "evicted"),
        (EventKind.FLOW_LIVES, FlowState.OPEN, ""),
    ],
)
def test_how_a_flow_ended(kind: EventKind, state: FlowState, how: str) -> None:
    assert Block.of("node1", 0, event(kind, state=state), names()).record(0).how == how


@pytest.mark.parametrize(
    ("device", "hook", "path"),
    [
        ("podway-vxlan", Hook.FROM_WIRE, "vxlan"),
        ("podway-ipip", Hook.FROM_WIRE, "ipip"),
        ("eth0", Hook.FROM_WIRE, "routed"),
        ("podway-vxlan6", Hook.FROM_POD, "vxlan"),
        ("eth0", Hook.FROM_POD, "routed"),
        ("", Hook.FROM_POD, "stack"),
    ],
)
def test_path_is_by_the_device(device: str, hook: Hook, path: str) -> None:
    said = names()
    said.devices.append((0, 7, device))
    way = Way.WIRE if device else Way.STACK
    came, goes = (7, 0) if hook is Hook.FROM_WIRE else (0, 7 if device else 0)
    data = event(EventKind.FLOW_LIVES, source=OUTSIDE, hook=hook, way=way, ifindex=came, out=goes)
    assert Block.of("node1", 0, data, said).record(0).path == path


def test_names_hold_from_the_record_on_at_which_they_were_learned() -> None:
    """An address goes to another pod, a policy changes, the clock is set: former records keep what was."""
    said = names(EPOCH)
    said.addresses.append((2, WEB, Who("pod", "db", "shop", "node1")))
    said.rules += [
        (0, 77, Rule("NetworkPolicy/shop/a", revision="1")),
        (1, 77, Rule("NetworkPolicy/shop/a", revision="9")),
    ]
    said.clock.append((2, EPOCH + 3600 * SECOND))
    said.losses.append((1, 40))
    block = Block.of("node1", 0, event(rules=(0, 77)) * 3, said)
    found = [block.record(at) for at in range(3)]
    assert [one.destination.label for one in found] == ["shop/web", "shop/web", "shop/db"]
    assert [one.ingress and one.ingress.revision for one in found] == ["1", "9", "9"]
    assert [one.time for one in found] == [1_700_000_001.0, 1_700_000_001.0, 1_700_003_601.0]
    assert [one.lost for one in found] == [0, 40, 0]


addresses = st.sampled_from([*PODS, OUTSIDE, "::", "2001:db8::1", "255.255.255.255"])
numbers = st.integers(0, 2**63)
events = st.builds(
    event,
    st.sampled_from(EventKind),
    time=st.integers(0, 2**60),
    source=addresses,
    destination=addresses,
    protocol=st.integers(0, 255),
    ports=st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
    reason=st.sampled_from(Reason),
    hook=st.sampled_from(Hook),
    flags=st.sampled_from([FlowFlag(0), FlowFlag.REPLY, FlowFlag.INCOMING | FlowFlag.REPLY]),
    state=st.sampled_from(FlowState),
    counts=st.tuples(numbers, numbers, numbers, numbers),
    made=st.integers(0, 2**60),
    rules=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    way=st.sampled_from(Way),
    processor=st.integers(0, 65535),
    lost=st.integers(0, 2**32 - 1),
    rtt=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    retransmitted=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
)


@settings(max_examples=25)
@given(st.lists(events, max_size=5), st.integers(0, 2**40))
def test_records_of_a_sealed_block_are_those_of_the_events(several: list[bytes], offset: int) -> None:
    """But for what is less than a microsecond."""
    block = Block.of("node1", 9, b"".join(several), names(offset))
    again = Block.unseal(block.seal())
    assert (again.node, again.first, again.count) == ("node1", 9, len(several))
    for at in range(len(several)):
        one, other = block.record(at), again.record(at)
        assert abs(one.time - other.time) <= 2e-6 * max(1, one.time * 1e-9)
        assert abs(one.began - other.began) <= 2e-6 * max(1, one.began * 1e-9)
        shown = {"time": 0.0, "began": 0.0}
        assert msgspec.structs.replace(one, **shown) == msgspec.structs.replace(other, **shown)


def of_a_former_version(data: bytes, *later: str) -> bytes:
    """A sealed block without some columns; it has some that nobody here asks for, as one of a later version."""
    at = data.index(b"\n") + 1
    length = int.from_bytes(data[at : at + 4], "big")
    head = json.loads(zlib.decompress(data[at + 8 : at + 8 + length]))
    for column in head["columns"]:
        if column[0] in later:
            column[0] = f"something_else_than_{column[0]}"
    packed = zlib.compress(json.dumps(head).encode())
    sizes = len(packed).to_bytes(4, "big") + zlib.crc32(packed).to_bytes(4, "big")
    return data[:at] + sizes + packed + data[at + 8 + length :]


def test_a_block_of_a_former_version_has_nothing_in_fields_that_came_later() -> None:
    data = Block.of("node1", 0, event(out=7, way=Way.WIRE, hook=Hook.FROM_POD) * 3, names()).seal()
    block = Block.unseal(of_a_former_version(data, "out"))
    assert list(block.column("out")) == [0, 0, 0]
    assert block.record(2).destination.port == 80


def test_the_service_of_a_block_from_before_its_address_was_told_is_not_known() -> None:
    """It says only that one was called, and is no Service at `::`."""
    said = names()
    said.services.append((0, "::", FRONTENDS))
    data = Block.of("node2", 0, event(service=(VIP, 80), ports=(40000, 8080)), said).seal()
    found = Block.unseal(of_a_former_version(data, "service", "service_port")).record(0)
    assert found.service is None
    assert (found.destination.label, found.destination.port) == ("shop/web", 8080)


@settings(max_examples=25)
@given(st.data())
def test_damage_is_noticed(data: st.DataObject) -> None:
    whole = Block.of("node1", 0, event() * 3, names()).seal()
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    with pytest.raises(DamagedBlock):
        Block.unseal(damaged)
    with pytest.raises(DamagedBlock):
        Block.unseal(whole[:at])


def test_every_reason_has_words() -> None:
    for name in reasons.names():
        assert reasons.words_of(name) not in ("", name)
    assert reasons.name_of(200) == "REASON_200"
    assert reasons.words_of("REASON_200") == "REASON_200"


def test_addresses_of_both_families_are_written_as_people_write_them() -> None:
    six = "fd00::1"
    found = Block.of("node1", 0, event(source=six, destination="fd00::2"), names()).record(0)
    assert ip_address(found.source.address) == ip_address(six)
    assert found.source.label == six


def test_a_block_that_goes_on_after_a_reboot_spans_the_times_of_its_records() -> None:
    boots = Names(clock=[(0, 10**15), (2, 2 * 10**15), (2, 10**18)])  # the second boot's clock was set at once
    data = b"".join(event(time=1000 * second * SECOND) for second in (500, 501, 1, 2))
    block = Block.of("node1", 0, data, boots)
    times = [block.time(at) for at in range(block.count)]
    assert block.span == (min(times), max(times))
    assert Block.unseal(block.seal()).span == block.span


def test_a_drop_by_the_kernel_bears_the_name_that_its_reason_had_on_that_kernel() -> None:
    dropped = event(EventKind.PACKET_DROPPED, reason=Reason.DROPPED_BY_KERNEL, detail=58, ifindex=3)
    known = names(EPOCH)
    known.details.append((0, 58, "NEIGH_FAILED"))
    known.devices.append((0, 3, "eth0"))
    for block in (Block.of("node1", 0, dropped, known), Block.unseal(Block.of("node1", 0, dropped, known).seal())):
        found = block.record(0)
        assert (found.reason, found.verdict, found.device, found.path) == (
            "KERNEL_NEIGH_FAILED",
            "dropped",
            "eth0",
            "",
        )
    assert Block.of("node1", 0, dropped, names(EPOCH)).record(0).reason == "DROPPED_BY_KERNEL"


def test_the_page_lists_every_reason_of_the_kernel_that_is_told() -> None:
    page = (Path(__file__).parents[2] / "docs/flows.md").read_text()
    for name, words in reasons.KERNEL_DROPS.items():
        assert f"`{name}`" in page
        assert words in page
