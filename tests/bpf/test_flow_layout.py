"""The records of Python are the structs of C: names, offsets, sizes, numbers, read from the object's BTF."""

import enum
import struct
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.kernel.bpf import flow_layout as layout
from podway.kernel.bpf import flow_programs
from podway.policy.maps import Rule, Tier, Verdict

KIND_STRUCT, KIND_ENUM = 4, 6
EXTRA = {1: 4, 3: 12, 4: 12, 5: 12, 6: 8, 13: 8, 14: 4, 15: 12, 17: 4, 19: 12}
"""How long what follows a type is, of each kind (Documentation/bpf/btf.rst); of some, for each element."""
FOR_EACH = {4, 5, 6, 13, 15, 19}


class Struct(NamedTuple):
    size: int
    offsets: dict[str, int]


def section(elf: bytes, name: str) -> bytes:
    """A section of a 64-bit little-endian ELF file."""
    (start,) = struct.unpack_from("<Q", elf, 40)
    size, count, strings = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, start + at * size) for at in range(count)]
    names = headers[strings][4]
    for header in headers:
        at = names + header[0]
        if elf[at : elf.index(b"\0", at)].decode() == name:
            return elf[header[4] : header[4] + header[5]]
    raise AssertionError(f"no section {name}")


def described() -> tuple[dict[str, Struct], dict[str, dict[str, int]]]:
    """All structs and enums that the object's BTF describes, by name."""
    data = section(flow_programs.compiled().data, ".BTF")
    _, _, _, head, type_at, type_length, string_at, _ = struct.unpack_from("<HBBIIIII", data)

    def name(at: int) -> str:
        start = head + string_at + at
        return data[start : data.index(b"\0", start)].decode()

    structs, enums = {}, {}
    at, end = head + type_at, head + type_at + type_length
    while at < end:
        name_at, info, size = struct.unpack_from("<III", data, at)
        kind, count = info >> 24 & 31, info & 0xFFFF
        at += 12
        if kind == KIND_STRUCT:
            members = [struct.unpack_from("<III", data, at + 12 * index) for index in range(count)]
            structs[name(name_at)] = Struct(size, {name(m[0]): (m[2] & 0xFFFFFF) // 8 for m in members})
        elif kind == KIND_ENUM:
            values = [struct.unpack_from("<Ii", data, at + 8 * index) for index in range(count)]
            enums[name(name_at)] = {name(value[0]): value[1] for value in values}
        at += EXTRA.get(kind, 0) * (count if kind in FOR_EACH else 1)
    return structs, enums


STRUCTS, C_ENUMS = described()


@pytest.mark.parametrize("one", layout.LAYOUTS, ids=lambda one: one.name)
def test_layout_is_that_of_the_object(one: Any) -> None:
    found = STRUCTS[one.name]
    assert (one.size, one.offsets) == (found.size, found.offsets)


@pytest.mark.parametrize(
    ("here", "there", "prefix"),
    [
        (layout.Reason, "reason", ""),
        (layout.FlowState, "flow_state", ""),
        (layout.Way, "way", "WAY_"),
        (layout.Hook, "hook", ""),
        (layout.EventKind, "event_kind", ""),
        (Verdict, "verdict", ""),
        (Tier, "tier", "TIER_"),
        (layout.Counter, "counter", ""),
    ],
)
def test_numbers_are_those_of_the_object(here: type[enum.IntEnum], there: str, prefix: str) -> None:
    found = {name: value for name, value in C_ENUMS[there].items() if not name.startswith("N_")}
    assert {prefix + one.name: one.value for one in here} == found


addresses = st.ip_addresses().filter(lambda address: address.version == 4 or not address.ipv4_mapped)
numbers = st.integers(0, 0xFFFF)


@given(addresses)
def test_address_returns(address: Any) -> None:
    assert layout.unpack_address(layout.pack_address(address)) == address


@given(addresses, st.integers(0, 128))
def test_prefix_returns(address: Any, length: int) -> None:
    network = ip_network((address, min(length, address.max_prefixlen)), strict=False)
    assert layout.unpack_prefix(layout.pack_prefix(network)) == network


@given(st.builds(layout.FlowKey, addresses, addresses, st.integers(0, 255), numbers, numbers))
def test_flow_key_returns(key: layout.FlowKey) -> None:
    assert layout.FlowKey.unpack(key.pack()) == key
    assert key.reversed().reversed() == key


def test_all_ipv6_does_not_cover_ipv4() -> None:
    everything, one = layout.pack_prefix(ip_network("::/0")), layout.pack_prefix(ip_network("192.0.2.1/32"))
    assert everything[4:8] != one[4:8]
    assert layout.pack_address(ip_address("192.0.2.1"))[12:] == bytes([192, 0, 2, 1])


@given(
    st.sampled_from([v for v in Verdict if v]),
    st.integers(0, layout.MOST_PRECEDENCE),
    st.integers(0, 2**32 - 1),
)
def test_rule_returns(verdict: Any, precedence: int, number: int) -> None:
    rule = Rule(verdict, precedence, number)
    assert layout.unpack_rule(layout.pack_rule(rule)) == rule
    assert layout.unpack_rules(layout.pack_rules({Tier.ADMIN: rule})) == {Tier.ADMIN: rule}
