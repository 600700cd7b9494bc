"""X.509 certificates (RFC 5280) with ECDSA keys on P-256, which every TLS 1.3 peer must know (RFC 8446, 9.1).

Import this late: it brings 12 MiB and 50 ms with it (see podway.identity.apart).
"""

from datetime import UTC, datetime, timedelta
from typing import cast

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from podway.api.kinds.cluster_authority import KeyedCertificate
from podway.identity.orders import (
    SKEW,
    AuthorityOrder,
    CertificateOrder,
    KeyedRequest,
    Order,
    SigningOrder,
    cluster_uri,
)


def fulfil(order: Order) -> KeyedCertificate:
    """Make what was ordered, with a new key. Raises ValueError if the order's authority is no certificate."""
    match order:
        case AuthorityOrder():
            return _authority(order)
        case CertificateOrder():
            return _certificate(order)


def make_request() -> KeyedRequest:
    """Make a new key, and a request for a certificate of it (RFC 2986), which names nobody."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder().subject_name(_name("Podway agent")).sign(key, hashes.SHA256())
    )
    return KeyedRequest(request.public_bytes(serialization.Encoding.PEM).decode(), _private(key))


def sign(order: SigningOrder) -> KeyedCertificate:
    """Sign what was requested; the certificate has no key with it. Raises ValueError for what is no request.

    The request's own signature shows that whoever wrote it has the key.
    """
    try:
        request = x509.load_pem_x509_csr(order.request.encode())
        key = request.public_key()
        whole = request.is_signature_valid
    except Exception as error:  # whatever a stranger's bytes do to a parser
        raise ValueError(f"it is no certificate request (PKCS #10, PEM): {error}") from error
    if not whole:
        raise ValueError("its signature is not that of its key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("its key is not one of ECDSA on P-256")  # noqa: TRY004 - what a text says is a value
    return _issued(key, CertificateOrder(order.authority, order.uri, order.now, order.lifetime, server=True))


def _authority(order: AuthorityOrder) -> KeyedCertificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"Podway cluster {order.cluster}")
    begin = _time(order.now)
    builder = (
        _builder(
            key.public_key(), name, begin, begin + timedelta(seconds=order.lifetime), cluster_uri(order.cluster)
        )
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
    )
    return msgspec.structs.replace(_signed(builder, key), private_key=_private(key))


def _certificate(order: CertificateOrder) -> KeyedCertificate:
    key = ec.generate_private_key(ec.SECP256R1())
    return msgspec.structs.replace(_issued(key.public_key(), order), private_key=_private(key))


def _issued(key: ec.EllipticCurvePublicKey, order: CertificateOrder) -> KeyedCertificate:
    """Return the certificate of somebody's public key."""
    authority = x509.load_pem_x509_certificate(order.authority.certificate.encode())
    loaded = serialization.load_pem_private_key(order.authority.private_key.encode(), password=None)
    signing_key = cast("ec.EllipticCurvePrivateKey", loaded)  # we made it
    begin = _time(order.now)
    end = min(begin + timedelta(seconds=order.lifetime), authority.not_valid_after_utc)
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if order.server else [])]
    issuer = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(key, _name("Podway agent" if order.server else "Podway operator"), begin, end, order.uri)
        .issuer_name(authority.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        # Old and new authorities share a name; this tells which one signed.
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer),
            critical=False,
        )
    )
    return _signed(builder, signing_key)


def _builder(
    key: ec.EllipticCurvePublicKey, subject: x509.Name, begin: datetime, end: datetime, uri: str
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - timedelta(seconds=SKEW))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _private(key: ec.EllipticCurvePrivateKey) -> str:
    encoding = serialization.Encoding.PEM
    return key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


def _signed(builder: x509.CertificateBuilder, signing_key: ec.EllipticCurvePrivateKey) -> KeyedCertificate:
    certificate = builder.sign(signing_key, hashes.SHA256())
    return KeyedCertificate(
        certificate=certificate.public_bytes(serialization.Encoding.PEM).decode(),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)  # a certificate's times are whole seconds
