"""Asks nodes whether their kernels are alive, and how large a packet reaches them.

By ICMP echo (RFC 792; RFC 4443, section 4); sizes as in packetization layer path MTU discovery (RFC 8899): what is
answered has passed, whoever keeps silent about what has not.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Collection

import msgspec

from podway.api.addresses import Address, Family
from podway.errors import UnsupportedSystem

PAUSES = (1 / 6, 1 / 6, 2 / 3)
"""One request before each, in parts of the window: a lost packet is not a dead node."""


class _Echo(msgspec.Struct, frozen=True):
    protocol: int
    request: int
    reply: int
    with_header: bool
    """Whether a raw socket gives the IP header before the message (raw(7), ipv6(7))."""
    header: int
    """Length of the IP header in bytes."""
    mtu_discover: int
    """The option that sets don't-fragment, IP_MTU_DISCOVER or IPV6_MTU_DISCOVER."""


PMTUDISC_PROBE = 3
"""Always don't-fragment, whatever path MTU the kernel remembers (ip(7))."""

IP_MTU, IPV6_MTU = 14, 24
"""The options that tell the path MTU that the kernel remembers of a connected socket (ip(7), ipv6(7))."""

SMALLEST = {Family.IPV4: 576, Family.IPV6: 1280}
"""What every path must carry: RFC 1122, section 3.3.3 (what every host takes), RFC 8200, section 5."""

SIZES_AT_ONCE = 16
SETTLE = 0.05
"""Seconds after the last answer to some sizes in which those of the others come, if they come at all."""

_ECHO = {
    Family.IPV4: _Echo(socket.IPPROTO_ICMP, 8, 0, True, 20, 10),
    Family.IPV6: _Echo(socket.IPPROTO_ICMPV6, 128, 129, False, 40, 23),
}


async def answering(addresses: Collection[Address], *, window: float, size: int = 0) -> frozenset[Address]:
    """Return which of these addresses answer within `window` seconds; at once when all have.

    With `size` the requests are IP packets of so many bytes that nobody may fragment.
    An address that cannot even be sent to does not answer. Raises UnsupportedSystem without CAP_NET_RAW.
    """
    if not addresses:
        return frozenset()
    loop = asyncio.get_running_loop()
    answered: set[Address] = set()
    complete = asyncio.Event()
    token = os.urandom(2)

    def heard(address: Address, _number: int) -> None:
        if address in addresses:
            answered.add(address)
        if len(answered) == len(addresses):
            complete.set()

    sockets = {family: _open(family) for family in {Family.of(address) for address in addresses}}
    try:
        for family, sock in sockets.items():
            loop.add_reader(sock, _receive, sock, family, token, heard)
        for number, pause in enumerate(PAUSES):
            for address in set(addresses) - answered:
                _send(sockets[Family.of(address)], address, token, number, size)
            try:
                async with asyncio.timeout(pause * window):
                    await complete.wait()
            except TimeoutError:
                continue
            break
    finally:
        for sock in sockets.values():
            loop.remove_reader(sock)
            sock.close()
    return frozenset(answered)


class PathMtu(msgspec.Struct, frozen=True):
    """How large an IP packet reaches an address, in bytes; `told`: an ICMP error said so to the kernel."""

    fits: int
    told: bool


async def path_mtu(address: Address, *, largest: int, window: float) -> PathMtu | None:
    """Return the largest size of packets, up to `largest`, that pass to an address; None if it does not answer.

    Each round of sizes takes up to `window` seconds. Raises UnsupportedSystem without CAP_NET_RAW.
    """
    smallest = SMALLEST[Family.of(address)]
    told = remembered_mtu(address)
    known = {told, told + 1} if smallest <= told < largest else set[int]()
    passed = await passing(address, {min(smallest, largest), *known, largest}, window=window)
    if not passed:
        return None
    low, high = max(passed), min((size for size in {*known, largest} if size > max(passed)), default=largest + 1)
    while low + 1 < high:
        step = max(1, (high - low) // (SIZES_AT_ONCE + 1))
        tried = set(range(low + step, high, step))
        low = max({low, *await passing(address, tried, window=window)})
        high = min((size for size in tried if size > low), default=high)
    # What the last packets met with is remembered only now.
    return PathMtu(low, remembered_mtu(address) <= low)


async def passing(address: Address, sizes: Collection[int], *, window: float) -> frozenset[int]:
    """Return which sizes of packets (in bytes, with don't-fragment) are answered within `window` seconds."""
    loop, family = asyncio.get_running_loop(), Family.of(address)
    ordered, passed, news, token = sorted(sizes), set[int](), asyncio.Event(), os.urandom(2)

    def heard(source: Address, number: int) -> None:
        if source == address and number < len(ordered):
            passed.add(ordered[number])
            news.set()

    sock = _open(family)
    try:
        loop.add_reader(sock, _receive, sock, family, token, heard)
        for pause in PAUSES:
            for number, size in enumerate(ordered):
                if size not in passed:
                    _send(sock, address, token, number, size)
            patience = pause * window
            while len(passed) < len(ordered) and await _happened(news, patience):
                patience = min(patience, SETTLE)
            if len(passed) == len(ordered):
                break
    finally:
        loop.remove_reader(sock)
        sock.close()
    return frozenset(passed)


async def _happened(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event and clear it; return whether it came in time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    event.clear()
    return True


def remembered_mtu(address: Address) -> int:
    """Return the path MTU that the kernel knows for an address, in bytes; 0 if there is no way to it."""
    family = Family.of(address)
    option = (socket.IPPROTO_IP, IP_MTU) if family is Family.IPV4 else (socket.IPPROTO_IPV6, IPV6_MTU)
    with socket.socket(family.af, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((str(address), 9))
            return sock.getsockopt(*option)
        except OSError:
            return 0


def _open(family: Family) -> socket.socket:
    try:
        sock = socket.socket(family.af, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _ECHO[family].protocol)
    except PermissionError as error:
        raise UnsupportedSystem(
            "nodes cannot be asked whether they are alive: the capability CAP_NET_RAW lacks"
        ) from error
    level = socket.IPPROTO_IP if family is Family.IPV4 else socket.IPPROTO_IPV6
    sock.setsockopt(level, _ECHO[family].mtu_discover, PMTUDISC_PROBE)
    return sock


def _send(sock: socket.socket, address: Address, token: bytes, number: int, size: int) -> None:
    family = Family.of(address)
    head = struct.pack("!BBH2sH", _ECHO[family].request, 0, 0, token, number)
    if family is Family.IPV4:  # for ICMPv6 the kernel fills in the checksum (RFC 3542, section 3.1)
        head = struct.pack("!BBH2sH", _ECHO[family].request, 0, _checksum(head), token, number)
    padding = bytes(max(0, size - _ECHO[family].header - len(head)))  # zeros leave the checksum as it is
    try:
        sock.sendto(head + padding, (str(address), 0))
    except OSError:
        # No route, no neighbour, no room or too large: to the caller that is one more request without an answer.
        return


def _receive(sock: socket.socket, family: Family, token: bytes, heard: Callable[[Address, int], None]) -> None:
    try:
        data, source = sock.recvfrom(2048)
    except BlockingIOError:
        return
    echo = _ECHO[family]
    message = data[(data[0] & 0x0F) * 4 :] if echo.with_header else data
    if len(message) >= 8 and message[0] == echo.reply and message[4:6] == token:
        heard(_address(family, str(source[0])), int.from_bytes(message[6:8], "big"))


def _address(family: Family, text: str) -> Address:
    return family.address(int.from_bytes(socket.inet_pton(family.af, text.partition("%")[0]), "big"))


def _checksum(message: bytes) -> int:
    """The Internet checksum (RFC 1071) of a message of even length."""
    total: int = sum(struct.unpack(f"!{len(message) // 2}H", message))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
