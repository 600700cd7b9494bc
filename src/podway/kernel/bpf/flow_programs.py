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
that were made since the copy are copied once more; then the former programs go.

Programs hang on tcx (kernel 6.6).
"""

import contextlib
import errno
import functools
import hashlib
import os
import struct
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import podway
from podway.errors import KernelError, UnsupportedSystem
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf import tcx
from podway.kernel.bpf.flow_layout import STATE, Hook, State
from podway.kernel.netlink import Connection
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

COPIED = ("flows", "endpoints", "identities", "pools", "rules", "rule_sets", "quotas", "state")
"""Maps whose entries matter to the next build. What they hold of an array's elements is all of them."""

FIRST_STATE = State(epoch=1, way_generation=1, half_open=16384, established=32768, generations=0)

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
    """A program of the engine: where it hangs, its id, and of which build it is."""

    place: Place
    program: int
    build: int


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
    wanted = list(devices)
    if not tcx.is_supported():
        return []
    directions: tuple[Direction, ...] = ("ingress", "egress")

    def on_tcx() -> list[tuple[int, Direction, int]]:
        return [
            (device, direction, program)
            for device in wanted
            for direction in directions
            for program in tcx.programs(device, direction)
        ]

    found = [
        Attached(Place(device, known[program]), program, build)
        if program in known
        else _recognized(device, direction, program)
        for device, direction, program in connection.inside(on_tcx)
    ]
    return [one for one in found if one]


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

    def attach(self, connection: Connection, place: Place) -> None:
        """Hang the program of a hook on a device. Raises KernelError."""
        program = self.programs[place.hook]
        # On the uplink behind IPIP's, which takes outer headers off. On pods' links ahead of all: what another's
        # program lets pass there would pass us by.
        last = place.hook is Hook.FROM_WIRE
        connection.inside(lambda: tcx.put(place.device, place.direction, program, None, label=place, last=last))


def detach(connection: Connection, found: Attached) -> None:
    """Take a program off its device. Raises KernelError."""
    place = found.place
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
) -> Engine:
    """Have this build's programs work at these places, and give them to be held; what others did goes on.

    `sizes` are how many entries maps shall have, by name. `converters` read entries of maps (by name) that another
    build wrote in another layout; without one, such a map begins empty. `fill` may write maps before they are
    asked: where no programs worked before, none drops a packet for a map that is empty still. Programs of ours on
    the same devices that are not wanted go. Raises KernelError and UnsupportedSystem, and what `fill` raises.
    """
    image, sizes, wanted = image or compiled(), sizes or {}, list(places)
    if not tcx.is_supported():
        raise UnsupportedSystem("the flow engine needs tcx", hint="use a kernel from 6.6 on")
    found = attached(connection, {place.device for place in wanted})
    build = number(image, sizes)
    with contextlib.ExitStack() as stack:
        former = stack.enter_context(_working(found))
        ours = [one for one in found if one.program in former.programs and one.build == build]
        there = {one.place.hook: one.program for one in ours}
        if there.keys() == set(Hook):
            programs = {hook: stack.enter_context(bpf.opened(program)).fd for hook, program in there.items()}
            engine = Engine(build, programs)
        else:
            fresh = stack.enter_context(loaded(image, former.maps, sizes))
            engine = Engine(build, fresh.programs)
        try:
            _bring_over(connection, engine, former, found, wanted, converters or {}, fill)
        except BaseException:
            engine.close()
            raise
    return engine


class _Working(NamedTuple):
    """The build that `active` names (0: there is none), its maps, and its programs by their ids.

    Programs of the same build may hang there that do nothing: another agent was killed before it had them begin.
    """

    build: int
    maps: Mapping[str, int]
    programs: Container[int]


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
        yield _Working(working, shared, programs)


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
    kept = [one for one in found if one.program in former.programs and one.build == engine.build]
    there = {one.place for one in kept}
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
    bpf.insert(engine.maps["active"], _ZERO, _BUILD.pack(engine.build))
    if "flows" in copied:
        _copy(former.maps["flows"], engine.maps["flows"], converters.get("flows"), known["flows"])
    for one in found:
        if one in kept and one.place in wanted:
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
