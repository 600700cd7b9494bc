"""Snapshots: what is written is read back; what is not one is told apart."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import Result

from podway.api.kinds.bgp_peer import BGPPeer, BGPPeerSpec, PasswordSource, SecretKey
from podway.api.kinds.cluster_authority import ClusterAuthority
from podway.api.kinds.secret import Secret
from podway.api.meta import Metadata
from podway.api.rules import check_change
from podway.errors import InvalidInput, InvalidObject
from podway.preview import snapshot
from podway.preview.simulate import World
from tests.preview.paper_cluster import plan_of, snapshot_of


def test_what_is_written_is_read_back(world: World) -> None:
    taken = snapshot_of(world)
    taken = snapshot.Snapshot(taken.taken, taken.objects, taken.sites, {"node-000009": "does not answer"})
    assert snapshot.decode(snapshot.encode(taken), source="x") == taken


def test_nodes_are_planned_from_a_snapshot_as_from_the_cluster(world: World) -> None:
    read = snapshot.decode(snapshot.encode(snapshot_of(world)), source="x")
    for node, site in world.sites.items():
        live = plan_of(world.view, node, site)
        assert plan_of(read.view, node, read.sites[node]) == live
        assert live.links or not site.leases


def test_every_cut_of_a_file_is_told(file: Path) -> None:
    data = file.read_bytes()
    for length in (0, 1, 100, len(data) // 2, len(data) - 3):
        with pytest.raises(InvalidInput, match="damaged") as told:
            snapshot.decode(data[:length], source="cluster.json")
        assert "cluster.json" in told.value.message
        assert "podway snapshot" in told.value.hint


def test_a_file_of_the_first_version_is_read(file: Path) -> None:
    shape = json.loads(file.read_text())
    earlier = json.dumps({**shape, "version": 1, "revision": 7})
    assert snapshot.decode(earlier.encode(), source="x") == snapshot.read(file)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": 3, "podway": "9.9"}, "version 3; Podway .* reads versions 1 to 2"),
        ({"kind": "List"}, "is no snapshot: its kind is 'List'"),
        ({"nodes": "new"}, r"damaged: Expected `object`, got `str` - at `\$.nodes`"),
        ({"surprise": 1}, "damaged: .*`surprise`"),
        ({"objects": [{"kind": "Ingress"}]}, r"objects\[0\]: 'Ingress' is not a kind"),
        ({"objects": [{"kind": "Node", "metadata": {}}]}, r"objects\[0\]: Node: .*`name`"),
        ({"nodes": {"n": {"uplink": {"device": "e", "mtu": 1, "addresses": ["here"]}}}}, "damaged: 'here'"),
    ],
)
def test_what_cannot_be_right_is_named(file: Path, change: dict[str, Any], told: str) -> None:
    text = json.dumps({**json.loads(file.read_text()), **change})
    with pytest.raises(InvalidInput, match=told) as raised:
        snapshot.decode(text.encode(), source="x")
    assert raised.value.hint


def test_another_version_is_told_even_if_its_form_is_unknown() -> None:
    with pytest.raises(InvalidInput, match="version 3") as told:
        snapshot.decode(b'{"kind": "PodwaySnapshot", "version": 3, "podway": "4.5", "all": "new"}', source="x")
    assert "Podway 4.5" in told.value.hint


def test_an_object_that_cannot_be_right_is_named_with_its_field(file: Path) -> None:
    text = file.read_text().replace('"10.244.0.0/16"', '"10.244.0.1/16"')
    with pytest.raises(InvalidObject) as told:
        snapshot.decode(text.encode(), source="x")
    assert (told.value.subject, told.value.field) == ("IPPool/four", "spec.cidr")


def test_a_snapshot_is_a_store_that_cannot_be_changed(podway: Callable[..., Result], file: Path) -> None:
    store = f"snapshot:{file}"
    assert "node-000002" in podway("--store", store, "get", "nodes").stdout
    assert podway("--store", store, "get", "pod", "pod-0", "-o", "json").stdout
    refused = podway("--store", store, "delete", "pod", "pod-0", status=1)
    assert "cannot be changed" in refused.stderr
    again = podway("--store", store, "snapshot").stdout
    assert json.loads(again)["objects"] == json.loads(file.read_text())["objects"]


def test_secrets_stay_out(world: World) -> None:
    when = "2026-01-01T00:00:00Z"
    authority = {"certificate": "C", "privateKey": "SECRET", "notBefore": when, "notAfter": when}
    shape = {"metadata": {"name": "default"}, "spec": {"cluster": "c", "authorities": [authority]}}
    secret = msgspec.convert(shape, ClusterAuthority)
    password = Secret(metadata=Metadata(name="tor", namespace="default"), string_data={"password": "SECRET"})
    text = snapshot.encode(snapshot_of(world, [secret, password]))
    assert b"SECRET" not in text
    found = snapshot.decode(text, source="x").objects
    assert secret not in found
    # That there is a password can be seen: a peer that takes it from there is no mistake.
    where = SecretKey(namespace="default", name="tor", key="password")
    spec = BGPPeerSpec(address="192.0.2.254", asn=64601, password=PasswordSource(secret=where))
    check_change(BGPPeer(metadata=Metadata(name="tor"), spec=spec), found)
