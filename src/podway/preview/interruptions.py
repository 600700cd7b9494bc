"""What of a change cannot be made before break: who changes it is told, and decides. Pure."""

from collections.abc import Iterator

from podway.api.kinds.bgp_peer import BGPPeer
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.node import Node
from podway.api.resource import Resource

WHILE = "for about a second, until both ends of each know"
"""How long, in words: agents hear of a change within milliseconds, and BIRD waits for a second before it dials."""


def interruptions(old: Resource | None, new: Resource) -> Iterator[str]:
    """Yield in words what is interrupted when an object becomes another.

    Both ends of a BGP session must name the same AS numbers and ports when it opens (RFC 4271, sections 4.2 and
    6.2), so a change of these ends it, with the routes that it told.
    """
    match old, new:
        case NetworkConfig(), NetworkConfig():
            one, other = old.spec.bgp, new.spec.bgp
            names = [name for name in ("asn", "port") if getattr(one, name) != getattr(other, name)]
            if names:
                what = f"another bgp.{' and bgp.'.join(names)} starts all BGP sessions anew"
                yield f"{what}: packets between nodes of pools with distribution bgp are lost {WHILE}"
        case Node(), Node():
            if old.asn != new.asn:
                what = f"another AS number starts all BGP sessions of Node/{new.metadata.name} anew"
                yield f"{what}: packets to and from it are lost {WHILE}"
        case BGPPeer(), BGPPeer():
            if _opening(old) != _opening(new):
                yield (
                    f"the sessions with BGPPeer/{new.metadata.name} start anew: what it tells, and is told, is "
                    "withdrawn meanwhile"
                )
        case _:
            pass


def _opening(peer: BGPPeer) -> tuple[object, ...]:
    """Return what a session is opened with: filters and limits change on one that stands."""
    spec = peer.spec
    ttl = (spec.multihop, spec.ttl_security)
    return (spec.address, spec.asn, spec.port, spec.source_address, spec.password, spec.bfd, *ttl)
