"""What TLS with a store's servers is made of: certificates and keys, given or in files that are replaced."""

import os
import ssl
from pathlib import Path

import msgspec

from podway.errors import StoreUnavailable


class Material(msgspec.Struct, frozen=True):
    """Bytes that are given, or stand in a file."""

    data: bytes = b""
    path: Path | None = None

    def read(self) -> bytes:
        """Return them. Raises StoreUnavailable."""
        if self.path is None:
            return self.data
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise StoreUnavailable(f"{self.path} cannot be read: {error.strerror}") from error

    @property
    def mark(self) -> object:
        """Something that is another after the bytes changed."""
        if self.path is None:
            return None
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size


def client_context(
    authorities: Material | None, certificate: Material | None, key: Material | None, *, verify: bool = True
) -> ssl.SSLContext:
    """Return a context that believes these authorities (None: the system's), and shows the certificate given.

    Raises StoreUnavailable, and ssl.SSLError or ValueError for what is no certificate.
    """
    context = ssl.create_default_context()
    if authorities is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=authorities.read().decode())
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate is not None and key is not None:
        _load(context, certificate.read(), key.read())
    return context


def _load(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Have a context show a certificate. Python takes a file only: one in memory, which nobody else sees."""
    descriptor = os.memfd_create("podway-client", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(certificate + b"\n" + key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
