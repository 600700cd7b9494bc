"""At which of its addresses a node serves node ports."""

from ipaddress import ip_address, ip_interface

import pytest

from podway.api.validate import validate
from podway.cluster.view import ClusterView
from podway.errors import InvalidObject
from podway.plan.host_facts import HostFacts
from podway.plan.services import node_port_addresses
from podway.plan.uplink import Uplink
from tests import builders

UPLINK = Uplink("eth0", 1500, (ip_interface("172.30.0.1/24"), ip_interface("fd70::1/64")))
HOST = HostFacts(addresses=tuple(map(ip_address, ("127.0.0.1", "172.30.0.1", "198.18.0.1", "fd70::1", "fe80::1"))))


def served(
    *texts: str, services: str = "all", ranges: tuple[str, ...] = ("10.96.0.0/16", "fd00:96::/112")
) -> list[str]:
    config = builders.config(services=services, service_cidrs=ranges, node_port_addresses=texts)
    return list(map(str, node_port_addresses(ClusterView.of([config]), UPLINK, HOST)))


def test_the_uplinks_unless_networks_are_named() -> None:
    assert served() == served("primary") == ["172.30.0.1", "fd70::1"]
    assert served("198.18.0.0/16") == ["198.18.0.1"]
    assert served("0.0.0.0/0", "::/0") == ["172.30.0.1", "198.18.0.1", "fd70::1"]
    assert served("0.0.0.0/0", "::/0", ranges=("10.96.0.0/16",)) == ["172.30.0.1", "198.18.0.1"]
    assert served("192.0.2.0/24") == served(services="pods") == []


@pytest.mark.parametrize(
    ("texts", "words", "hint"),
    [
        (("primary", "10.0.0.0/8"), "nodePortAddresses[0]: primary stands by itself", "leave out the others"),
        (("secondary",), "nodePortAddresses[0]: ", "or primary"),
        (("10.0.0.0/8", "10.0.0.1/8"), "nodePortAddresses[1]: ", "write networks such as"),
    ],
)
def test_what_cannot_be_right_is_told(texts: tuple[str, ...], words: str, hint: str) -> None:
    with pytest.raises(InvalidObject) as told:
        validate(builders.config(node_port_addresses=texts))
    assert words in told.value.message
    assert hint in told.value.hint
