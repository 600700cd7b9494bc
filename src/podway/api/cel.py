"""Rules in CEL, as a Kubernetes API server judges them, for fields of several kinds; each with its message. Pure.

`isCIDR`, `cidr`, `isIP` and `ip` are Kubernetes' own (k8s.io/apiserver/pkg/cel/library/cidr.go and ip.go, from
Kubernetes 1.31 on).
"""

from ipaddress import ip_network

from podway.api.addresses import Network
from podway.api.fields import RESERVED_ASNS, UNUSABLE

NETWORK = (
    "isCIDR(self) && cidr(self).masked() == cidr(self)",
    "is no network ADDRESS/LENGTH whose bits after the prefix are zero, such as 10.244.0.0/16",
)

# An IPv4-mapped address is no IP at all by CEL's library.
_UNUSABLE: tuple[Network, ...] = tuple(one for one in UNUSABLE if one != ip_network("::ffff:0:0/96"))
_UNUSABLE_TEXT = ", ".join(f"'{one}'" for one in _UNUSABLE)

USABLE_NETWORK = (
    f"!isCIDR(self) || [{_UNUSABLE_TEXT}].all(other, "
    "!cidr(other).containsCIDR(self) && !cidr(self).containsCIDR(other))",
    "overlaps a range that has another use (loopback, link-local, multicast): use RFC 1918, RFC 4193",
)

ADDRESS = ("isIP(self)", "is no IPv4 or IPv6 address")

USABLE_ADDRESS = (
    f"!isIP(self) || ![{_UNUSABLE_TEXT}].exists(other, cidr(other).containsIP(self))",
    "is no address of a host (loopback, link-local, multicast)",
)

ASN = (
    f"!(self in {sorted(RESERVED_ASNS)})",
    "is reserved: use a private one, 64512 to 65534 or 4200000000 to 4294967294 (RFC 6996)",
)
