"""A lab's store, asked from commands that are not asynchronous, and the objects that a lab puts there."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from podway.api.addresses import Family, Network
from podway.api.cluster_rules import check_change
from podway.api.meta import Metadata
from podway.api.resources import (
    AGENT_INSTANCE,
    AGENT_SEEN,
    BgpSettings,
    IPPool,
    IPPoolSpec,
    Namespace,
    NetworkConfig,
    NetworkConfigSpec,
    Node,
    Pod,
    PodStatus,
    Resource,
)
from podway.api.validate import validate
from podway.errors import AlreadyExists, LabError, NotFound
from podway.ipam.claims import give_back_all_of
from podway.lab.paths import lab_store
from podway.store.base import Store
from podway.store.open import open_store

T = TypeVar("T")

BFD_PACKETS_PER_SECOND = 2000
"""What a lab may spend on BFD: 10 nodes at the usual interval, 50 at 1.2 s."""


def ask(lab: str, question: Callable[[Store], Awaitable[T]], *, create: bool = False) -> T:
    """Open the lab's store, have the question answered and close it. Raises StoreError."""

    async def answer() -> T:
        store = open_store(lab_store(lab), create=create)
        try:
            return await question(store)
        finally:
            await store.close()

    return asyncio.run(answer())


def first_objects(
    pools: Sequence[Network], *, nodes: int, block_sizes: Sequence[int], asn: int
) -> tuple[Resource, ...]:
    """Return what the store of a new cluster of so many nodes holds.

    A block size of up to 32 is for the IPv4 pools, a larger one for the IPv6 pools. Raises LabError if a
    block size fits no pool, InvalidObject for what cannot be right.
    """
    sizes = {Family.IPV4 if size <= 32 else Family.IPV6: size for size in block_sizes}
    for family, size in sizes.items():
        if not any(pool.version == family for pool in pools):
            raise LabError(f"block size {size} is one of {family.label}, but no pool is")
    numbered = {family: [pool for pool in pools if pool.version == family] for family in Family}
    bgp = BgpSettings(asn=asn, bfd_interval=_bfd_interval(nodes, families=1 + any(p.version == 6 for p in pools)))
    objects: tuple[Resource, ...] = (
        Namespace(metadata=Metadata(name="default")),
        NetworkConfig(metadata=Metadata(name="default"), spec=NetworkConfigSpec(bgp=bgp)),
        *(
            IPPool(
                metadata=Metadata(name=f"{family.label.lower()}{f'-{number}' if number > 1 else ''}"),
                spec=IPPoolSpec(cidr=str(pool), block_size=sizes.get(family)),
            )
            for family, found in numbered.items()
            for number, pool in enumerate(found, start=1)
        ),
    )
    for obj in objects:
        validate(obj)
        check_change(obj, objects)
    return objects


def _bfd_interval(nodes: int, *, families: int) -> int:
    """Return how often, in milliseconds, each node of a lab sends each other one a BFD packet.

    One machine sends and receives them all: beyond some thousand a second, BIRDs miss each other's packets
    and take live nodes for dead ones.
    """
    sessions = nodes * (nodes - 1) * families
    return max(BgpSettings().bfd_interval, 1000 * sessions // BFD_PACKETS_PER_SECOND)


async def create_all(store: Store, objects: Sequence[Resource]) -> None:
    """Put new objects into the store."""
    for obj in objects:
        await store.create(obj)


async def pods_on(store: Store, node: str) -> tuple[Pod, ...]:
    """Return the pods of a node."""
    return tuple(pod for pod in (await store.list(Pod)).items if pod.spec.node_name == node)


async def mark_pending(store: Store, pods: Sequence[Pod]) -> tuple[Pod, ...]:
    """Note that these pods run no more; return them as stored."""
    return tuple([await store.update(msgspec.structs.replace(pod, status=PodStatus())) for pod in pods])


async def ensure_namespace(store: Store, name: str) -> None:
    """Make a Kubernetes namespace unless it exists."""
    with contextlib.suppress(AlreadyExists):
        await store.create(Namespace(metadata=Metadata(name=name)))


async def remove_node(store: Store, node: str) -> None:
    """Remove a node and give its blocks back. No agent of the node may be running."""
    with contextlib.suppress(NotFound):  # its agent never came so far as to register it
        await store.delete(Node, node)
    await give_back_all_of(store, node)


async def forget_kernel(store: Store, node: str) -> None:
    """Note that the kernel on which the node's agent ran is gone, so that another one may take over."""
    try:
        found = await store.get(Node, node)
    except NotFound:
        return  # its agent never came so far as to register it
    kept = {
        key: value for key, value in found.metadata.annotations.items() if key not in (AGENT_INSTANCE, AGENT_SEEN)
    }
    metadata = msgspec.structs.replace(found.metadata, annotations=kept)
    await store.update(msgspec.structs.replace(found, metadata=metadata))
