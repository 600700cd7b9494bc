"""The eBPF programs of podway/bpf/ipip.c on devices: attached, found again, and detached.

They hang on tcx, or where the kernel has none on clsact. What a program was made from stands in its constants
(`.rodata`), a map that lives and goes with it: so the kernel itself tells what is attached, and from what.
"""

import contextlib
import errno
import functools
import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import podway
from podway.api.lease import LINK_PREFIX
from podway.errors import KernelError, UnsupportedSystem
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf import tcx
from podway.kernel.netlink import Connection
from podway.kernel.rtnl import tc
from podway.kernel.rtnl.tc import Direction

Role: TypeAlias = Literal["encap", "decap"]
Hook: TypeAlias = Literal["tcx", "clsact"]

_DIRECTIONS: dict[Role, Direction] = {"encap": "egress", "decap": "ingress"}
_ROLES = {(f"podway_{role}", direction): role for role, direction in _DIRECTIONS.items()}
"""What a program is, by its name and direction."""
_OBJECT = Path(podway.__file__).parent / "bpf/bin/ipip.o"
_CONFIG = struct.Struct("=4sI6s?x")
_CONSTANTS_MAP = ".rodata"
"""How the name of an object's map of constants ends."""


class Config(NamedTuple):
    """What a program is made from: `config` in ipip.c.

    `uplink` is a device's number, `build` 12 digits that tell the compiled object, and `made_hooks` whether the
    clsact qdisc that the program hangs on is ours.
    """

    local: IPv4Address
    uplink: int
    build: str
    made_hooks: bool = False

    def pack(self) -> bytes:
        """Return the constants of the program."""
        return _CONFIG.pack(self.local.packed, self.uplink, bytes.fromhex(self.build), self.made_hooks)

    @classmethod
    def unpack(cls, constants: bytes) -> "Config":
        """Read a program's constants. Other versions' may be shorter or longer: they begin the same."""
        local, uplink, build, made_hooks = _CONFIG.unpack_from(constants.ljust(_CONFIG.size, b"\0"))
        return cls(IPv4Address(local), uplink, build.hex(), made_hooks)


class Place(NamedTuple):
    """Where a program hangs: a device, by its number, and a hook; its role tells the direction."""

    device: int
    role: Role
    hook: Hook

    @property
    def direction(self) -> Direction:
        """Which packets of the device it sees."""
        return _DIRECTIONS[self.role]

    def __str__(self) -> str:
        return f"IPIP {self.role} program on {self.hook} of device {self.device}"


class Attached(NamedTuple):
    """A program of ours: where it hangs, its id, its config, and on clsact its filter."""

    place: Place
    program: int
    config: Config
    filter: tc.Filter | None


class Object(NamedTuple):
    """The compiled programs, and 12 digits that tell this build from others."""

    image: bytes
    build: str


@functools.cache
def compiled() -> Object:
    """Return the programs to attach. Raises UnsupportedSystem if they are not built."""
    try:
        image = _OBJECT.read_bytes()
    except FileNotFoundError as error:
        raise UnsupportedSystem(
            f"the eBPF programs are not built: {_OBJECT} is missing", hint="install Podway anew, with clang there"
        ) from error
    return Object(image, hashlib.sha256(image).hexdigest()[:12])


def find(connection: Connection, numbers: Mapping[str, int]) -> list[Attached]:
    """Return our programs on these devices (numbers by name), but for pods', which never have any.

    Raises KernelError, and UnsupportedSystem if something is on clsact and there is no libbpf.
    """
    devices = {number for name, number in numbers.items() if not name.startswith(LINK_PREFIX)}
    # Where there is no libbpf, nothing was attached: a node that has no tunnels can do without.
    on_tcx = connection.inside(lambda: _on_tcx(devices)) if bpf.is_installed() and tcx.is_supported() else []
    found = [_recognized(*where, None) for where in on_tcx]
    found += [
        _recognized(index, direction, filtered.program, filtered)
        for index, directions in tc.hooks(connection).items()
        if index in devices
        for direction in directions
        for filtered in tc.filters(connection, index, direction)
    ]
    return [attached for attached in found if attached]


@contextlib.contextmanager
def maps(found: Iterable[Attached]) -> Iterator[Mapping[str, int]]:
    """Give descriptors of the programs' maps by name; closed after the block. Raises KernelError.

    While one build takes the place of another, each has its own of a map that changed: it is the newcomer's.
    """
    with contextlib.ExitStack() as stack:
        shared: dict[str, int] = {}
        for attached in sorted(found, key=_is_current):
            shared |= stack.enter_context(bpf.opened(attached.program)).maps
        yield shared


def attach(
    connection: Connection, place: Place, config: Config, share: Mapping[str, int], former: Attached | None
) -> None:
    """Load a program with these maps (`share`) and hang it there, instead of a `former` one if there is one.

    Raises KernelError, with errno EEXIST if another's filter has the place on clsact, and UnsupportedSystem.
    """
    device, role, hook = place
    bare = hook == "clsact" and device not in tc.hooks(connection)
    config = config._replace(made_hooks=bare or (former is not None and former.config.made_hooks))
    with bpf.loaded("podway", compiled().image, config.pack(), share) as functions:
        program = functions[f"podway_{role}"]
        if hook == "tcx":
            replaced = former.program if former else None
            connection.inside(lambda: tcx.put(device, place.direction, program, replaced, label=place))
            return
        if bare:
            connection.transact([tc.add_hooks(device)])
        try:
            put = tc.put(
                device, place.direction, f"podway-ipip/{role}", program, former.filter if former else None
            )
            connection.transact([put])
        except KernelError:
            if bare:
                connection.attempt([tc.remove_hooks(device)])
            raise


def detach(connection: Connection, attached: Attached, *, keep_hooks: bool) -> None:
    """Take a program off its device, and unless `keep_hooks` with the last filter our qdisc.

    Raises KernelError.
    """
    place, program, config, filtered = attached
    if filtered is None:
        connection.inside(lambda: tcx.detach(place.device, place.direction, program, label=place))
        return
    connection.transact([tc.remove(filtered)])
    directions = tc.hooks(connection).get(place.device, ())
    if config.made_hooks and not keep_hooks and tc.is_empty(connection, place.device, directions):
        connection.transact([tc.remove_hooks(place.device)])


def _is_current(attached: Attached) -> bool:
    return _OBJECT.exists() and attached.config.build == compiled().build


def _on_tcx(devices: Iterable[int]) -> list[tuple[int, Direction, int]]:
    return [
        (index, direction, program)
        for index in devices
        for direction in _DIRECTIONS.values()
        for program in tcx.programs(index, direction)
    ]


def _recognized(index: int, direction: Direction, program: int, filtered: tc.Filter | None) -> Attached | None:
    """Tell what a program is, None if it is not ours."""
    try:
        with bpf.opened(program) as opened:
            role = _ROLES.get((opened.name, direction))
            constants = [fd for name, fd in opened.maps.items() if name.endswith(_CONSTANTS_MAP)]
            if role is None or not constants:
                return None
            config = Config.unpack(bpf.element(constants[0], 0))
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        return None  # it went while we looked
    return Attached(Place(index, role, "clsact" if filtered else "tcx"), program, config, filtered)
