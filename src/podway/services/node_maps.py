"""Services as entries of a node's nftables maps: what leads there who is not a pod. Pure, and incremental.

What serves pods (services.maps) says who is behind an address and port; here that is said in the words of the
rules of podway.plan.services. Their maps are keyed by a Service's address, protocol and port, for rules cannot
look up in one map what another one says: so an endpoint has an entry for each address and port that leads to it.
"""

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import NamedTuple, TypeAlias

import msgspec

from podway.api.addresses import Address, collapsed
from podway.api.fields import parse_block
from podway.api.kinds.service import MOST_ENDPOINTS
from podway.services.maps import NO_CHANGE, NOTHING, PROTOCOLS, Delta, Entries, Frontend, FrontendFlag, FrontendKey

SERVICES, REFUSED, BACKENDS = "services", "refused", "backends"
OUTSIDE, REFUSED_OUTSIDE = "outside", "refused_outside"
CLUSTER, SERVED = "cluster", "served"
FENCED, ALLOWED = "fenced", "allowed"
"""The maps, and the sets: of clusters' addresses, and of who is behind others; of what not everybody outside may
come to, and from where one may, as ranges: such a key has a beginning and an end.
"""
STAYING, KEEP = "stays", "keep_"
"""The map that says for how long clients stay, and what the chains are called to which it leads."""

_SHARED = (SERVED, KEEP)
"""Of what several frontends may want the same entry."""

_MAPPED = 12
"""Bytes ahead of an IPv4 address in one of 16 bytes (services.maps.packed)."""

_SECONDS = struct.Struct(">I")

_PLACE = struct.Struct("=I")
"""A place, as a register of the kernel has it: in the processor's byte order."""


class NodeKey(NamedTuple):
    """The key of an entry: the IP version of its table, the map or set, and the key's bytes in it.

    A chain that notes clients is an entry as well: its key are its seconds.
    """

    version: int
    map: str
    key: bytes


Fence: TypeAlias = Callable[[FrontendKey], tuple[str, ...]]

NodeValue: TypeAlias = bytes | str
"""What an entry says: bytes; the name of a chain that it leads to; nothing, if it is in a set."""


class Where(NamedTuple):
    """An address and port."""

    address: Address
    port: int


class NodeDelta(msgspec.Struct, frozen=True):
    """Changes of a node's entries: what is put, with what it is to say, and what goes.

    `stale` are those of `put` that say something else until then. `moved` are addresses and ports of UDP to which
    others are led from then on, with those who are behind them still: the kernel must not go on with former ones.
    Nor must it with what it remembers of clients (session affinity): `left` has the keys of what they stay with,
    from which backends went, or may have gone before, with the backends that are left.
    """

    put: Mapping[NodeKey, NodeValue] = {}
    gone: Mapping[NodeKey, NodeValue] = {}
    stale: frozenset[NodeKey] = frozenset()
    moved: Mapping[Where, frozenset[Where]] = {}
    left: Mapping[NodeKey, frozenset[bytes]] = {}

    @property
    def empty(self) -> bool:
        """Whether nothing changes."""
        return not (self.put or self.gone or self.left)


class NodeMaps:
    """A node's entries, kept in step with those that serve pods; of these IP versions only.

    `outside` are the entries behind which clients outside of the cluster find others than who is in it.
    """

    def __init__(
        self,
        versions: Iterable[int],
        entries: Entries = NOTHING,
        outside: Entries = NOTHING,
        fence: Fence = lambda _: (),
    ) -> None:
        """Begin with what there is. `fence` says from which networks clients outside may come to a frontend."""
        self._sides = (_Side(versions, entries, fence), _Side(versions, outside, outside=True))
        self._shared: Counter[NodeKey] = Counter()
        """How many frontends want each entry that several may want."""
        for side in self._sides:
            self._shared.update(key for key, _ in side.entries() if key.map in _SHARED)

    def entries(self) -> Iterator[tuple[NodeKey, NodeValue]]:
        """Yield all that there is to be written; what several frontends want may come several times."""
        for side in self._sides:
            yield from side.entries()

    def change(self, delta: Delta, outside: Delta = NO_CHANGE) -> NodeDelta:
        """Take over changes of what serves pods, and clients outside; return what changes here by them."""
        before: dict[NodeKey, NodeValue] = {}
        after: dict[NodeKey, NodeValue] = {}
        counts: Counter[NodeKey] = Counter()
        both = tuple(zip(self._sides, (delta, outside), strict=True))
        # Who is behind a frontend for the others stays: all of them are told of what is touched on one side.
        touched = {key: None for side, told in both for key in side.touched(told)}
        for side, told in both:
            for known, sign in ((before, -1), (after, 1)):
                if sign > 0:
                    side.take(told)
                for key, value in side.of(touched):
                    if key.map in _SHARED:
                        counts[key] += sign
                    else:
                        known[key] = value
        for key, more in counts.items():
            for known, count in ((before, self._shared[key]), (after, self._shared[key] + more)):
                if count:
                    known[key] = b""
            self._shared[key] += more
            if not self._shared[key]:
                del self._shared[key]
        return difference(after, before)


class _Side:
    """The entries by which some clients are led."""

    def __init__(
        self, versions: Iterable[int], entries: Entries, fence: Fence = lambda _: (), *, outside: bool = False
    ) -> None:
        self._fence = fence
        self._fences: dict[FrontendKey, tuple[str, ...]] = {}
        """Of the frontends that have one."""
        self._versions = frozenset(versions)
        self._frontends = dict(entries.frontends)
        self._choices = dict(entries.choices)
        self._backends = dict(entries.backends)
        self._of: dict[int, dict[FrontendKey, None]] = {}
        """The addresses and ports behind which each set is."""
        self._services, self._refused = (OUTSIDE, REFUSED_OUTSIDE) if outside else (SERVICES, REFUSED)
        self._first, self._word = (MOST_ENDPOINTS, "outside_") if outside else (0, "")
        for key, frontend in self._frontends.items():
            self._of.setdefault(frontend.backends, {})[key] = None
            self._look_at_fence(key)

    def _look_at_fence(self, key: FrontendKey) -> None:
        if key in self._frontends and (ranges := self._fence(key)):
            self._fences[key] = ranges
        else:
            self._fences.pop(key, None)

    def entries(self) -> Iterator[tuple[NodeKey, NodeValue]]:
        """Yield all entries."""
        yield from self.of(tuple(self._frontends))

    def touched(self, delta: Delta) -> Mapping[FrontendKey, None]:
        """Return of which frontends a change may change entries."""
        # Backends' numbers are never another's, so a set that changes has other places.
        touched = dict.fromkeys([*delta.frontends, *delta.gone_frontends])
        for number in {number for number, _ in (*delta.choices, *delta.gone_choices)}:
            touched.update(self._of.get(number, {}))
        return touched

    def of(self, keys: Iterable[FrontendKey]) -> Iterator[tuple[NodeKey, NodeValue]]:
        """Yield the entries of some frontends, as far as these are there."""
        for key in keys:
            frontend = self._frontends.get(key)
            if frontend is not None:
                yield from self._entries(key, frontend)

    def take(self, delta: Delta) -> None:
        """Take over changes."""
        self._backends.update(delta.backends)
        self._choices.update(delta.choices)
        for key in (*delta.frontends, *delta.gone_frontends):
            former = self._frontends.pop(key, None)
            if former is not None:
                users = self._of[former.backends]
                del users[key]
                if not users:
                    del self._of[former.backends]
        for key, frontend in delta.frontends.items():
            self._frontends[key] = frontend
            self._of.setdefault(frontend.backends, {})[key] = None
        for key in (*delta.frontends, *delta.gone_frontends):
            self._look_at_fence(key)
        for choice in delta.gone_choices:
            self._choices.pop(choice, None)
        for number in delta.gone_backends:
            self._backends.pop(number, None)

    def _entries(self, key: FrontendKey, frontend: Frontend) -> Iterator[tuple[NodeKey, NodeValue]]:
        version, address = _short(key.address)
        if version not in self._versions:
            return
        if not key.protocol:
            yield NodeKey(version, CLUSTER, address), b""
            return
        where = address + _protocol(key.protocol) + _port(key.port)
        if key in self._fences:
            yield NodeKey(version, FENCED, where), b""
            # Ranges of a set do not overlap.
            for network in collapsed(parse_block(each) for each in self._fences[key]):
                if network.version == version:
                    first, last = network.network_address.packed, network.broadcast_address.packed
                    yield NodeKey(version, ALLOWED, where + first + where + last), b""
        behind = self._behind(frontend.backends)
        if not behind:
            refused = "drop_it" if frontend.flags & FrontendFlag.DROP else "refuse"
            yield NodeKey(version, self._refused, where), refused
            return
        chain = f"{self._word}{'same' if frontend.affinity else 'any'}_{room(len(behind))}"
        yield NodeKey(version, self._services, where), chain
        if frontend.affinity:
            yield NodeKey(version, KEEP, _SECONDS.pack(frontend.affinity)), b""
            yield NodeKey(version, STAYING, where), f"{KEEP}{frontend.affinity}"
        for place, value in enumerate(behind, self._first):
            yield NodeKey(version, BACKENDS, where + _PLACE.pack(place)), value
        if frontend.flags & FrontendFlag.OUTSIDE:
            for one in set(behind):
                yield NodeKey(version, SERVED, one[:-4] + _protocol(key.protocol) + one[-4:]), b""

    def _behind(self, number: int) -> list[bytes]:
        """Return where the backends of a set are, by their places, as far as there is room."""
        count = min(self._choices.get((number, 0), 0), MOST_ENDPOINTS)
        found = []
        for place in range(1, count + 1):
            backend = self._backends[self._choices[number, place]]
            found.append(_short(backend.address)[1] + _port(backend.port))
        return found


def difference(
    want: Mapping[NodeKey, NodeValue], have: Mapping[NodeKey, NodeValue], *, all_clients: bool = False
) -> NodeDelta:
    """Return what leads from some entries to those that are wanted.

    With `all_clients` it says of all that clients stay with who is left: the kernel may remember others of before.
    """
    put = {key: value for key, value in want.items() if have.get(key) != value}
    gone = {key: value for key, value in have.items() if key not in want}
    stale = frozenset(key for key in put if key in have)
    moved: dict[bytes, set[Where]] = {}
    for key in (*gone, *stale, *(key for key in put if key.map != BACKENDS)):
        if key.map not in (STAYING, KEEP, CLUSTER, SERVED, FENCED, ALLOWED) and (where := _udp(key)):
            moved[where] = set()
    for key, value in want.items() if moved else ():
        if key.map == BACKENDS and (where := _udp(key)) in moved and isinstance(value, bytes):
            moved[where].add(_where(value[:-4], value[-4:]))
    told = {_where(where[:-8], where[-4:]): frozenset(behind) for where, behind in moved.items()}
    staying = (key for key in want if all_clients and key.map == STAYING)
    changed = (*gone, *stale, *(key for key in put if key.map in _PARTED), *staying)
    return NodeDelta(put, gone, stale, told, _left(want, have, changed))


_PARTED = (OUTSIDE, REFUSED_OUTSIDE)


def _left(
    want: Mapping[NodeKey, NodeValue], have: Mapping[NodeKey, NodeValue], changed: Iterable[NodeKey]
) -> dict[NodeKey, frozenset[bytes]]:
    """Return who is left behind what clients stay with, where one of these entries is of it.

    Nobody, where clients outside are told from others from now on, or no more: a memory may be of either.
    """
    found: dict[NodeKey, set[bytes]] = {}
    for key in changed:
        if key.map in (BACKENDS, STAYING, *_PARTED) and (staying := _staying(key)) in have:
            found[staying] = set()
    for key, value in want.items() if found else ():
        if key.map == BACKENDS and isinstance(value, bytes) and (staying := _staying(key)) in found:
            found[staying].add(value)
    return {
        key: frozenset(left if key in want and _parted(key, want) == _parted(key, have) else ())
        for key, left in found.items()
    }


def _staying(key: NodeKey) -> NodeKey:
    """Return the key by which clients stay with who is behind the address and port that an entry is of."""
    return NodeKey(key.version, STAYING, key.key[: -_PLACE.size] if key.map == BACKENDS else key.key)


def _parted(key: NodeKey, entries: Mapping[NodeKey, NodeValue]) -> bool:
    """Tell whether clients outside find others at an address and port than those who are in the cluster."""
    return any(key._replace(map=name) in entries for name in _PARTED)


def _udp(key: NodeKey) -> bytes:
    """Return the address, protocol and port that an entry is of; nothing if that is not UDP."""
    where = key.key[: -_PLACE.size] if key.map == BACKENDS else key.key
    return where if where[-8] == PROTOCOLS["UDP"] else b""


def _where(address: bytes, port: bytes) -> Where:
    return Where(ip_address(address), int.from_bytes(port[:2]))


def room(count: int) -> int:
    """Return the power of two that so many places fit in."""
    return 1 << (count - 1).bit_length()


def _short(address: bytes) -> tuple[int, bytes]:
    """Return an address's IP version, and its bytes in packets."""
    if address.startswith(b"\0\0\0\0\0\0\0\0\0\0\xff\xff"):
        return 4, address[_MAPPED:]
    return 6, address


def _protocol(number: int) -> bytes:
    return bytes((number, 0, 0, 0))


def _port(number: int) -> bytes:
    return struct.pack(">HH", number, 0)
