"""A lab's store, asked from commands that are not asynchronous, and the objects that a lab puts there."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import msgspec

from podway.api.addresses import Family, Network
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.bgp_peer import BGPPeer, BGPPeerSpec
from podway.api.kinds.ip_pool import Attach, Distribution, Encapsulation, IPPool, IPPoolSpec, When
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.network_config import (
    BgpSettings,
    DataPath,
    NetworkConfig,
    NetworkConfigSpec,
    ServiceClients,
)
from podway.api.kinds.node import ASN, RACK, Node
from podway.api.kinds.pod import Pod, PodStatus
from podway.api.meta import LabelSelector, Metadata
from podway.api.resource import Resource
from podway.api.rules import check_change
from podway.api.validate import validate
from podway.errors import AlreadyExists, InvalidArgument, NeedsRoot, NotFound
from podway.ipam.claims import give_back_all_of
from podway.kernel import netns
from podway.lab import names
from podway.lab.fabric import Fabric, Tor, node_asn, rack_label, tor_asn
from podway.lab.names import tor as tor_name
from podway.lab.paths import admin_config, lab_store
from podway.lab.state import LabNode
from podway.plan.bgp import Bfd
from podway.store.base import Store
from podway.store.etcd.access import is_etcd, read_url
from podway.store.leases import forget_lease
from podway.store.open import open_store

if TYPE_CHECKING:
    from podway.store.kubernetes.access import Access

T = TypeVar("T")

DATA_PATH = "PODWAY_LAB_DATA_PATH"
"""The environment variable that says which data path new labs have of which nobody says it."""

BFD_PACKETS_PER_SECOND = 2000
"""What a lab may spend on BFD: 10 nodes at the usual interval, 50 at 1.2 s."""


class PoolSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the pools of a new lab have in common: distribution, encapsulation and attachment."""

    distribution: Distribution = "bgp"
    encapsulation: Encapsulation = "none"
    when: When = "always"
    attach: Attach = "routed"

    def of(self, family: Family) -> "PoolSettings":
        """Return the settings of the pools of one family: IPIP carries IPv4 only, IPv6 goes bare."""
        if self.encapsulation == "ipip" and family is not Family.IPV4:
            return msgspec.structs.replace(self, encapsulation="none", when="always")
        return self


def open_lab_store(lab: str, *, create: bool = False) -> Store:
    """Open the lab's store; servers (a Kubernetes API, etcd) are asked from within their namespace.

    Raises StoreError and NeedsRoot.
    """
    url = lab_store(lab)
    if admin_config(lab).exists():
        from podway.store.kubernetes.store import KubernetesStore

        return KubernetesStore(lambda: lab_access(lab), sockets=lab_sockets(lab))
    if is_etcd(url):
        from podway.store.etcd.store import EtcdStore

        return EtcdStore(read_url(url), sockets=lab_sockets(lab))
    return open_store(url, create=create)


def lab_access(lab: str) -> "Access":
    """Return where the API of a lab is that is a Kubernetes, as its administrator. Raises StoreUnavailable."""
    from podway.store.kubernetes.access import read_kubeconfig

    return read_kubeconfig(admin_config(lab))


def lab_sockets(lab: str) -> Callable[[Any], socket.socket]:
    """Return what makes sockets where the servers of a lab's store are. Raises NeedsRoot."""
    from podway.store.connections import plain_socket

    if os.geteuid() != 0:
        raise NeedsRoot(f"asking the store of lab {lab} in its network namespace")

    def inside(address: Any) -> socket.socket:
        with netns.opened(netns.path_of(names.control_netns(lab))) as fd:
            return netns.run(fd, lambda: plain_socket(address))

    return inside


def ask(lab: str, question: Callable[[Store], Awaitable[T]], *, create: bool = False) -> T:
    """Open the lab's store, have the question answered and close it. Raises StoreError."""

    async def answer() -> T:
        store = open_lab_store(lab, create=create)
        try:
            return await question(store)
        finally:
            await store.close()

    return asyncio.run(answer())


def first_objects(
    pools: Sequence[Network],
    *,
    nodes: int,
    block_sizes: Sequence[int],
    asn: int,
    pool_settings: PoolSettings,
    tor: Tor,
    families: int,
    services: ServiceClients = "off",
    data_path: DataPath | None = None,
) -> tuple[Resource, ...]:
    """Return what the store of a new cluster of so many nodes holds; the nodes have so many families.

    A block size of up to 32 is for the IPv4 pools, a larger one for the IPv6 pools. With BGP on the routers,
    nodes have sessions with those instead of each other. Raises InvalidArgument if a block size fits no pool, or
    if Services cannot be served by the data path.
    """
    sizes = {Family.IPV4 if size <= 32 else Family.IPV6: size for size in block_sizes}
    for family, size in sizes.items():
        if not any(pool.version == family for pool in pools):
            raise InvalidArgument(
                f"--block-size {size} is one of {family.label}, but no pool is",
                hint="leave it out, or name such a --pool",
            )
    numbered = {family: [pool for pool in pools if pool.version == family] for family in Family}
    sessions = (nodes - 1 if tor == "none" else 2) * nodes * families
    bgp = BgpSettings(asn=asn, topology="auto" if tor == "none" else "none", bfd_interval=_bfd_interval(sessions))
    spec = NetworkConfigSpec(bgp=bgp, services=services, data_path=_data_path(data_path, services))
    return (
        Namespace(metadata=Metadata(name="default")),
        NetworkConfig(metadata=Metadata(name="default"), spec=spec),
        *(
            IPPool(
                metadata=Metadata(name=f"{family.label.lower()}{f'-{number}' if number > 1 else ''}"),
                spec=IPPoolSpec(
                    cidr=str(pool),
                    block_size=sizes.get(family),
                    **msgspec.structs.asdict(pool_settings.of(family)),
                ),
            )
            for family, found in numbered.items()
            for number, pool in enumerate(found, start=1)
        ),
    )


def _data_path(chosen: DataPath | None, services: ServiceClients) -> DataPath:
    """Return a new lab's data path: what was chosen, else what Services need, else what the environment says."""
    if services != "off":
        if chosen == "kernel":
            raise InvalidArgument(
                "--services needs the flow engine, and --data-path is kernel",
                hint="leave --data-path out, or write --services off",
            )
        return chosen or "ebpf"
    usual = os.environ.get(DATA_PATH)
    try:
        found: DataPath = chosen or (msgspec.convert(usual, DataPath) if usual else NetworkConfigSpec().data_path)
    except msgspec.ValidationError:
        raise InvalidArgument(
            f"{DATA_PATH}={usual} is no data path", hint=f"choose of {', '.join(get_args(DataPath))}, or unset it"
        ) from None
    return found


def check(objects: Sequence[Resource]) -> None:
    """Check objects that shall be a new cluster. Raises InvalidObject for what cannot be right."""
    for obj in objects:
        validate(obj)
        check_change(obj, objects)


def node_object(node: str, place: LabNode, tor: Tor) -> Node:
    """Return a node's object as a kubelet registers it, before the node's agent writes its part."""
    annotations = {ASN: str(node_asn(place.index))} if tor != "none" else {}
    return Node(metadata=Metadata(name=node, labels={RACK: rack_label(place.rack)}, annotations=annotations))


def router_peers(fabric: Fabric) -> tuple[BGPPeer, ...]:
    """Return the sessions that the nodes of each rack have with their router, one of each family."""
    return tuple(
        BGPPeer(
            metadata=Metadata(name=f"{tor_name(rack)}-{Family.of(gateway).label.lower()}"),
            spec=BGPPeerSpec(
                address=str(gateway.ip),
                asn=tor_asn(rack),
                node_selector=LabelSelector(match_labels={RACK: rack_label(rack)}),
                bfd=True,
            ),
        )
        for rack in fabric.numbers
        for gateway in fabric.gateways(rack)
    )


def _bfd_interval(sessions: int) -> int:
    """Return how often, in milliseconds, a lab's nodes send BFD packets in so many sessions, ends counted.

    One machine sends and receives them all: beyond some thousand a second, BIRDs miss each other's packets
    and take live nodes for dead ones.
    """
    return max(BgpSettings().bfd_interval, 1000 * sessions // BFD_PACKETS_PER_SECOND)


async def create_all(store: Store, objects: Sequence[Resource]) -> None:
    """Put new objects into the store."""
    for obj in objects:
        await store.create(obj)


async def pods_on(store: Store, node: str) -> tuple[Pod, ...]:
    """Return the pods of a node."""
    return tuple(pod for pod in (await store.list(Pod)).items if pod.spec.node_name == node)


async def families_without_block(store: Store, node: str) -> tuple[Family, ...]:
    """Return the families that have pools, but of which a node owns no block."""
    pools, blocks = (await store.list(IPPool)).items, (await store.list(AddressBlock)).items
    owned = {Family.of(block.network) for block in blocks if block.spec.node == node}
    return tuple(sorted({pool.family for pool in pools if not pool.for_services} - owned))


async def mark_pending(store: Store, pods: Sequence[Pod]) -> tuple[Pod, ...]:
    """Note that these pods run no more; return them as stored."""
    return tuple([await store.update_status(msgspec.structs.replace(pod, status=PodStatus())) for pod in pods])


async def ensure_namespace(store: Store, name: str) -> None:
    """Make a Kubernetes namespace unless it exists."""
    with contextlib.suppress(AlreadyExists):
        await store.create(Namespace(metadata=Metadata(name=name)))


async def bfd_settings(store: Store) -> Bfd:
    """Return how fast the cluster's BFD sessions are."""
    (config,) = (await store.list(NetworkConfig)).items
    return Bfd(config.spec.bgp.bfd_interval, config.spec.bgp.bfd_multiplier)


async def remove_node(store: Store, node: str) -> None:
    """Remove a node and give its blocks back. No agent of the node may be running."""
    with contextlib.suppress(NotFound):  # its agent never came so far as to register it
        await store.delete(Node, node)
    await forget_lease(store, node)
    await give_back_all_of(store, node)
