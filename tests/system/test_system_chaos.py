"""Random deletions in a running cluster: kernel objects, processes, links and the store's objects; then quiet.

Afterwards the network is whole, and nothing is left over. PODWAY_CHAOS is how many deletions, PODWAY_SEED repeats
a run; a failure names both.
"""

import contextlib
import os
import random
import re
import secrets
from collections.abc import Callable, Iterator

import pytest

from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.cluster_authority import ClusterAuthority
from podway.api.kinds.node import Node
from podway.api.kinds.node_certificate import NodeCertificate
from podway.api.kinds.node_lease import LEASES, NodeLease
from podway.api.resource import Resource
from podway.errors import NotFound
from podway.lab.facts import PoolSettings
from podway.plan.remote import GUARD_METRIC, STORE_METRIC
from podway.store.base import Store
from tests.patience import eventually
from tests.system.system_lab import PodUnderTest, SystemLab

STOOD_IN = re.compile(rf"metric ({STORE_METRIC}|{GUARD_METRIC})\b")
"""In routes of ours that stand in for BIRD's, and in those that guard them."""

DELETIONS = int(os.environ.get("PODWAY_CHAOS", "25"))
pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300 + 3 * DELETIONS)]
PODS = 2
"""On each node."""


@pytest.fixture(scope="module")
def chaotic() -> Iterator[SystemLab]:
    """Three nodes of both families, with an overlay."""
    lab = SystemLab()
    lab.up(3, pool_settings=PoolSettings(encapsulation="vxlan"))
    try:
        yield lab
    finally:
        lab.down()


class Chaos:
    """Deletes what it is told at random, and gives what a runtime or a supervisor would give back."""

    def __init__(self, lab: SystemLab, dice: random.Random) -> None:
        self.lab, self._dice = lab, dice
        self.done: list[str] = []
        self._deletions: tuple[Callable[[str], str], ...] = (
            *(self._line(*what) for what in _LINES),
            *(self._object(kind) for kind in (AddressBlock, ClusterAuthority, Node, NodeCertificate, NodeLease)),
            self._agent,
            self._bird,
            self._pod_link,
            self._pod,
        )

    def delete(self) -> None:
        """Delete one thing, somewhere."""
        node = self._dice.choice(self.lab.nodes)
        self.done.append(f"{node}: {self._dice.choice(self._deletions)(node)}")

    def _line(self, look: str, delete: str) -> Callable[[str], str]:
        def once(node: str) -> str:
            found = self.lab.sh(node, f"{look} || true").splitlines()
            if not found:
                return f"nothing of {look}"
            command = delete.format(self._dice.choice(found).strip())
            self.lab.sh(node, command, check=False)  # it may be gone, or under repair
            return command

        return once

    def _object(self, kind: type[Resource]) -> Callable[[str], str]:
        def once(node: str) -> str:
            async def one(store: Store) -> str:
                found = (await store.list(kind)).items
                if not found:
                    return f"no {kind.KIND}"
                chosen = self._dice.choice(found).metadata.name
                with contextlib.suppress(NotFound):
                    await store.delete(kind, chosen, namespace=LEASES if kind is NodeLease else "")
                return f"{kind.KIND} {chosen}"

            told: str = self.lab.store(one)
            return told

        return once

    def _agent(self, node: str) -> str:
        self.lab.kill_agent(node)
        self.lab.start_agent(node)
        return "its agent"

    def _bird(self, node: str) -> str:
        pid = int(self.lab.status(node)["routing"]["bird"])
        if pid:
            with contextlib.suppress(ProcessLookupError):
                self.lab.kill(pid)
        return "its BIRD"

    def _pod_link(self, node: str) -> str:
        """Delete a pod's link: nobody can give that back but a runtime, which has the pod anew."""
        pod = self._dice.choice([one for one in self.lab.pods if one.node == node])
        self.lab.sh(node, f"ip link del {pod.link}", check=False)
        self._anew(pod)
        return f"link {pod.link}"

    def _pod(self, node: str) -> str:
        """Have a pod's namespace vanish, as in a crash."""
        pod = self._dice.choice([one for one in self.lab.pods if one.node == node])
        pod.vanish()
        self._anew(pod)
        return f"pod {pod.container[:8]}"

    def _anew(self, pod: PodUnderTest) -> None:
        pod.cni("DEL")
        with contextlib.suppress(FileNotFoundError):
            pod.vanish()
        self.lab.pods.remove(pod)
        added = self.lab.new_pod(pod.node)
        eventually(lambda: self._added(added), f"a pod on {pod.node} after {self.done[-5:]}")

    def _added(self, pod: PodUnderTest) -> bool:
        """Add a pod as a runtime does: until it works. A node whose block was just deleted has no address."""
        pod.added = pod.cni("ADD")
        return pod.added.ok


_LINES = (
    ("ip -4 route show proto 112", "ip -4 route del {}"),
    ("ip -6 route show proto 112", "ip -6 route del {}"),
    ("ip -4 route show proto bird", "ip -4 route del {}"),
    ("ip -6 route show proto bird", "ip -6 route del {}"),
    ("ip -4 neigh show nud permanent | grep -v ' eth0 '", "ip neigh del {}"),
    ("ip -6 neigh show nud permanent | grep -v ' eth0 '", "ip neigh del {}"),
    ("bridge fdb show dev podway-vxlan | sed 's/ self permanent//'", "bridge fdb del {} dev podway-vxlan"),
    ("ip -o addr show | awk '/169.254.1.1/ {print $4, \"dev\", $2}'", "ip addr del {}"),
    ("nft list tables | grep podway", "nft delete {}"),
    ("ip -o link show type vxlan | cut -d: -f2", "ip link del {}"),
)
"""What is looked for on a node, a line for each, and how one of them is deleted; nothing of the lab's own."""


def test_after_random_deletions_the_network_is_whole_and_nothing_is_left(chaotic: SystemLab) -> None:
    lab = chaotic
    seed = int(os.environ.get("PODWAY_SEED", secrets.randbelow(2**32)))
    print(f"PODWAY_CHAOS={DELETIONS} PODWAY_SEED={seed}")
    lab.settle()
    for node in lab.nodes:  # routes of the store's are there until BIRD's are
        eventually(lambda node=node: not any(STOOD_IN.search(line) for line in traces(lab, node)))
    before = {node: traces(lab, node) for node in lab.nodes}
    for node in lab.nodes:
        for _ in range(PODS):
            lab.add(node)
    chaos = Chaos(lab, random.Random(seed))
    for _ in range(DELETIONS):
        chaos.delete()
    last = f"PODWAY_SEED={seed}; the last ones: {'; '.join(chaos.done[-8:])}"
    took = eventually(lambda: is_whole(lab), last, every=0.1)
    print(f"whole after {took:.1f} s of quiet: " + "; ".join(chaos.done))
    held = {pod.attachment: frozenset(pod.addresses) for pod in lab.pods}
    leased = {key: frozenset(found) for node in lab.nodes for key, found in lab.leases(node).items()}
    assert leased == held, last
    lab.remove_pods()
    for node in lab.nodes:
        eventually(lambda node=node: as_before(before[node], traces(lab, node)), f"on {node}; {last}", every=0.2)
        assert not lab.status(node)["drift"]["refused"]


def as_before(before: list[str], now: list[str]) -> bool:
    """Tell whether nothing was left and nothing is missing. Raises AssertionError with the difference."""
    assert now == before
    return True


def is_whole(lab: SystemLab) -> bool:
    """Tell whether nothing is wrong. Raises AssertionError with what is."""
    assert unwhole(lab) == []
    return True


def unwhole(lab: SystemLab) -> list[str]:
    """Return what is not right; nothing where all pods reach all others, and all nodes are as they want to be."""
    wrong = []
    for node in lab.nodes:
        status = lab.status(node)
        wrong += [f"{node}: {one}" for one in (*status["drift"]["now"], *status["drift"]["refused"])]
        wrong += [f"{node}: {one['name']}" for one in status["routing"]["peers"] if one["state"] != "Established"]
    if wrong:
        return wrong
    for pod in lab.pods:
        others = [str(address) for other in lab.pods if other is not pod for address in other.addresses]
        script = "".join(f"ping -n -q -c 1 -W 1 {address} >/dev/null || echo {address} &\n" for address in others)
        wrong += [f"{pod.container[:8]} to {address}" for address in pod.sh(f"{script}wait").split()]
    return wrong


def traces(lab: SystemLab, node: str) -> list[str]:
    """Return what a node's kernel holds that could leak, without what names processes, times and orders."""
    told = lab.sh(
        node,
        "ip route; ip -6 route; ip -br addr; ip neigh show nud permanent; ip -br link | cut -d' ' -f1;"
        "bridge fdb show dev podway-vxlan",
    )
    words = (
        lab.sh(node, "nft -s list ruleset").replace(",", " ").split()
    )  # sets are written in lines of any length
    return sorted([*told.splitlines(), *words])
