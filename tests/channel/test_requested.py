"""A node's certificate where agents do not sign: asked for, waited for, and renewed in time."""

import asyncio
import time
from typing import Any

import pytest

from podway.api.kinds.network_config import ChannelSettings
from podway.api.kinds.node_certificate import NodeCertificate
from podway.api.resource import Resource
from podway.channel import certificate
from podway.channel.certificate import Credential
from podway.controller.signing import Signing
from podway.errors import AgentError
from podway.identity.orders import node_uri
from podway.store.memory import MemoryCluster, MemoryStore

SETTINGS = ChannelSettings()


class Counting(MemoryStore):
    """A store that counts what it is asked."""

    asked = 0

    async def get(self, kind: type[Resource], name: str, *, namespace: str = "") -> Any:
        self.asked += 1
        return await super().get(kind, name, namespace=namespace)


async def answer(store: MemoryStore, now: float) -> None:
    """Do what the controller does."""
    signing = Signing(store)
    await signing.keep(SETTINGS, now)
    for one in (await store.list(NodeCertificate)).items:
        await signing.answer(one, now)


def test_thousands_that_wait_for_a_controller_ask_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "AT_ONCE", 0.0)

    async def scenario() -> None:
        store = Counting(MemoryCluster())
        waiting = Credential(store, "n1", requested=True)
        for _ in range(5):
            with pytest.raises(AgentError, match="no certificate authority yet"):
                await waiting.keep(SETTINGS)
        assert store.asked == 1
        await answer(store, time.time())
        other = Credential(store, "n1", requested=True)
        store.asked = 0
        for _ in range(5):
            with pytest.raises(AgentError, match="the controller has not signed it yet"):
                await other.keep(SETTINGS)
        assert store.asked == 2, "the authority, and its own object"

    asyncio.run(scenario())


def test_the_old_certificate_serves_until_the_new_one_is_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate, "AT_ONCE", 0.0)
    monkeypatch.setattr(certificate, "FIRST_WAIT", 0.0)

    async def scenario() -> None:
        store = MemoryStore(MemoryCluster())
        credential = Credential(store, "n1", requested=True)
        made = time.time()
        await answer(store, made)
        with pytest.raises(AgentError):
            await credential.keep(SETTINGS)
        await answer(store, made)
        await credential.keep(SETTINGS)
        first = credential.credentials
        assert first is not None
        # The first renewal is due, and nobody signs it.
        monkeypatch.setattr(time, "time", lambda: made + 17 * 3600)
        await credential.keep(SETTINGS)
        assert credential.credentials == first
        await answer(store, made + 17 * 3600)
        await credential.keep(SETTINGS)
        second = credential.credentials
        assert second is not None
        assert second.certificate.not_after > first.certificate.not_after
        assert second.certificate.private_key != first.certificate.private_key
        assert second.cluster == first.cluster
        assert node_uri(second.cluster, "n1").endswith("/node/n1")
        # The next one is due and ends, and nobody signs: that is told.
        monkeypatch.setattr(time, "time", lambda: made + 48 * 3600)
        with pytest.raises(AgentError, match="this node has no certificate: the controller has not signed it yet"):
            await credential.keep(SETTINGS)

    asyncio.run(scenario())


def test_who_was_refused_asks_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that was answered once is answered no more."""
    monkeypatch.setattr(certificate, "AT_ONCE", 0.0)
    monkeypatch.setattr(certificate, "FIRST_WAIT", 0.0)

    async def scenario() -> None:
        store = MemoryStore(MemoryCluster())
        credential = Credential(store, "n1", requested=True)
        await Signing(store).keep(SETTINGS, time.time())
        with pytest.raises(AgentError):
            await credential.keep(SETTINGS)
        (first,) = (await store.list(NodeCertificate)).items
        refusal = {"requestDigest": first.digest, "problem": "the authority's key is broken"}
        await store.patch_status(NodeCertificate, "n1", {"status": refusal})
        with pytest.raises(AgentError, match="the authority's key is broken"):
            await credential.keep(SETTINGS)
        with pytest.raises(AgentError, match="has not signed it yet"):
            await credential.keep(SETTINGS)
        await answer(store, time.time())
        await credential.keep(SETTINGS)
        assert credential.credentials is not None

    asyncio.run(scenario())


def test_an_answer_to_a_former_request_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent restarted while the controller signed: the certificate would be of a key that is gone."""
    monkeypatch.setattr(certificate, "AT_ONCE", 0.0)

    async def scenario() -> None:
        store = MemoryStore(MemoryCluster())
        await answer(store, time.time())
        with pytest.raises(AgentError):
            await Credential(store, "n1", requested=True).keep(SETTINGS)
        former = (await store.list(NodeCertificate)).items[0]
        again = Credential(store, "n1", requested=True)
        with pytest.raises(AgentError):
            await again.keep(SETTINGS)
        signing = Signing(store)
        await signing.keep(SETTINGS, time.time())
        await signing.answer(former, time.time())  # to what it read before the agent wrote again
        now = (await store.list(NodeCertificate)).items[0]
        assert now.spec != former.spec
        assert now.status == former.status

    asyncio.run(scenario())
