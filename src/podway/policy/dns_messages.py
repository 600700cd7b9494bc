"""What messages of DNS say of names; hostile ones, too. Pure, and apart from all who need no message read."""

from ipaddress import ip_address

import dns.exception
import dns.flags
import dns.message
import dns.rdataclass
import dns.rdatatype

from podway.policy.maps import Prefix
from podway.policy.names import LONGEST_NAME, Answer, plain

_ADDRESSES = (dns.rdatatype.A, dns.rdatatype.AAAA)


def read_answer(message: bytes) -> Answer | None:
    """Return what a message of DNS (RFC 1035) says of addresses; None if that is nothing, or makes no sense.

    A name that many aliases lead from, or a circle of them, says nothing (dns.message.MAX_CHAIN). Addresses that
    are no machine's, or every machine's own, are left out: who owns a domain must not open these to a pod. So are
    IPv4 addresses that are written as IPv6 ones (RFC 4291, 2.5.5.2), and names with a dot within a label, which
    read like names of another zone.
    """
    try:
        found = dns.message.from_wire(message, ignore_trailing=True)
        if not isinstance(found, dns.message.QueryMessage) or not found.flags & dns.flags.QR:
            return None
        question = found.question[0] if len(found.question) == 1 else None
        if question is None or question.rdclass != dns.rdataclass.IN or question.rdtype not in _ADDRESSES:
            return None
        if any(b"." in label for label in question.name.labels):
            return None
        chain = found.resolve_chaining()
    except (dns.exception.DNSException, ValueError):
        return None
    if chain.answer is None:
        return None
    addresses = frozenset(
        Prefix.host_of(address)
        for address in (ip_address(record.address) for record in chain.answer)
        if not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified)
        and getattr(address, "ipv4_mapped", None) is None
    )
    name = plain(question.name.to_text())
    return Answer(name, addresses, chain.minimum_ttl) if len(name) <= LONGEST_NAME else None
