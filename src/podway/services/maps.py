"""By what a node's data path leads connections to Services: keyed entries, and changes of them. Pure.

Three maps. `frontends` says for an address, protocol and port which set of backends is behind it. `choices` is
each set as a list: place 0 says how many there are, places from 1 on hold backends' numbers. `backends` says
where a backend is. So one endpoint more or less is a handful of entries, whatever there is besides.

Addresses are 16 bytes, IPv4 mapped (RFC 4291 section 2.5.5.2), as the data path has them.
"""

import enum
import socket
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import msgspec

from podway.api.addresses import Address

PROTOCOLS: Mapping[str, int] = MappingProxyType({"TCP": 6, "UDP": 17, "SCTP": 132})
"""The protocols that Services have, with their numbers in IP."""

NOBODY = 0
"""The number of no set and no backend."""

_MAPPED = bytes(10) + b"\xff\xff"


def packed(address: Address) -> bytes:
    """Return an address's 16 bytes."""
    return _MAPPED + address.packed if address.version == 4 else address.packed


def unpacked(address: bytes) -> str:
    """Return the text of an address of 16 bytes."""
    if address.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, address[12:])
    return socket.inet_ntop(socket.AF_INET6, address)


class FrontendFlag(enum.IntFlag):
    """What becomes of connections: FRONTEND_… in bpf/flow/service.h."""

    DROP = 1
    """Where there is no backend they are dropped, not refused: another node has some."""

    OUTSIDE = 2
    """Clients outside of the cluster use it: it is no cluster's address. To pods it is all the same."""


class FrontendKey(NamedTuple):
    """An address, protocol and port of a Service. Without protocol and port: the whole address is a Service's."""

    address: bytes
    protocol: int = 0
    port: int = 0

    def __str__(self) -> str:
        text = unpacked(self.address)
        return f"{f'[{text}]' if ':' in text else text}:{self.port}"


class Frontend(NamedTuple):
    """Which set of backends is behind it, and for how many seconds a client stays with one (0: not at all)."""

    backends: int
    affinity: int = 0
    flags: FrontendFlag = FrontendFlag(0)


class Backend(NamedTuple):
    """Where a backend is, and of which set. Its number is never another's while anybody may remember it."""

    backends: int
    address: bytes
    port: int


Choice: TypeAlias = tuple[int, int]
"""A set's number, and a place in it."""


class Entries(NamedTuple):
    """All entries of a data path."""

    frontends: Mapping[FrontendKey, Frontend] = MappingProxyType({})
    choices: Mapping[Choice, int] = MappingProxyType({})
    backends: Mapping[int, Backend] = MappingProxyType({})


NOTHING = Entries()


class Delta(msgspec.Struct, frozen=True):
    """Changes. A mapping gives what is put, a tuple what is deleted.

    Written in this order nobody is led to what is not there: backends, places, numbers of places, frontends; then
    what goes, the other way round.
    """

    frontends: Mapping[FrontendKey, Frontend] = {}
    choices: Mapping[Choice, int] = {}
    backends: Mapping[int, Backend] = {}
    gone_frontends: tuple[FrontendKey, ...] = ()
    gone_choices: tuple[Choice, ...] = ()
    gone_backends: tuple[int, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing changes."""
        return not any(getattr(self, field) for field in self.__struct_fields__)


NO_CHANGE = Delta()


class Maps:
    """Entries as they become by changes: for tests, and for who compares."""

    def __init__(self, entries: Entries = NOTHING) -> None:
        self.frontends = dict(entries.frontends)
        self.choices = dict(entries.choices)
        self.backends = dict(entries.backends)

    def apply(self, delta: Delta) -> None:
        """Take over changes."""
        self.backends.update(delta.backends)
        self.choices.update(delta.choices)
        self.frontends.update(delta.frontends)
        for key in delta.gone_frontends:
            self.frontends.pop(key, None)
        for choice in delta.gone_choices:
            self.choices.pop(choice, None)
        for number in delta.gone_backends:
            self.backends.pop(number, None)

    @property
    def entries(self) -> Entries:
        """The entries now."""
        return Entries(self.frontends, self.choices, self.backends)
