"""Which authority signs, and when a new one is due. Pure: it follows from the authorities and the time.

    authority 1  ├──────────────── signs ──────────────────┤ trusted until its last certificate ended
    authority 2                              ├── trusted ──┼─────────── signs ─────────── …
                                             due           one certificate lifetime later

A new authority is made when a third of the life of the last one is left. It is trusted at once, but signs
only one certificate lifetime later, so that an agent that is cut off from the store meanwhile is not
surprised. Nobody has to act at these moments but to add the new one, and whoever comes first does it.
"""

import msgspec

from podway.api.kinds.cluster_authority import ClusterAuthoritySpec, KeyedCertificate
from podway.identity.orders import SKEW

RENEW_AT = 2 / 3
"""The part of a life after which a certificate, or an authority, is renewed."""


def made_at(certificate: KeyedCertificate) -> float:
    """Return when a certificate was made, in seconds since 1970."""
    return certificate.not_before.timestamp() + SKEW


def renewal(certificate: KeyedCertificate, lifetime: int) -> float:
    """Return when a certificate is to be renewed, in seconds since 1970.

    `lifetime` is what such certificates are given now, in seconds: a shorter one is in force at once.
    """
    begin = made_at(certificate)
    return begin + RENEW_AT * min(lifetime, certificate.not_after.timestamp() - begin)


def signer(spec: ClusterAuthoritySpec, lifetime: int, now: float) -> KeyedCertificate:
    """Return the authority that signs now: the newest that everybody had a certificate lifetime to learn of.

    `lifetime` is that of certificates in seconds. Call it on what `in_force` returned.
    """
    known = [one for one in spec.authorities if made_at(one) + lifetime <= now]
    return (known or spec.authorities[:1])[-1]


def is_due(spec: ClusterAuthoritySpec, authority_lifetime: int, now: float) -> bool:
    """Tell whether a new authority must be added; `authority_lifetime` is in seconds."""
    return not spec.authorities or renewal(spec.authorities[-1], authority_lifetime) <= now


def in_force(spec: ClusterAuthoritySpec, lifetime: int, now: float) -> ClusterAuthoritySpec:
    """Return the authorities that are still needed.

    Those that ended are not, nor those whose last certificate has ended: the next one signs in their place
    for a whole certificate lifetime by now, even if the clock of whoever signed last was behind.
    """
    valid = [one for one in spec.authorities if now < one.not_after.timestamp()]
    superseded = [one for one in valid if made_at(one) + 2 * lifetime + SKEW <= now]
    first = valid.index(superseded[-1]) if superseded else 0
    return msgspec.structs.replace(spec, authorities=tuple(valid[first:]))
