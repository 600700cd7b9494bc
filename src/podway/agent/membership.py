"""This node's place among the others: its Node object, kept alive, and what removed nodes leave behind."""

import contextlib
import math
import time
from collections.abc import Collection, Mapping

import msgspec
import structlog

from podway.agent.identity import kernel_instance
from podway.api.addresses import Interface
from podway.api.kinds.node import (
    ASN,
    FORMER_INSTANCE,
    FORMER_SEEN,
    INTERFACE_ADDRESSES,
    Node,
    NodeAddress,
    NodeStatus,
)
from podway.api.kinds.node_lease import LEASES, LeaseSpec, NodeLease, micro_time
from podway.api.meta import Metadata
from podway.api.resource import Resource
from podway.api.rules import check_change
from podway.api.validate import problems
from podway.cluster.view import ClusterView
from podway.errors import AlreadyExists, Conflict, NameTaken, NotFound, ObjectDamaged, StoreForbidden
from podway.ipam.claims import give_back_all_of
from podway.store.base import Store
from podway.store.leases import lease_of

log = structlog.get_logger(__name__)

MISSED_HEARTBEATS = 3
"""After so many missed heartbeats a node's old agent counts as gone, and another kernel may take its name."""


class Membership:
    """Registers a node and keeps its registration true."""

    def __init__(self, store: Store, node: str, heartbeat_interval: float) -> None:
        self._store = store
        self._node = node
        self._interval = heartbeat_interval
        self._instance = kernel_instance()
        self._words: dict[str, str] = {}
        self._left: set[str] = set()
        """The removed nodes whose blocks this agent is not allowed to give back."""

    async def check_name(self) -> None:
        """Raise NameTaken as `register`. For an agent that starts: before it looks for its addresses."""
        await self._lease()

    def check(self, addresses: tuple[Interface, ...], others: Collection[Resource]) -> None:
        """Raise InvalidObject if this node overlaps a pool or has another's address.

        For an agent that starts: one that runs has pods to look after, whatever the cluster's objects say.
        """
        check_change(self._registered(Metadata(name=self._node), addresses), others)

    async def register(self, addresses: tuple[Interface, ...]) -> Node | None:
        """Renew this node's lease, and write its object where it is not as it is to be.

        Return it as it was stored, None if it is rejected and nothing of it was the agent's to mend.
        Raises NameTaken if an agent on another kernel is alive under this name.
        """
        await self._renew()
        while True:
            with contextlib.suppress(AlreadyExists, Conflict, NotFound):  # somebody was quicker: look again
                return await self._write(addresses)

    async def announce(self, words: Mapping[str, str]) -> None:
        """Write annotations onto this node's object, and keep them there when it is registered anew.

        Raises StoreError.
        """
        self._words.update(words)
        try:
            await self._store.patch(Node, self._node, {"metadata": {"annotations": dict(words)}})
        except NotFound:
            return  # who registers it again says the same words
        except ObjectDamaged as error:
            if isinstance(error.found, Node):
                await self._rewrite(error.found, words)

    def present(self, view: ClusterView, addresses: tuple[Interface, ...]) -> ClusterView:
        """Return a view that has this node in it, though its object is rejected and no good state is known.

        What the agent writes into it itself is known all the same, and so is the rest, as far as it is right.
        """
        unfit = view.rejected.get((Node.KIND, "", self._node))
        if unfit is None or self._node in view.nodes:
            return view
        readable = unfit.found.metadata if isinstance(unfit.found, Node) else Metadata(name=self._node)
        node = self._registered(_without_asn(readable), addresses)
        if any(problems(node)):
            node = self._registered(Metadata(name=self._node), addresses)
        return msgspec.structs.replace(view.after(view.change(node)), rejected=view.rejected)

    async def _renew(self) -> None:
        """Renew the lease that shows that this agent lives."""
        spec = LeaseSpec(
            holder_identity=self._instance,
            lease_duration_seconds=math.ceil(MISSED_HEARTBEATS * self._interval),
            renew_time=micro_time(time.time()),
        )
        renewed = False
        while not renewed:
            with contextlib.suppress(AlreadyExists, Conflict, NotFound):  # somebody was quicker: look again
                held = await self._lease()
                if held is None:
                    new = NodeLease(metadata=Metadata(name=self._node, namespace=LEASES), spec=spec)
                    await self._store.create(new)
                else:
                    await self._store.update(msgspec.structs.replace(held, spec=spec))
                renewed = True

    async def _lease(self) -> NodeLease | None:
        """Return this node's lease, None if there is none. Raises NameTaken.

        Where none counts, an agent of an older Podway may still tell of its life as it knows to. One that is
        rejected says who holds the name, too, as far as that can be read; the rest of it is left out, so that what
        is written in its place is right.
        """
        held = await lease_of(self._store, self._node)
        self._refuse_if_taken(held if held and held.holds(time.time()) else await self._former_lease())
        return held

    async def _former_lease(self) -> NodeLease | None:
        try:
            return (await self._store.get(Node, self._node)).former_lease
        except NotFound:
            return None
        except ObjectDamaged as error:
            return error.found.former_lease if isinstance(error.found, Node) else None

    async def _write(self, addresses: tuple[Interface, ...]) -> Node | None:
        """Write this node's object as far as it is not as it is to be; return it as `register` does."""
        try:
            current = await self._store.get(Node, self._node)
        except NotFound:
            return await self._store.create(self._registered(Metadata(name=self._node), addresses))
        except ObjectDamaged as error:
            found = error.found if isinstance(error.found, Node) else Node(metadata=Metadata(name=self._node))
            registered = self._registered(found.metadata, addresses)
            if registered == error.found:
                return None  # what is wrong with it is not the agent's, and stays
            return await self._store.update(registered)
        # A kubelet observes its node itself, and would write its own again.
        status = current.status if current.status.node_info.kubelet_version else self._status(addresses)
        # Others act on what they read between the two writes. An address without its subnet would be one that a
        # router leads to: subnets come before the addresses in them, and go after these.
        fewer = set(status.addresses) < set(current.status.addresses)
        if fewer:
            await self._write_status(status)
        # Only what is the agent's own: others may have written theirs since this was read.
        annotations = {**self._annotations(addresses), **dict.fromkeys((FORMER_INSTANCE, FORMER_SEEN))}
        written = await self._store.patch(Node, self._node, {"metadata": {"annotations": annotations}})
        if status != current.status and not fewer:
            written = await self._write_status(status)
        return written

    async def _write_status(self, status: NodeStatus) -> Node:
        return await self._store.patch_status(Node, self._node, {"status": msgspec.to_builtins(status)})

    async def _rewrite(self, found: Node, words: Mapping[str, str]) -> None:
        annotations = {**found.metadata.annotations, **words}
        metadata = msgspec.structs.replace(found.metadata, annotations=annotations)
        with contextlib.suppress(Conflict, NotFound):  # the words are said again with the next registration
            await self._store.update(msgspec.structs.replace(found, metadata=metadata))

    async def give_back_blocks_of_removed_node(self, node: str, view: ClusterView, gone: float) -> None:
        """Return to their pools the blocks of a node that this view lacks for so many seconds, and the store, too.

        A node whose agent lives is there again in a moment, so nobody does it at once. Every agent would do it, so
        the first in name order does, and the others only after they waited a second for each node before them.
        """
        rank = sorted(view.nodes).index(self._node) if self._node in view.nodes else len(view.nodes)
        if gone > rank and node not in self._left:
            try:
                await give_back_all_of(self._store, node)
            except StoreForbidden as error:
                self._left.add(node)
                log.warning(
                    "the blocks of a removed node are for others to give back", gone=node, problem=str(error)
                )

    def _refuse_if_taken(self, lease: NodeLease | None) -> None:
        now = time.time()
        if lease is None or lease.renewed is None or lease.spec.holder_identity == self._instance:
            return
        if lease.holds(now):
            raise NameTaken(
                f"Node/{self._node}: an agent on another machine runs under this name (seen "
                f"{max(0.0, now - lease.renewed):.0f} s ago)",
                hint="give each node its own --node name, or stop the other agent and try again in "
                f"{lease.spec.lease_duration_seconds} s",
            )

    def _registered(self, metadata: Metadata, addresses: tuple[Interface, ...]) -> Node:
        annotations = {**metadata.annotations, **self._annotations(addresses)}
        return Node(
            metadata=msgspec.structs.replace(metadata, annotations=annotations), status=self._status(addresses)
        )

    def _annotations(self, addresses: tuple[Interface, ...]) -> dict[str, str]:
        """Return the annotations of this node's object that are the agent's own."""
        return {**self._words, INTERFACE_ADDRESSES: ",".join(map(str, addresses))}

    def _status(self, addresses: tuple[Interface, ...]) -> NodeStatus:
        return NodeStatus(
            addresses=(
                NodeAddress(type="Hostname", address=self._node),
                *(NodeAddress(type="InternalIP", address=str(address.ip)) for address in addresses),
            )
        )


def _without_asn(metadata: Metadata) -> Metadata:
    annotations = {name: text for name, text in metadata.annotations.items() if name != ASN}
    return msgspec.structs.replace(metadata, annotations=annotations)
