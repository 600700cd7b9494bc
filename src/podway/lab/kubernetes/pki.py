"""Certificates and kubeconfigs of a lab's Kubernetes: one authority, whose key lives as long as the lab."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

LIFETIME = timedelta(days=365)


class Authority:
    """Signs certificates, which it writes into a directory of root's beside its own."""

    def __init__(self, directory: Path, server: str) -> None:
        """Make a new authority. `server` is the API server's URL, for kubeconfigs."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        self._server = server
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("podway-lab", "")
        builder = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.certificate = self._write("ca.crt", _pem(builder.sign(self._key, hashes.SHA256())))
        self.key = self._write("ca.key", _private(self._key))

    def issue(self, file: str, name: str, *, group: str = "", hosts: Sequence[str] = ()) -> tuple[Path, Path]:
        """Write a certificate for a user of a group, or for a server of these names; return it and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(_name(name, group), key)
        if hosts:
            names = [
                x509.IPAddress(ip_address(host)) if _is_address(host) else x509.DNSName(host) for host in hosts
            ]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return (
            self._write(f"{file}.crt", _pem(builder.sign(self._key, hashes.SHA256()))),
            self._write(f"{file}.key", _private(key)),
        )

    def issue_config(self, file: str, name: str, *, group: str = "") -> Path:
        """Write a kubeconfig of a user of a group; return its path."""
        certificate, key = self.issue(file, name, group=group)
        cluster = {"server": self._server, "certificate-authority": str(self.certificate)}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [{"name": name, "user": {"client-certificate": str(certificate), "client-key": str(key)}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": name}}],
            "current-context": "lab",
        }
        return self._write(f"{file}.kubeconfig", msgspec.json.encode(document))  # JSON is YAML

    def issue_account_key(self) -> Path:
        """Write the key by which tokens of service accounts are signed; return its path."""
        return self._write("accounts.key", _private(rsa.generate_private_key(65537, 2048)))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + LIFETIME)
        )

    def _write(self, name: str, content: bytes) -> Path:
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        return path


def _name(name: str, group: str) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if group:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    return x509.Name(attributes)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
