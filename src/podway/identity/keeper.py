"""The cluster's authorities in the store: made once, replaced in time, by whoever comes first."""

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable

import msgspec

from podway.api.kinds.cluster_authority import AUTHORITY, ClusterAuthority, ClusterAuthoritySpec, KeyedCertificate
from podway.api.kinds.network_config import ChannelSettings
from podway.api.meta import Metadata
from podway.errors import AlreadyExists, Conflict, NotFound
from podway.identity import rotation
from podway.identity.orders import AuthorityOrder, Order
from podway.store.base import Store

HESITATION = 0.5
"""Seconds at most before a first authority is made: of many agents that start at once, few then do it in vain."""

Fulfil = Callable[[Order], Awaitable[KeyedCertificate]]
"""Makes what is ordered: podway.identity.apart.fulfil, for an agent."""


async def ensure(store: Store, settings: ChannelSettings, now: float, fulfil: Fulfil) -> ClusterAuthority:
    """Return the cluster's authorities as they should be at `now`, having changed the store if need be.

    However many agents do this at once, all return the same. Raises StoreError, and what `fulfil` raises.
    """
    stored = await _get(store)
    if stored is None:
        await asyncio.sleep(random.uniform(0, HESITATION))
        stored = await _get(store)
    while True:
        spec = stored.spec if stored else ClusterAuthoritySpec(cluster=str(uuid.uuid4()), authorities=())
        spec = rotation.in_force(spec, settings.certificate_lifetime_seconds, now)
        if rotation.is_due(spec, settings.authority_lifetime_seconds, now):
            new = await fulfil(AuthorityOrder(spec.cluster, now, settings.authority_lifetime_seconds))
            spec = msgspec.structs.replace(spec, authorities=(*spec.authorities, new))
        try:
            if stored is None:
                return await store.create(ClusterAuthority(metadata=Metadata(name=AUTHORITY), spec=spec))
            if spec == stored.spec:
                return stored
            return await store.update(msgspec.structs.replace(stored, spec=spec))
        except (AlreadyExists, Conflict, NotFound):
            stored = await _get(store)  # somebody was quicker


async def _get(store: Store) -> ClusterAuthority | None:
    try:
        return await store.get(ClusterAuthority, AUTHORITY)
    except NotFound:
        return None
