"""TLS 1.3 between holders of certificates of one cluster, and its failures told in words.

Both sides must show a certificate. Whether it is one of this cluster's, and still valid, is OpenSSL's to say;
who shows it, the URI in it.
"""

import contextlib
import os
import ssl
from collections.abc import Iterator
from typing import Any

import msgspec

from podway.api.kinds.cluster_authority import KeyedCertificate


class Credentials(msgspec.Struct, frozen=True):
    """What one needs to speak: a certificate, and the authorities (PEM) whose certificates one believes."""

    cluster: str
    certificate: KeyedCertificate
    trusted: tuple[str, ...]


def server_context(credentials: Credentials) -> ssl.SSLContext:
    """Return the context in which an agent answers."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, credentials)
    context.num_tickets = 0  # a session taken up again would skip the look at the certificate
    return context


def client_context(credentials: Credentials) -> ssl.SSLContext:
    """Return the context in which an agent is asked; compare `holder` with whom you meant to ask."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, credentials)


def own_context(certificate: KeyedCertificate) -> ssl.SSLContext:
    """Return a context in which one answers who asks for no proof, and shows none: he proves himself otherwise."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with _as_file(certificate.private_key + certificate.certificate) as path:
        context.load_cert_chain(path)
    return context


def _context(protocol: int, credentials: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the holder is named by a URI
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata="".join(credentials.trusted))
    with _as_file(credentials.certificate.private_key + credentials.certificate.certificate) as path:
        context.load_cert_chain(path)
    return context


@contextlib.contextmanager
def _as_file(text: str) -> Iterator[str]:
    """Give the path of a file in memory (memfd_create(2)): `ssl` reads keys from files only."""
    fd = os.memfd_create("podway-certificate")
    try:
        os.write(fd, text.encode())
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def holder(connection: ssl.SSLSocket) -> str:
    """Return the URI that the peer's certificate names; empty if it names none."""
    certificate: Any = connection.getpeercert() or {}
    return next((value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"), "")


_VERDICTS = {
    9: "is not valid yet: compare the clocks of the two machines",
    10: "has expired",
    18: "is of another cluster",
    19: "is of another cluster",
    20: "is of another cluster",
    21: "is of another cluster",
    26: "was not made for this use",
    79: "was not made for this use",
}
"""What we found wrong with the peer's certificate, by X509_V_ERR_* (openssl/x509_vfy.h)."""

_ALERTS = {
    "CERTIFICATE_EXPIRED": "our certificate has expired, as its clock goes",
    "UNKNOWN_CA": "our certificate is of another cluster",
    "CERTIFICATE_REQUIRED": "it asks for a certificate, and we showed none",
    "UNSUPPORTED_CERTIFICATE": "our certificate was not made for this use",
    "BAD_CERTIFICATE": "our certificate is not valid; is its clock behind?",
    "PROTOCOL_VERSION": "it does not speak our version of TLS",
}
"""What the peer found wrong with us, by its alert (RFC 8446, section 6.2) as OpenSSL names it."""

_OWN_FINDINGS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "shows no certificate",
    "UNSUPPORTED_PROTOCOL": "does not speak TLS 1.3",
    "WRONG_VERSION_NUMBER": "does not speak TLS",
    "HTTP_REQUEST": "does not speak TLS",
}


def explain(error: ssl.SSLError) -> str:
    """Return why a handshake failed, as the end of a sentence that begins with the peer's name."""
    if isinstance(error, ssl.SSLCertVerificationError):
        verdict = _VERDICTS.get(error.verify_code, f"is not valid: {error.verify_message}")
        return f"shows a certificate that {verdict}"
    reason = error.reason or ""
    for name, words in _OWN_FINDINGS.items():
        if name in reason:
            return words
    for name, words in _ALERTS.items():
        if name in reason:
            return f"refused us: {words}"
    return f"broke off TLS: {(reason or str(error)).replace('_', ' ').lower()}"
