"""The flow engine of a node (docs/datapath.md): its programs as the loop drives them, and what its maps say.

Programs are a kind as others are (podway.kernel.engine). What the maps hold is not: there may be a hundred
thousand entries, of which one event changes a few, and in what order they are written decides whether anybody is
let through in between. So they are written by changes (`FlowWrites`), in the order that `FlowEngine.write` keeps.
"""

import errno
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple, TypeVar

from podway.api.addresses import Address, Network
from podway.api.lease import LINK_PREFIX
from podway.errors import KernelError, PodwayError, UnsupportedSystem
from podway.kernel.bpf import flow_programs, tcx
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_layout import (
    BRIDGED,
    ENDPOINT,
    IDENTITY,
    LIMITED,
    NAMES,
    RULE_SET,
    Counter,
    Endpoint,
    Hook,
    Reason,
    RuleSet,
    grown_endpoint,
    grown_flow,
    pack_address,
    pack_columns,
    pack_policy_prefix,
    pack_prefix,
    pack_rule_key,
    unpack_address,
    unpack_columns,
    unpack_policy_prefix,
    unpack_prefix,
    unpack_rule_key,
)
from podway.kernel.bpf.flow_maps import FlowMaps
from podway.kernel.bpf.flow_programs import Engine, Fresh, Place
from podway.kernel.bpf.service_maps import ServiceMaps
from podway.kernel.dns_answers import DnsAnswers, NameMaps
from podway.kernel.engine import Compared
from podway.kernel.flow_events import DropTracer, FlowEvents
from podway.kernel.netlink import Connection
from podway.kernel.rtnl import links, tc
from podway.plan.changes import Change
from podway.plan.objects import FlowHook, FlowProgram, NodePlan, PodWiring
from podway.policy.maps import NO_RULES, Columns, EndpointRules, Prefix, RuleKey
from podway.services.maps import Delta as ServiceDelta
from podway.services.maps import Entries as ServiceEntries

T = TypeVar("T")

Numbers = Callable[[], Mapping[str, int]]
"""Gives the devices' numbers by name, as they were at the latest look."""

TABLES = ("flows", "rules", "rule_sets", "identities", "endpoints", "pools", "frontends", "choices")
"""The maps that grow with what there is in a cluster, or with what its pods do."""

PORTION = 200
"""Entries after which whoever writes may pause: less than a millisecond."""

_HOOKS: dict[FlowHook, Hook] = {"from pod": Hook.FROM_POD, "from wire": Hook.FROM_WIRE, "to pod": Hook.TO_POD}
_NAMES = {hook: name for name, hook in _HOOKS.items()}
_NO_SET = RuleSet(0, 0)
_UNDER_WAY = RuleSet(0, 1)
"""What stands in the place of the set without rules, which no program looks at, while maps are written."""


class FlowEndpoint(NamedTuple):
    """A pod of this node, by one of its addresses: its link, its rule sets, and whether it is a bridge's port.

    `limited` tells that somebody limits what passes its link, `names` that its policies name domains.
    """

    link: str
    rules: EndpointRules
    bridged: bool = False
    limited: bool = False
    names: bool = False


class Entries(NamedTuple):
    """What the engine's maps say. `rule_sets` are the lengths of port prefixes in use (bit n: n bits)."""

    rules: Mapping[RuleKey, Columns]
    rule_sets: Mapping[int, int]
    identities: Mapping[Prefix, int]
    endpoints: Mapping[Address, FlowEndpoint]
    pools: frozenset[Network]


class FlowWrites(NamedTuple):
    """Changes of the maps. A mapping is put, the rest deleted; `rule_sets` are all of which an entry changes.

    With `compared` they were found by comparing all that there is, and after them all is right.
    """

    rules: Mapping[RuleKey, Columns]
    rule_sets: Mapping[int, int]
    identities: Mapping[Prefix, int]
    endpoints: Mapping[Address, FlowEndpoint]
    pools: frozenset[Network] = frozenset()
    gone_endpoints: tuple[Address, ...] = ()
    gone_identities: tuple[Prefix, ...] = ()
    gone_rules: tuple[RuleKey, ...] = ()
    gone_rule_sets: tuple[int, ...] = ()
    gone_pools: frozenset[Network] = frozenset()
    compared: bool = False

    @property
    def empty(self) -> bool:
        """Whether nothing changes."""
        return not any(self._replace(compared=False))


class FlowEngine:
    """The engine's programs and maps, held open while it works. `writes` counts what was written so far.

    Every method may raise KernelError; those that write do if it is not open.
    """

    name = "flow program"
    repairs_only = False
    compared: Compared = False

    def __init__(self, connection: Connection, numbers: Numbers) -> None:
        self._connection = connection
        self._numbers = numbers
        self._engine: Engine | None = None
        self._fresh: Fresh | None = None
        self._failed: Exception | None = None
        """What came of `loading`."""
        self._coming = False
        """Whether `loading` may have hung programs somewhere that `open` has not seen yet."""
        self._own: dict[int, Hook] = {}
        """The programs that we attach, by their ids."""
        self._room: dict[str, int] = {}
        self._closed: set[int] = set()
        """Sets that lack a refused entry: they deny everything until all was compared and written."""
        self.writes = 0
        self.openings = 0
        self.on_change: Callable[[], None] = lambda: None
        """Called whenever it was opened or closed."""

    # Programs.

    @property
    def is_open(self) -> bool:
        """Whether the engine is there to be written to."""
        return self._engine is not None

    def loading(self, wires: Iterable[str], pods: Iterable[str]) -> Callable[[], None] | None:
        """Return what loads the programs and hangs them on these devices, idle; None if there are some already.

        It is for a thread ahead of `open`, as the kernel takes long for it. Call it once; what fails in it, `open`
        raises.
        """
        if self._engine is not None or self._fresh is not None or self._failed is not None:
            return None
        try:
            if not tcx.is_supported():
                return None
            load = flow_programs.loading(self._connection, self._places(wires, pods))
        except (KernelError, UnsupportedSystem):
            return None  # `open` meets it, too
        if load is None:
            return None

        def loaded() -> None:
            try:
                self._fresh = load()
            except Exception as error:  # noqa: BLE001 - whatever it is
                self._failed = error

        self._coming = True
        return loaded

    def open(self, wires: Iterable[str], pods: Iterable[str], fill: Callable[[], None]) -> None:
        """Have the engine work on these devices: uplink and tunnels, and pods' links.

        One that an agent before this one left goes on meanwhile. `fill` writes the maps: where no engine worked
        before, none does until they are right. Raises UnsupportedSystem and KernelError.
        """
        if self._engine is not None:
            return
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed
        if reason := tcx.why_not():
            raise UnsupportedSystem(
                f"the flow engine cannot be had: {reason}", hint="use a kernel from 6.6 on that allows eBPF"
            )
        places = self._places(wires, pods)

        def filled(engine: Engine) -> None:
            self._engine = engine
            fill()
            if self._is_torn():
                self._judge_all_again()

        try:
            self._engine = flow_programs.take_over(
                self._connection,
                places,
                converters={"flows": grown_flow, "endpoints": grown_endpoint},
                fill=filled,
                fresh=self._fresh,
            )
        except BaseException:
            self._engine = None
            raise
        finally:
            self._drop_fresh()
        self._own = {bpf.program_id(fd): hook for hook, fd in self._engine.programs.items()}
        self._room = {name: bpf.map_info(self._engine.maps[name]).max_entries for name in TABLES}
        self.openings += 1
        self.on_change()

    def _places(self, wires: Iterable[str], pods: Iterable[str]) -> list[Place]:
        """Return where programs hang on those of these devices that are there."""
        numbers = {link.name: link.index for link in links.dump(self._connection)}
        both = (Hook.FROM_POD, Hook.TO_POD)
        return [
            *(Place(numbers[name], Hook.FROM_WIRE) for name in wires if name in numbers),
            *(Place(numbers[name], hook) for name in pods if name in numbers for hook in both),
        ]

    def events(self) -> FlowEvents | None:
        """Return how to read what the engine tells; None if it is not open. Close it."""
        return FlowEvents(self._engine.maps) if self._engine else None

    def answers(self) -> DnsAnswers | None:
        """Return how to read the answers of DNS that wait for the agent; None if it is not open. Close it."""
        return DnsAnswers(self._engine.maps) if self._engine else None

    def name_maps(self) -> NameMaps:
        """Return what the maps say of resolvers and names; good until the engine is closed."""
        return NameMaps(self._opened("use the flow engine's maps of names").maps)

    def trace_drops(self, netns: int, wanted: Iterable[int], no_route: int) -> DropTracer:
        """Return what has the kernel tell, as events, of pods' packets that it drops itself. Close it.

        For the arguments see DropTracer. Raises KernelError if the engine is not open.
        """
        return DropTracer(self._opened("trace the kernel's drops").maps, netns, wanted, no_route)

    @property
    def opening(self) -> object:
        """What is another object whenever the engine was opened anew, and None while it is not open."""
        return self._engine

    def devices(self) -> dict[int, str]:
        """Return the devices' names by number, as they were at the latest look."""
        return {number: name for name, number in self._numbers().items()}

    def why_not(self) -> str:
        """Say why this system cannot have the engine, as far as is known before it is tried; empty if it can."""
        return why_not()

    def is_attached(self) -> bool:
        """Tell whether an engine is at work on devices of the node, of whatever build."""
        numbers = [link.index for link in links.dump(self._connection)]
        return tcx.is_supported() and flow_programs.works(self._connection, numbers)

    def room(self) -> dict[str, int]:
        """Return how many entries each of its tables takes (TABLES); nothing if it is not open."""
        return dict(self._room) if self._engine else {}

    def limited(self) -> frozenset[str]:
        """Return the pods' links on which somebody limits what passes."""
        numbers = tc.limiting(self._connection)
        found = links.dump(self._connection) if numbers else ()
        return frozenset(one.name for one in found if one.index in numbers and one.name.startswith(LINK_PREFIX))

    def close(self) -> None:
        """Let go of the engine: what is attached goes on."""
        self._drop_fresh()
        self._failed = None
        if self._engine is not None:
            self._engine.close()
            self._engine, self._own = None, {}
            self._closed.clear()
            self.on_change()

    def _drop_fresh(self) -> None:
        self._coming = False
        if self._fresh is not None:
            self._fresh.engine.close()
            self._fresh = None

    def stop(self) -> None:
        """Have the engine judge nothing any more, on all devices at once, and let go of it.

        Also one that another agent left.
        """
        if not why_not():
            flow_programs.stop(self._connection, [link.index for link in links.dump(self._connection)])
        self.close()

    def attach(self, program: FlowProgram, *, on_tcx: bool = False) -> None:
        """Hang a program on a device, unless it is there already; if so told on tcx in any case."""
        engine, index = self._opened(f"attach {program}"), links.find(self._connection, program.device).index
        try:
            engine.attach(self._connection, Place(index, _HOOKS[program.hook]), on_tcx=on_tcx)
        except KernelError as error:
            if error.errno != errno.EEXIST:
                raise
        else:
            self.writes += 1

    def attach_pod(self, wiring: PodWiring) -> None:
        """Hang a pod's programs, if it has any, on its link, which has just been made and is not up."""
        if not wiring.programs:
            return
        name = wiring.link.name
        engine, index = self._opened(f"attach {wiring.programs[0]}"), links.find(self._connection, name).index
        if not wiring.limited:
            try:
                engine.attach_new(self._connection, index)
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise  # else this kernel has no clsact, or no eBPF filters for it
            else:
                self.writes += len(wiring.programs)
                return
        for program in wiring.programs:
            self.attach(program, on_tcx=True)

    def wanted(self, plan: NodePlan) -> Mapping[tuple[str, FlowHook], FlowProgram]:
        """Return the programs that a plan wants."""
        return {program.key: program for program in plan.programs}

    def list(self, plan: NodePlan) -> Mapping[tuple[str, FlowHook], FlowProgram]:
        """Return the engine's programs, but for those on pods' links that the plan does not name."""
        if why_not() or (self._coming and not plan.programs):
            return {}
        pods = {link.name for link in plan.links}
        names = {
            number: name
            for name, number in self._numbers().items()
            if not name.startswith(LINK_PREFIX) or name in pods
        }
        return {program.key: program for _, program in self._on(names)}

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Attach and detach programs."""
        failures: dict[int, KernelError] = {}
        numbers = self._numbers()
        for position, change in enumerate(changes):
            device, hook = change.key
            try:
                former = list(self._on({numbers[device]: device})) if device in numbers else []
                if change.want is not None:
                    self.attach(change.want)
                for found, program in former:
                    if program.hook == hook and (program.stale or change.want is None):
                        flow_programs.detach(self._connection, found)
                        self.writes += 1
            except KernelError as error:
                if change.want is not None or error.errno != errno.ENOENT:
                    failures[position] = error
        return failures

    def _on(self, devices: Mapping[int, str]) -> Iterator[tuple[flow_programs.Attached, FlowProgram]]:
        """Yield the engine's programs on devices (names by number).

        `stale` are those of another build, and those that others' see packets before.
        """
        for found in flow_programs.attached(self._connection, devices, self._own, self._build):
            stale = (bool(self._build) and found.build != self._build) or found.late
            yield found, FlowProgram(devices[found.place.device], _NAMES[found.place.hook], stale)

    @property
    def _build(self) -> int:
        return self._engine.build if self._engine else 0

    def _opened(self, what: str) -> Engine:
        if self._engine is None:
            raise KernelError(f"{what}: the flow engine does not work here", errno.ENODEV)
        return self._engine

    # Maps of Services.

    def read_services(self) -> Generator[None, None, ServiceEntries]:
        """Return what the maps say of Services; yields now and then, where a caller may pause."""
        what = "read the flow engine's maps of Services"
        return self._while_open(what, ServiceMaps(self._opened(what).maps).read())

    def write_services(self, delta: ServiceDelta) -> Generator[None, None, None]:
        """Write changes of Services; yields now and then, where a caller may pause."""
        what = "write the flow engine's maps of Services"
        steps = ServiceMaps(self._opened(what).maps).write(delta)
        self.writes += not delta.empty
        return self._while_open(what, steps if not delta.empty else _nothing())

    def _while_open(self, what: str, steps: Generator[None, None, T]) -> Generator[None, None, T]:
        """Go on step by step, unless the engine is closed in a pause: descriptors may be others' then."""
        engine = self._opened(what)
        while True:
            if self._engine is not engine:
                raise KernelError(f"{what}: the flow engine was closed meanwhile", errno.ENODEV)
            try:
                next(steps)
            except StopIteration as end:
                found: T = end.value
                return found
            yield

    # Maps.

    def read(self) -> Generator[None, None, Entries]:
        """Return what the maps say; yields now and then, where a caller may pause."""
        maps = self._opened("read the flow engine's maps").maps
        names = {link.index: link.name for link in links.dump(self._connection)}
        endpoints = {}
        for address, value in bpf.items(maps["endpoints"]).items():
            found = Endpoint(*ENDPOINT.unpack(value))
            endpoints[unpack_address(address)] = FlowEndpoint(
                names.get(found.ifindex, ""),
                EndpointRules(found.ingress_rules, found.egress_rules, found.ingress_audit, found.egress_audit),
                bool(found.flags & BRIDGED),
                bool(found.flags & LIMITED),
                bool(found.flags & NAMES),
            )
        yield
        rules: dict[RuleKey, Columns] = {}
        for done, (entry, value) in enumerate(bpf.items(maps["rules"]).items(), 1):
            rules[unpack_rule_key(entry)] = unpack_columns(value)
            if not done % PORTION:
                yield
        yield
        identities: dict[Prefix, int] = {}
        for done, (prefix, value) in enumerate(bpf.items(maps["identities"]).items(), 1):
            identities[unpack_policy_prefix(prefix)] = IDENTITY.unpack(value)[0]
            if not done % PORTION:
                yield
        yield
        return Entries(
            rules,
            {number: one.port_lengths for number, one in _sets(maps["rule_sets"])},
            identities,
            endpoints,
            frozenset(map(unpack_prefix, bpf.items(maps["pools"]))),
        )

    def write(self, changes: FlowWrites) -> Iterator[None]:
        """Write changes; yields now and then, where a caller may pause.

        What is new comes before what leads to it, removals last: nobody is led to a rule that is not there. A set
        of which an entry cannot be written denies everything, and so does one that tells an address by an identity
        that cannot be, until a `compared` write went through. In the end flows are looked at again. Raises the
        first KernelError once the rest was tried.
        """
        if changes.empty:
            return
        maps = self._opened("write the flow engine's maps").maps
        torn = self._is_torn()
        self._mark(_UNDER_WAY)
        known = {number: _set(maps["rule_sets"], number) for number in changes.rule_sets}
        for number, lengths in changes.rule_sets.items():
            before = known[number]
            if before.generation and lengths & ~before.port_lengths:
                # First of all: an entry that is not looked for is one that says nothing.
                self._put_set(number, RuleSet(before.generation, before.port_lengths | lengths))
        unwritten = yield from self._put(
            "rules", ((pack_rule_key(key), pack_columns(said)) for key, said in changes.rules.items())
        )
        refused = {unpack_rule_key(entry).rule_set for entry in unwritten}
        late = {number for number, one in known.items() if one.generation} | self._closed
        if changes.compared:  # which has every entry that a closed set lacks
            self._closed.clear()
        self._close(refused)
        self._count_up(self._open({one: n for one, n in changes.rule_sets.items() if one not in late}))
        lost: dict[bytes, KernelError] = {}
        more: tuple[tuple[str, Iterable[tuple[bytes, bytes | None]]], ...] = (
            ("identities", ((pack_policy_prefix(p), _number(n)) for p, n in changes.identities.items())),
            ("pools", ((pack_prefix(pool), _number(1)) for pool in changes.pools)),
            ("endpoints", self._endpoints(changes.endpoints, lost)),
            ("endpoints", ((pack_address(address), None) for address in changes.gone_endpoints)),
            ("pools", ((pack_prefix(pool), None) for pool in changes.gone_pools)),
            ("identities", ((pack_policy_prefix(prefix), None) for prefix in changes.gone_identities)),
            ("rules", ((pack_rule_key(key), None) for key in changes.gone_rules)),
        )
        for name, entries in more:
            failures = yield from self._put(name, entries)
            unwritten |= failures
            if name == "rules":
                self._close({unpack_rule_key(entry).rule_set for entry in failures})
            elif name == "identities" and failures:
                self._close(self._naming({changes.identities.get(unpack_policy_prefix(one)) for one in failures}))
                self._close(self._naming({self._identity(one) for one in failures}))
        self._count_up(self._open({one: n for one, n in changes.rule_sets.items() if one in late}))
        self._closed.difference_update(changes.gone_rule_sets)
        for number in changes.gone_rule_sets:
            self._put_set(number, _NO_SET)
        self.look_again()
        if torn:
            self._judge_all_again()
        self._mark(_NO_SET)
        for error in (*unwritten.values(), *lost.values()):
            raise error

    def _put(
        self, name: str, entries: Iterable[tuple[bytes, bytes | None]]
    ) -> Generator[None, None, dict[bytes, KernelError]]:
        """Write entries of a map, or without a value delete them; returns what could not be, by key."""
        maps, failures = self._opened("write the flow engine's maps").maps, {}
        for done, (entry, value) in enumerate(entries, 1):
            try:
                if value is None:
                    bpf.delete(maps[name], entry)
                else:
                    bpf.insert(maps[name], entry, value)
                self.writes += 1
            except KernelError as error:
                if value is not None or error.errno != errno.ENOENT:
                    failures[entry] = _told(error, name, maps[name])
            if not done % PORTION:
                yield
        return failures

    def _mark(self, mark: RuleSet) -> None:
        """Say whether a write is under way: who is killed in it has not told flows yet to be judged again."""
        maps = self._opened("write the flow engine's maps").maps
        bpf.insert(maps["rule_sets"], _number(NO_RULES), RULE_SET.pack(*mark))

    def _is_torn(self) -> bool:
        """Tell whether a write began and did not come to its end."""
        return _set(self._opened("read the flow engine's maps").maps["rule_sets"], NO_RULES) == _UNDER_WAY

    def _judge_all_again(self) -> None:
        """Have all flows judged again that a set judges: nobody knows which a torn write was about."""
        sets = _sets(self._opened("read the flow engine's maps").maps["rule_sets"])
        self._count_up({number: one.port_lengths for number, one in sets})
        self.look_again()
        self._mark(_NO_SET)

    def _close(self, numbers: Iterable[int]) -> None:
        """Have sets deny everything, until a comparison has put them right."""
        for number in numbers:
            self._put_set(number, _NO_SET)
            self._closed.add(number)

    def _open(self, rule_sets: Mapping[int, int]) -> dict[int, int]:
        """Return those of some sets that lack nothing."""
        return {number: lengths for number, lengths in rule_sets.items() if number not in self._closed}

    def _identity(self, prefix: bytes) -> int | None:
        found = bpf.lookup(self._opened("read the flow engine's maps").maps["identities"], prefix)
        return None if found is None else IDENTITY.unpack(found)[0]

    def _naming(self, identities: Set[int | None]) -> set[int]:
        """Return the sets with entries for one of these identities."""
        entries = map(unpack_rule_key, bpf.items(self._opened("read the flow engine's maps").maps["rules"]))
        return {key.rule_set for key in entries if key.identity and key.identity in identities}

    def _put_set(self, number: int, rule_set: RuleSet) -> None:
        maps = self._opened("write the flow engine's maps").maps
        bpf.insert(maps["rule_sets"], _number(number), RULE_SET.pack(*rule_set))
        self.writes += 1

    def look_again(self, *, ways: bool = False) -> None:
        """Have flows judged again whose grounds changed; with `ways`, their ways looked up anew."""
        if self._engine is not None:
            FlowMaps(self._engine.maps).changed(ways=ways)

    def counters(self) -> dict[Reason | Counter, int]:
        """Return what the engine counted; nothing if it is not open."""
        return FlowMaps(self._engine.maps).counters() if self._engine else {}

    def _count_up(self, rule_sets: Mapping[int, int]) -> None:
        """Give sets a generation that no set ever had: their flows are judged again."""
        if not rule_sets:
            return
        door = FlowMaps(self._opened("write the flow engine's maps").maps)
        generation = door.state.generations
        door.set_state(generations=generation + len(rule_sets))
        for count, (number, lengths) in enumerate(rule_sets.items(), 1):
            self._put_set(number, RuleSet(generation + count, lengths))

    def _endpoints(
        self, endpoints: Mapping[Address, FlowEndpoint], lost: dict[bytes, KernelError]
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the entries of pods whose links are there: who makes a link has its pod written again.

        Those of whose links the kernel does not tell are `lost`.
        """
        for address, endpoint in endpoints.items():
            try:
                index = links.find(self._connection, endpoint.link).index
            except KernelError as error:
                if error.errno != errno.ENODEV:
                    lost[pack_address(address)] = error
                continue
            flags = endpoint.bridged * BRIDGED | endpoint.limited * LIMITED | endpoint.names * NAMES
            rules = endpoint.rules
            found = Endpoint(index, rules.egress, rules.ingress, flags, rules.egress_audit, rules.ingress_audit)
            yield pack_address(address), ENDPOINT.pack(*found)


def _nothing() -> Generator[None, None, None]:
    """Do nothing, in no steps."""
    yield from ()


def why_not() -> str:
    """Say why this system cannot have the flow engine, as far as is known before it is tried; empty if it can."""
    try:
        return tcx.why_not()
    except PodwayError as error:
        return error.message


def _told(error: KernelError, name: str, fd: int) -> KernelError:
    """Return the error that says how many entries a map takes, if it is full."""
    if error.errno not in {errno.E2BIG, errno.ENOSPC}:
        return error
    most = bpf.map_info(fd).max_entries
    return KernelError(f"write the flow engine's map of {name}, which takes {most} entries", error.errno)


def _number(number: int) -> bytes:
    return IDENTITY.pack(number)


def _set(fd: int, number: int) -> RuleSet:
    return RuleSet(*RULE_SET.unpack(bpf.element(fd, number)))


def _sets(fd: int) -> Iterator[tuple[int, RuleSet]]:
    """Yield the sets that are there, of tens of thousands that might be."""
    data = bpf.array(fd)
    stretch = 512 * RULE_SET.size
    nothing = bytes(stretch)
    for start in range(0, len(data), stretch):
        part = data[start : start + stretch]
        if part == nothing[: len(part)]:
            continue
        for at in range(0, len(part), RULE_SET.size):
            found = RuleSet(*RULE_SET.unpack(part[at : at + RULE_SET.size]))
            if found.generation:
                yield (start + at) // RULE_SET.size, found
