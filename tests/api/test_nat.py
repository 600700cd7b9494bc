"""What may be written about translation: networks, chosen addresses, Services' ranges."""

import msgspec
import pytest

from podway.api.assign import assign
from podway.api.kinds.bgp_peer import BGPPeer, BGPPeerSpec
from podway.api.kinds.network_config import NatSettings, NetworkConfig
from podway.api.kinds.node import NAT_ADDRESSES, Node
from podway.api.meta import Metadata
from podway.api.resource import Resource
from podway.api.rules import check_change
from podway.api.validate import problems, validate
from podway.errors import InvalidObject
from tests import builders
from tests.builders import pool


def excluding(*networks: str) -> NetworkConfig:
    return builders.config(nat=NatSettings(excluded=networks))


def services(*networks: str) -> NetworkConfig:
    return builders.config(service_cidrs=networks)


def node(chosen: str, name: str = "n1", address: str = "192.168.7.1/24") -> Node:
    return builders.node(name, address, notes={NAT_ADDRESSES: chosen})


@pytest.mark.parametrize(
    "obj",
    [
        pool("p", "10.244.0.0/16", nat_outgoing=False),
        excluding("10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32", "11.0.0.0/8"),
        services("10.96.0.0/12", "fd00:96::/112"),
        node(""),
        node("203.0.113.7"),
        node("203.0.113.7, 2001:db8::7"),
    ],
)
def test_what_can_be_right(obj: Resource) -> None:
    validate(obj)


FIELD = f"metadata.annotations[{NAT_ADDRESSES}]"


@pytest.mark.parametrize(
    ("obj", "field", "words", "hint"),
    [
        (excluding("10.0.0.0"), "spec.nat.excluded[0]", "has no prefix length", "192.0.2.0/24"),
        (excluding("10.0.0.1/8"), "spec.nat.excluded[0]", "did you mean 10.0.0.0/8", ""),
        (excluding("fd00::/8", "::/0"), "spec.nat.excluded[1]", "is everything", "natOutgoing: false"),
        (excluding("10.0.0.0/8", "10.1.0.0/16"), "spec.nat.excluded[1]", "overlaps 10.0.0.0/8", "excluded[1]"),
        (excluding("10.1.0.0/16", "10.0.0.0/8"), "spec.nat.excluded[1]", "overlaps 10.1.0.0/16", "excluded[0]"),
        (excluding("10.0.0.0/8", "10.0.0.0/8"), "spec.nat.excluded[1]", "of spec.nat.excluded[0]", "excluded[1]"),
        (services("10.96.0.0/12", "10.97.0.0/16"), "spec.serviceCidrs[1]", "overlaps", "serviceCidrs[1]"),
        (services("ten"), "spec.serviceCidrs[0]", "no prefix length", "10.96.0.0/12"),
        (node("203.0.113.7/24"), FIELD, "not an IPv4 or IPv6 address", "without a prefix length"),
        (node("outside"), FIELD, "'outside' is not", "one address"),
        (node("203.0.113.7,203.0.113.8"), FIELD, "more than one address of IPv4", "keep the one"),
        (node("169.254.7.7"), FIELD, "link-local", "others can answer"),
        (node("fe80::7"), FIELD, "link-local", "others can answer"),
        (node("224.0.0.7"), FIELD, "multicast", "others can answer"),
        (node("127.0.0.1"), FIELD, "loopback", "others can answer"),
    ],
)
def test_what_cannot_be_right_is_told_with_its_field(obj: Resource, field: str, words: str, hint: str) -> None:
    (found,) = [one for one in problems(obj) if f"{field}:" in one.message and words in one.message]
    assert hint in found.hint


POOL = pool("p", "10.244.0.0/16")
PEER = BGPPeer(metadata=Metadata(name="tor"), spec=BGPPeerSpec(address="192.168.7.254", asn=65001))
OTHER = node("203.0.113.8", "n2", "192.168.7.2/24")
CONFIG = services("10.96.0.0/12")
CLUSTER = (POOL, PEER, OTHER, CONFIG)


def test_a_nodes_own_address_may_be_the_chosen_one() -> None:
    check_change(node("192.168.7.1"), CLUSTER)
    check_change(node("203.0.113.7"), CLUSTER)


@pytest.mark.parametrize(
    ("new", "others", "field", "words"),
    [
        (node("10.244.3.3"), CLUSTER, FIELD, "10.244.3.3 is an address for pods, of IPPool/p"),
        (node("10.96.0.10"), CLUSTER, FIELD, "is an address for Services, of NetworkConfig/default"),
        (node("192.168.7.254"), CLUSTER, FIELD, "is the address of BGPPeer/tor"),
        (node("192.168.7.2"), CLUSTER, FIELD, "is the address of Node/n2"),
        (node("203.0.113.8"), CLUSTER, FIELD, "is where pods' addresses are translated to by Node/n2"),
        (pool("q", "203.0.113.0/24"), CLUSTER, "spec.cidr", "203.0.113.8, to which Node/n2 translates"),
        (
            builders.node("n3", "203.0.113.8/24"),
            CLUSTER,
            "status.addresses",
            "203.0.113.8, to which Node/n2 translates pods' addresses, is the address of Node/n3",
        ),
        (
            BGPPeer(metadata=Metadata(name="q"), spec=BGPPeerSpec(address="203.0.113.8", asn=65001)),
            CLUSTER,
            "spec.address",
            "is the address of BGPPeer/q",
        ),
        (services("10.240.0.0/12"), (POOL,), "spec.serviceCidrs[0]", "overlaps 10.244.0.0/16 of IPPool/p"),
        (pool("q", "10.97.0.0/16"), (CONFIG,), "spec.cidr", "spec.serviceCidrs[0] of NetworkConfig/default"),
    ],
)
def test_what_does_not_fit_the_rest_is_refused(
    new: Resource, others: tuple[Resource, ...], field: str, words: str
) -> None:
    with pytest.raises(InvalidObject) as caught:
        check_change(new, others)
    assert field in caught.value.message
    assert words in caught.value.message
    assert caught.value.hint


def test_it_can_be_set_by_name() -> None:
    assert assign(node(""), ["nat-addresses=203.0.113.7"]) == node("203.0.113.7")
    changed = assign(POOL, ["natOutgoing=false"])
    assert changed == pool("p", "10.244.0.0/16", nat_outgoing=False)
    assert b'"natOutgoing":false' in msgspec.json.encode(changed)
    assert assign(builders.config(), ["nat.excluded=10.0.0.0/8"]) == excluding("10.0.0.0/8")
