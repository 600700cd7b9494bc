"""The cluster's certificate authority, and its answers to the requests of nodes' agents.

The object that a request is in has the name of the node that asks: only that node's agent may write it, which an
API server sees to (deploy/rbac.yaml). So nothing in the request itself has to be believed but that its sender has
the key.
"""

import msgspec
import structlog

from podway.api.kinds.cluster_authority import ClusterAuthoritySpec, KeyedCertificate
from podway.api.kinds.network_config import ChannelSettings
from podway.api.kinds.node_certificate import NodeCertificate, NodeCertificateStatus, digest
from podway.errors import Conflict, NotFound
from podway.identity import certificates, keeper, rotation
from podway.identity.orders import AuthorityOrder, CertificateOrder, SigningOrder, node_uri
from podway.store.base import Store

log = structlog.get_logger(__name__)

AUTHORITY_LOOK = 60.0
"""Seconds between looks whether an authority is due."""


class Signing:
    """Keeps the authorities and signs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._spec: ClusterAuthoritySpec | None = None
        self._settings: ChannelSettings | None = None
        self._looked = 0.0
        self.signed = self.refused = 0
        """How many requests were answered how."""

    @property
    def authority_until(self) -> float | None:
        """When the newest authority ends, in seconds since 1970; None if none is known."""
        if self._spec is None or not self._spec.authorities:
            return None
        return self._spec.authorities[-1].not_after.timestamp()

    async def keep(self, settings: ChannelSettings, now: float, *, anew: bool = False) -> None:
        """Make or replace the authorities as needed at a time in seconds since 1970. Raises StoreError.

        They are looked at now and then, when the settings changed, and when asked to be looked at `anew`.
        """
        if not anew and self._spec and settings == self._settings and abs(now - self._looked) < AUTHORITY_LOOK:
            return
        self._spec = await keeper.ensure_apart(self._store, settings, now, _fulfil)
        self._settings, self._looked = settings, now

    async def answer(self, request: NodeCertificate, now: float) -> None:
        """Sign a request, or write why not. Raises StoreError."""
        assert self._spec is not None
        assert self._settings is not None
        lifetime = self._settings.certificate_lifetime_seconds
        signer = rotation.signer(keeper.signers(self._spec), lifetime, now)
        node = request.metadata.name
        order = SigningOrder(signer, request.spec.request, node_uri(self._spec.cluster, node), now, lifetime)
        try:
            made = certificates.sign(order)
        except ValueError as error:
            status = NodeCertificateStatus(request_digest=request.digest, problem=str(error))
            self.refused += 1
            log.warning("a request is refused", node=node, problem=status.problem)
        else:
            status = NodeCertificateStatus(
                request_digest=request.digest,
                authority_digest=digest(signer.certificate),
                certificate=made.certificate,
                not_before=made.not_before,
                not_after=made.not_after,
            )
            self.signed += 1
            log.info("a certificate is signed", node=node, until=made.not_after.isoformat())
        whole = dict.fromkeys(msgspec.to_builtins(request.status)) | msgspec.to_builtins(status)
        version = request.metadata.resource_version
        try:
            patch = {"status": whole}
            await self._store.patch_status(NodeCertificate, node, patch, resource_version=version)
        except (Conflict, NotFound):
            return  # it is another request by now

    async def forget(self, node: str) -> None:
        """Delete what a node that is gone requested. Raises StoreError."""
        try:
            await self._store.delete(NodeCertificate, node)
        except NotFound:
            return


async def _fulfil(order: AuthorityOrder | CertificateOrder) -> KeyedCertificate:
    return certificates.fulfil(order)
