"""A node's own certificate: issued when its agent starts, renewed while it runs, never on a disk."""

import ssl
import time

import structlog

from podway.api.kinds.cluster_authority import ClusterAuthoritySpec, KeyedCertificate
from podway.api.kinds.network_config import ChannelSettings
from podway.errors import AgentError, StoreError
from podway.identity import apart, keeper, rotation, tls
from podway.identity.orders import CertificateOrder, node_uri
from podway.store.base import Store

log = structlog.get_logger(__name__)


class NodeCertificate:
    """The certificate of `node`, and the authorities that its agent believes.

    Both are as last agreed in the store; while that is away, the agent goes on with those it knows.
    """

    def __init__(self, store: Store, node: str) -> None:
        self._store = store
        self._node = node
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
            self._signer = rotation.signer(spec, lifetime, now)
            uri = node_uri(spec.cluster, self._node)
            certificate = await apart.fulfil(CertificateOrder(self._signer, uri, now, lifetime, server=True))
            log.info("certificate issued", uri=uri, until=certificate.not_after.isoformat())
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
        return max(0.0, rotation.renewal(self.credentials.certificate, lifetime) - time.time())

    async def _authorities(self, settings: ChannelSettings, now: float) -> ClusterAuthoritySpec:
        try:
            self._known = (await keeper.ensure(self._store, settings, now, apart.fulfil)).spec
        except StoreError:
            if self._known is None:
                raise
        return self._known
