"""The programs and maps of the flow engine (podway/bpf/flow.c): loaded, attached, found again, taken over.

**What holds them.** Nothing is pinned: a program lives as long as a device it is attached to, and the maps as
long as a program. An agent that is killed leaves both at work, and the next one finds them on the devices, by
name, with the constants that tell the build. So there is no file system to mount into a container, and no file
that could outlive, or disagree with, what is attached. The engine has no timers and no arrays of programs, which
the kernel would stop or empty once no process holds their map.

**How a new agent takes over.** With the same build it goes on with the same programs and maps: nothing happens to
a packet. Another build's programs are loaded with those former maps whose layouts are the same, and attached
beside the former programs, on all devices, where at first they pass every packet on to these: of the programs on
a hook only those of the build that the map `active` names do anything. Entries of maps that changed are copied,
and then one write to `active` switches from one build to the other on all devices between two packets. Flows
and calls to Services that were made since the copy are copied once more; then the former programs go.

**Where they hang.** On uplink and tunnels' devices on tcx (kernel 6.6): no queue is stopped for it. But with
each program that comes or goes, also with its device, the kernel waits for an RCU grace period, and holds the lock
of all devices meanwhile (tcx_entry_sync in include/net/tcx.h): some 14 ms each. So on a pod's link, which is made
and removed while somebody waits, they are filters of a clsact qdisc, put there before the link is up: 0.5 ms for
both, and the link's end takes no longer. A qdisc that comes to a link that is up has it lose packets, so pods that
are older than the engine have tcx, and so has a link on which another's programs are on tcx, which go first.
"""

import contextlib
import errno
import functools
import hashlib
import os
import struct
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import podway
from podway.errors import KernelError, UnsupportedSystem
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf import tcx
from podway.kernel.bpf.flow_layout import BEGINNING, STATE, Beginning, Hook, State
from podway.kernel.netlink import Connection, Request
from podway.kernel.rtnl import tc
from podway.kernel.rtnl.tc import Direction

_OBJECT = Path(podway.__file__).parent / "bpf/bin/flow.o"
_CONSTANTS_MAP = ".rodata"
_BUILD = struct.Struct("=Q")
_ZERO = bytes(4)
_DIRECTIONS: dict[Hook, Direction] = {Hook.FROM_POD: "ingress", Hook.FROM_WIRE: "ingress", Hook.TO_POD: "egress"}
_PROGRAMS = {hook: f"podway_{hook.name.lower()}" for hook in Hook}
_NAME_LENGTH = 15
"""So much of a program's name the kernel keeps (BPF_OBJ_NAME_LEN)."""
_HOOKS = {name[:_NAME_LENGTH]: hook for hook, name in _PROGRAMS.items()}

COPIED = (
    *("flows", "endpoints", "identities", "pools", "rules", "rule_sets", "quotas", "state"),
    *("beginning", "frontends", "choices", "backends", "calls", "tcp_calls", "affinities", "backends_epoch"),
    *("names", "callers"),
)
"""Maps whose entries matter to the next build. What they hold of an array's elements is all of them."""

FIRST_STATE = State(epoch=1, way_generation=1, half_open=16384, established=32768, generations=0)

SETTLED = 30.0
"""Seconds after its beginning in which an engine takes for answers what may be: as long as ICMP flows live."""

Converter = Callable[[bytes, bytes], "tuple[bytes, bytes] | None"]
"""From a former layout's key and value to what they are now, or None where an entry is given up."""


class Place(NamedTuple):
    """Where a program hangs: a device, by its number, and what packets it sees there."""

    device: int
    hook: Hook

    @property
    def direction(self) -> Direction:
        """Which packets of the device these are."""
        return _DIRECTIONS[self.hook]

    def __str__(self) -> str:
        return f"flow program {_PROGRAMS[self.hook]} on device {self.device}"


class Attached(NamedTuple):
    """A program of the engine: where it hangs, its id, of which build it is, and on clsact its filter.

    `late` tells that another's programs on the same hook see packets first, and may let them pass.
    """

    place: Place
    program: int
    build: int
    filter: tc.Filter | None = None
    late: bool = False


class Image(NamedTuple):
    """A compiled object."""

    data: bytes


@functools.cache
def compiled() -> Image:
    """Return the programs to attach. Raises UnsupportedSystem if they are not built."""
    try:
        data = _OBJECT.read_bytes()
    except FileNotFoundError as error:
        raise UnsupportedSystem(
            f"the eBPF programs are not built: {_OBJECT} is missing", hint="install Podway anew, with clang there"
        ) from error
    return Image(data)


def attached(
    connection: Connection,
    devices: Iterable[int],
    known: Mapping[int, Hook] = MappingProxyType({}),
    build: int = 0,
) -> list[Attached]:
    """Return the engine's programs on these devices, of every build; none where there is no tcx.

    `known` are programs, by their ids, that need not be looked into: they are of this `build`. Raises KernelError.
    """
    wanted = frozenset(devices)
    if not tcx.is_supported():
        return []
    directions: tuple[Direction, ...] = ("ingress", "egress")

    def on_tcx() -> dict[tuple[int, Direction], list[int]]:
        hooks = [(device, direction) for device in sorted(wanted) for direction in directions]
        return {hook: programs for hook in hooks if (programs := tcx.programs(*hook))}

    def told(hook: tuple[int, Direction], program: int) -> Attached | None:
        if program in known:
            return Attached(Place(hook[0], known[program]), program, build)
        return _recognized(*hook, program)

    found: list[Attached] = []
    foreign: set[tuple[int, Direction]] = set()
    for hook, programs in connection.inside(on_tcx).items():
        for program in programs:
            if one := told(hook, program):
                found.append(one)
            else:
                foreign.add(hook)
    qdiscs = tc.hooks(connection)
    for device in sorted(wanted & qdiscs.keys()):
        for direction in qdiscs[device]:
            hook = (device, direction)
            found += [
                one._replace(filter=filtered, late=hook in foreign)
                for filtered in tc.filters(connection, device, direction)
                if (one := told(hook, filtered.program))
            ]
    return found


def works(connection: Connection, devices: Iterable[int]) -> bool:
    """Tell whether any engine judges packets on these devices. Raises KernelError."""
    with _working(attached(connection, devices)) as working:
        return bool(working.build)


def stop(connection: Connection, devices: Iterable[int]) -> None:
    """Have the programs on these devices leave all packets to who is behind them, at once. Raises KernelError."""
    for one in attached(connection, devices):
        with bpf.opened(one.program) as opened:
            bpf.insert(opened.maps["active"], _ZERO, bytes(_BUILD.size))


def _recognized(device: int, direction: Direction, program: int) -> Attached | None:
    try:
        with bpf.opened(program) as opened:
            hook = _HOOKS.get(opened.name)
            constants = [fd for name, fd in opened.maps.items() if name.endswith(_CONSTANTS_MAP)]
            if hook is None or _DIRECTIONS[hook] != direction or not constants:
                return None
            (build,) = _BUILD.unpack_from(bpf.element(constants[0], 0))
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        return None  # it went while we looked
    return Attached(Place(device, hook), program, build)


class Engine:
    """Programs and maps of one build, held open. What is attached stays when they are closed.

    `programs` are descriptors by hook, `maps` by name.
    """

    def __init__(self, build: int, programs: Mapping[Hook, int]) -> None:
        """Hold programs (descriptors, which stay the caller's) and their maps. Raises KernelError."""
        self.build = build
        self.programs = {hook: os.dup(fd) for hook, fd in programs.items()}
        self.maps: dict[str, int] = {}
        for fd in self.programs.values():
            with bpf.opened(bpf.program_id(fd)) as opened:
                new = opened.maps.keys() - self.maps.keys()
                self.maps |= {name: os.dup(opened.maps[name]) for name in new}

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of programs and maps."""
        for fd in (*self.programs.values(), *self.maps.values()):
            os.close(fd)
        self.programs, self.maps = {}, {}

    def attach(self, connection: Connection, place: Place, *, on_tcx: bool = False) -> None:
        """Hang the program of a hook on a device, and if so told on tcx in any case.

        Raises KernelError, with errno EEXIST if it is there.
        """
        program = self.programs[place.hook]
        # On the uplink behind IPIP's, which takes outer headers off. On pods' links ahead of all: what another's
        # program lets pass there would pass us by.
        last = place.hook is Hook.FROM_WIRE
        if not (last or on_tcx) and self._may_be_filter(connection, place):
            connection.transact([self._filter(place)])
            return
        connection.inside(lambda: tcx.put(place.device, place.direction, program, None, label=place, last=last))

    def attach_new(self, connection: Connection, device: int) -> None:
        """Hang both programs of a pod's link on it, which has just been made and is not up. Raises KernelError."""
        places = [Place(device, hook) for hook in (Hook.FROM_POD, Hook.TO_POD)]
        connection.transact([tc.add_hooks(device), *map(self._filter, places)])

    def _filter(self, place: Place) -> Request:
        name, program = _PROGRAMS[place.hook], self.programs[place.hook]
        return tc.put(place.device, place.direction, name, program, None, priority=tc.FIRST, beside=True)

    def _may_be_filter(self, connection: Connection, place: Place) -> bool:
        """Tell whether clsact is there, and nobody on tcx, who would go first.

        Raises KernelError, with errno EEXIST if the program is there.
        """
        if place.direction not in tc.hooks(connection).get(place.device, ()):
            return False
        own = bpf.program_id(self.programs[place.hook])
        if connection.inside(lambda: tcx.programs(place.device, place.direction)):
            return False
        if any(one.program == own for one in tc.filters(connection, place.device, place.direction)):
            raise KernelError(f"attach {place}", errno.EEXIST)
        return True


def detach(connection: Connection, found: Attached) -> None:
    """Take a program off its device; a qdisc stays, which would take packets along. Raises KernelError."""
    place, filtered = found.place, found.filter
    if filtered is not None:
        connection.transact([tc.remove(filtered)])
        return
    connection.inside(lambda: tcx.detach(place.device, place.direction, found.program, label=place))


@contextlib.contextmanager
def loaded(image: Image, share: Mapping[str, int], sizes: Mapping[str, int]) -> Iterator[Engine]:
    """Load the programs, with those maps of `share` that fit; they do nothing yet.

    `sizes` are how many entries maps have, by name. Raises KernelError and UnsupportedSystem.
    """
    build = number(image, sizes)
    with bpf.loaded("podway", image.data, _BUILD.pack(build), share, sizes) as functions:
        engine = Engine(build, {_HOOKS[name[:_NAME_LENGTH]]: fd for name, fd in functions.items()})
    with engine:
        yield engine


class Fresh(NamedTuple):
    """Programs that were brought to their places ahead of `take_over`; `beside` says whose maps they share.

    Close `engine`.
    """

    engine: Engine
    beside: int


def loading(connection: Connection, places: Iterable[Place]) -> Callable[[], Fresh] | None:
    """Return what loads the programs that `take_over` needs at these places, and hangs them there, idle.

    None if those that are there will do. It is for a thread, since the kernel's verifier takes long for them, and
    tcx for each place. Call it once. Raises KernelError and UnsupportedSystem, and so does what it returns.
    """
    image, wanted = compiled(), list(places)
    found = attached(connection, {place.device for place in wanted})
    with _working(found) as former:
        ours = _ours(found, former, number(image, {}))
        if {one.place.hook for one in ours} == set(Hook):
            return None
        lacking = [place for place in wanted if place not in {one.place for one in ours}]
        maps, beside = {name: os.dup(fd) for name, fd in former.maps.items()}, former.group

    def load() -> Fresh:
        try:
            with loaded(image, maps, {}) as fresh:
                engine = Engine(fresh.build, fresh.programs)
            for place in lacking:
                # Its device may have gone. `take_over` tries anew what is not there.
                with contextlib.suppress(KernelError):
                    engine.attach(connection, place)
            return Fresh(engine, beside)
        finally:
            for fd in maps.values():
                os.close(fd)

    return load


def _ours(found: Iterable[Attached], former: "_Working", build: int) -> list[Attached]:
    """Return the programs of this build, of those that work already."""
    return [one for one in found if one.program in former.programs and one.build == build]


def number(image: Image, sizes: Mapping[str, int]) -> int:
    """Return what tells these programs from others: a digest of the object and of the sizes of its maps."""
    digest = hashlib.sha256(image.data + repr(sorted(sizes.items())).encode())
    return int.from_bytes(digest.digest()[:8], "little")


def take_over(
    connection: Connection,
    places: Iterable[Place],
    *,
    image: Image | None = None,
    sizes: Mapping[str, int] | None = None,
    converters: Mapping[str, Converter] | None = None,
    fill: Callable[[Engine], None] = lambda _: None,
    fresh: Fresh | None = None,
) -> Engine:
    """Have this build's programs work at these places, and give them to be held; what others did goes on.

    `sizes` are how many entries maps shall have, by name. `converters` read entries of maps (by name) that another
    build wrote in another layout; without one, such a map begins empty. `fill` may write maps before they are
    asked: where no programs worked before, none drops a packet for a map that is empty still. Programs of ours on
    the same devices that are not wanted go. `fresh` are programs of `loading`, which stay the caller's.
    Raises KernelError and UnsupportedSystem, and what `fill` raises.
    """
    image, sizes, wanted = image or compiled(), sizes or {}, list(places)
    found = attached(connection, {place.device for place in wanted})
    build = number(image, sizes)
    with contextlib.ExitStack() as stack:
        former = stack.enter_context(_working(found))
        there = {one.place.hook: one.program for one in _ours(found, former, build)}
        if there.keys() == set(Hook):
            programs = {hook: stack.enter_context(bpf.opened(program)).fd for hook, program in there.items()}
        elif fresh is not None and fresh.engine.build == build and fresh.beside == former.group:
            programs = fresh.engine.programs
        else:
            programs = stack.enter_context(loaded(image, former.maps, sizes)).programs
        engine = Engine(build, programs)
        try:
            _bring_over(connection, engine, former, found, wanted, converters or {}, fill)
        except BaseException:
            engine.close()
            raise
    return engine


class _Working(NamedTuple):
    """The build that `active` names (0: there is none), its maps, its programs by their ids, `active`'s own id.

    Programs of the same build may hang there that do nothing: another agent was killed before it had them begin.
    """

    build: int
    maps: Mapping[str, int]
    programs: Container[int]
    group: int


@contextlib.contextmanager
def _working(found: Iterable[Attached]) -> Iterator[_Working]:
    with contextlib.ExitStack() as stack:
        shared: dict[str, int] = {}
        working, chosen = 0, 0
        programs: set[int] = set()
        for one in found:
            maps = stack.enter_context(bpf.opened(one.program)).maps
            if bpf.element(maps["active"], 0) != _BUILD.pack(one.build):
                continue
            group = bpf.map_info(maps["active"]).id
            if not working or group == chosen:
                working, chosen = one.build, group
                shared |= maps
                programs.add(one.program)
        yield _Working(working, shared, programs, chosen)


def _bring_over(
    connection: Connection,
    engine: Engine,
    former: _Working,
    found: list[Attached],
    wanted: list[Place],
    converters: Mapping[str, Converter],
    fill: Callable[[Engine], None],
) -> None:
    new = [name for name in COPIED if not _is_same(engine.maps[name], former.maps.get(name))]
    if "state" in new:
        bpf.insert(engine.maps["state"], _ZERO, STATE.pack(*FIRST_STATE))
    own = {bpf.program_id(fd) for fd in engine.programs.values()}  # some may hang there, idle
    ours = _ours(found, former, engine.build)
    kept = [one for one in found if one in ours or one.program in own]
    there = {one.place for one in kept if not one.late}
    for place in wanted:
        if place not in there:
            engine.attach(connection, place)
    copied = [name for name in new if name in former.maps]
    known = {name: _copy(former.maps[name], engine.maps[name], converters.get(name)) for name in copied}
    if new:  # what flows were judged by has other numbers now
        state = State(*STATE.unpack(bpf.element(engine.maps["state"], 0)))
        state = state._replace(epoch=int.from_bytes(os.urandom(4), "little"))
        bpf.insert(engine.maps["state"], _ZERO, STATE.pack(*state))
    fill(engine)
    if not former.build:
        newest = max((place.device for place in wanted), default=0)
        began = Beginning(time.monotonic_ns() + int(SETTLED * 1e9), newest)
        bpf.insert(engine.maps["beginning"], _ZERO, BEGINNING.pack(*began))
    bpf.insert(engine.maps["active"], _ZERO, _BUILD.pack(engine.build))
    for name in ("flows", "calls", "tcp_calls", "callers"):  # what packets made meanwhile
        if name in copied:
            _copy(former.maps[name], engine.maps[name], converters.get(name), known[name])
    for one in found:
        if one in kept and one.place in wanted and not one.late:
            continue
        try:
            detach(connection, one)
        except KernelError as error:  # it may have gone with its device
            if error.errno not in {errno.ENOENT, errno.ENODEV}:
                raise


def _is_same(one: int, other: int | None) -> bool:
    return other is not None and bpf.map_info(one).id == bpf.map_info(other).id


def _copy(old: int, new: int, convert: Converter | None, known: Container[bytes] = ()) -> set[bytes]:
    """Copy what a map holds into another, but for keys that are `known` or there already; return the keys."""
    before, after = bpf.map_info(old), bpf.map_info(new)
    if convert is None and (before.key_size, before.value_size) != (after.key_size, after.value_size):
        return set()
    put = bpf.insert if after.type == bpf.ARRAY else bpf.insert_new
    items = bpf.items(old)
    for key, value in items.items():
        item = (key, value) if convert is None else convert(key, value)
        if item is not None and key not in known and (after.type != bpf.ARRAY or any(item[1])):
            put(new, *item)
    return set(items)
