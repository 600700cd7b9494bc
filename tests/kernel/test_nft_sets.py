"""Elements of sets by nfnetlink: what we write nft lists, what nft writes we read."""

import errno
import json
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from podway.errors import KernelError
from podway.kernel.netlink import Connection
from podway.kernel.netlink.constants import NETLINK_NETFILTER
from podway.kernel.nft.sets import EVERYTHING, NftSets, decode, encode
from podway.plan.objects import NftElement, NftField, nft_number
from tests.namespaces import TestNamespace

FIELDS: dict[str, tuple[NftField, ...]] = {
    "nodes": ("ipv4_addr",),
    "nodes6": ("ipv6_addr",),
    "pods": (6, 4),
    "senders": (4, 16),
    "blocks": (2, 4),
}
TABLE = """
table ip podway {
    set nodes { type ipv4_addr; }
    set nodes6 { type ipv6_addr; }
    set pods { typeof @ll,48,48 . @nh,96,32; }
    set senders { typeof @nh,96,32 . @th,304,128; flags interval; }
    set blocks { typeof @th,224,16 . @th,336,32; flags interval; }
}
"""


def ranges(length: int) -> st.SearchStrategy[str]:
    numbers = st.binary(min_size=length, max_size=length).map(nft_number)
    return st.tuples(numbers, numbers).map(lambda pair: "-".join(sorted(set(pair))))


def fields(kinds: tuple[NftField, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    known = {"ipv4_addr": st.ip_addresses(v=4).map(str), "ipv6_addr": st.ip_addresses(v=6).map(str)}
    return st.tuples(*(ranges(kind) if isinstance(kind, int) else known[kind] for kind in kinds))


@example(("nodes6", ("::ffff:0:0",)))
@given(st.sampled_from(sorted(FIELDS)).flatmap(lambda name: st.tuples(st.just(name), fields(FIELDS[name]))))
def test_a_key_says_what_an_element_says(case: tuple[str, tuple[str, ...]]) -> None:
    name, said = case
    key = encode(said)
    assert decode(key, FIELDS[name]) == said
    assert len(key.start) == len(key.end)
    assert len(key.start) % 4 == 0


@pytest.mark.parametrize("field", ["", "10.0.0", "fd00::/64", "0x1", "eth0"])
def test_what_is_no_field_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=r"neither an address|non-hexadecimal|fromhex"):
        encode((field,))


@pytest.fixture
def node(new_netns: Callable[[], TestNamespace]) -> TestNamespace:
    made = new_netns()
    made.sh(f"nft -f - <<'END'\n{TABLE}\nEND")
    return made


@pytest.fixture
def sets(node: TestNamespace) -> Iterator[NftSets]:
    with Connection(node.fd, protocol=NETLINK_NETFILTER) as connection:
        yield NftSets(connection)


def element(name: str, *said: str) -> NftElement:
    return NftElement("ip", "podway", name, said)


def read(sets: NftSets, name: str) -> set[NftElement]:
    return set(sets.read(("ip", "podway", name), FIELDS[name]))


def listed(node: TestNamespace, name: str) -> Any:
    entries = json.loads(node.sh(f"nft -j list set ip podway {name}"))["nftables"]
    return next(entry["set"] for entry in entries if "set" in entry).get("elem", [])


ELEMENTS = {
    "nodes": (element("nodes", "192.0.2.1"), ["192.0.2.1"]),
    "nodes6": (element("nodes6", "2001:db8::1"), ["2001:db8::1"]),
    "pods": (element("pods", "0x02000a0b0c0d", "0x0af40107"), [{"concat": [0x02000A0B0C0D, 0x0AF40107]}]),
    "senders": (
        element("senders", "0xc0000202", f"{nft_number(IPv6Address('fd00::').packed)}-0xfd00{'f' * 28}"),
        [{"concat": [0xC0000202, {"range": [hex(0xFD << 120), f"0xfd00{'f' * 28}"]}]}],
    ),
    "blocks": (
        element("blocks", "0x0800", f"{nft_number(IPv4Address('10.244.1.0').packed)}-0x0af401ff"),
        [{"concat": [0x0800, {"range": [0x0AF40100, 0x0AF401FF]}]}],
    ),
}


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_nft_lists_what_was_added_and_no_more_what_was_deleted(
    node: TestNamespace, sets: NftSets, name: str
) -> None:
    added, told = ELEMENTS[name]
    sets.change("add", [added])
    assert listed(node, name) == told
    assert read(sets, name) == {added}
    sets.change("delete", [added])
    assert listed(node, name) == []
    assert read(sets, name) == set()


def test_what_nft_added_is_read(node: TestNamespace, sets: NftSets) -> None:
    node.sh("nft add element ip podway nodes '{ 192.0.2.7, 192.0.2.8 }'")
    node.sh("nft add element ip podway blocks '{ 0x86dd . 0x01000000-0x01ffffff, 0x800 . 7 }'")
    assert read(sets, "nodes") == {element("nodes", "192.0.2.7"), element("nodes", "192.0.2.8")}
    assert read(sets, "blocks") == {
        element("blocks", "0x86dd", "0x01000000-0x01ffffff"),
        element("blocks", "0x0800", "0x00000007"),
    }


def test_the_element_that_matches_everything_is_read_and_deleted(node: TestNamespace, sets: NftSets) -> None:
    node.sh("nft add element ip podway nodes '{ * }'")
    everything = element("nodes", *EVERYTHING)
    assert read(sets, "nodes") == {everything}
    sets.change("delete", [everything])
    assert listed(node, "nodes") == []


def test_many_elements_of_several_sets_are_one_transaction(node: TestNamespace, sets: NftSets) -> None:
    many = [element("nodes", str(IPv4Address(number))) for number in range(1, 1500)]
    more = [element("blocks", "0x0800", nft_number(number.to_bytes(4))) for number in range(700)]
    sets.change("add", [*many, *more])
    assert read(sets, "nodes") == set(many)
    assert read(sets, "blocks") == set(more)
    with pytest.raises(KernelError) as caught:
        sets.change("delete", [*many, *more, element("pods", "0x000000000001", "0x00000001")])
    assert caught.value.errno == errno.ENOENT
    assert read(sets, "nodes") == set(many)
    assert read(sets, "blocks") == set(more)
    with pytest.raises(KernelError, match="nft set ip podway nobody"):
        sets.change("add", [element("nodes", "192.0.2.9"), element("nobody", "192.0.2.9")])
    assert element("nodes", "192.0.2.9") not in read(sets, "nodes")
    sets.change("add", many)  # what is there already is no failure
    sets.change("delete", [*many, *more])
    assert listed(node, "nodes") == listed(node, "blocks") == []


def test_a_set_of_other_keys_is_told(node: TestNamespace, sets: NftSets) -> None:
    node.sh("nft 'add set ip podway ports { type inet_service; }; add element ip podway ports { 80 }'")
    with pytest.raises(KernelError, match="nft set ip podway ports") as caught:
        list(sets.read(("ip", "podway", "ports"), FIELDS["nodes"]))
    assert caught.value.errno == errno.EINVAL


def test_a_set_that_is_not_there_is_told(sets: NftSets) -> None:
    with pytest.raises(KernelError) as caught:
        list(sets.read(("ip6", "podway", "nodes"), FIELDS["nodes"]))
    assert caught.value.errno == errno.ENOENT
