"""Whom a typed name means."""

import pytest

from podway.api.kinds.address_block import AddressBlock, AddressBlockSpec
from podway.api.kinds.node import Node
from podway.api.meta import Metadata
from podway.errors import InvalidInput
from podway.trace.names import resolve
from tests.builders import node_status, pod


def node(name: str, *addresses: str) -> Node:
    return Node(metadata=Metadata(name=name), status=node_status(*addresses))


CLUSTER = (
    node("node1", "172.30.0.1", "fd30::1"),
    node("twice", "172.30.0.2"),
    node("unheard"),
    AddressBlock(metadata=Metadata(name="b"), spec=AddressBlockSpec(cidr="10.244.0.0/24", pool="p", node="node1")),
    pod("web", "node1", "10.244.0.2", "fd00::2"),
    pod("db", "node1", "10.244.0.3"),
    pod("db", "node1", "10.244.0.4", namespace="shop"),
    pod("cache", "node1", "10.244.0.7", namespace="blog"),
    pod("cache", "node1", "10.244.0.8", namespace="shop"),
    pod("mail", "node1", "10.244.0.9", namespace="shop"),
    pod("twice", "node1", "10.244.0.5"),
    pod("young", "", phase="Pending"),
    pod("done", "node1", "10.244.0.6", phase="Succeeded"),
    pod("hostly", "node1", "172.30.0.1", host_network=True),
)


@pytest.mark.parametrize(
    ("text", "label", "place"),
    [
        ("web", "pod default/web", ("node1", "default/web")),
        ("default/web", "pod default/web", ("node1", "default/web")),
        ("shop/db", "pod shop/db", ("node1", "shop/db")),
        ("db", "pod default/db", ("node1", "default/db")),
        ("pod/db", "pod default/db", ("node1", "default/db")),
        ("mail", "pod shop/mail", ("node1", "shop/mail")),
        ("node1", "node node1", ("node1", "")),
        ("10.244.0.2", "pod default/web", ("node1", "default/web")),
        ("pod/web", "pod default/web", ("node1", "default/web")),
        ("pod/shop/db", "pod shop/db", ("node1", "shop/db")),
        ("node/node1", "node node1", ("node1", "")),
        ("fd00:0::2", "pod default/web", ("node1", "default/web")),
        ("172.30.0.1", "node node1", ("node1", "")),
        ("10.244.0.77", "10.244.0.77 (in node1's block)", ("node1", "")),
        ("10.244.0.6", "10.244.0.6 (in node1's block)", ("node1", "")),
        ("192.0.2.1", "192.0.2.1", ("", "")),
        ("hostly", "pod default/hostly (its node's network)", ("node1", "")),
    ],
)
def test_names_and_addresses(text: str, label: str, place: tuple[str, str]) -> None:
    found = resolve(text, CLUSTER)
    assert (found.label, (found.node, found.pod)) == (label, place)
    assert found.ours == (bool(found.node) and "block" not in label)


def test_an_address_of_one_family_has_one_family() -> None:
    assert [str(address) for address in resolve("fd00::2", CLUSTER).addresses] == ["fd00::2"]
    assert len(resolve("web", CLUSTER).addresses) == 2


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ("wep", "no pod or node is called 'wep'", "did you mean web"),
        ("shop/dv", "no pod or node is called 'shop/dv'", "did you mean shop/db"),
        ("nodel", "no pod or node is called 'nodel'", "did you mean node1"),
        ("xyzzy-1", "no pod or node is called 'xyzzy-1'", "see `podway get pods -A`"),
        ("10.244.0", "no pod or node is called '10.244.0'", "see"),
        ("cache", "'cache' can mean pod blog/cache or pod shop/cache", "write blog/cache or shop/cache"),
        ("twice", "'twice' can mean pod default/twice or node twice", "default/twice or 172.30.0.2 for the node"),
        ("young", "pod default/young has no address yet (Pending)", "see `podway get pods`"),
        ("done", "pod default/done has ended (Succeeded)", ""),
        ("unheard", "node unheard has told no address yet", "agent"),
    ],
)
def test_names_that_mean_nobody_or_several(text: str, problem: str, hint: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        resolve(text, CLUSTER)
    assert problem in caught.value.message
    assert hint in caught.value.hint
