"""Which of the objects that others wrote hold beside each other: what CEL and a single look cannot judge. Pure.

`podway apply` refuses what contradicts the rest. `kubectl apply` and two people at once go round that, so what is
stored may contradict itself, and then somebody has to say who is wrong. It follows from the objects alone, so that
the controller, which says it in conditions, and every agent, which sets aside what does not hold, come to the same
answer, whatever they saw before: what is in use holds before what is not, and then what was there first.

Only pools are set aside, and of the settings a change that contradicts a pool. Of two BGPPeers at one address
nodes leave one out (podway.plan.outside); of what else is wrong with one only its status tells.
"""

import socket
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Literal

import msgspec

from podway.api.checked import RejectedObject
from podway.api.kinds import KINDS
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.bgp_peer import BGPPeer
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.node import Node
from podway.api.resource import Key, Resource, key, of_kind, subject
from podway.api.rules import addressing, bgp, nat
from podway.errors import InvalidObject

Reason = Literal["Accepted", "Invalid", "Overlaps", "InUse", "Contradicts"]
"""Why an object holds or not, in one word: by its own fields, by ranges, by blocks that nodes own, by settings."""


JUDGED_BY: tuple[type[Resource], ...] = (IPPool, NetworkConfig, BGPPeer, AddressBlock, Node)
"""The kinds that verdicts are of, and those that they follow from besides."""


class Verdict(msgspec.Struct, frozen=True):
    """Whether an object holds, why, and in words what to do about it."""

    reason: Reason = "Accepted"
    message: str = "nothing contradicts it"

    @property
    def accepted(self) -> bool:
        """Whether the object holds."""
        return self.reason == "Accepted"


def judge(resources: Collection[Resource], rejected: Iterable[RejectedObject] = ()) -> dict[Key, Verdict]:
    """Return the verdict on each pool, peer and NetworkConfig.

    `resources` are all objects of these kinds and of Node and AddressBlock, `rejected` those that are wrong
    by themselves.
    """
    verdicts = {
        one.key: Verdict("Invalid", f"{one.problem}; write a right one in its place")
        for one in rejected
        if one.key[0] in KINDS and KINDS[one.key[0]].JUDGED
    }
    # By name: what is said of an object names the first that it contradicts, on every node the same.
    blocks = Blocks(sorted(of_kind(AddressBlock, resources), key=_name))
    nodes = sorted(of_kind(Node, resources), key=_name)
    holding: list[Resource] = []
    ranged = [obj for obj in resources if isinstance(obj, IPPool | NetworkConfig)]
    for obj in sorted(ranged, key=partial(_rank, blocks)):
        verdict = _verdict(obj, _checks(obj, holding, nodes, blocks))
        verdicts[key(obj)] = verdict
        if verdict.accepted:
            holding.append(obj)
    peers: list[Resource] = []
    for peer in sorted(of_kind(BGPPeer, resources), key=partial(_rank, blocks)):
        beside = (*peers, *nodes, *holding)
        check: Callable[[], None] = partial(bgp.check_change, peer, beside, None)
        verdicts[key(peer)] = _verdict(peer, [("Contradicts", check)])
        if verdicts[key(peer)].accepted:
            peers.append(peer)
    return verdicts


class Blocks:
    """The blocks that nodes own, by the pool whose they are."""

    def __init__(self, blocks: Iterable[AddressBlock]) -> None:
        self._of: dict[str, list[AddressBlock]] = {}
        for block in blocks:
            self._of.setdefault(block.spec.pool, []).append(block)

    def used(self, pool: IPPool) -> bool:
        """Tell whether a node owns a block that is one of the pool as it is."""
        fits = _fitting(pool)
        return any(fits(block) for block in self._of.get(pool.metadata.name, ()))

    def misfits(self, pool: IPPool) -> tuple[AddressBlock, ...]:
        """Return the blocks of the pool that are none of what it is now."""
        fits = _fitting(pool)
        return tuple(block for block in self._of.get(pool.metadata.name, ()) if not fits(block))

    def of_others(self, pool: IPPool) -> Iterable[AddressBlock]:
        """Return the blocks of other pools."""
        return (block for name, blocks in self._of.items() if name != pool.metadata.name for block in blocks)


def _fitting(pool: IPPool) -> Callable[[AddressBlock], bool]:
    """Return what tells whether a pool is cut so that a block is one of it.

    It reads the text: to make networks of thousands of blocks takes longer than a loop may be at work.
    """
    if pool.for_services:
        return lambda _: False
    family, prefix = pool.family, str(pool.block_prefix)
    shift = family.bits - pool.network.prefixlen
    head = int(pool.network.network_address) >> shift

    def fits(block: AddressBlock) -> bool:
        address, _, length = block.spec.cidr.partition("/")
        if length != prefix or (":" in address) is not (family == 6):
            return False
        return int.from_bytes(socket.inet_pton(family.af, address)) >> shift == head

    return fits


def _name(obj: Resource) -> str:
    return obj.metadata.name


def _rank(blocks: Blocks, obj: Resource) -> tuple[bool, str, str, str]:
    used = isinstance(obj, IPPool) and blocks.used(obj)
    return (not used, obj.metadata.creation_timestamp, obj.KIND, obj.metadata.name)


_Checks = Iterable[tuple[Reason, Callable[[], None]]]


def _verdict(obj: Resource, checks: _Checks) -> Verdict:
    for reason, check in checks:
        try:
            check()
        except InvalidObject as error:
            told = error.message.removeprefix(f"{subject(key(obj))}: ")
            return Verdict(reason, f"{told}; {error.hint}" if error.hint else told)
    return Verdict()


def _checks(
    obj: IPPool | NetworkConfig, holding: Sequence[Resource], nodes: Sequence[Node], blocks: Blocks
) -> _Checks:
    if isinstance(obj, NetworkConfig):
        for pool in of_kind(IPPool, holding):
            yield "Contradicts", partial(addressing.check_mtu, obj, pool, blamed=obj)
            yield "Overlaps", partial(nat.check_services, obj, pool, blamed=obj)
        return
    yield "InUse", partial(addressing.check_blocks_fit, obj, blocks.misfits(obj))
    for other in of_kind(IPPool, holding):
        yield "Overlaps", partial(addressing.check_apart, obj, other)
        yield "Contradicts", partial(addressing.check_attach, obj, other)
    for config in of_kind(NetworkConfig, holding):
        yield "Overlaps", partial(nat.check_services, config, obj, blamed=obj)
        yield "Contradicts", partial(addressing.check_mtu, config, obj, blamed=obj)
    if not blocks.used(obj):  # one that is in use was there before any node that came into its range
        yield "Overlaps", partial(addressing.check_beside_blocks, obj, tuple(blocks.of_others(obj)))
        for node in nodes:
            # A node that comes into Services' range takes no address from those that have one.
            if not obj.for_services or node.metadata.creation_timestamp <= obj.metadata.creation_timestamp:
                yield "Overlaps", partial(addressing.check_pool_beside_node, obj, node, blamed=obj)
