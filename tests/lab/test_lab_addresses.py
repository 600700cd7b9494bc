"""Addresses of Services outside the cluster, in a lab whose routers speak BGP with the nodes."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import pytest

from podway.lab import cluster, names, topology
from tests.patience import eventually

pytestmark = pytest.mark.kernel

MANIFESTS = """\
{apiVersion: podway.io/v1, kind: IPPool, metadata: {name: outside}, spec: {cidr: 198.51.100.0/28, use: services}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default, annotations: {podway.io/addresses: 198.51.100.0}}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: local, namespace: default, annotations: {podway.io/addresses: 198.51.100.1}}
spec: {type: LoadBalancer, externalTrafficPolicy: Local, selector: {app: web}, ports: [{port: 80}]}
"""

WEB, LOCAL = "198.51.100.0", "198.51.100.1"


@pytest.fixture(scope="module")
def lab() -> Iterator[str]:
    """Two nodes in one rack, one in another, and two Services with a pod on node1."""
    name = f"s{os.getpid()}x{secrets.token_hex(2)}"
    cluster.up(
        name,
        nodes=3,
        pools=("10.244.0.0/16",),
        block_sizes=(),
        asn=64512,
        report=lambda _: None,
        racks=2,
        tor="bird",
        services="pods",
    )
    try:
        podway(name, "lab", "run", "w1", "--node", "node1", "--serve", "80", "--service", "web")
        podway(name, "apply", "-f", "-", stdin=MANIFESTS)
        yield name
    finally:
        cluster.down(name)


def podway(lab: str, *args: str, stdin: str = "") -> str:
    command = [sys.executable, "-m", "podway", "--lab", lab, *args]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ways(lab: str, destination: str, router: int = 1) -> list[str]:
    """Return the next hops that a rack's router knows to a destination, by BGP."""
    namespace = names.tor_netns(lab, router)
    command = ["ip", "netns", "exec", namespace, "ip", "route", "show", destination, "proto", "bird"]
    words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return sorted(word for before, word in pairwise(words) if before == "via")


NODE1, NODE2, NODE3, OTHER_RACK = "172.30.1.1", "172.30.1.2", "172.30.2.3", "172.30.0.1"


def test_routers_know_the_ways_to_where_endpoints_are(lab: str) -> None:
    """Every node is a way with Cluster, those with endpoints are with Local; equal ones are used at once."""
    eventually(lambda: ways(lab, WEB) == [NODE1, NODE2], "with Cluster, both nodes of the rack are ways")
    eventually(lambda: ways(lab, WEB, 2) == [NODE3], "and the node of the other rack there")
    eventually(lambda: ways(lab, LOCAL) == [NODE1], "with Local, the node of the only endpoint is")
    eventually(lambda: ways(lab, LOCAL, 2) == [OTHER_RACK], "and other racks know it by the spine")
    podway(lab, "lab", "run", "w2", "--node", "node2", "--serve", "80", "--service", "web")
    eventually(lambda: ways(lab, LOCAL) == [NODE1, NODE2], "a second endpoint is a second way")
    podway(lab, "delete", "pod", "w2")
    eventually(lambda: ways(lab, LOCAL) == [NODE1], "and no more when it goes")
    assert ways(lab, WEB) == [NODE1, NODE2]


def test_a_pool_may_be_told_as_a_whole(lab: str) -> None:
    podway(lab, "set", "pool/outside", "advertise=pool")
    eventually(lambda: ways(lab, "198.51.100.0/28") == [NODE1, NODE2], "the pool is told")
    eventually(lambda: not ways(lab, WEB) and not ways(lab, LOCAL), "and its addresses are not")
    podway(lab, "set", "pool/outside", "advertise=addresses")
    eventually(lambda: ways(lab, WEB) == [NODE1, NODE2] and ways(lab, LOCAL) == [NODE1], "and again")


def test_addresses_go_with_the_last_endpoint(lab: str) -> None:
    podway(lab, "delete", "pod", "w1")
    eventually(lambda: not ways(lab, WEB) and not ways(lab, LOCAL), "nobody leads to nobody")
    podway(lab, "lab", "run", "w1", "--node", "node1", "--serve", "80", "--service", "web")
    eventually(lambda: ways(lab, WEB) == [NODE1, NODE2], "they are told again")


SEGMENT = """\
apiVersion: podway.io/v1
kind: IPPool
metadata: {name: segment}
spec: {cidr: 172.30.1.128/30, use: services, advertise: layer2}
---
apiVersion: v1
kind: Service
metadata: {name: near, namespace: default, annotations: {podway.io/pool: segment}}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80}]}
"""

NEAR = "172.30.1.128"


def answering(lab: str) -> list[str]:
    """Return the nodes whose kernels answer for the address on the segment."""

    def proxies(node: str) -> str:
        command = ["ip", "netns", "exec", names.node_netns(lab, node), "ip", "neighbour", "show", "proxy"]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout

    return [node for node in ("node1", "node2", "node3") if f"{NEAR} dev" in proxies(node)]


def hears_of(lab: str) -> str:
    """Have the rack's router ask for the address if it knows none; return whose hardware address it knows."""
    namespace = ["ip", "netns", "exec", names.tor_netns(lab, 1)]
    subprocess.run([*namespace, "ping", "-c1", "-W1", NEAR], check=False, capture_output=True)
    command = [*namespace, "ip", "neighbour", "show", NEAR]
    words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    found = (node for node in ("node1", "node2") if topology.node_mac(int(node[-1])) in words)
    return next(found, "")


def first_turn(lab: str) -> tuple[str, str]:
    """Return which of the segment's two nodes is to answer, and which is next."""
    told = json.loads(podway(lab, "get", "service", "near", "-o", "json"))["explained"]["outside"]
    first, second = told[0]["nodes"]
    return first, second


def test_one_node_of_a_segment_answers_and_another_when_it_dies(lab: str) -> None:
    """Nodes of this lab have no BGP sessions with each other: they watch each other for the address's sake."""
    podway(lab, "apply", "-f", "-", stdin=SEGMENT)
    owner, heir = first_turn(lab)
    eventually(lambda: answering(lab) == [owner], "the node answers whose turn it is")
    eventually(lambda: hears_of(lab), "the router knows where to send")
    podway(lab, "lab", "run", "w3", "--node", heir, "--serve", "80", "--service", "web")
    cluster.kill_node(lab, owner)
    eventually(lambda: heir in answering(lab), "the other node of the segment answers")
    eventually(lambda: hears_of(lab) == heir, "and the router heard of it")
