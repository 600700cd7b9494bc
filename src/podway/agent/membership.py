"""This node's place among the others: its Node object, kept alive, and what removed nodes leave behind."""

import contextlib
import math
import time
from collections.abc import Collection, Iterable, Mapping

import msgspec
import structlog

from podway.agent.identity import kernel_instance
from podway.api.addresses import Interface
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.node import (
    AGENT_INSTANCE,
    AGENT_SEEN,
    ASN,
    INTERFACE_ADDRESSES,
    Node,
    NodeAddress,
    NodeStatus,
)
from podway.api.meta import Metadata
from podway.api.resource import Resource
from podway.api.rules import check_change
from podway.api.validate import problems
from podway.cluster.view import ClusterView
from podway.errors import AlreadyExists, Conflict, NameTaken, NotFound, ObjectDamaged
from podway.ipam.claims import give_back_all_of
from podway.store.base import Store

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

    def check_name(self, others: Iterable[Resource]) -> None:
        """Raise NameTaken as `register`. For an agent that starts: before it looks for its addresses."""
        for other in others:
            if isinstance(other, Node) and other.metadata.name == self._node:
                self._refuse_if_taken(other)

    def check(self, addresses: tuple[Interface, ...], others: Collection[Resource]) -> None:
        """Raise InvalidObject if this node overlaps a pool or has another's address.

        For an agent that starts: one that runs has pods to look after, whatever the cluster's objects say.
        """
        check_change(self._registered(Metadata(name=self._node), addresses), others)

    async def register(self, addresses: tuple[Interface, ...]) -> Node:
        """Write (or refresh) this node's object with its addresses; return it as stored.

        Raises NameTaken if an agent on another kernel is alive under this name.
        """
        while True:
            current = await self._stored()
            if current is not None:
                self._refuse_if_taken(current)
            node = self._registered(current.metadata if current else Metadata(name=self._node), addresses)
            try:
                return await (self._store.update(node) if current else self._store.create(node))
            except (AlreadyExists, Conflict):
                continue  # somebody was quicker: look again

    async def announce(self, words: Mapping[str, str]) -> None:
        """Write annotations onto this node's object, and keep them there when it is registered anew.

        Raises StoreError.
        """
        self._words.update(words)
        # Without the node's object there is nothing to write: who registers it again says the same words.
        while (current := await self._stored()) is not None:
            annotations = {**current.metadata.annotations, **words}
            metadata = msgspec.structs.replace(current.metadata, annotations=annotations)
            with contextlib.suppress(Conflict, NotFound):  # somebody was quicker: look again
                if metadata != current.metadata:
                    await self._store.update(msgspec.structs.replace(current, metadata=metadata))
                return

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

    async def _stored(self) -> Node | None:
        """Return this node's object, or what can be read of one that is rejected; None if there is none."""
        try:
            return await self._store.get(Node, self._node)
        except NotFound:
            return None
        except ObjectDamaged as error:
            return error.found if isinstance(error.found, Node) else Node(metadata=Metadata(name=self._node))

    async def give_back_blocks_of_removed_nodes(self, view: ClusterView, patience: float) -> list[AddressBlock]:
        """Return to their pools the blocks whose node is gone; return those blocks.

        Every agent would do this, so the first in name order does it and the others only after it had
        `patience` seconds for each node before them.
        """
        rank = sorted(view.nodes).index(self._node) if self._node in view.nodes else len(view.nodes)
        if patience < rank:
            return []
        gone = {block.spec.node for block in view.blocks.values()} - view.registered
        return [block for node in sorted(gone) for block in await give_back_all_of(self._store, node)]

    def _refuse_if_taken(self, current: Node) -> None:
        notes = current.metadata.annotations
        other = notes.get(AGENT_INSTANCE, self._instance)
        seen = notes.get(AGENT_SEEN, "")
        known = seen.isascii() and seen.isdecimal() and len(seen) < 20
        silent = time.time() - int(seen) if known else math.inf
        # Clocks differ a little; a time that lies further ahead is the word of one that was wrong.
        if other != self._instance and abs(silent) < MISSED_HEARTBEATS * self._interval:
            raise NameTaken(
                f"Node/{self._node}: an agent on another machine runs under this name (seen "
                f"{max(0.0, silent):.0f} s ago)",
                hint="give each node its own --node name, or stop the other agent and try again in "
                f"{MISSED_HEARTBEATS * self._interval:.0f} s",
            )

    def _registered(self, metadata: Metadata, addresses: tuple[Interface, ...]) -> Node:
        annotations = {
            **metadata.annotations,
            **self._words,
            INTERFACE_ADDRESSES: ",".join(str(address) for address in addresses),
            AGENT_INSTANCE: self._instance,
            AGENT_SEEN: f"{time.time():.0f}",
        }
        return Node(
            metadata=msgspec.structs.replace(metadata, annotations=annotations),
            status=NodeStatus(
                addresses=(
                    NodeAddress(type="Hostname", address=self._node),
                    *(NodeAddress(type="InternalIP", address=str(address.ip)) for address in addresses),
                )
            ),
        )


def _without_asn(metadata: Metadata) -> Metadata:
    annotations = {name: text for name, text in metadata.annotations.items() if name != ASN}
    return msgspec.structs.replace(metadata, annotations=annotations)
