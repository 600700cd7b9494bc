"""X.509 certificates (RFC 5280) with ECDSA keys on P-256, which every TLS 1.3 peer must know (RFC 8446, 9.1).

Import this late: it brings 12 MiB and 50 ms with it (see podway.identity.apart).
"""

from datetime import UTC, datetime, timedelta
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from podway.api.kinds.cluster_authority import KeyedCertificate
from podway.identity.orders import SKEW, AuthorityOrder, CertificateOrder, Order, cluster_uri


def fulfil(order: Order) -> KeyedCertificate:
    """Make what was ordered, with a new key. Raises ValueError if the order's authority is no certificate."""
    match order:
        case AuthorityOrder():
            return _authority(order)
        case CertificateOrder():
            return _certificate(order)


def _authority(order: AuthorityOrder) -> KeyedCertificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"Podway cluster {order.cluster}")
    begin = _time(order.now)
    builder = (
        _builder(key, name, begin, begin + timedelta(seconds=order.lifetime), cluster_uri(order.cluster))
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
    )
    return _signed(builder, key, key)


def _certificate(order: CertificateOrder) -> KeyedCertificate:
    authority = x509.load_pem_x509_certificate(order.authority.certificate.encode())
    loaded = serialization.load_pem_private_key(order.authority.private_key.encode(), password=None)
    signing_key = cast("ec.EllipticCurvePrivateKey", loaded)  # we made it
    key = ec.generate_private_key(ec.SECP256R1())
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
    return _signed(builder, key, signing_key)


def _builder(
    key: ec.EllipticCurvePrivateKey, subject: x509.Name, begin: datetime, end: datetime, uri: str
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - timedelta(seconds=SKEW))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _signed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signing_key: ec.EllipticCurvePrivateKey
) -> KeyedCertificate:
    certificate = builder.sign(signing_key, hashes.SHA256())
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return KeyedCertificate(
        certificate=certificate.public_bytes(encoding).decode(),
        private_key=private.decode(),
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
