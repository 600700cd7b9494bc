"""What may be asked for: an authority, or a certificate from one. Plain data, so that it crosses processes.

A certificate names its holder by one URI (SPIFFE X509-SVID, section 2): `spiffe://<cluster id>/node/<name>`
for an agent, `spiffe://<cluster id>/operator` for a command of someone who may read the store. An address is
no identity: it may change while the certificate stands.
"""

import msgspec

from podway.api.kinds.cluster_authority import KeyedCertificate

SKEW = 300
"""Seconds that a certificate is valid before it was made, for peers whose clocks are behind."""


class AuthorityOrder(msgspec.Struct, frozen=True, tag=True):
    """A new, self-signed authority. `now` is seconds since 1970, `lifetime` seconds from then."""

    cluster: str
    now: float
    lifetime: int


class CertificateOrder(msgspec.Struct, frozen=True, tag=True):
    """A certificate for the holder named by `uri`; only a `server` may be called, everyone may call.

    It ends with its authority at the latest.
    """

    authority: KeyedCertificate
    uri: str
    now: float
    lifetime: int
    server: bool = False


class RequestOrder(msgspec.Struct, frozen=True, tag=True):
    """A new key, and the request for a certificate of it."""


class SigningOrder(msgspec.Struct, frozen=True, tag=True):
    """A certificate for the key of a request (PKCS #10, PEM), for the holder named by `uri`; a node's agent.

    What the request says of names is passed over.
    """

    authority: KeyedCertificate
    request: str
    uri: str
    now: float
    lifetime: int


class KeyedRequest(msgspec.Struct, frozen=True):
    """A certificate request (PKCS #10) and its private key (PKCS #8), both PEM."""

    request: str
    private_key: str


Order = AuthorityOrder | CertificateOrder


def cluster_uri(cluster: str) -> str:
    """Return the URI of a cluster (a SPIFFE trust domain)."""
    return f"spiffe://{cluster}"


def node_uri(cluster: str, node: str) -> str:
    """Return the URI that names a node's agent."""
    return f"{cluster_uri(cluster)}/node/{node}"


def operator_uri(cluster: str) -> str:
    """Return the URI that names whoever may read the cluster's store."""
    return f"{cluster_uri(cluster)}/operator"


def is_operator(uri: str) -> bool:
    """Tell whether a URI names an operator, of whatever cluster."""
    return uri == operator_uri(uri.removeprefix(cluster_uri("")).partition("/")[0])
