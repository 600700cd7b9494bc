"""FIELD=VALUE on an object."""

import pytest

from podway.api.assign import assign, differences, fields
from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.node import ASN, Node
from podway.api.meta import Metadata
from podway.errors import InvalidObject

POOL = IPPool(metadata=Metadata(name="default"), spec=IPPoolSpec(cidr="10.244.0.0/16", encapsulation="ipip"))
CONFIG = NetworkConfig(metadata=Metadata(name="default"))
NODE = Node(metadata=Metadata(name="n1", annotations={"other": "stays"}))


def test_fields_are_read_by_their_type() -> None:
    words = ["encapsulation=vxlan", "blockSize=26", "disabled=true", "excluded=10.244.1.1,10.244.2.0/28"]
    new = assign(POOL, words)
    assert isinstance(new, IPPool)
    assert (new.spec.encapsulation, new.spec.block_size, new.spec.disabled) == ("vxlan", 26, True)
    assert new.spec.excluded == ("10.244.1.1", "10.244.2.0/28")
    assert next(differences(POOL, new)) == "blockSize nothing → 26"
    assert list(differences(POOL, assign(POOL, ["encapsulation=ipip"]))) == []


def test_an_empty_value_takes_back_the_default() -> None:
    new = assign(POOL, ["encapsulation="])
    assert isinstance(new, IPPool)
    assert new.spec.encapsulation == "none"


def test_nested_fields_are_reached_by_dots() -> None:
    new = assign(CONFIG, ["vxlan.port=8472", "bgp.bfd=false"])
    assert isinstance(new, NetworkConfig)
    assert (new.spec.vxlan.port, new.spec.bgp.bfd, new.spec.vxlan.vni) == (8472, False, 4096)


def test_a_nodes_as_number_is_an_annotation() -> None:
    new = assign(NODE, ["asn=64601"])
    assert new.metadata.annotations == {"other": "stays", ASN: "64601"}
    assert list(differences(NODE, new)) == ["asn nothing → 64601"]
    assert assign(new, ["asn="]).metadata.annotations == {"other": "stays"}


def test_every_label_is_set_by_its_key_and_an_empty_one_goes() -> None:
    new = assign(NODE, ["labels.app.example.org/tier=front"])
    assert new.metadata.labels["app.example.org/tier"] == "front"
    assert list(differences(NODE, new)) == ["labels.app.example.org/tier nothing → front"]
    assert "app.example.org/tier" not in assign(new, ["labels.app.example.org/tier="]).metadata.labels


@pytest.mark.parametrize(
    ("obj", "word", "told"),
    [
        (POOL, "encapsulation=vxlam", "did you mean `vxlan`"),
        (POOL, "when=sometimes", "always, cross-subnet"),
        (POOL, "encapsulaton=vxlan", "did you mean `encapsulation`"),
        (POOL, "blockSize=big", "not a whole number"),
        (POOL, "encapsulation", "has no value"),
        (POOL, "nodeSelector=x", "cannot be set so"),
        (CONFIG, "vxlan=1", "vxlan.vni"),
        (NODE, "color=red", "asn"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(obj: IPPool, word: str, told: str) -> None:
    with pytest.raises(InvalidObject) as refused:
        assign(obj, [word])
    assert told in str(refused.value)


def test_completion_knows_fields_and_values() -> None:
    assert fields(IPPool)["encapsulation"] == ("none", "vxlan", "ipip")
    assert "vxlan.port" in fields(NetworkConfig)
