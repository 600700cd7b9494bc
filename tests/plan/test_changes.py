"""Differences in words: as people write values, never as Python does."""

import re
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import msgspec
import pytest

from podway.api.lease import Attachment
from podway.errors import AddressUnavailable
from podway.ipam.addresses import AddressBook
from podway.plan import objects
from podway.plan.changes import Change, words_of
from podway.plan.objects import Route

PYTHON = re.compile(r"\w\(|None|True|False|frozenset|\[|'")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "none"),
        ("", "none"),
        ((), "none"),
        (True, "yes"),
        (1450, "1450"),
        ((ip_address("10.0.0.1"), None), "10.0.0.1, none"),
        (ip_interface("fd00::1/64"), "fd00::1/64"),
    ],
    ids=str,
)
def test_a_value(value: Any, words: str) -> None:
    assert words_of(value) == words


def test_whatever_may_stand_in_a_message_says_what_it_is() -> None:
    structs: list[type[msgspec.Struct]] = [
        each
        for each in vars(objects).values()
        if isinstance(each, type) and issubclass(each, msgspec.Struct) and hasattr(each, "key")
    ]
    assert len(structs) > 8
    structs += [Attachment, objects.Vxlan]
    silent = [each.__name__ for each in structs if "__str__" not in vars(each)]
    assert silent == []


def test_a_route_that_lost_its_source() -> None:
    route = Route(
        ip_network("10.244.1.0/24"), "unicast", "eth0", ip_address("172.30.0.2"), ip_address("172.30.0.1")
    )
    told = str(Change("route", route.key, msgspec.structs.replace(route, source=None), route))
    assert "source none, not 172.30.0.1" in told
    assert not PYTHON.search(told.replace("(source", ""))


def test_who_has_an_address_is_told_in_words() -> None:
    book: AddressBook[Attachment] = AddressBook()
    block, address = ip_network("10.244.0.0/24"), ip_address("10.244.0.7")
    book.set_blocks({block: "ipv4"}, {}, {})
    book.take(address, Attachment("c0ffee", "eth0"))
    with pytest.raises(AddressUnavailable) as raised:
        book.take(address, Attachment("beef", "eth0"))
    assert raised.value.message == "address 10.244.0.7 is leased to eth0 of container c0ffee"
