"""Outside peers, their secrets and the topology: what is refused, by which field, and what is not."""

from typing import Any

import msgspec
import pytest

from podway.api.decode import decode
from podway.api.encode import to_builtins
from podway.api.kinds.bgp_peer import BGPPeer, BGPPeerSpec, PrefixRule, password_problem
from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.network_config import BgpSettings, NetworkConfig, ReflectorSettings
from podway.api.kinds.node import ASN, INTERFACE_ADDRESSES, Node
from podway.api.kinds.secret import Secret
from podway.api.meta import REDACTED, LabelSelector, Metadata
from podway.api.resource import Resource
from podway.api.rules import check_change, check_deletion
from podway.api.validate import problems, validate
from podway.cluster.view import ClusterView
from podway.errors import InvalidObject
from podway.plan.outside import left_out, outside_peers
from tests import builders

SECRET = Secret(metadata=Metadata(name="tor", namespace="default"), data={"password": "czNjcmV0"})
POOL = IPPool(metadata=Metadata(name="default"), spec=IPPoolSpec(cidr="10.244.0.0/16"))


def peer(name: str = "tor", **spec: Any) -> BGPPeer:
    fields = {"address": "192.0.2.254", "asn": 64601, **spec}
    (manifest,) = decode(
        msgspec.json.encode(
            {"apiVersion": "podway.io/v1", "kind": "BGPPeer", "metadata": {"name": name}, "spec": fields}
        ).decode(),
        source="test",
    )
    assert isinstance(manifest.resource, BGPPeer)
    return manifest.resource


def node(number: int, *, asn: str = "", **labels: str) -> Node:
    notes = {ASN: asn} if asn else {}
    return builders.node(f"node-{number}", f"192.0.2.{number}/24", labels=labels, notes=notes)


def config(**bgp: Any) -> NetworkConfig:
    return builders.config(bgp=BgpSettings(**bgp))


def rules(*texts: str) -> list[dict[str, Any]]:
    """`accept 10.0.0.0/8 9-24` and the like."""
    found: list[dict[str, Any]] = []
    for text in texts:
        action, cidr, *lengths = text.split()
        low, _, high = lengths[0].partition("-") if lengths else ("", "", "")
        found.append(
            {"action": action, "cidr": cidr}
            | ({"minLength": int(low)} if low else {})
            | ({"maxLength": int(high)} if high else {})
        )
    return found


NODES = [node(1, rack="a"), node(2, rack="b")]


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"asn": 0}, "spec.asn", "RFC 7607"),
        ({"asn": 1 << 32}, "spec.asn", "out of range"),
        ({"port": 0}, "spec.port", "out of range"),
        ({"address": "tor.example"}, "spec.address", "not an IPv4 or IPv6 address"),
        ({"address": "fe80::1"}, "spec.address", "link-local"),
        ({"multihop": 256}, "spec.multihop", "between 0 and 255"),
        ({"multihop": 255, "ttlSecurity": True}, "spec.multihop", "keep nobody out"),
        ({"node": "node-1", "nodeSelector": {}}, "spec.nodeSelector", "beside spec.node"),
        ({"sourceAddress": "192.0.2.1"}, "spec.sourceAddress", "more than one node"),
        ({"sourceAddress": "2001:db8::1", "node": "n"}, "spec.sourceAddress", "family"),
        ({"password": {}}, "spec.password", "either a file or a secret"),
        ({"password": {"file": "tor.password"}}, "spec.password.file", "absolute"),
        ({"communities": ["65000:65536"]}, "spec.communities[0]", "not a community"),
        ({"communities": ["1:2:3", "1:2:3:4"]}, "spec.communities[1]", "not a community"),
        ({"communities": ["no-export"]}, "spec.communities[0]", "not a community"),
        ({"import": rules("accept 10.0.0.1/8")}, "spec.import[0].cidr", "did you mean 10.0.0.0/8"),
        ({"import": rules("accept ::/0")}, "spec.import[0].cidr", "cannot match: ::/0 is not IPv4"),
        ({"import": rules("accept 10.0.0.0/8 7-")}, "spec.import[0].minLength", "no part"),
        ({"export": rules("reject 10.0.0.0/8 -33")}, "spec.export[0].maxLength", "no part"),
        ({"export": rules("reject 10.0.0.0/8 24-16")}, "spec.export[0].minLength", "above maxLength"),
        ({"import": rules("accept 10.0.0.0/8 -32", "reject 10.1.0.0/16 20-24")}, "spec.import[1]", "[0] decides"),
    ],
)  # fmt: skip
def test_what_a_peer_cannot_be(spec: dict[str, Any], field: str, words: str) -> None:
    (problem,) = problems(peer(**spec))
    assert (problem.subject, problem.field) == ("BGPPeer/tor", field)
    assert words in str(problem)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"asn": 4200000000, "port": 1179, "node": "node-1", "sourceAddress": "192.0.2.1"},
        {"multihop": 255},
        {"multihop": 2, "ttlSecurity": True, "bfd": True, "communities": ["65000:100", "4200000000:1:2"]},
        {"address": "2001:db8::fe", "import": rules("accept ::/0", "reject 2001:db8::/32 33-48")},
        {"import": rules("reject 10.1.0.0/16 20-24", "accept 10.0.0.0/8 -32", "accept 0.0.0.0/0 -24")},
        {"password": {"secret": {"namespace": "default", "name": "tor", "key": "password"}}},
    ],
)
def test_what_a_peer_may_be(spec: dict[str, Any]) -> None:
    right = peer(**spec)
    validate(right)
    check_change(right, [*NODES, SECRET])


@pytest.mark.parametrize(
    ("rule", "lengths"),
    [
        ("10.0.0.0/8", (8, 8)),
        ("10.0.0.0/8 9-", (9, 32)),
        ("10.0.0.0/8 -24", (8, 24)),
        ("10.0.0.0/8 9-24", (9, 24)),
    ],
)
def test_which_lengths_a_rule_names(rule: str, lengths: tuple[int, int]) -> None:
    spec = msgspec.convert(rules(f"accept {rule}")[0], PrefixRule)
    assert spec.lengths == lengths


def secret_of(name: str = "tor", key: str = "password") -> dict[str, Any]:
    return {"password": {"secret": {"namespace": "default", "name": name, "key": key}}}


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"address": "192.0.2.2"}, "spec.address", "192.0.2.2 is Node/node-2 itself"),
        ({"node": "node-9"}, "spec.node", "Node/node-9 is not in the cluster"),
        ({"address": "192.0.2.253"}, "spec.address", "the address of BGPPeer/other too, on Node/node-1"),
        (secret_of("nobody"), "spec.password.secret", "Secret/default/nobody does not exist"),
        (secret_of(key="pass"), "spec.password.secret.key", "is not there"),
        ({"export": rules("reject 10.245.0.0/16 -32")}, "spec.export[0]", "all that 192.0.2.254 is told is"),
        ({"export": rules("reject 10.244.0.0/16")}, "spec.export[0]", "cannot match"),
        ({"advertise": "aggregates", "export": rules("reject 10.244.1.0/24")}, "spec.export[0]", "told is /16 of"),
        ({"import": rules("accept 10.244.1.7/32")}, "spec.import[0]", "only blocks (/24) are ever taken"),
        ({"import": rules("accept 192.0.2.0/24 -32")}, "spec.import[0]", "is a network of the nodes"),
    ],
)  # fmt: skip
def test_what_a_peer_cannot_be_in_a_cluster(spec: dict[str, Any], field: str, words: str) -> None:
    other = peer("other", address="192.0.2.253", node="node-1")
    with pytest.raises(InvalidObject) as caught:
        check_change(peer(**spec), [*NODES, POOL, SECRET, other])
    assert (caught.value.subject, caught.value.field) == ("BGPPeer/tor", field)
    assert words in str(caught.value)
    assert caught.value.hint


def test_one_address_may_be_a_peer_of_nodes_apart() -> None:
    there: list[Resource] = [*NODES, peer("other", nodeSelector={"matchLabels": {"rack": "a"}})]
    check_change(peer(nodeSelector={"matchLabels": {"rack": "b"}}), there)
    check_change(peer(address="192.0.2.253"), there)
    with pytest.raises(InvalidObject, match="on Node/node-1"):
        check_change(peer(), there)
    with pytest.raises(InvalidObject, match="on every node"):
        check_change(peer(), [peer("other")])


def test_rules_that_match_something_are_let_pass() -> None:
    lists: dict[str, Any] = {
        "import": rules("accept 0.0.0.0/0", "reject 10.244.7.0/24", "accept 10.0.0.0/8 -24"),
        "export": rules("reject 10.244.7.0/24", "accept 10.244.0.0/17 24-24", "reject 10.0.0.0/8 -24"),
    }
    right = peer(**lists)
    validate(right)
    check_change(right, [*NODES, POOL])


def test_a_node_is_not_at_a_peers_address() -> None:
    with pytest.raises(InvalidObject, match=r"192\.0\.2\.254 is BGPPeer/tor itself"):
        check_change(node(254), [*NODES, peer()])


def test_reflectors_need_nodes_with_their_label_and_one_as() -> None:
    labelled = ReflectorSettings(node_selector=LabelSelector(match_labels={"role": "rr"}))
    with pytest.raises(InvalidObject, match=r"nodeSelector: no node has the labels"):
        check_change(config(reflectors=labelled), NODES)
    check_change(config(reflectors=labelled), [])
    reflector = node(3, role="rr")
    there: list[Resource] = [*NODES, config(reflectors=labelled)]
    check_change(config(reflectors=labelled), [*NODES, reflector])
    with pytest.raises(InvalidObject, match=r"Node/node-3: metadata\.labels: no node has the labels"):
        check_change(node(3), there, old=reflector)
    check_change(node(3), there)  # its agent registers it, and does not know its labels
    with pytest.raises(InvalidObject, match="no node has the labels"):
        check_deletion(reflector, there)
    odd = node(2, asn="65001")
    with pytest.raises(InvalidObject, match=r"several: node-1 has 64512, node-2 has 65001"):
        check_change(config(topology="reflectors"), [node(1), odd])
    with pytest.raises(InvalidObject, match=r"Node/node-2: metadata\.annotations\[podway\.io/asn\]"):
        check_change(odd, [node(1), config(topology="reflectors")], old=node(2))
    check_change(config(topology="mesh"), [node(1), odd])


@pytest.mark.parametrize("text", ["0", "23456", "4294967296", "x", "-1", "65000.1"])
def test_a_nodes_as_number(text: str) -> None:
    (problem,) = problems(node(1, asn=text))
    assert problem.field == "metadata.annotations[podway.io/asn]"


def test_settings_of_the_topology() -> None:
    wrong = config(mesh_limit=0, reflectors=ReflectorSettings(count=0))
    assert [problem.field for problem in problems(wrong)] == ["spec.bgp.meshLimit", "spec.bgp.reflectors.count"]


def test_a_secret_is_shown_to_nobody_and_not_taken_back_redacted() -> None:
    both = msgspec.structs.replace(SECRET, string_data={"other": "hunter2"})
    shown = str(to_builtins(both))
    assert "czNjcmV0" not in shown
    assert "hunter2" not in shown
    assert to_builtins(both)["data"] == {"password": REDACTED}
    assert (both.value("password"), both.value("other")) == ("s3cret", "hunter2")
    fields = [problem.field for problem in problems(both.redacted())]
    assert fields == ["data[password]", "stringData[other]"]
    (problem,) = problems(msgspec.structs.replace(SECRET, data={"password": "s3cret!"}))
    assert "is not base64" in str(problem)
    assert "s3cret" not in str(problem)


def test_a_secret_in_use_stays_and_stays_a_password() -> None:
    user = peer(**secret_of())
    with pytest.raises(InvalidObject, match="BGPPeer/tor takes its password from it"):
        check_deletion(SECRET, [user])
    check_deletion(SECRET, [peer()])
    with pytest.raises(InvalidObject, match=r"data\[password\]: is not there"):
        check_change(msgspec.structs.replace(SECRET, data={}), [user])
    unfit = msgspec.structs.replace(SECRET, data={}, string_data={"password": 'a"b'})
    with pytest.raises(InvalidObject) as caught:
        check_change(unfit, [user])
    assert 'a"b' not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "right"),
    [("s3cret", True), ("x" * 80, True), ("x" * 81, False), ("", False), ('"', False), ("a\nb", False)],
)
def test_passwords(text: str, right: bool) -> None:
    assert (password_problem(text) is None) == right


def test_a_typing_mistake_is_named() -> None:
    with pytest.raises(InvalidObject, match="imports"):
        peer(imports=[])
    assert BGPPeerSpec(address="192.0.2.1", asn=1).imports == ()


def test_labels_that_give_a_node_two_peers_at_one_address() -> None:
    """Refused where labels are changed; where nobody asked, the one that is left out is told."""
    one = peer("one", nodeSelector={"matchLabels": {"rack": "a"}})
    two = peer("two", nodeSelector={"matchLabels": {"role": "edge"}})
    before, after = node(1, rack="a"), node(1, rack="a", role="edge")
    with pytest.raises(InvalidObject, match=r"metadata\.labels.*BGPPeer/one and BGPPeer/two"):
        check_change(after, (one, two), old=before)
    check_change(after, (one, two), old=after)
    view = ClusterView.of((after, one, two, POOL))
    assert [session.peer for session in outside_peers(view, "node-1")] == ["one"]
    assert left_out(view, "node-1") == {"two": "its address, 192.0.2.254, is that of BGPPeer/one on this node"}
    assert not left_out(ClusterView.of((before, one, two, POOL)), "node-1")


def test_a_peer_at_the_address_of_any_node_is_left_out_and_told() -> None:
    """It is refused where it is applied; a node may get the address later, or it comes past that."""
    one = peer("one", address="192.0.2.2")
    view = ClusterView.of((*NODES, one, POOL))
    assert [[*outside_peers(view, name)] for name in ("node-1", "node-2")] == [[], []]
    assert left_out(view, "node-1") == {"one": "its address, 192.0.2.2, is that of Node/node-2"}
    assert left_out(view, "node-2") == {"one": "its address, 192.0.2.2, is that of Node/node-2 on this node"}
    (session,) = outside_peers(ClusterView.of((NODES[0], one, POOL)), "node-1")
    assert session.peer == "one", "it is nobody's any more"
    second = builders.node("node-1", "192.0.2.1/24", notes={INTERFACE_ADDRESSES: "192.0.2.1/24,192.0.2.9/24"})
    view = ClusterView.of((second, peer("own", address="192.0.2.9"), POOL))
    assert left_out(view, "node-1") == {"own": "its address, 192.0.2.9, is that of Node/node-1 on this node"}


@pytest.mark.parametrize("number", [0, -1, 10_000_001])
def test_a_number_of_prefixes_that_cannot_be(number: int) -> None:
    with pytest.raises(InvalidObject, match=r"spec\.maxPrefixes"):
        validate(peer(maxPrefixes=number))
