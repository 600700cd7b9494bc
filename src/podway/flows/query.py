"""Which records are wanted, found in blocks; and sums of them. Pure.

A look goes from the newest block to the oldest. Of each block first the names are looked at (does it know a pod
that is asked for?), then the columns that matter, and only what is left becomes records, which are compared with
the query once more: what narrows the look need not be exact. It ends with what was asked for, or when its time is
over, and says how far back it came.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property, partial
from ipaddress import ip_address, ip_network
from itertools import compress
from operator import and_, or_
from struct import Struct
from typing import Any, Literal, TypeAlias, get_args

import msgspec

from podway.api.addresses import Network
from podway.api.fields import is_number
from podway.errors import InvalidInput
from podway.flows import reasons
from podway.flows.block import Block, verdict_of
from podway.flows.record import EVENTS, PROTOCOLS, VERDICTS, Called, End, FlowRecord, Frontend, Who
from podway.kernel.flow_events import EventKind, Reason, pack_address

MOST = 10_000
"""Records in one answer."""

GROUPS = 1_000
"""Rows in one answer of sums."""

By: TypeAlias = Literal[
    "policy",
    "pod",
    "workload",
    "service",
    "dns",
    "verdict",
    "port",
    "reason",
    "namespace",
    "node",
    "pair",
    "connection",
]
BY: tuple[By, ...] = get_args(By)

PAIR = " -> "
"""What stands between the two ends in the key of a pair: no name has it."""

Clock: TypeAlias = Callable[[], float]

_ADDRESS = Struct("16s")
_NUMBERS = {name: number for number, name in PROTOCOLS.items()}
_KINDS = {
    "new": {EventKind.FLOW_NEW},
    "lives": {EventKind.FLOW_LIVES},
    "end": {EventKind.FLOW_END, EventKind.FLOW_EVICTED},
    "drop": {EventKind.PACKET_DROPPED},
    "changed": {EventKind.FLOW_REJUDGED},
    "audit": {EventKind.FLOW_AUDITED},
}


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, dict=True):
    """What is asked for. Of each field any value may hold, and all fields that are not empty must.

    `pods`, `selected`, `sources` and `destinations` name pods (`shop/web`, `shop/web-*`), nodes (`node/one`),
    addresses and networks; `pods` and `selected` may be either end. `policies` are `NetworkPolicy/shop/deny` or
    any end of that. `workloads` are pods' (`shop/web`, `shop/Deployment/web`), of either end; `services` are those
    that were called (`shop/web`), `names` those of DNS, of either end. `ports` are those that were called. Times
    are in seconds since 1970; `after` is a record's number.
    """

    since: float = 0.0
    until: float = 0.0
    after: int = -1
    limit: int = 100
    pods: tuple[str, ...] = ()
    selected: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    protocols: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> "Query":
        """Return the query that plain JSON values say. Raises InvalidInput, which names the field."""
        try:
            query = msgspec.convert(params, cls)
        except msgspec.ValidationError as error:
            raise InvalidInput(f"not a query of flows: {error}") from error
        query.check()
        return query

    def check(self) -> None:
        """Raise InvalidInput, naming the option, for a value that nothing can match."""
        _among("--verdict", self.verdicts, VERDICTS)
        _among("--reason", self.reasons, reasons.names())
        _among("--event", self.events, EVENTS)
        for one in self.protocols:
            if one not in _NUMBERS and not (is_number(one) and int(one) < 256):
                raise InvalidInput(
                    f"--protocol: {one!r} is none", hint=f"there are {', '.join(_NUMBERS)}, and numbers below 256"
                )
        if not 0 < self.limit <= MOST:
            raise InvalidInput(f"--last: {self.limit} is out of range", hint=f"from 1 to {MOST}")
        for port in self.ports:
            if not 0 < port < 65536:
                raise InvalidInput(f"--port: {port} is no port", hint="from 1 to 65535")
        for option, places in (("--pod", self.pods), ("--from", self.sources), ("--to", self.destinations)):
            for place in places:
                _check_place(option, place)
        for option, words, slashes, hint in (
            ("--workload", self.workloads, {1, 2}, "write NAMESPACE/NAME, or NAMESPACE/Deployment/NAME"),
            ("--service", self.services, {1}, "write NAMESPACE/NAME"),
            ("--dns", self.names, {0}, "write a name without a scheme: api.example.com, or *.example.com"),
        ):
            for text in words:
                if not text or text.count("/") not in slashes:
                    raise InvalidInput(f"{option}: cannot read {text!r}", hint=hint)

    # Of records.

    def matches(self, record: FlowRecord) -> bool:
        """Tell whether a record is asked for."""
        return (
            record.time >= self.since
            and (not self.until or record.time <= self.until)
            and record.sequence > self.after
            and (not self.verdicts or record.verdict in self.verdicts)
            and (not self.reasons or record.reason in self.reasons)
            and (not self.events or record.event in self.events)
            and (not self.ports or record.destination.port in self.ports)
            and (not self._protocols or record.protocol in self._protocols)
            and (not self.namespaces or _either(self._is_in_namespace, record))
            and (not self.policies or self._of_policy(record))
            and (not self.workloads or _either(self._is_of_workload, record))
            and (not self.services or self._of_service(record.service))
            and (not self.names or _either(self._is_named, record))
            and (not self.pods or self._any(self._all_places[0], record.source, record.destination))
            and (not self.selected or self._any(self._all_places[3], record.source, record.destination))
            and (not self.sources or self._any(self._all_places[1], record.source))
            and (not self.destinations or self._any(self._all_places[2], record.destination))
        )

    @cached_property
    def _protocols(self) -> frozenset[str]:
        return frozenset(PROTOCOLS.get(int(one), one) if is_number(one) else one for one in self.protocols)

    def _is_in_namespace(self, _address: str, who: Who) -> bool:
        return who.kind == "pod" and who.namespace in self.namespaces

    def _is_of_workload(self, _address: str, who: Who) -> bool:
        if who.kind != "pod":
            return False
        namespace, kind, name = who.owner.lower().split("/", 2)  # records of older agents may have any name
        said = (f"{namespace}/{kind}/{name}", f"{namespace}/{name}")
        return any(fnmatchcase(text, wanted.lower()) for wanted in self.workloads for text in said)

    def _of_service(self, service: Called | Frontend | None) -> bool:
        if service is None or not service.name:
            return False
        return any(fnmatchcase(f"{service.namespace}/{service.name}", wanted) for wanted in self.services)

    def _is_named(self, _address: str, who: Who) -> bool:
        return any(fnmatchcase(name, wanted.lower().rstrip(".")) for name in who.names for wanted in self.names)

    def _of_policy(self, record: FlowRecord) -> bool:
        """Tell whether one of the policies spoke; where none allowed it, all that isolate did."""
        rules = [rule for rule in (record.egress, record.ingress) if rule]
        spoke = {name for rule in rules for name in (rule.policy, *rule.isolates)}
        return any(_is_end(wanted, name) for wanted in self.policies for name in spoke)

    @cached_property
    def _all_places(self) -> tuple[tuple["str | Network", ...], ...]:
        every = (self.pods, self.sources, self.destinations, self.selected)
        return tuple(tuple(map(_place, one)) for one in every)

    @staticmethod
    def _any(places: "tuple[str | Network, ...]", *ends: End) -> bool:
        return any(_is_any(places, end.address, end.who) for end in ends)

    # Of blocks.

    def candidates(self, block: Block) -> Iterator[int]:
        """Yield the events of a block that may be asked for, newest first."""
        begin, end = block.span
        if end < self.since or (self.until and begin > self.until) or block.end <= self.after + 1:
            return iter(())
        chosen = [True] * block.count
        if self.verdicts or self.reasons:
            pairs = list(zip(block.column("kind"), block.column("reason"), strict=True))
            wanted = {pair for pair in set(pairs) if self._decides(*pair)}
            chosen = [pair in wanted for pair in pairs]
        if self.events:
            kinds: set[int] = set().union(*(_KINDS[one] for one in self.events))
            chosen = [one and kind in kinds for one, kind in zip(chosen, block.column("kind"), strict=True)]
        if self._protocols:
            numbers = {_NUMBERS.get(one, -1) for one in self._protocols}
            numbers |= {int(one) for one in self._protocols if is_number(one)}
            chosen = [one and each in numbers for one, each in zip(chosen, block.column("protocol"), strict=True)]
        if self.ports:
            ports = set(self.ports)
            both = zip(block.column("source_port"), block.column("destination_port"), strict=True)
            chosen = [one and (a in ports or b in ports) for one, (a, b) in zip(chosen, both, strict=True)]
        for places in self._all_places:
            # A record is in the direction of who called, an event in that of its packet: either end may be meant.
            if places:
                named = all(isinstance(place, str) for place in places)
                chosen = _at(block, chosen, partial(_is_any, places), named=named)
        for given, wanted_end in (
            (self.namespaces, self._is_in_namespace),
            (self.workloads, self._is_of_workload),
            (self.names, self._is_named),
        ):
            if given:
                chosen = _at(block, chosen, wanted_end, named=True)
        if self.services:
            chosen = self._called(block, chosen)
        if self.policies:
            chosen = self._ruled(block, chosen)
        return compress(range(block.count - 1, -1, -1), reversed(chosen))

    def _called(self, block: Block, chosen: list[bool]) -> list[bool]:
        texts = {text for _, text, fronts in block.names.services if any(map(self._of_service, fronts))}
        if not texts:
            return [False] * block.count
        found = {(pack_address(ip_address(text)),) for text in texts}
        for_them = [False] * block.count
        for name in ("service", "source", "destination"):
            there = map(found.__contains__, _ADDRESS.iter_unpack(block.addresses(name)))
            for_them = list(map(or_, for_them, there))
        return list(map(and_, chosen, for_them))

    def _decides(self, kind: int, reason: int) -> bool:
        """Tell whether events of this kind and reason may be asked for."""
        if self.verdicts and verdict_of(kind, reason) not in self.verdicts:
            return False
        if not self.reasons or reasons.name_of(reason) in self.reasons:
            return True
        return reason == Reason.DROPPED_BY_KERNEL and any(one.startswith(reasons.KERNEL) for one in self.reasons)

    def _ruled(self, block: Block, chosen: list[bool]) -> list[bool]:
        numbers = {
            number
            for _, number, rule in block.names.rules
            if any(_is_end(wanted, name) for wanted in self.policies for name in (rule.policy, *rule.isolates))
        }
        rules = block.column("rule")
        pairs = zip(rules[::2], rules[1::2], strict=True)
        return [one and (a in numbers or b in numbers) for one, (a, b) in zip(chosen, pairs, strict=True)]


class Answer(msgspec.Struct, frozen=True):
    """What was found, oldest first. `next` is the number of the node's next record.

    `complete` is false if there may be more: the look had come back to the time `reached`.
    """

    records: tuple[FlowRecord, ...]
    next: int
    complete: bool = True
    reached: float = 0.0


class Row(msgspec.Struct, frozen=True):
    """Sums of the records of one key: how many of each kind, and what went both ways in flows that ended."""

    key: str
    flows: int = 0
    denied: int = 0
    dropped: int = 0
    packets: int = 0
    octets: int = msgspec.field(default=0, name="bytes")
    last: float = 0.0
    audited: int = 0


class Sums(msgspec.Struct, frozen=True):
    """Sums by key, greatest first; `complete` and `reached` as in Answer, `more` keys are left out."""

    rows: tuple[Row, ...]
    more: int = 0
    complete: bool = True
    reached: float = 0.0


class AgentAnswer(Answer, frozen=True, kw_only=True):
    """An Answer as an agent gives it: why it does not record (or nothing), and its time, seconds since 1970.

    `lost` are the events that it could not take since its engine began.
    """

    note: str
    now: float
    lost: int = 0


class AgentSums(Sums, frozen=True, kw_only=True):
    """Sums as an agent gives them, with the same."""

    note: str
    now: float


def find(query: Query, blocks: Iterable[Block], following: int, pause: Callable[[], bool]) -> Answer:
    """Return the newest records that are asked for, `following` being the node's next record.

    `pause` is called after each block, and between records: it lets others go first, and tells whether time is
    over.
    """
    found: list[FlowRecord] = []
    reached = 0.0
    for block in blocks:
        reached = block.span[0]
        if block.end <= query.after + 1:
            break
        for looked, at in enumerate(query.candidates(block), 1):
            record = block.record(at)
            if query.matches(record):
                found.append(record)
                if len(found) >= query.limit:
                    break
            if not looked % 50 and pause():
                return Answer(tuple(reversed(found)), following, complete=False, reached=record.time)
        if len(found) >= query.limit:
            reached = found[-1].time
            return Answer(tuple(reversed(found)), following, complete=True, reached=reached)
        if pause():
            return Answer(tuple(reversed(found)), following, complete=False, reached=reached)
    return Answer(tuple(reversed(found)), following, complete=True, reached=reached)


def sums(query: Query, by: By, blocks: Iterable[Block], pause: Callable[[], bool]) -> Sums:
    """Return sums of all records that are asked for; `pause` as in `find`.

    Flows are those that began, but for connections: one of which it is only seen that it went on or ended, having
    begun before, has one.
    """
    totals: dict[str, list[float]] = {}
    going: set[str] = set()
    complete, reached = True, 0.0

    def summed() -> Iterator[bool]:
        nonlocal reached
        for block in blocks:
            reached = block.span[0]
            for looked, at in enumerate(query.candidates(block), 1):
                record = block.record(at)
                if query.matches(record):
                    for key in _keys(record, by):
                        _add(totals.setdefault(key, [0.0] * 7), record)
                        if by == "connection" and record.event in {"lives", "end"} and record.verdict == "allowed":
                            going.add(key)
                if not looked % 50:
                    yield pause()
            yield pause()

    for is_over in summed():
        if is_over:
            complete = False
            break
    for key in going:
        totals[key][0] = max(totals[key][0], 1)
    rows = sorted((_row(key, counts) for key, counts in totals.items()), key=rank)
    most = MOST if by == "connection" else GROUPS
    return Sums(tuple(rows[:most]), max(0, len(rows) - most), complete, reached)


def rank(row: Row) -> tuple[int, int, str]:
    """Return what rows of sums are sorted by: how much happened, then how much went."""
    return (-(row.flows + row.denied + row.dropped + row.audited), -row.octets, row.key)


def merged(answers: Iterable[Sums]) -> Sums:
    """Return the sums of several nodes in one."""
    counts: dict[str, list[float]] = {}
    complete, more, reached = True, 0, 0.0
    for answer in answers:
        complete, more = complete and answer.complete, more + answer.more
        reached = max(reached, 0.0 if answer.complete else answer.reached)
        for row in answer.rows:
            total = counts.setdefault(row.key, [0.0] * 7)
            for at, value in enumerate((row.flows, row.denied, row.dropped, row.packets, row.octets)):
                total[at] += value
            total[5] = max(total[5], row.last)
            total[6] += row.audited
    rows = sorted((_row(key, total) for key, total in counts.items()), key=rank)
    return Sums(tuple(rows), more, complete, reached)


def _at(block: Block, chosen: list[bool], wanted: Callable[[str, Who], bool], *, named: bool) -> list[bool]:
    """Return which of the chosen have an end that is wanted, by what names meant anywhere in the block.

    `named`: only who has a name can be wanted.
    """
    meant: dict[str, list[Who]] = {}
    for _, text, who in block.names.addresses:
        meant.setdefault(text, []).append(who)
    texts = {text for text, everybody in meant.items() if any(wanted(text, who) for who in everybody)}
    if named and not texts:
        return [False] * block.count
    found = {(pack_address(ip_address(text)),) for text in texts}

    def are_wanted(name: str) -> Iterator[bool]:
        ends = list(_ADDRESS.iter_unpack(block.addresses(name)))
        if not named:
            others = ((end, block.text(end[0])) for end in set(ends))
            found.update(end for end, text in others if text not in meant and wanted(text, Who()))
        return map(found.__contains__, ends)

    # By steps of C alone: a history has a million of them.
    return list(map(and_, chosen, map(or_, are_wanted("source"), are_wanted("destination"))))


def _row(key: str, total: Sequence[float]) -> Row:
    flows, denied, dropped, packets, octets = map(int, total[:5])
    return Row(key, flows, denied, dropped, packets, octets, total[5], int(total[6]))


def _add(total: list[float], record: FlowRecord) -> None:
    if record.event == "new":
        total[0] += 1
    elif record.event == "drop":
        total[1 if record.verdict == "denied" else 2] += record.packets
    elif record.event == "end":
        total[3] += record.packets + record.packets_back
        total[4] += record.octets + record.octets_back
    elif record.event == "audit":
        total[6] += 1
    total[5] = max(total[5], record.time)


def _keys(record: FlowRecord, by: By) -> tuple[str, ...]:
    match by:
        case "policy":
            rules = [rule for rule in (record.egress, record.ingress) if rule]
            if record.verdict in ("denied", "audited") and record.speaking:
                rules = [record.speaking]
            return tuple(dict.fromkeys(name for rule in rules for name in (rule.isolates or (rule.policy,)))) or (
                "(none)",
            )
        case "pod" | "workload" | "namespace" | "dns":
            return tuple(dict.fromkeys(name for end in _ends(record) for name in _names(end.who, by)))
        case "service":
            return (record.service.label or record.service.address,) if record.service else ()
        case "verdict":
            return (record.verdict,)
        case "reason":
            return (record.reason or "(none)",)
        case "node":
            return (record.node,)
        case "pair":
            return (PAIR.join(end.who.label or "outside" for end in _ends(record)),)
        case "port":
            port = record.destination.port
            return (f"{record.protocol}/{port}" if port else record.protocol,)
        case "connection":
            source, destination = (f"{end.who.label}@{end.address}" for end in _ends(record))
            return (f"{source} -> {destination} {record.protocol}/{record.destination.port}",)


def _names(who: Who, by: By) -> tuple[str, ...]:
    """Return what an end is called, if it is something by which is summed up."""
    if by == "dns":
        return who.names
    if who.kind != "pod":
        return ()
    return ({"pod": who.label, "workload": who.owner, "namespace": who.namespace}[by],)


def _ends(record: FlowRecord) -> tuple[End, End]:
    return record.source, record.destination


def _either(wanted: Callable[[str, Who], bool], record: FlowRecord) -> bool:
    return any(wanted(end.address, end.who) for end in _ends(record))


def _among(option: str, values: Iterable[str], known: tuple[str, ...]) -> None:
    for value in values:
        if value not in known:
            raise InvalidInput(f"{option}: {value!r} is none", hint=f"there are {', '.join(known)}")


def _check_place(option: str, text: str) -> None:
    if isinstance(_place(text), str) and not text.startswith("node/") and text.count("/") != 1:
        raise InvalidInput(
            f"{option}: cannot read {text!r}",
            hint="write NAMESPACE/POD, node/NAME, an address or a network",
        )


def _place(text: str) -> "str | Network":
    """Return a network, or the text if it is a name: a namespace and a pod look like an address and a length."""
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return text


def _is_any(places: "tuple[str | Network, ...]", address: str, who: Who) -> bool:
    return any(_is_at(address, who, place) for place in places)


def _is_at(address: str, who: Who, place: "str | Network") -> bool:
    if not isinstance(place, str):
        return ip_address(address) in place
    return bool(who.label) and fnmatchcase(who.label, place)


def _is_end(wanted: str, name: str) -> bool:
    """Tell whether a name is `wanted`, or ends with it after a slash; without regard to case of its kind."""
    return f"/{name}".lower().endswith(f"/{wanted}".lower())
