"""Round trips and throughput between pods in every encapsulation, as ratios to those between their nodes."""

import contextlib
import time
from ipaddress import ip_address

from bench import handmade
from bench.labs import Lab, RunningPod, lab
from bench.paths import Path, how, ratio_of, round_trips, stream_row, streams, trip_row
from bench.report import Row, Section
from podway.api.kinds.ip_pool import Encapsulation, IPPool, IPPoolSpec, When
from podway.api.kinds.namespace import Namespace
from podway.api.meta import LabelSelector, Metadata
from podway.kernel.rtnl import routes
from podway.lab import names, state, topology
from podway.plan.fabric import DEVICES

ROUNDS = 9
STREAM_ROUNDS = 3
LOOK = 0.05
PATIENCE = 15.0
"""Seconds that an encapsulation may take until nodes send in it."""

BASE, SAME = "node to node", "pod to pod on one node"
BY_HAND, BY_HAND_BRIDGED = "vxlan made by hand", "vxlan made by hand, pods on a bridge"

ENCAPSULATIONS: tuple[Encapsulation, ...] = ("none", "vxlan", "ipip")
NONE, VXLAN, IPIP = (f"pod to pod across nodes, {encapsulation}" for encapsulation in ENCAPSULATIONS)
TARGETS = {SAME: 1.15, NONE: 1.25, VXLAN: 1.45, IPIP: 1.3}


def measure() -> Section:
    with lab(nodes=2) as cluster, contextlib.ExitStack() as stack:
        paths = [node_path(cluster), *across(cluster, ENCAPSULATIONS)]
        paths.insert(1, _on_one_node(cluster))
        for name, shape in ((BY_HAND, handmade.ROUTED), (BY_HAND_BRIDGED, handmade.BRIDGED)):
            here, there = stack.enter_context(handmade.pods(cluster, shape))
            paths.append(Path(name, here.netns, there.netns, there.address))
        trips = round_trips(paths, ROUNDS)
        rates = streams(paths, STREAM_ROUNDS)
    return Section(
        "Round trip and throughput",
        f"{how(ROUNDS, STREAM_ROUNDS)} Node to node is over the segment that joins the nodes; pods of all "
        "encapsulations "
        "are on the same two nodes, of three pools. Beside them are two nodes without Podway on the same segment, "
        "with the kernel's vxlan device, neighbour, forwarding entry and routes written by hand, and the pod's "
        "veth routed as Podway's, or on a bridge as Flannel has it.",
        (
            *(trip_row(path.name, trips, BASE, TARGETS.get(path.name)) for path in paths),
            _beside_by_hand(ratio_of(VXLAN, trips, BY_HAND)),
            *(stream_row(path.name, rates, BASE) for path in paths),
        ),
    )


def node_path(cluster: Lab) -> Path:
    """Return the way from the first node to the last."""
    here, there = cluster.nodes[0], cluster.nodes[-1]
    address = state.load(cluster.name).addresses(there)[0].ip
    return Path(BASE, names.node_netns(cluster.name, here), names.node_netns(cluster.name, there), str(address))


def across(cluster: Lab, encapsulations: tuple[Encapsulation, ...], when: When = "always") -> list[Path]:
    """Run two pods of each encapsulation, on the first node and the last; return the ways between them.

    Each encapsulation is a pool of its own, for a Kubernetes namespace that is named as the encapsulation.
    """
    spaces = (
        Namespace(metadata=Metadata(name=encapsulation, labels={"encapsulation": encapsulation}))
        for encapsulation in encapsulations
    )
    cluster.apply(
        *spaces, *(_pool(number, encapsulation, when) for number, encapsulation in enumerate(encapsulations))
    )
    found = []
    for encapsulation in encapsulations:
        here, there = (
            cluster.run_pod(f"{end}-{encapsulation}", node, namespace=encapsulation)
            for end, node in (("client", cluster.nodes[0]), ("server", cluster.nodes[-1]))
        )
        for node, pod in ((cluster.nodes[0], there), (cluster.nodes[-1], here)):
            _wait_encapsulation(cluster, node, pod, DEVICES.get(encapsulation, topology.UPLINK))
        found.append(Path(f"pod to pod across nodes, {encapsulation}", here.netns, there.netns, there.address))
    return found


def _wait_encapsulation(cluster: Lab, node: str, pod: RunningPod, device: str) -> None:
    """Wait until a node sends packets for a pod out of this device. Raises TimeoutError."""
    begun = time.monotonic()
    with topology.connection(names.node_netns(cluster.name, node)) as kernel:
        while (found := routes.lookup(kernel, ip_address(pod.address)).device) != device:
            if time.monotonic() > begun + PATIENCE:
                raise TimeoutError(f"{node} sends to {pod.address} by {found or 'no device'} instead of {device}")
            time.sleep(LOOK)


def _beside_by_hand(ratio: float) -> Row:
    met = round(ratio, 2) <= 1
    return Row(f"vxlan, Podway's beside {BY_HAND}", f"ratio {ratio:.2f}", f"not slower than {BY_HAND}", met)


def _pool(number: int, encapsulation: Encapsulation, when: When) -> IPPool:
    return IPPool(
        metadata=Metadata(name=encapsulation),
        spec=IPPoolSpec(
            cidr=f"10.{100 + number}.0.0/16",
            encapsulation=encapsulation,
            when="always" if encapsulation == "none" else when,
            namespace_selector=LabelSelector(match_labels={"encapsulation": encapsulation}),
        ),
    )


def _on_one_node(cluster: Lab) -> Path:
    here, there = (cluster.run_pod(f"near-{number}", cluster.nodes[0]) for number in range(2))
    return Path(SAME, here.netns, there.netns, there.address)
