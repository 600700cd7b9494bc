"""Which packets a capture takes: a filter expression, read, and compiled for the kernel. Pure.

The language is the part of pcap-filter(7) that says something of pods' packets: `tcp port 80 and host 10.0.0.1`.
It means here what it means there, precedence included, but for one thing: a packet matches if it does so bare, or
as what an IPIP or VXLAN packet carries. libpcap's compiler knows fixed offsets only, so the code is made here.
"""

import re
import socket
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Literal, TypeAlias

import msgspec

from podway.api.addresses import Address, Family, Network
from podway.api.fields import is_number
from podway.errors import InvalidInput
from podway.probe.classic import (
    ADD_X,
    AND,
    ETHERTYPE,
    JGE,
    JGT,
    LD_BYTE_X,
    LD_HALF,
    LD_HALF_X,
    LD_IMM,
    LD_MEM,
    LD_WORD_X,
    LDX_IMM,
    LDX_MEM,
    LSH,
    NET,
    RET,
    RSH,
    ST,
    STX,
    Program,
)
from podway.probe.packet import ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, FRAGMENT_HEADER, IP_HEADER

Side: TypeAlias = Literal["", "src", "dst"]
"""Which end is meant; empty for either."""

Resolve: TypeAlias = Callable[[str], Iterable[Address]]
"""Returns the addresses that a name stands for. Raises InvalidInput."""

LARGEST_SNAP = 65535
"""Bytes of a packet that are taken at most."""

MOST_INSTRUCTIONS = 4096
"""BPF_MAXINSNS (linux/bpf_common.h)."""

MOST_WORDS = 400
"""Words of an expression: more make no program that the kernel takes."""


class Net(msgspec.Struct, frozen=True):
    """An address lies in a network."""

    network: IPv4Network | IPv6Network
    side: Side = ""

    def __str__(self) -> str:
        return f"{self.side} net {self.network}".lstrip()


class Ports(msgspec.Struct, frozen=True):
    """A port of TCP, UDP or SCTP lies in a range."""

    first: int
    last: int
    side: Side = ""

    def __str__(self) -> str:
        return f"{self.side} portrange {self.first}-{self.last}".lstrip()


class Carries(msgspec.Struct, frozen=True):
    """The packet is of one of these IP protocols, and of this family if one is named."""

    name: str
    protocols: tuple[int, ...]
    family: Family | None = None

    def __str__(self) -> str:
        return self.name


class Not(msgspec.Struct, frozen=True):
    """The opposite."""

    of: "Expression"

    def __str__(self) -> str:
        return f"not {_in_parentheses(self.of)}"


class Either(msgspec.Struct, frozen=True):
    """One of two holds, or with `both` the two of them."""

    left: "Expression"
    right: "Expression"
    both: bool = False

    def __str__(self) -> str:
        return f"{self.left} {'and' if self.both else 'or'} {_in_parentheses(self.right)}"


Expression: TypeAlias = Net | Ports | Carries | Not | Either
"""A filter. As text it is what `parse` reads, with numbers in place of names."""


def _in_parentheses(expression: Expression) -> str:
    return f"({expression})" if isinstance(expression, Either) else str(expression)


_PROTOCOLS = {
    "tcp": Carries("tcp", (socket.IPPROTO_TCP,)),
    "udp": Carries("udp", (socket.IPPROTO_UDP,)),
    "sctp": Carries("sctp", (socket.IPPROTO_SCTP,)),
    "icmp": Carries("icmp", (socket.IPPROTO_ICMP,), Family.IPV4),
    "icmp6": Carries("icmp6", (socket.IPPROTO_ICMPV6,), Family.IPV6),
    "ip": Carries("ip", (), Family.IPV4),
    "ip6": Carries("ip6", (), Family.IPV6),
}
_WITH_PORTS = (socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_SCTP)
_SIDES: tuple[Side, ...] = ("src", "dst")
_KINDS = ("host", "net", "port", "portrange", "proto")
_WORDS = {*_PROTOCOLS, *_SIDES, *_KINDS, "and", "or", "not", "&&", "||", "!", "(", ")"}
_TOKEN = re.compile(r"\s*(\(|\)|!|&&|\|\||[^\s()!]+)")
_HINT = (
    "write it as for tcpdump: 'tcp port 80 and not host 10.0.0.1', 'src net 10.1.0.0/16', 'icmp or udp port 53'"
)


def parse(text: str, resolve: Resolve | None = None) -> Expression:
    """Read an expression; `resolve` tells whose addresses other words after `host` are. Raises InvalidInput."""
    return _Parser(text, resolve).whole()


def of_addresses(addresses: Iterable[Address]) -> Expression:
    """Return the filter for all packets from and to some addresses, of which there is at least one."""
    first, *others = (Net(_network(str(one))) for one in addresses)
    found: Expression = first
    for one in others:
        found = Either(found, one)
    return found


def nets(expression: Expression) -> Iterator[Network]:
    """Yield the networks that an expression names."""
    match expression:
        case Net(network):
            yield network
        case Not(of):
            yield from nets(of)
        case Either(left, right):
            yield from nets(left)
            yield from nets(right)


class _Parser:
    """Reads one expression, from left to right."""

    def __init__(self, text: str, resolve: Resolve | None) -> None:
        self._text, self._resolve = text, resolve
        self._tokens = _TOKEN.findall(text)
        self._at = 0
        self._former: tuple[str, Side, str] = ("", "", "")
        """What a value alone means: as the one before it, `port 80 or 443`."""
        if len(self._tokens) > MOST_WORDS:
            raise self._wrong(f"it has more than {MOST_WORDS} words")

    def whole(self) -> Expression:
        found = self._sequence()
        if self._at < len(self._tokens):
            raise self._wrong(f"{self._peek()!r} is not expected there")
        return found

    def _sequence(self) -> Expression:
        # `and` and `or` bind equally, and from the left: pcap-filter(7).
        found = self._factor()
        while self._peek() in ("and", "&&", "or", "||"):
            both = self._take() in ("and", "&&")
            found = Either(found, self._factor(), both)
        return found

    def _factor(self) -> Expression:
        negations = 0
        while self._peek() in ("not", "!"):
            self._take()
            negations += 1
        if self._peek() == "(":
            self._take()
            found = self._sequence()
            if self._take() != ")":
                raise self._wrong("a parenthesis is not closed")
        else:
            found = self._primitive()
        return Not(found) if negations % 2 else found

    def _primitive(self) -> Expression:
        word = self._peek()
        if word and word not in _WORDS and self._former[2]:
            return self._with(*self._former, self._take())
        protocol = self._take() if word in _PROTOCOLS else ""
        side: Side = ""
        if self._peek() in _SIDES:
            side = "src" if self._take() == "src" else "dst"
        kind = self._take() if self._peek() in _KINDS else ""
        if not kind and protocol and not side:
            self._former = ("", "", "")
            return _PROTOCOLS[protocol]
        if not kind and side:
            kind = "host"
        if not kind or (kind == "proto" and side):
            raise self._wrong(f"{word!r} says nothing here" if word else "something is missing at its end")
        self._former = (protocol, side, kind)
        value = self._take()
        if not value or value in _WORDS:
            raise self._wrong(f"no value follows {kind!r}")
        return self._with(protocol, side, kind, value)

    def _with(self, protocol: str, side: Side, kind: str, value: str) -> Expression:
        found = self._value(side, kind, value)
        return Either(_PROTOCOLS[protocol], found, both=True) if protocol else found

    def _value(self, side: Side, kind: str, value: str) -> Expression:
        if kind in ("port", "portrange"):
            first, dash, last = value.partition("-")
            if kind == "port" and dash:
                raise self._wrong(f"{value!r} is a range: write portrange {value}")
            low, high = sorted((self._number(first, 65535), self._number(last or first, 65535)))
            return Ports(low, high, side)
        if kind == "proto":
            return Carries(f"proto {value}", (self._number(value, 255),))
        try:
            return Net(_network(value), side)
        except ValueError as error:
            if kind == "net" or self._resolve is None:
                raise self._wrong(str(error)) from None
        found: Expression | None = None
        for address in self._resolve(value):
            one = Net(_network(str(address)), side)
            found = Either(found, one) if found else one
        if found is None:
            raise self._wrong(f"{value} has no address")
        return found

    def _number(self, text: str, most: int) -> int:
        if not is_number(text) or int(text) > most:
            raise self._wrong(f"{text!r} is no number from 0 to {most}")
        return int(text)

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _wrong(self, problem: str) -> InvalidInput:
        return InvalidInput(f"--filter {self._text[:80]!r}: {problem}", hint=_HINT)


def _network(text: str) -> IPv4Network | IPv6Network:
    return ip_network(text)


# To code. What is known of the packet that is looked at stands in the scratch memory.

_BASE, _TRANSPORT, _PROTOCOL, _FAMILY, _LATER, _OUTER = range(6)
"""Offsets of its IP header and of what follows, from the network header; whether it is a later fragment."""

_UDP_HEADER, _VXLAN_HEADER = 8, 8
_INNER = _UDP_HEADER + _VXLAN_HEADER + ETHERNET_HEADER


def compiled(expression: Expression, snap: int) -> bytes:
    """Return the program for a packet socket, which passes `snap` bytes at most. Raises InvalidInput."""
    code = _Code()
    program = code.program
    program.do(LD_HALF, ETHERTYPE)
    program.when(ETHERTYPE_IPV4, "ip")
    program.when(ETHERTYPE_IPV6, "ip", "none")
    program.label("none")
    program.do(RET, 0)
    program.label("ip")
    program.do(LDX_IMM, 0)
    code.facts("bare")
    code.judge(expression, "accept", "try-inner")
    program.label("try-inner")
    code.enter("drop")
    code.facts("inner")
    code.judge(expression, "accept", "drop")
    program.label("accept")
    program.do(RET, snap)
    program.label("drop")
    program.do(RET, 0)
    if len(program) > MOST_INSTRUCTIONS:
        raise InvalidInput(
            f"--filter: it makes {len(program)} instructions, and the kernel takes {MOST_INSTRUCTIONS}",
            hint="name fewer hosts and networks: one network in place of many addresses",
        )
    return program.assemble()


class _Code:
    """A program under construction, with names for its places."""

    def __init__(self) -> None:
        self.program = Program()
        self._names = 0

    def _new(self) -> str:
        self._names += 1
        return f"_{self._names}"

    def test(self, value: int, yes: str, no: str, *, code: int | None = None) -> None:
        """Go on at a label, however far away, by what the accumulator holds."""
        near = self._new()
        if code is None:
            self.program.when(value, "", near)
        else:
            self.program.when(value, "", near, code=code)
        self.program.goto(yes)
        self.program.label(near)
        self.program.goto(no)

    def facts(self, name: str) -> None:
        """Write down what is known of the IP packet that begins at X, or drop what is none."""
        p = self.program
        four, six, whole, done = (f"{name}-{one}" for one in ("four", "six", "whole", "done"))
        p.do(STX, _BASE)
        p.do(LD_BYTE_X, NET)
        p.do(RSH, 4)
        p.do(ST, _FAMILY)
        p.when(4, four)
        self.test(6, six, "drop")
        p.label(four)
        p.do(LD_BYTE_X, NET + 9)
        p.do(ST, _PROTOCOL)
        p.do(LD_HALF_X, NET + 6)
        p.do(AND, 0x1FFF)
        p.do(ST, _LATER)
        p.do(LD_BYTE_X, NET)
        p.do(AND, 0xF)
        p.do(LSH, 2)
        p.do(ADD_X)
        p.do(ST, _TRANSPORT)
        p.goto(done)
        p.label(six)
        p.do(LD_IMM, 0)
        p.do(ST, _LATER)
        p.do(LD_BYTE_X, NET + 6)
        p.do(ST, _PROTOCOL)
        p.when(FRAGMENT_HEADER, "", whole)
        p.do(LD_HALF_X, NET + IP_HEADER[Family.IPV6] + 2)
        p.do(AND, 0xFFF8)
        p.do(ST, _LATER)
        p.do(LD_BYTE_X, NET + IP_HEADER[Family.IPV6])
        p.do(ST, _PROTOCOL)
        p.add_to_x(8)
        p.label(whole)
        p.add_to_x(IP_HEADER[Family.IPV6])
        p.do(STX, _TRANSPORT)
        p.label(done)

    def enter(self, otherwise: str) -> None:
        """Leave X at the IP packet that an IPIP or VXLAN packet carries; go on elsewhere if it is none."""
        p = self.program
        p.do(LD_MEM, _LATER)
        self.test(0, "first", otherwise)
        p.label("first")
        p.do(LDX_MEM, _TRANSPORT)
        p.do(LD_MEM, _PROTOCOL)
        p.when(socket.IPPROTO_IPIP, "entered")
        p.when(socket.IPPROTO_IPV6, "entered")
        self.test(socket.IPPROTO_UDP, "vxlan", otherwise)
        p.label("vxlan")
        p.do(LD_HALF_X, NET + _INNER - 2)
        p.when(ETHERTYPE_IPV4, "framed")
        self.test(ETHERTYPE_IPV6, "framed", otherwise)
        p.label("framed")
        p.add_to_x(_INNER)
        p.label("entered")

    def judge(self, expression: Expression, yes: str, no: str) -> None:
        """Go on at a label by whether the packet matches."""
        match expression:
            case Not(of):
                self.judge(of, no, yes)
            case Either(left, right, both):
                then = self._new()
                self.judge(left, then if both else yes, no if both else then)
                self.program.label(then)
                self.judge(right, yes, no)
            case Carries(_, protocols, family):
                self._carries(protocols, family, yes, no)
            case Net(network, side):
                self._net(network, side, yes, no)
            case Ports(first, last, side):
                self._ports(first, last, side, yes, no)

    def _carries(self, protocols: tuple[int, ...], family: Family | None, yes: str, no: str) -> None:
        if family is not None:
            right = self._new()
            self.program.do(LD_MEM, _FAMILY)
            self.test(int(family), right if protocols else yes, no)
            self.program.label(right)
        if protocols:
            self.program.do(LD_MEM, _PROTOCOL)
            self._any(protocols, yes, no)

    def _any(self, values: tuple[int, ...], yes: str, no: str) -> None:
        for value in values[:-1]:
            other = self._new()
            self.test(value, yes, other)
            self.program.label(other)
        self.test(values[-1], yes, no)

    def _net(self, network: Network, side: Side, yes: str, no: str) -> None:
        p, right = self.program, self._new()
        p.do(LD_MEM, _FAMILY)
        self.test(network.version, right, no)
        p.label(right)
        p.do(LDX_MEM, _BASE)
        size = network.max_prefixlen // 8
        start = 12 if network.version == 4 else 8
        places = {"src": [start], "dst": [start + size], "": [start, start + size]}[side]
        for place in places:
            other = no if place == places[-1] else self._new()
            address, mask = network.network_address.packed, network.netmask.packed
            for at in range(0, size, 4):
                wanted, bits = (int.from_bytes(one[at : at + 4], "big") for one in (address, mask))
                if bits:
                    equal = self._new()
                    p.do(LD_WORD_X, NET + place + at)
                    p.do(AND, bits)
                    self.test(wanted, equal, other)
                    p.label(equal)
            p.goto(yes)
            if other != no:
                p.label(other)

    def _ports(self, first: int, last: int, side: Side, yes: str, no: str) -> None:
        p, right, whole = self.program, self._new(), self._new()
        p.do(LD_MEM, _PROTOCOL)
        self._any(_WITH_PORTS, right, no)
        p.label(right)
        p.do(LD_MEM, _LATER)
        self.test(0, whole, no)
        p.label(whole)
        p.do(LDX_MEM, _TRANSPORT)
        places = {"src": [0], "dst": [2], "": [0, 2]}[side]
        for place in places:
            other, low = no if place == places[-1] else self._new(), self._new()
            p.do(LD_HALF_X, NET + place)
            self.test(first, low, other, code=JGE)
            p.label(low)
            self.test(last, other, yes, code=JGT)
            if other != no:
                p.label(other)
