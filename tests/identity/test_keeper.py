"""The authorities in the store: many make them at once, and one is made."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from podway.api.decode import decode
from podway.api.encode import to_builtins, to_json
from podway.api.kinds.cluster_authority import AUTHORITY, KEYS, KEYS_SPACE, ClusterAuthority, KeyedCertificate
from podway.api.kinds.network_config import ChannelSettings
from podway.api.kinds.secret import Secret
from podway.api.meta import REDACTED, Metadata
from podway.api.validate import validate
from podway.errors import InvalidObject
from podway.identity import certificates, keeper
from podway.identity.orders import Order
from podway.store.open import open_store
from tests.identity.authorities import authority, spec

SETTINGS = ChannelSettings()

RACER = """
import asyncio, sys, time
from podway.api.kinds.network_config import ChannelSettings
from podway.identity import apart, keeper
from podway.store.open import open_store

keeper.HESITATION = 0

async def race():
    store = open_store(sys.argv[1])
    found = await keeper.ensure(store, ChannelSettings(), time.time(), apart.fulfil)
    await store.close()
    print(found.spec.cluster, len(found.spec.authorities))

asyncio.run(race())
"""


async def _here(order: Order) -> KeyedCertificate:
    return certificates.fulfil(order)


def test_agents_that_race_agree_on_one_authority(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/store.db"
    command = [sys.executable, "-c", RACER, url]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = {racer.communicate(timeout=60)[0] for racer in racers}
    assert len(said) == 1
    assert said.pop().endswith(" 1\n")
    assert (tmp_path / "store.db").stat().st_mode & 0o077 == 0


def test_the_old_authority_stays_beside_the_new_one_until_its_certificates_ended(tmp_path: Path) -> None:
    async def live() -> list[tuple[KeyedCertificate, ...]]:
        store = open_store(f"sqlite://{tmp_path}/store.db")
        begin, seen = time.time(), []
        for days in (0, 100, 250, 251, 254):
            now = begin + days * 24 * 3600
            seen.append((await keeper.ensure(store, SETTINGS, now, _here)).spec.authorities)
        await store.close()
        return seen

    first, unchanged, both, still_both, second = asyncio.run(live())
    assert first == unchanged == both[:1]
    assert both == still_both
    assert second == both[1:]


def test_private_keys_are_shown_to_nobody_and_not_taken_back_redacted() -> None:
    key = authority()
    shown = to_json(to_builtins(ClusterAuthority(metadata=Metadata(name=AUTHORITY), spec=spec(key))))
    assert key.private_key not in shown
    assert key.private_key.splitlines()[1] not in shown
    assert REDACTED in shown
    (manifest,) = decode(shown, source="shown")
    with pytest.raises(InvalidObject, match=r"spec\.authorities\[0\]\.privateKey: is redacted"):
        validate(manifest.resource)


def test_an_authority_must_outlive_its_certificates_several_times() -> None:
    from podway.api.kinds.network_config import NetworkConfig, NetworkConfigSpec

    channel = msgspec.structs.replace(SETTINGS, authority_lifetime_seconds=5 * 24 * 3600)
    config = NetworkConfig(metadata=Metadata(name="default"), spec=NetworkConfigSpec(channel=channel))
    with pytest.raises(InvalidObject, match="authorityLifetimeSeconds: 432000 is too short"):
        validate(config)


def test_keys_are_kept_apart_from_what_everybody_may_know(tmp_path: Path) -> None:
    """Those that stood in the object move; one whose key is lost stays trusted, and another one signs."""

    async def scenario() -> None:
        store = open_store(f"sqlite://{tmp_path}/store.db")
        now = time.time()
        former = await keeper.ensure(store, SETTINGS, now, _here)
        (key,) = (one.private_key for one in former.spec.authorities)
        assert (await keeper.ensure_apart(store, SETTINGS, now, _here)).authorities[0].private_key == key
        stored = await store.get(ClusterAuthority, AUTHORITY)
        assert stored.spec == keeper.without_keys(former.spec)
        secret = await store.get(Secret, KEYS, namespace=KEYS_SPACE)
        assert await keeper.operators(store, stored) == former.spec
        assert (await keeper.ensure_apart(store, SETTINGS, now, _here)) == former.spec
        again = await store.get(Secret, KEYS, namespace=KEYS_SPACE)
        assert again.metadata.resource_version == secret.metadata.resource_version, "nothing was written"
        await store.delete(Secret, KEYS, namespace=KEYS_SPACE)
        mended = await keeper.ensure_apart(store, SETTINGS, now, _here)
        assert [bool(one.private_key) for one in mended.authorities] == [False, True]
        assert mended.authorities[0].certificate == former.spec.authorities[0].certificate
        assert len(keeper.signers(mended).authorities) == 1
        await store.close()

    asyncio.run(scenario())


def test_several_that_keep_keys_apart_agree(tmp_path: Path) -> None:
    async def scenario() -> None:
        stores = [open_store(f"sqlite://{tmp_path}/store.db") for _ in range(3)]
        now = time.time()
        found = await asyncio.gather(*(keeper.ensure_apart(store, SETTINGS, now, _here) for store in stores))
        stored = await stores[0].get(ClusterAuthority, AUTHORITY)
        last = await keeper.ensure_apart(stores[0], SETTINGS, now, _here)
        assert keeper.without_keys(last) == stored.spec
        assert keeper.signers(last).authorities
        for store in stores:
            await store.close()
        assert found

    asyncio.run(scenario())
