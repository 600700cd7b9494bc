"""`podway verify` as a command, and where things are on a plain host."""

import json
import os

import pytest
from click.testing import CliRunner, Result

from podway.api.kinds.node import Node, NodeAddress, NodeStatus
from podway.api.meta import Metadata
from podway.cli import verify as command
from podway.cli.options import GlobalOptions
from podway.kernel import netns
from podway.prove.world import NodePlace, PodPlace
from podway.verify.host import places_here
from tests.verify.hand_cluster import Cluster

pytestmark = pytest.mark.kernel


def invoke(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    monkeypatch.setattr(command, "world_of", lambda options: cluster.world())
    return CliRunner().invoke(command.verify, arguments, obj=GlobalOptions(None, "lab"))


def test_exit_status_tells_whether_all_was_proved(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    good = invoke(cluster, monkeypatch)
    assert good.exit_code == 0, good.output
    assert "All three rules hold." in good.output
    cluster.on_node(1, "ip route del 10.77.2.0/24")
    bad = invoke(cluster, monkeypatch, "-o", "json", "--timeout", "0.3")
    assert bad.exit_code == 1
    document = json.loads(bad.output)
    assert document["holds"] is False
    assert {finding["code"] for finding in document["findings"]} >= {"lost"}
    sampled = invoke(cluster, monkeypatch, "-o", "json", "--timeout", "0.3", "--sample", "3")
    assert json.loads(sampled.output)["sample"]["pairs"] == 3


def test_a_plain_host_knows_its_node_and_pods_from_its_kernel(cluster: Cluster) -> None:
    name = cluster.node(1)
    cluster.on(name, "ip link property add dev veth2 altname pod.c1:net1")
    cluster.on(name, "ip link set veth2 alias 'default/p12 podnet /run/netns/there'")
    cluster.on(name, "ip route replace 10.77.1.2 dev veth2 proto 112")
    here = Node(
        metadata=Metadata(name="n1"),
        status=NodeStatus(addresses=(NodeAddress(type="InternalIP", address="172.30.0.1"),)),
    )
    elsewhere = Node(
        metadata=Metadata(name="n2"),
        status=NodeStatus(addresses=(NodeAddress(type="InternalIP", address="172.30.0.2"),)),
    )
    descriptor = netns.open_path(netns.path_of(name))
    try:
        nodes, pods = netns.run(descriptor, lambda: places_here([here, elsewhere]))
    finally:
        os.close(descriptor)
    assert nodes == {"n1": NodePlace("", "eth0")}
    assert {pod: (place.netns, place.ifname) for pod, place in pods.items()} == {
        "default/p12": ("/run/netns/there", "net1")
    }
    assert all(isinstance(place, PodPlace) for place in pods.values())
