"""Who may speak for a cluster: its certificate authorities, and the settings of the agents' channel.

ClusterAuthority holds secrets. It is stored as it is, but shown only redacted (podway.api.encode).
"""

from datetime import datetime
from typing import ClassVar, Literal

import msgspec

from podway.api.meta import Metadata, StrictRecord

AUTHORITY = "default"
"""The name of the one ClusterAuthority."""

REDACTED = "(redacted)"

AUTHORITY_LIVES = 6
"""An authority lives at least so many lives of a certificate; podway.identity.rotation needs that room."""


class ChannelSettings(StrictRecord, frozen=True, kw_only=True):
    """How agents are reached from other machines.

    `port` is TCP. A certificate is renewed at two thirds of its life, an authority replaced likewise.
    """

    port: int = 9179
    certificate_lifetime_seconds: int = 24 * 3600
    authority_lifetime_seconds: int = 365 * 24 * 3600


class KeyedCertificate(StrictRecord, frozen=True, kw_only=True):
    """A certificate and its private key (PKCS #8), both PEM. The times are those in the certificate."""

    certificate: str
    private_key: str
    not_before: datetime
    not_after: datetime


class ClusterAuthoritySpec(StrictRecord, frozen=True, kw_only=True):
    """`cluster` is the id (a UUID) that every certificate names; `authorities` are all trusted, oldest first."""

    cluster: str
    authorities: tuple[KeyedCertificate, ...]


class ClusterAuthority(StrictRecord, frozen=True, kw_only=True):
    """What makes a certificate one of this cluster's. Agents make and replace it; there is one object.

    Its private keys are as good as the right to ask every agent.
    """

    KIND: ClassVar[str] = "ClusterAuthority"
    NAMESPACED: ClassVar[bool] = False

    api_version: Literal["podway.io/v1"] = "podway.io/v1"
    kind: Literal["ClusterAuthority"] = "ClusterAuthority"
    metadata: Metadata
    spec: ClusterAuthoritySpec

    def redacted(self) -> "ClusterAuthority":
        """Return the object without its private keys: what may be shown and written down."""
        shown = tuple(msgspec.structs.replace(one, private_key=REDACTED) for one in self.spec.authorities)
        return msgspec.structs.replace(self, spec=msgspec.structs.replace(self.spec, authorities=shown))
