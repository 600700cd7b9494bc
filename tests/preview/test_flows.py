"""What policies would have made of what was seen, and policies for what was seen; judged by the planner."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podway.api.kinds.namespace import Namespace
from podway.api.kinds.network_policy import NetworkPolicy, NetworkPolicySpec
from podway.api.kinds.pod import Pod
from podway.api.meta import LabelSelector, Metadata
from podway.api.resource import Resource
from podway.api.validate import validate
from podway.flows.query import Row, Sums
from podway.preview.flows import MANY, Connection, compare, connections, suggest
from tests import builders

ADDRESSES = {
    "shop/web-1": "10.1.0.1",
    "shop/web-2": "10.1.1.2",
    "shop/db-0": "10.1.0.3",
    "shop/bare": "10.1.0.4",
    "other/client": "10.1.1.5",
    "other/job": "10.1.1.6",
}
UNNAMED = {"shop/bare", "other/job"}
"""Pods without labels by which policies can name them."""
LABELS = {
    "shop/web-1": {"app": "web", "pod-template-hash": "abc"},
    "shop/web-2": {"app": "web", "pod-template-hash": "def"},
    "shop/db-0": {"app": "db", "statefulset.kubernetes.io/pod-name": "db-0"},
    "other/client": {"app": "client"},
    "other/job": {"job-name": "job", "controller-uid": "7"},
}
OUTSIDE = "192.0.2.9"


def pod(name: str) -> Pod:
    namespace, _, own = name.partition("/")
    address = ADDRESSES[name]
    node = "node1" if address.startswith("10.1.0") else "node2"
    made = builders.pod(own, node, address, namespace=namespace)
    metadata = msgspec.structs.replace(made.metadata, labels=LABELS.get(name, {}))
    return msgspec.structs.replace(made, metadata=metadata)


CLUSTER: tuple[Resource, ...] = (
    builders.node("node1", "172.30.0.1/24"),
    builders.node("node2", "172.30.0.2/24"),
    Namespace(metadata=Metadata(name="shop")),
    Namespace(metadata=Metadata(name="other")),
    *map(pod, ADDRESSES),
)


def connection(source: str, destination: str, port: int = 80, flows: int = 10, **more: Any) -> Connection:
    def end(name: str) -> tuple[str, str]:
        nodes = {"node/node1": "172.30.0.1", "node/node2": "172.30.0.2"}
        known = {**ADDRESSES, **nodes}
        return (name, known[name]) if name in known else ("", name) if name[0].isdigit() else (name, "10.9.9.9")

    return Connection(
        end(source), end(destination), more.get("protocol", "tcp"), port, flows, more.get("denied", 0), 1.0
    )


def policy(name: str, **spec: Any) -> NetworkPolicy:
    return NetworkPolicy(metadata=Metadata(name=name, namespace="shop"), spec=NetworkPolicySpec(**spec))


def test_sums_of_both_nodes_of_a_connection_are_one_connection() -> None:
    name = "other/client@10.1.1.5 -> shop/web-1@10.1.0.1 tcp/80"
    both = [Sums((Row(name, flows=3, last=5.0),)), Sums((Row(name, flows=3, denied=1, last=6.0),))]
    outside = Sums((Row("@192.0.2.9 -> @2001:db8::1 icmpv6/0", flows=9),))
    first, second = connections([*both, outside])
    assert (first.source, first.protocol, first.port) == (("", OUTSIDE), "icmpv6", 0)
    assert second == Connection(("other/client", "10.1.1.5"), ("shop/web-1", "10.1.0.1"), "tcp", 80, 3, 1, 6.0)


def test_what_would_be_denied_and_newly_allowed_is_told_with_its_rule() -> None:
    closed = policy("closed", pod_selector=LabelSelector(match_labels={"app": "db"}))
    seen = [
        connection("shop/web-1", "shop/db-0", 5432),
        connection(OUTSIDE, "shop/web-1"),
        connection("gone/pod", "shop/db-0"),
        connection("node/node1", "shop/db-0"),
        connection("node/node2", "shop/db-0"),
    ]
    found = compare(CLUSTER, (*CLUSTER, closed), seen)
    assert [(str(one.connection), one.change) for one in found.outcomes] == [
        ("shop/web-1 -> shop/db-0 tcp port 5432", "denied"),
        ("node/node2 -> shop/db-0 tcp port 80", "denied"),
    ]
    assert "isolated by NetworkPolicy/shop/closed" in found.outcomes[0].why
    assert (found.same, found.gone) == (2, 1)
    back = compare((*CLUSTER, closed), CLUSTER, seen)
    assert [one.change for one in back.outcomes] == ["allowed", "allowed"]


def test_a_suggestion_is_one_policy_for_pods_of_the_same_labels_and_says_what_it_cannot_know() -> None:
    seen = [
        connection("other/client", "shop/web-1"),
        connection("other/client", "shop/web-2"),
        connection("shop/web-1", "shop/db-0", 5432),
        connection("shop/web-1", OUTSIDE, 443, flows=1),
        connection("shop/web-1", "shop/db-0", 22, flows=0, denied=7),
        connection("shop/web-1", "shop/db-0", 0, protocol="icmp"),
        connection("gone/pod", "shop/db-0"),
        connection("other/client", OUTSIDE),
    ]
    found = suggest(CLUSTER, "shop", seen)
    assert [one.spec.pod_selector.match_labels for one in found.policies] == [{"app": "db"}, {"app": "web"}]
    db, web = found.policies
    assert [[port.port for port in rule.ports] for rule in db.spec.ingress] == [[5432]]
    assert db.spec.egress == ()
    assert [[port.port for port in rule.ports] for rule in web.spec.egress] == [[443], [5432]]
    said = "\n".join(found.notes)
    assert f"seen 1 times only: shop/web-1 -> {OUTSIDE} tcp port 443" in said
    assert "does not speak of icmp" in said
    assert "gone/pod is gone" in said
    assert "without labels apart: bare" in said
    assert "port 22" not in said


def test_many_outside_addresses_are_everybody_outside() -> None:
    seen = [connection(f"192.0.2.{number}", "shop/web-1") for number in range(1, MANY + 2)]
    _, web = suggest(CLUSTER, "shop", seen).policies
    [rule] = web.spec.ingress
    assert [peer.ip_block.cidr for peer in rule.sources if peer.ip_block] == ["0.0.0.0/0"]


def test_a_peer_that_has_no_labels_of_its_own_is_left_out_and_told() -> None:
    seen = [
        connection("shop/bare", "shop/db-0", 5432),
        connection("other/job", "shop/db-0", 5432),
        connection("shop/db-0", "other/job", 8080),
    ]
    found = suggest(CLUSTER, "shop", seen)
    db = next(one for one in found.policies if one.spec.pod_selector.match_labels == {"app": "db"})
    assert (db.spec.ingress, db.spec.egress) == ((), ())
    told = [note for note in found.notes if note.startswith("left out of")]
    assert [note.partition(",")[0] for note in told] == ["left out of ingress"] * 2 + ["left out of egress"]
    assert "shop/bare has no labels" in told[0]
    assert "other/job has no labels" in told[1]


places = st.sampled_from([*ADDRESSES, OUTSIDE, "node/node1", "node/node2", "192.0.2.77"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            lambda source, destination, port, protocol: connection(source, destination, port, protocol=protocol),
            places,
            places,
            st.sampled_from([53, 80, 443]),
            st.sampled_from(["tcp", "udp", "sctp"]),
        ),
        max_size=12,
    )
)
def test_a_suggestion_is_valid_and_allows_all_that_it_can_name_and_no_more(
    seen: Sequence[Connection],
) -> None:
    found = suggest(CLUSTER, "shop", seen)
    after = (*CLUSTER, *found.policies)
    for one in found.policies:
        validate(one)
        peers = [peer for rule in one.spec.ingress for peer in rule.sources]
        peers += [peer for rule in one.spec.egress for peer in rule.destinations]
        assert all(peer.ip_block or (peer.pod_selector and peer.pod_selector.match_labels) for peer in peers)
    named = [one for one in seen if not UNNAMED & {one.source[0], one.destination[0]}]
    assert not [one for one in compare(CLUSTER, after, named).outcomes if one.change == "denied"]
    others = [connection("other/client", name, 8080) for name in LABELS if name.startswith("shop/")]
    assert {one.change for one in compare(CLUSTER, after, others).outcomes} == {"denied"}


@pytest.mark.parametrize("namespace", ["other", "nowhere"])
def test_nothing_is_suggested_for_other_namespaces_pods(namespace: str) -> None:
    found = suggest(CLUSTER, namespace, [connection("shop/web-1", "shop/db-0")])
    assert all(one.metadata.namespace == namespace for one in found.policies)
    assert all(not one.spec.ingress and not one.spec.egress for one in found.policies)
