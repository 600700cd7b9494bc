"""Addresses and blocks, through the real plugin, agent and store."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest

from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.node import Node
from podway.api.meta import LabelSelector, Metadata
from podway.cni.spec import Code
from podway.lab import cluster
from podway.store.leases import forget_lease
from tests.patience import eventually
from tests.system.system_lab import PodUnderTest, SystemLab, running_lab

pytestmark = pytest.mark.kernel

POOL = ip_network("10.244.0.0/26")
"""Eight blocks of five addresses."""


def change_pool(lab: SystemLab, name: str, **spec: Any) -> None:
    async def change(store: Any) -> None:
        pool = await store.get(IPPool, name)
        await store.update(msgspec.structs.replace(pool, spec=msgspec.structs.replace(pool.spec, **spec)))

    lab.store(change)


def new_pool(lab: SystemLab, name: str, cidr: str, **spec: Any) -> None:
    pool = IPPool(metadata=Metadata(name=name), spec=IPPoolSpec(cidr=cidr, cooldown_seconds=1, **spec))
    lab.store(lambda store: store.create(pool))


def remove_pool(lab: SystemLab, name: str) -> None:
    """Remove a pool, once its blocks have returned."""
    change_pool(lab, name, disabled=True)
    pool = lab.store(lambda store: store.get(IPPool, name)).network
    eventually(lambda: not any(block.subnet_of(pool) for block in lab.blocks()))
    lab.store(lambda store: store.delete(IPPool, name))


def set_labels(lab: SystemLab, kind: Any, name: str, **labels: str) -> None:
    async def change(store: Any) -> None:
        found = await store.get(kind, name)
        metadata = msgspec.structs.replace(found.metadata, labels=labels)
        await store.update(msgspec.structs.replace(found, metadata=metadata))

    lab.store(change)


def knows_pool(lab: SystemLab, node: str, name: str) -> bool:
    return any(block["pool"] == name for block in lab.status(node)["blocks"])


def has_cooled(lab: SystemLab, node: str) -> bool:
    """Tell whether all addresses of a node that nobody has can be given now."""
    return not any(block["cooling"] for block in lab.status(node)["blocks"])


def owned(lab: SystemLab, node: str = "node1") -> list[str]:
    return sorted(str(block) for block, owner in lab.blocks().items() if owner == node)


@pytest.fixture(scope="module")
def small_lab() -> Iterator[SystemLab]:
    """Two nodes, little blocks, a short cool-down, and agents that return empty blocks soon."""
    with running_lab(2, [str(POOL)], [29]) as lab:
        change_pool(lab, "ipv4", cooldown_seconds=1)
        for node in ("node1", "node2"):
            lab.kill_agent(node)
            lab.start_agent_with(node, idle_block_delay=0.3, housekeeping=0.1)
        yield lab


@pytest.fixture
def small(small_lab: SystemLab) -> Iterator[SystemLab]:
    """The module's lab; after the test no pod has an address or had one lately, and each node has one block."""
    yield small_lab
    small_lab.remove_pods()
    nodes = ("node1", "node2")
    eventually(lambda: len(small_lab.blocks()) == 2 and not any(map(small_lab.leases, nodes)))
    # Else the next test's pods would not get the first block's addresses first.
    for node in nodes:
        eventually(lambda node=node: has_cooled(small_lab, node))


def test_the_next_block_is_claimed_before_the_last_is_full_and_returns_when_empty(small: SystemLab) -> None:
    pods = [small.add() for _ in range(3)]
    first = owned(small)
    assert len(first) == 1
    pods.append(small.add())  # one address is left now
    eventually(lambda: len(owned(small)) == 2)
    # The next ADDs need no store: the block is here, and other nodes know the way.
    eventually(lambda: all(block in small.sh("node2", "ip route") for block in owned(small)))
    pods += [small.add() for _ in range(2)]
    assert {small.block_of(pod.addresses[0]) for pod in pods} == {ip_network(block) for block in owned(small)}
    for pod in pods:
        pod.cni("DEL")
    eventually(lambda: len(owned(small)) == 1)
    gone = (set(first) | {str(small.block_of(pods[0].addresses[0]))}) - set(owned(small))
    assert not any(f"blackhole {block}" in small.sh("node1", "ip route") for block in gone)
    assert small.repaired("node1") == []


def test_a_block_with_one_pod_stays(small: SystemLab) -> None:
    pods = [small.add() for _ in range(6)]
    stays = next(pod for pod in pods if small.block_of(pod.addresses[0]) != small.block_of(pods[0].addresses[0]))
    for pod in pods:
        if pod is not stays:
            pod.cni("DEL")
    eventually(lambda: len(owned(small)) <= 2)
    assert stays.check().ok
    assert str(small.block_of(stays.addresses[0])) in owned(small)


def test_a_node_owns_the_block_of_its_number_and_keeps_it_when_pods_are_few(small: SystemLab) -> None:
    assert owned(small) == ["10.244.0.8/29"]
    assert owned(small, "node2") == ["10.244.0.16/29"]
    pods = [small.add() for _ in range(6)]
    eventually(lambda: len(owned(small)) > 1)
    assert "10.244.0.0/29" in owned(small)  # the lowest that nobody has
    for pod in pods:
        pod.cni("DEL")
    eventually(lambda: owned(small) == ["10.244.0.8/29"])


def delete_node(lab: SystemLab, node: str) -> None:
    """Delete a node as `podway delete node` does."""
    lab.store(lambda store: forget_lease(store, node))
    lab.store(lambda store: store.delete(Node, node))


def test_blocks_of_a_removed_node_return() -> None:
    with running_lab(2, [str(POOL)], [29]) as lab:
        lab.kill_agent("node1")
        lab.start_agent_with("node1", housekeeping=0.1)
        cluster.kill_node(lab.name, "node2")
        assert owned(lab, "node2")
        delete_node(lab, "node2")
        eventually(lambda: set(lab.blocks().values()) == {"node1"})


@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
def test_pods_of_a_node_that_was_removed_get_their_blocks_back_if_these_are_free(taken: bool) -> None:
    with running_lab(2, [str(POOL)], [29]) as lab:
        pod, other = lab.add("node1"), lab.add("node2")
        block = lab.block_of(pod.addresses[0])
        lab.kill_agent("node2")
        lab.start_agent_with("node2", housekeeping=0.1)
        lab.kill_agent("node1")
        delete_node(lab, "node1")
        eventually(lambda: block not in lab.blocks())
        if taken:
            thief = lab.new_pod("node2")
            thief.add(args=f"IP={pod.addresses[0]}")
        lab.start_agent("node1")
        assert lab.blocks()[block] == ("node2" if taken else "node1")
        if taken:
            assert "pods here have addresses of another node's block" in lab.log("node1")
            assert lab.block_of(lab.add("node1").addresses[0]) != block
            assert pod.cni("DEL").ok
            assert other.reaches(pod.addresses[0])  # that is the other pod, now
        else:
            eventually(lambda: other.reaches(pod.addresses[0], within=0.2))
            assert pod.check().ok


def test_only_addresses_that_may_be_given_are(small: SystemLab) -> None:
    excluded = ("10.244.0.3", "10.244.0.12/30", "10.244.0.18", "10.244.0.26", "10.244.0.32/27")
    change_pool(small, "ipv4", excluded=excluded)
    try:
        for node in ("node1", "node2"):
            eventually(lambda node=node: all(block["capacity"] < 5 for block in small.status(node)["blocks"]))
        given = {pod.addresses[0] for pod in fill(small)}
        hosts = {ip_address(f"10.244.0.{n}") for start in (0, 8, 16, 24) for n in range(start + 2, start + 7)}
        assert given == hosts - {address for address in hosts for text in excluded if address in ip_network(text)}
    finally:
        change_pool(small, "ipv4", excluded=())


def fill(lab: SystemLab, nodes: tuple[str, ...] = ("node1", "node2")) -> list[PodUnderTest]:
    """Add pods on these nodes at once until each is refused; the pool is exhausted then."""

    def fill_one(node: str) -> list[PodUnderTest]:
        added: list[PodUnderTest] = []
        while True:
            pod = lab.new_pod(node)
            answer = pod.cni("ADD")
            if not answer.ok:
                assert answer.code == Code.POOL_EXHAUSTED, answer.output
                return added
            pod.added = answer
            added.append(pod)

    with ThreadPoolExecutor() as threads:
        return [pod for added in threads.map(fill_one, nodes) for pod in added]


def test_nodes_race_for_blocks_until_the_pool_is_full(small: SystemLab) -> None:
    pods = fill(small)
    addresses = [pod.addresses[0] for pod in pods]
    assert len(addresses) == len(set(addresses)) == 8 * 5
    blocks = small.blocks()
    assert len(blocks) == 8
    for pod in pods:
        assert blocks[small.block_of(pod.addresses[0])] == pod.node
    refused = small.new_pod().cni("ADD")
    assert refused.code == Code.POOL_EXHAUSTED
    count = 5 * len(owned(small))
    for words in ("IPPool/ipv4", "10.244.0.0/26", f"{count} addresses", f"{count} are leased", "add another IPv4"):
        assert words in refused.words
    # One that goes makes room, after its cool-down.
    gone = next(pod for pod in pods if pod.node == "node1")
    gone.cni("DEL")
    cooling = small.new_pod().cni("ADD")
    assert cooling.code == Code.POOL_EXHAUSTED
    assert "1 freed less than 1 s ago" in cooling.words
    late = small.new_pod()
    eventually(lambda: late.cni("ADD").ok)
    assert late.cni("DEL").ok


def test_an_empty_block_of_a_full_pool_goes_to_the_pod_that_waits_for_it(small: SystemLab) -> None:
    fill(small, nodes=("node1",))
    assert len(owned(small, "node2")) == 1, "a node without pods keeps a block for its first one"
    late = small.new_pod("node1")
    eventually(lambda: late.cni("ADD").ok)
    assert owned(small, "node2") == []
    assert len(owned(small, "node1")) == 8
    assert late.cni("DEL").ok


def test_many_adds_at_once_claim_no_more_blocks_than_they_need(small: SystemLab) -> None:
    pods = [small.new_pod() for _ in range(18)]
    with ThreadPoolExecutor(len(pods)) as threads:
        answers = list(threads.map(lambda pod: pod.cni("ADD"), pods))
    assert all(answer.ok for answer in answers)
    assert len({answer.addresses for answer in answers}) == 18
    assert len(owned(small)) <= 5  # four that they fill, and a spare


def test_the_address_freed_longest_ago_is_given_first(small: SystemLab) -> None:
    pods = fill(small, ("node1",))
    first = ip_network(small.status("node1")["blocks"][0]["block"])  # addresses are leased from it before others
    there = [pod for pod in pods if pod.addresses[0] in first]
    order = [there[3], there[0], there[2]]
    for pod in order:
        assert pod.cni("DEL").ok
    eventually(lambda: has_cooled(small, "node1"))
    assert [small.add().addresses for _ in order] == [pod.addresses for pod in order]


@pytest.mark.parametrize("how", ["ips capability", "CNI_ARGS"])
def test_a_wanted_address(small: SystemLab, how: str) -> None:
    def ask(address: Any, node: str = "node1") -> PodUnderTest:
        pod = small.new_pod(node)
        keywords = (
            {"args": f"IP={address}"}
            if how == "CNI_ARGS"
            else {"config": {"runtimeConfig": {"ips": [str(address)]}}}
        )
        pod.added = pod.cni("ADD", **keywords)
        return pod

    mine, other = (ip_network(owned(small, node)[0]) for node in ("node1", "node2"))
    free = ask(mine[4])
    assert free.added is not None
    assert free.addresses == (mine[4],)
    change_pool(small, "ipv4", excluded=(str(mine[5]),))
    eventually(lambda: any(block["capacity"] == 4 for block in small.status("node1")["blocks"]))
    refusals = {
        mine[4]: free.container,
        mine[0]: "reserved",
        mine[1]: "reserved",
        mine[7]: "reserved",
        mine[5]: "excluded",
        ip_address("192.0.2.1"): "outside every IPPool",
        other[4]: "belongs to node node2",
    }
    for address, words in refusals.items():
        answer = ask(address).added
        assert answer is not None
        assert answer.code == Code.ADDRESS_UNAVAILABLE, (address, answer.output)
        assert str(address) in answer.words
        assert words in answer.words
    change_pool(small, "ipv4", excluded=())
    # One in a block that is nobody's yet: the node claims just that block.
    unclaimed = next(block for block in POOL.subnets(new_prefix=29) if block not in small.blocks())
    there = ask(unclaimed[3])
    assert there.addresses == (unclaimed[3],)
    assert small.blocks()[unclaimed] == "node1"
    # A freed address that is asked for needs no cool-down.
    there.cni("DEL")
    assert ask(unclaimed[3]).addresses == (unclaimed[3],)


def test_pools_are_chosen_by_node_and_namespace(small: SystemLab) -> None:
    small.store(lambda store: store.create(Namespace(metadata=Metadata(name="blue", labels={"team": "blue"}))))
    set_labels(small, Node, "node2", tier="gold")
    new_pool(
        small, "gold", "10.245.0.0/26", block_size=29, node_selector=LabelSelector(match_labels={"tier": "gold"})
    )
    new_pool(
        small,
        "blue",
        "10.246.0.0/26",
        block_size=29,
        namespace_selector=LabelSelector(match_labels={"team": "blue"}),
    )
    eventually(lambda: knows_pool(small, "node2", "gold"))
    assert not knows_pool(small, "node1", "gold")
    pools = {"ipv4": POOL, "gold": ip_network("10.245.0.0/26"), "blue": ip_network("10.246.0.0/26")}

    def pool_of(pod: PodUnderTest) -> str:
        return next(name for name, network in pools.items() if pod.addresses[0] in network)

    assert pool_of(small.add("node1")) == "ipv4"
    assert pool_of(small.add("node2")) == "gold"
    assert pool_of(small.add("node1", namespace="blue")) == "blue"
    assert pool_of(small.add("node2", namespace="blue")) == "blue"
    assert pool_of(small.add("node2", config={"ipv4Pools": ["ipv4"]})) == "ipv4"
    # An address of a pool that does not serve this pod cannot be had by asking for it either.
    for wanted in ("10.245.0.60", "10.246.0.60"):
        refused = small.new_pod("node1").cni("ADD", args=f"IP={wanted}")
        assert refused.code == Code.ADDRESS_UNAVAILABLE
        assert "outside every IPPool that serves" in refused.words
    named = small.new_pod("node1").cni("ADD", config={"ipv4Pools": ["gold"]})
    assert named.code == Code.POOL_EXHAUSTED
    assert "IPPool/gold" in named.words
    # All pods of all pools reach each other.
    first, *others = [pod for pod in small.pods if pod.added]
    eventually(lambda: all(first.reaches(pod.addresses[0], within=0.2) for pod in others))
    small.remove_pods()
    for name in ("gold", "blue"):
        remove_pool(small, name)


def test_no_pool_for_a_pod_is_told(small: SystemLab) -> None:
    change_pool(small, "ipv4", disabled=True)
    try:
        eventually(lambda: not small.new_pod().cni("STATUS").ok)
        assert small.new_pod().cni("STATUS").code == Code.NOT_AVAILABLE
        refused = small.new_pod().cni("ADD")
        assert refused.code == Code.POOL_EXHAUSTED
        assert "no IPPool serves pods" in refused.words
        eventually(lambda: not small.blocks())  # a disabled pool's empty blocks return, the first ones too
    finally:
        change_pool(small, "ipv4", disabled=False)
        eventually(lambda: len(small.blocks()) == 2)


@pytest.mark.parametrize(
    "pools", [["fd00:244::/56"], ["10.244.0.0/16", "fd00:244::/56"]], ids=["IPv6", "dual stack"]
)
def test_families(pools: list[str]) -> None:
    with running_lab(2, pools) as lab:
        here, there, neighbour = lab.add("node1"), lab.add("node2"), lab.add("node1")
        assert [address.version for address in here.addresses] == [ip_network(pool).version for pool in pools]
        for pod in (there, neighbour):
            assert all(here.reaches(address) for address in pod.addresses)
