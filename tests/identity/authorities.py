"""Authorities and certificates for tests of what is done with them."""

import time

from podway.api.kinds.cluster_authority import ClusterAuthoritySpec, KeyedCertificate
from podway.identity import certificates
from podway.identity.orders import AuthorityOrder, CertificateOrder, node_uri, operator_uri
from podway.identity.tls import Credentials

HOUR = 3600
CLUSTER = "6f0f1f0e-3c5a-4c0e-9d6e-0f0b7a4b6a11"
OTHER_CLUSTER = "0b7a4b6a-3c5a-4c0e-9d6e-6f0f1f0e1111"


def authority(cluster: str = CLUSTER, *, now: float | None = None, lifetime: int = 24 * HOUR) -> KeyedCertificate:
    return certificates.fulfil(AuthorityOrder(cluster, time.time() if now is None else now, lifetime))


def spec(*authorities: KeyedCertificate, cluster: str = CLUSTER) -> ClusterAuthoritySpec:
    return ClusterAuthoritySpec(cluster=cluster, authorities=authorities)


def node(
    signer: KeyedCertificate,
    name: str = "node1",
    *,
    cluster: str = CLUSTER,
    trusted: tuple[KeyedCertificate, ...] = (),
    now: float | None = None,
    lifetime: int = HOUR,
) -> Credentials:
    order = CertificateOrder(signer, node_uri(cluster, name), now or time.time(), lifetime, server=True)
    return _credentials(order, cluster, trusted)


def operator(
    signer: KeyedCertificate,
    *,
    cluster: str = CLUSTER,
    trusted: tuple[KeyedCertificate, ...] = (),
    now: float | None = None,
    lifetime: int = HOUR,
) -> Credentials:
    order = CertificateOrder(signer, operator_uri(cluster), now or time.time(), lifetime)
    return _credentials(order, cluster, trusted)


def _credentials(order: CertificateOrder, cluster: str, trusted: tuple[KeyedCertificate, ...]) -> Credentials:
    believed = tuple(one.certificate for one in trusted or (order.authority,))
    return Credentials(cluster, certificates.fulfil(order), believed)
