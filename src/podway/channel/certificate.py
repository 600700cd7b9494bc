"""A node's own certificate: issued when its agent starts, renewed while it runs, never on a disk."""

import asyncio
import ssl
import time

import msgspec
import structlog

from podway.api.kinds.cluster_authority import (
    AUTHORITY,
    ClusterAuthority,
    ClusterAuthoritySpec,
    KeyedCertificate,
)
from podway.api.kinds.network_config import ChannelSettings
from podway.api.kinds.node_certificate import NodeCertificate, NodeCertificateSpec, digest
from podway.api.meta import Metadata
from podway.errors import AgentError, NotFound, ObjectDamaged, StoreError
from podway.identity import apart, keeper, rotation, tls
from podway.identity.orders import CertificateOrder, KeyedRequest, node_uri
from podway.store.base import Store

log = structlog.get_logger(__name__)

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds after which to ask again for a certificate that nobody signed yet: longer and longer."""
_NO_AUTHORITY = "the cluster has no certificate authority yet"
_NO_AUTHORITY_HINT = "the controller makes it: is one running (`podway controller`)? Pods need neither"

AT_ONCE = 5.0
"""Seconds that a request waits for its answer before it is looked at now and then."""


class Credential:
    """The certificate of `node`, and the authorities that its agent believes.

    Both are as last agreed in the store; while that is away, the agent goes on with those it knows. With
    `requested` the agent has no authority's key, and asks the controller for its certificate.
    """

    def __init__(self, store: Store, node: str, *, requested: bool = False) -> None:
        self._store = store
        self._node = node
        self._requested = requested
        self._request: KeyedRequest | None = None
        """What is asked for now, and was not answered yet."""
        self._wait = FIRST_WAIT
        self._ask_at = 0.0
        """When, by time.monotonic(), to look for an answer again."""
        self._waits_for = ""
        """Why there is no new certificate yet."""
        self._known: ClusterAuthoritySpec | None = None
        self._signer: KeyedCertificate | None = None
        self._context: ssl.SSLContext | None = None
        self.credentials: tls.Credentials | None = None
        """What the agent shows and believes; None until there is a certificate."""

    async def keep(self, settings: ChannelSettings) -> ssl.SSLContext:
        """Make, renew or leave the certificate, as needed now; return the context to answer in.

        Raises AgentError, and StoreError if the store is away from the beginning.
        """
        now = time.time()
        spec = await self._authorities(settings, now)
        lifetime = settings.certificate_lifetime_seconds
        certificate = self.credentials.certificate if self.credentials else None
        if (
            certificate is None
            or self._signer not in spec.authorities
            or not certificate.not_before.timestamp() <= now < rotation.renewal(certificate, lifetime)
        ):
            new = await (self._answer(spec) if self._requested else self._sign(spec, lifetime, now))
            certificate = new or certificate
            if new is not None:
                uri = node_uri(spec.cluster, self._node)
                log.info("certificate issued", uri=uri, until=new.not_after.isoformat())
            elif certificate is None or certificate.not_after.timestamp() <= now:
                raise AgentError(
                    f"this node has no certificate: {self._waits_for}",
                    hint="is the controller running (`podway controller`), and may it write? Pods need neither",
                )
        assert certificate is not None
        trusted = tuple(one.certificate for one in spec.authorities)
        credentials = tls.Credentials(spec.cluster, certificate, trusted)
        if self._context is None or credentials != self.credentials:
            try:
                self._context = tls.server_context(credentials)
            except ssl.SSLError as error:
                raise AgentError(
                    f"the cluster's certificate authorities cannot be used: {error.reason or error}",
                    hint="have the agents make new ones: `podway delete authority default`",
                ) from error
            self.credentials = credentials
        return self._context

    def renewal_in(self, lifetime: int) -> float:
        """Return in how many seconds the certificate is to be renewed, if such live `lifetime` seconds now."""
        if self.credentials is None:
            return 0.0
        return max(
            0.0,
            self._ask_at - time.monotonic(),
            rotation.renewal(self.credentials.certificate, lifetime) - time.time(),
        )

    async def _sign(self, spec: ClusterAuthoritySpec, lifetime: int, now: float) -> KeyedCertificate:
        """Sign for this node, with the key of an authority. Raises AgentError."""
        signers = keeper.signers(spec)
        if not signers.authorities:
            raise AgentError(
                "the cluster's certificate authorities are without keys",
                hint="have the agents make new ones: `podway delete authority default`",
            )
        self._signer = rotation.signer(signers, lifetime, now)
        uri = node_uri(spec.cluster, self._node)
        return await apart.fulfil(CertificateOrder(self._signer, uri, now, lifetime, server=True))

    async def _answer(self, spec: ClusterAuthoritySpec) -> KeyedCertificate | None:
        """Return the certificate that was asked for, None if there is none yet; ask for it first where need be.

        Raises AgentError and StoreError.
        """
        if time.monotonic() < self._ask_at:
            return None
        if self._request is None:
            self._request = await apart.request()
        try:
            found = await self._asked(self._request.request)
            end = time.monotonic() + AT_ONCE
            while found.status.request_digest != found.digest and time.monotonic() < end:
                await asyncio.sleep(AT_ONCE / 10)
                found = await self._asked(self._request.request)
        except StoreError as error:
            if self.credentials is None:
                raise
            self._waits_for = error.message
            self._put_off()
            return None
        answer = found.status
        signer = [one for one in spec.authorities if digest(one.certificate) == answer.authority_digest]
        if answer.request_digest != found.digest or answer.not_before is None or answer.not_after is None:
            answered = answer.request_digest == found.digest
            self._waits_for = (answered and answer.problem) or "the controller has not signed it yet"
            self._put_off()
            if answered:
                self._request = None  # what was refused once is answered no more: another may be signed
            return None
        key, self._request = self._request.private_key, None
        self._wait, self._ask_at = FIRST_WAIT, 0.0
        # None: an authority that is new here, which is read with the next look.
        self._signer = signer[0] if signer else None
        return KeyedCertificate(
            certificate=answer.certificate,
            private_key=key,
            not_before=answer.not_before,
            not_after=answer.not_after,
        )

    def _put_off(self) -> None:
        self._ask_at = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, LONGEST_WAIT)

    async def _asked(self, request: str) -> NodeCertificate:
        """Return this node's object in the store, having written the request into it if another stands there."""
        spec = NodeCertificateSpec(request=request)
        try:
            found = await self._store.get(NodeCertificate, self._node)
        except NotFound:
            return await self._store.create(NodeCertificate(metadata=Metadata(name=self._node), spec=spec))
        except ObjectDamaged as error:
            if not isinstance(error.found, NodeCertificate):
                raise
            found = error.found
        if found.spec == spec:
            return found
        return await self._store.update(msgspec.structs.replace(found, spec=spec))

    async def _authorities(self, settings: ChannelSettings, now: float) -> ClusterAuthoritySpec:
        if self._requested and time.monotonic() < self._ask_at:
            if self._known is None:
                raise AgentError(_NO_AUTHORITY, hint=_NO_AUTHORITY_HINT)
            return self._known  # thousands of agents may wait for one controller
        try:
            if self._requested:
                self._known = (await self._store.get(ClusterAuthority, AUTHORITY)).spec
            else:
                self._known = (await keeper.ensure(self._store, settings, now, apart.fulfil)).spec
        except NotFound as error:
            if self._known is None:
                self._put_off()
                raise AgentError(_NO_AUTHORITY, hint=_NO_AUTHORITY_HINT) from error
        except StoreError:
            if self._known is None:
                raise
        return self._known
