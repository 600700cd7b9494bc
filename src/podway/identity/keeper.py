"""The cluster's authorities in the store: made once, replaced in time, by whoever comes first."""

import asyncio
import base64
import random
import uuid
from collections.abc import Awaitable, Callable

import msgspec

from podway.api.kinds.cluster_authority import (
    AUTHORITY,
    KEYS,
    KEYS_SPACE,
    ClusterAuthority,
    ClusterAuthoritySpec,
    KeyedCertificate,
)
from podway.api.kinds.network_config import ChannelSettings
from podway.api.kinds.node_certificate import digest
from podway.api.kinds.secret import Secret
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


async def ensure_apart(
    store: Store, settings: ChannelSettings, now: float, fulfil: Fulfil
) -> ClusterAuthoritySpec:
    """Return the authorities as they should be at `now`, with their private keys, which are kept in a Secret.

    The ClusterAuthority in the store has certificates only. Keys that stand in it, of a Podway whose agents
    signed, move into the Secret. Raises StoreError, and what `fulfil` raises.
    """
    while True:
        stored, secret = await _get(store), await _secret(store)
        spec = stored.spec if stored else ClusterAuthoritySpec(cluster=str(uuid.uuid4()), authorities=())
        spec = rotation.in_force(with_keys(spec, secret), settings.certificate_lifetime_seconds, now)
        if rotation.is_due(spec, settings.authority_lifetime_seconds, now) or not signers(spec).authorities:
            new = await fulfil(AuthorityOrder(spec.cluster, now, settings.authority_lifetime_seconds))
            spec = msgspec.structs.replace(spec, authorities=(*spec.authorities, new))
        try:
            # The key first: an authority that is trusted and cannot sign would be of no use.
            await _keep_keys(store, spec, secret)
            public = ClusterAuthority(metadata=Metadata(name=AUTHORITY), spec=without_keys(spec))
            if stored is None:
                await store.create(public)
            elif stored.spec != public.spec:
                await store.update(msgspec.structs.replace(stored, spec=public.spec))
        except (AlreadyExists, Conflict, NotFound):
            continue  # somebody was quicker
        return spec


async def operators(store: Store, authority: ClusterAuthority) -> ClusterAuthoritySpec:
    """Return the authorities with the keys that whoever asks may read. Raises StoreError."""
    if signers(authority.spec).authorities:
        return authority.spec
    return with_keys(authority.spec, await _secret(store))


def signers(spec: ClusterAuthoritySpec) -> ClusterAuthoritySpec:
    """Return only those authorities whose keys are known."""
    return msgspec.structs.replace(spec, authorities=tuple(one for one in spec.authorities if one.private_key))


def without_keys(spec: ClusterAuthoritySpec) -> ClusterAuthoritySpec:
    """Return what everybody may know of the authorities."""
    bare = tuple(msgspec.structs.replace(one, private_key="") for one in spec.authorities)
    return msgspec.structs.replace(spec, authorities=bare)


def with_keys(spec: ClusterAuthoritySpec, secret: Secret | None) -> ClusterAuthoritySpec:
    """Return the authorities with the keys that are in a Secret."""

    def keyed(one: KeyedCertificate) -> KeyedCertificate:
        name = _key_name(one)
        if one.private_key or secret is None or name not in secret.keys:
            return one
        return msgspec.structs.replace(one, private_key=secret.value(name))

    return msgspec.structs.replace(spec, authorities=tuple(map(keyed, spec.authorities)))


async def _secret(store: Store) -> Secret | None:
    try:
        return await store.get(Secret, KEYS, namespace=KEYS_SPACE)
    except NotFound:
        return None


async def _keep_keys(store: Store, spec: ClusterAuthoritySpec, secret: Secret | None) -> None:
    """Write the keys of these authorities into the Secret, and no others."""
    data = {
        _key_name(one): base64.b64encode(one.private_key.encode()).decode() for one in signers(spec).authorities
    }
    if secret is None:
        await store.create(Secret(metadata=Metadata(name=KEYS, namespace=KEYS_SPACE), data=data))
    elif secret.data != data:
        await store.update(msgspec.structs.replace(secret, data=data))


def _key_name(one: KeyedCertificate) -> str:
    return f"{digest(one.certificate)}.key"
