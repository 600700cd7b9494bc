"""What has to be known of events as they come, so that they can be read later: whose addresses they bear, what the
numbers of rules mean, how many were lost. Pure.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from podway.flows.block import PLACES, Names, rows_of
from podway.flows.record import Frontend, Rule, Who
from podway.kernel.flow_events import EVENT_SIZE, SURVEYOR, EventKind, unpack_address

DROPS = 2000
"""Dropped packets in one take that are kept each by itself; more of them are summed up."""

REMEMBERED = 16384
"""Owners of addresses that are remembered though they are gone: a flow may end after its pod."""

CLOCK_STEP = 1_000_000
"""By how much the wall clock must have been set, in ns, for it to be noted."""

TURNED = 1 << 31
"""Events that no processor loses between two that it tells: so much more, in 32 bits, is less."""

_NOBODY = Who()
_NO_ADDRESS = bytes(16)


class _Said(NamedTuple):
    """What a block says already."""

    addresses: dict[str, Who]
    rules: dict[int, Rule]
    devices: dict[int, str]
    details: dict[int, str]
    services: dict[str, tuple[Frontend, ...]]

    @classmethod
    def nothing(cls) -> "_Said":
        """Return what a block says that begins."""
        return cls({}, {}, {}, {}, {})


class Asked(NamedTuple):
    """What events bear: addresses, of Services, too, numbers of rules, of devices, and of the kernel's reasons."""

    addresses: frozenset[str]
    rules: frozenset[int]
    devices: frozenset[int]
    details: frozenset[int] = frozenset()


class Meant(NamedTuple):
    """What is known of that now; what is known of nothing is left out."""

    addresses: Mapping[str, Who]
    rules: Mapping[int, Rule]
    devices: Mapping[int, str]
    details: Mapping[int, str] = MappingProxyType({})
    services: Mapping[str, tuple[Frontend, ...]] = MappingProxyType({})


class Learner:
    """Knows what a block says already, and returns what is new of further events."""

    def __init__(self) -> None:
        self._texts: dict[bytes, str] = {}
        self._owners: dict[str, Who] = {}
        self._rules: dict[int, Rule] = {}
        self._lost: dict[int, int] = {}
        self._services: dict[str, tuple[Frontend, ...]] = {}
        self._said = _Said.nothing()
        self._clock: int | None = None

    def begin(self) -> None:
        """Another block begins, which knows nothing yet."""
        self._said, self._clock = _Said.nothing(), None

    def remember(self, events: bytes) -> None:
        """Take how many events processors had lost by the time of these, in any order, which are known already."""
        for count, one in rows_of(events, "lost", "processor"):
            self._lost[one] = max(count, self._lost.get(one, 0))

    def ask(self, events: bytes) -> Asked:
        """Return what has to be known of events."""
        alike = set(rows_of(events, "source", "destination", "rule", "ifindex", "out", "detail", "service"))
        if len(self._texts) > REMEMBERED:
            self._texts.clear()
        raw = {address for source, destination, *_, service in alike for address in (source, destination, service)}
        raw.discard(_NO_ADDRESS)
        texts = frozenset(
            self._texts.get(one) or self._texts.setdefault(one, str(unpack_address(one))) for one in raw
        )
        rules = frozenset(rule for _, _, *pair, _, _, _, _ in alike for rule in pair) - {0}
        devices = frozenset(device for *_, came, goes, _, _ in alike for device in (came, goes)) - {0}
        return Asked(texts, rules, devices, frozenset(detail for *_, detail, _ in alike) - {0})

    def learn(self, events: bytes, first: int, offset: int, asked: Asked, meant: Meant) -> Names:
        """Return what a block has to say of events that begin at its record `first`, and does not say yet.

        `offset` is what leads from the monotonic clock to the time since 1970, in ns.
        """
        names = Names()
        if self._clock is None or abs(offset - self._clock) > CLOCK_STEP:
            names.clock.append((first, offset))
            self._clock = offset
        addresses, rules, devices, details, services = self._said
        for known in (self._owners, self._services):
            if len(known) > REMEMBERED:
                known.clear()
        self._owners.update(meant.addresses)
        self._services.update(meant.services)
        self._rules.update(meant.rules)
        for text in asked.addresses:
            who = self._owners.get(text, _NOBODY)
            if addresses.get(text, _NOBODY) != who:
                addresses[text] = who
                names.addresses.append((first, text, who))
            fronts = self._services.get(text, ())
            if services.get(text, ()) != fronts:
                services[text] = fronts
                names.services.append((first, text, fronts))
        for number in asked.rules:
            rule = self._rules.get(number)
            if rule is not None and rules.get(number) != rule:
                rules[number] = rule
                names.rules.append((first, number, rule))
        for device in asked.devices:
            name = meant.devices.get(device, "")
            if name and devices.get(device) != name:
                devices[device] = name
                names.devices.append((first, device, name))
        for number in asked.details & meant.details.keys():
            if details.get(number) != meant.details[number]:
                details[number] = meant.details[number]
                names.details.append((first, number, details[number]))
        names.losses += self._losses(events, first)
        return names

    def _losses(self, events: bytes, first: int) -> list[tuple[int, int]]:
        """Return before which records something was lost, and how much."""
        told = set(rows_of(events, "lost", "processor"))
        if all(self._lost.get(one) == count for count, one in told if one != SURVEYOR):
            return []
        found = []
        for at, (count, one) in enumerate(rows_of(events, "lost", "processor")):
            if one == SURVEYOR:
                continue
            more = (count - self._lost.get(one, count)) & 0xFFFFFFFF
            if more >= TURNED:  # the counter went back: it is another one, of an engine opened anew, from 0 on
                more = count
            self._lost[one] = count
            if more:
                found.append((first + at, more))
        return found


def thinned(events: bytes) -> bytes:
    """Return events with drops summed up that are alike but for the port of who called, where there are very many.

    One pod that is refused a hundred thousand times a second would else push a whole day out of the history.
    """
    kind_at, size = PLACES["kind"][0], EVENT_SIZE
    if events[kind_at::size].count(EventKind.PACKET_DROPPED) <= DROPS:
        return events
    kept: list[bytes | bytearray] = []
    alike: dict[tuple[bytes, ...], bytearray] = {}
    fields = [
        PLACES[name]
        for name in ("source", "destination", "destination_port", "protocol", "reason", "rule", "detail")
    ]
    counts = [PLACES[name][0] for name in ("packets", "bytes")]
    for at in range(0, len(events), size):
        event = events[at : at + size]
        if event[kind_at] != EventKind.PACKET_DROPPED:
            kept.append(event)
            continue
        key = tuple(event[start : start + length] for start, length, _ in fields)
        total = alike.get(key)
        if total is None:
            alike[key] = total = bytearray(event)
            kept.append(total)
            continue
        for place in counts:
            more = int.from_bytes(total[place : place + 8], "little") + int.from_bytes(
                event[place : place + 8], "little"
            )
            total[place : place + 8] = more.to_bytes(8, "little")
    return b"".join(kept)
