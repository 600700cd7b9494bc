"""The leases by which nodes' agents show that they live, one by one."""

import contextlib

from podway.api.kinds.node_lease import LEASES, LeaseSpec, NodeLease
from podway.api.meta import Metadata
from podway.errors import NotFound, ObjectDamaged
from podway.store.base import Store


async def lease_of(store: Store, node: str) -> NodeLease | None:
    """Return the lease of a node's agent, None if there is none.

    Of one that is rejected, what is right: its version, and who holds it until when, as far as that can be read.
    """
    try:
        return await store.get(NodeLease, node, namespace=LEASES)
    except NotFound:
        return None
    except ObjectDamaged as error:
        found = error.found if isinstance(error.found, NodeLease) else None
    version = found.metadata.resource_version if found else ""
    spec = LeaseSpec() if found is None or any(found.problems()) else found.spec
    return NodeLease(metadata=Metadata(name=node, namespace=LEASES, resource_version=version), spec=spec)


async def forget_lease(store: Store, node: str) -> None:
    """Delete the lease of a node's agent, if there is one, so that a node on another kernel may take the name."""
    with contextlib.suppress(NotFound):
        await store.delete(NodeLease, node, namespace=LEASES)
