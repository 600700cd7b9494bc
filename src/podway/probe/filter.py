"""A classic BPF filter that lets only probe packets through, bare or encapsulated.

It runs in the kernel on every packet of a namespace, before anything is copied, so that users' traffic is
neither read nor slowed. Loads are relative to the network header (SKF_NET_OFF), which makes the filter
independent of the kind of device. Probes carry no IP options, so that offsets are fixed.
"""

import socket

from podway.api.addresses import Family
from podway.probe.classic import (
    ETHERTYPE,
    JSET,
    LD_BYTE,
    LD_BYTE_X,
    LD_HALF,
    LD_HALF_X,
    LD_MEM,
    LD_WORD,
    LD_WORD_X,
    LDX_IMM,
    NET,
    RET,
    ST,
    WHOLE,
    Program,
)
from podway.probe.packet import (
    ECHO_REPLY,
    ECHO_REQUEST,
    ETHERNET_HEADER,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    FRAGMENT_HEADER,
    ICMP,
    IP_HEADER,
    TCP_PSH,
    TCP_RST,
    TCP_SYN,
)

_UDP_HEADER = 8
_GRE_HEADER = 4
_VXLAN_HEADER = 8


def capture_filter(port: int, magic: bytes, *, snap: int = WHOLE) -> bytes:
    """Return the filter for a packet socket.

    Passes, cut to `snap` bytes: TCP SYN, RST and data segments from or to `port`; UDP likewise; whatever a
    translator made of port or identifier, TCP segments whose sequence number is the first four bytes of
    `magic`, those that acknowledge it, and UDP and ICMP echoes whose payload starts with it; ICMP errors about
    any of these; and each of them inside IP in IP, GRE, or UDP followed by an 8-byte header and an Ethernet
    frame (VXLAN, and Geneve without options).
    """
    known = int.from_bytes(magic[:4], "big")
    p = Program()
    p.do(LD_HALF, ETHERTYPE)
    p.when(ETHERTYPE_IPV4, "outer-4")
    p.when(ETHERTYPE_IPV6, "outer-6", "drop")
    for family in Family:
        _outer(p, family, port, known)
    for family in Family:
        _inner(p, family)
    p.label("transport")
    _transport(p, "", port, known)
    for family in Family:
        _quoted(p, family)
    p.label("quoted-transport")
    _transport(p, "quoted-", port, known)
    p.label("accept")
    p.do(RET, snap)
    p.label("drop")
    p.do(RET, 0)
    return p.assemble()


def echo_filter(family: Family, echo_id: int) -> bytes:
    """Return the filter for a raw ICMP socket: echo replies with `echo_id`."""
    # A raw socket's filter sees IPv4 from the IP header, IPv6 from the ICMP header (raw(7), ipv6(7)).
    start = IP_HEADER[family] if family is Family.IPV4 else 0
    p = Program()
    p.do(LD_BYTE, start)
    p.when(ECHO_REPLY[family], "", "drop")
    p.do(LD_HALF, start + 4)
    p.when(echo_id, "", "drop")
    p.do(RET, WHOLE)
    p.label("drop")
    p.do(RET, 0)
    return p.assemble()


def _protocol_offset(family: Family) -> int:
    return 9 if family is Family.IPV4 else 6


def _outer(p: Program, family: Family, port: int, known: int) -> None:
    """Find out whether the packet is a tunnel's; leave X at the offset of the IP header that matters."""
    header, plain = IP_HEADER[family], f"plain-{family}"
    p.label(f"outer-{family}")
    p.do(LD_BYTE, NET + _protocol_offset(family))
    p.when(socket.IPPROTO_IPIP, f"ipip4-{family}")
    p.when(socket.IPPROTO_IPV6, f"ipip6-{family}")
    p.when(socket.IPPROTO_GRE, f"gre-{family}")
    p.when(socket.IPPROTO_UDP, "", plain)
    for offset in (0, 2):
        p.do(LD_HALF, NET + header + offset)
        p.when(port, plain)
    # First: a small one ends before an inner frame would, and a load beyond the end drops the packet.
    p.do(LD_WORD, NET + header + _UDP_HEADER)
    p.when(known, plain)
    frame = header + _UDP_HEADER + _VXLAN_HEADER
    _enter(p, frame + ETHERNET_HEADER - 2, frame + ETHERNET_HEADER, plain)
    p.label(f"gre-{family}")
    _enter(p, header + 2, header + _GRE_HEADER, "drop")
    for inner in Family:
        p.label(f"ipip{inner}-{family}")
        p.do(LDX_IMM, header)
        p.goto(f"inner-{inner}")
    p.label(plain)
    p.do(LDX_IMM, 0)
    p.goto(f"inner-{family}")


def _enter(p: Program, ethertype_at: int, packet_at: int, otherwise: str) -> None:
    p.do(LDX_IMM, packet_at)
    p.do(LD_HALF, NET + ethertype_at)
    p.when(ETHERTYPE_IPV4, "inner-4")
    p.when(ETHERTYPE_IPV6, "inner-6", otherwise)


def _inner(p: Program, family: Family) -> None:
    """With X at an IP header: leave the protocol in M[0] and X at the transport header."""
    p.label(f"inner-{family}")
    p.do(LD_BYTE_X, NET + _protocol_offset(family))
    if family is Family.IPV6:
        p.when(FRAGMENT_HEADER, "", "unfragmented")
        p.add_to_x(8)
        # The next header's number is the fragment header's first byte, now 8 before the transport.
        p.do(LD_BYTE_X, NET + IP_HEADER[family] - 8)
        p.label("unfragmented")
    p.do(ST, 0)
    p.add_to_x(IP_HEADER[family])
    p.goto("transport")


def _quoted(p: Program, family: Family) -> None:
    """With X at an ICMP error: the same for the packet that it quotes."""
    p.label(f"quoted-{family}")
    p.add_to_x(8)
    p.do(LD_BYTE_X, NET + _protocol_offset(family))
    p.do(ST, 0)
    p.add_to_x(IP_HEADER[family])
    p.goto("quoted-transport")


def _transport(p: Program, prefix: str, port: int, known: int) -> None:
    """With the protocol in M[0] and X at the transport header: is it a probe?"""
    p.do(LD_MEM, 0)
    p.when(socket.IPPROTO_UDP, f"{prefix}udp")
    p.when(socket.IPPROTO_TCP, f"{prefix}tcp")
    for family in Family:
        p.when(ICMP[family], f"{prefix}icmp-{family}")
    p.goto("drop")
    if prefix:
        # An error quotes as little as 8 bytes of the transport: ports, but not TCP's flags.
        p.label(f"{prefix}tcp")
        p.do(LD_WORD_X, NET + 4)
        p.when(known, "accept")
    p.label(f"{prefix}udp")
    for offset in (0, 2):
        p.do(LD_HALF_X, NET + offset)
        p.when(port, "accept")
    p.goto(f"{prefix}payload")
    if not prefix:
        _tcp(p, port, known)
    for family in Family:
        p.label(f"{prefix}icmp-{family}")
        p.do(LD_BYTE_X, NET)
        p.when(ECHO_REQUEST[family], f"{prefix}payload")
        p.when(ECHO_REPLY[family], f"{prefix}payload", "drop" if prefix else f"error-{family}")
        if not prefix:
            p.label(f"error-{family}")
            errors = (3, 11, 12) if family is Family.IPV4 else (1, 2, 3, 4)
            for kind in errors:
                p.when(kind, f"quoted-{family}")
            p.goto("drop")
    p.label(f"{prefix}payload")
    # The headers of UDP and of an ICMP echo are equally long.
    p.do(LD_WORD_X, NET + _UDP_HEADER)
    p.when(known, "accept", "drop")


def _tcp(p: Program, port: int, known: int) -> None:
    """Leave out bare acknowledgements, and the reset with which a client ends a proved connection."""
    p.label("tcp")
    p.do(LD_HALF_X, NET)
    p.when(port, "from-server")
    p.do(LD_HALF_X, NET + 2)
    p.when(port, "", "sequence")
    p.do(LD_BYTE_X, NET + 13)
    p.when(TCP_SYN | TCP_PSH, "accept", "sequence", code=JSET)
    p.label("from-server")
    p.do(LD_BYTE_X, NET + 13)
    p.when(TCP_SYN | TCP_PSH | TCP_RST, "accept", code=JSET)
    p.label("sequence")
    p.do(LD_WORD_X, NET + 4)
    p.when(known, "accept")
    p.do(LD_WORD_X, NET + 8)
    p.when((known + 1) & 0xFFFFFFFF, "accept", "drop")
