"""ClusterAuthority: who may speak for a cluster, its certificate authorities.

It holds secrets. It is stored as it is, but shown only redacted (podway.api.encode).
"""

from collections.abc import Iterator
from datetime import datetime
from typing import ClassVar, Literal

import msgspec

from podway.api.columns import AGE, NAME, Cluster, Column
from podway.api.fields import Problem
from podway.api.meta import REDACTED, Rule, StrictRecord
from podway.api.resource import Names, Resource

AUTHORITY = "default"
"""The name of the one ClusterAuthority."""

KEYS_SPACE, KEYS = "podway-authority", "keys"
"""Namespace and name of the Secret with the authorities' private keys, where the controller alone has them."""

AUTHORITY_LIVES = 6
"""An authority lives at least so many lives of a certificate; podway.identity.rotation needs that room."""


class KeyedCertificate(StrictRecord, frozen=True, kw_only=True):
    """A certificate and its private key (PKCS #8), both PEM. The times are those in the certificate.

    `private_key` is left out where agents do not sign: on Kubernetes only the controller has it, in a Secret.
    """

    SCHEMA: ClassVar = {"certificate": {"maxLength": 16384}, "privateKey": {"maxLength": 16384}}
    RULES: ClassVar = (
        Rule("privateKey", f"self != '{REDACTED}'", "is redacted: leave this object to the agents"),
    )

    certificate: str
    private_key: str = ""
    not_before: datetime
    not_after: datetime


class ClusterAuthoritySpec(StrictRecord, frozen=True, kw_only=True):
    """`cluster` is the id (a UUID) that every certificate names; `authorities` are all trusted, oldest first."""

    cluster: str
    authorities: tuple[KeyedCertificate, ...]


def _until(authority: "ClusterAuthority", _: Cluster) -> str:
    return f"{authority.spec.authorities[-1].not_after:%Y-%m-%d %H:%M} UTC"


class ClusterAuthority(Resource, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What makes a certificate one of this cluster's. There is one object.

    Agents make and replace it, on Kubernetes the controller. The private keys are as good as the right to ask
    every agent.
    """

    KIND: ClassVar = "ClusterAuthority"
    NAMESPACED: ClassVar = False
    NAMES: ClassVar = Names("clusterauthorities", usual=("authority", "authorities"))
    COLUMNS: ClassVar = (
        NAME,
        Column("CLUSTER", lambda authority, _: authority.spec.cluster, path=".spec.cluster"),
        Column("TRUSTED", lambda authority, _: str(len(authority.spec.authorities))),
        Column("UNTIL", _until),
        AGE,
    )
    ONLY: ClassVar = AUTHORITY
    LEAVES_STORE: ClassVar = False
    IN_VIEW: ClassVar = True
    SCHEMA: ClassVar = {"spec.authorities": {"minItems": 1, "maxItems": 16}}

    api_version: Literal["podway.io/v1"] = "podway.io/v1"
    kind: Literal["ClusterAuthority"] = "ClusterAuthority"
    spec: ClusterAuthoritySpec

    def redacted(self) -> "ClusterAuthority":
        """Return the object without its private keys: what may be shown and written down."""
        shown = tuple(
            msgspec.structs.replace(one, private_key=REDACTED) if one.private_key else one
            for one in self.spec.authorities
        )
        return msgspec.structs.replace(self, spec=msgspec.structs.replace(self.spec, authorities=shown))

    def problems(self) -> Iterator[Problem]:
        """Yield what cannot be right in the authorities."""
        if not self.spec.authorities:
            yield "spec.authorities", "is empty", "delete the object: agents make a new one"
        for index, one in enumerate(self.spec.authorities):
            if one.private_key == REDACTED:
                hint = "leave this object to the agents; delete it to have them make a new one"
                yield f"spec.authorities[{index}].privateKey", "is redacted, so it cannot be stored", hint
