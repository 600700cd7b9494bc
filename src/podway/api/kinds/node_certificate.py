"""NodeCertificate: by which a node's agent has its certificate signed, where agents do not sign themselves."""

import hashlib
from collections.abc import Iterator
from datetime import datetime
from typing import ClassVar, Literal

from podway.api.columns import AGE, NAME, Cluster, Column
from podway.api.fields import Problem
from podway.api.meta import StrictRecord
from podway.api.resource import Names, Resource


class NodeCertificateSpec(StrictRecord, frozen=True, kw_only=True):
    """`request` is a certificate request (PKCS #10, PEM) of the agent's key. Names in it are passed over."""

    SCHEMA: ClassVar = {"request": {"maxLength": 8192}}

    request: str


class NodeCertificateStatus(StrictRecord, frozen=True, kw_only=True):
    """The controller's answer to the request of which `request_digest` is the digest (SHA-256, hexadecimal).

    `authority_digest` is that of the authority's certificate that signed. `problem` says why it did not.
    """

    SCHEMA: ClassVar = {"certificate": {"maxLength": 16384}}

    request_digest: str = ""
    authority_digest: str = ""
    certificate: str = ""
    not_before: datetime | None = None
    not_after: datetime | None = None
    problem: str = ""


def _state(one: "NodeCertificate", _: Cluster) -> str:
    if one.status.request_digest != one.digest:
        return "waits for the controller"
    return one.status.problem or f"until {one.status.not_after:%Y-%m-%d %H:%M} UTC"


class NodeCertificate(Resource, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The certificate of a node's agent: the agent writes the request, and the controller signs it.

    It has the node's name. An agent can write that of its own node only, so the name says who asks.
    """

    KIND: ClassVar = "NodeCertificate"
    NAMESPACED: ClassVar = False
    NAMES: ClassVar = Names("nodecertificates", usual=("certificates", "certificate"))
    COLUMNS: ClassVar = (
        NAME,
        Column("STATE", _state),
        Column("PROBLEM", lambda one, _: one.status.problem, wide=True, path=".status.problem"),
        Column("UNTIL", lambda one, _: f"{one.status.not_after or ''}", wide=True, path=".status.notAfter"),
        AGE,
    )
    LEAVES_STORE: ClassVar = False

    api_version: Literal["podway.io/v1"] = "podway.io/v1"
    kind: Literal["NodeCertificate"] = "NodeCertificate"
    spec: NodeCertificateSpec
    status: NodeCertificateStatus = NodeCertificateStatus()

    @property
    def digest(self) -> str:
        """The digest of the request."""
        return digest(self.spec.request)

    def problems(self) -> Iterator[Problem]:
        """Yield what cannot be right in the request."""
        if not self.spec.request.startswith("-----BEGIN CERTIFICATE REQUEST-----"):
            yield (
                "spec.request",
                "is no certificate request",
                "leave this object to the node's agent, or delete it",
            )


def digest(text: str) -> str:
    """Return the SHA-256 of a text in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
