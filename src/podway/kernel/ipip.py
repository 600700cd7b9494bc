"""IPIP tunnels (RFC 2003) by eBPF: which programs a node's tunnels need, and whose packets they take.

The programs of a node share their maps, and hand them on to those that replace them.
"""

import errno
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network

import msgspec

from podway.api.addresses import Address, Network
from podway.errors import KernelError
from podway.kernel.bpf import ipip_programs, tcx
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.ipip_programs import Attached, Config, Hook, Place, Role
from podway.kernel.engine import Compared
from podway.kernel.netlink import Connection
from podway.plan.changes import Change
from podway.plan.objects import NodePlan, TunnelEndpoint, TunnelSource

Numbers = Callable[[], Mapping[str, int]]
"""Gives the devices' numbers by name, as they are at the moment of the call."""
_Key = tuple[str, Role, Hook]

COUNTERS = (
    "encapsulated",
    "decapsulated",
    "relayed",
    "unknown-source",
    "dropped-not-ipv4",
    "dropped-no-room",
    "dropped-fragment",
    "dropped-malformed",
    "dropped-ecn",
    "dropped-source",
)
"""What the programs count, in packets, in the order of `enum counter` in ipip.c."""

_ENDPOINTS_MAP, _SOURCES_MAP, _COUNTERS_MAP = "ipip_endpoints", "ipip_sources", "ipip_counters"
_SOURCE = struct.Struct("=I4s")
"""struct source in ipip.c."""
_ANY_NODE = bytes(4)


class TunnelProgram(msgspec.Struct, frozen=True):
    """One of a tunnel's two programs, attached to a device. `build` tells what it was compiled from."""

    role: Role
    device: str
    hook: Hook
    local: Address
    uplink: str
    build: str

    def __str__(self) -> str:
        return f"IPIP {self.role} program on {self.device} ({self.hook})"

    @property
    def key(self) -> _Key:
        """Device, role and hook: on another hook it is another one, so it stays until its successor is there."""
        return (self.device, self.role, self.hook)


class IpipTunnels:
    """The programs of IPIP tunnels, wherever in the namespace they are attached.

    On clsact a decapsulating program stays when the last tunnel goes, with nobody left whose packets it would
    take, until nothing at all is planned: its qdisc cannot be taken off the uplink without loss. `writes`
    counts the programs attached and detached so far.
    """

    name = "IPIP tunnel"
    repairs_only = False
    compared: Compared = "in parts"

    def __init__(self, connection: Connection, numbers: Numbers) -> None:
        self._connection = connection
        self._numbers = numbers
        self.writes = 0

    def wanted(self, plan: NodePlan) -> Mapping[_Key, TunnelProgram]:
        """Return the programs that the plan's tunnels need. Raises UnsupportedSystem if they are not built."""
        wanted: dict[_Key, TunnelProgram] = {}
        for tunnel in plan.tunnels:
            hook: Hook = "tcx" if tcx.is_supported() else "clsact"
            made_from = (tunnel.local, tunnel.uplink, ipip_programs.compiled().build)
            encap = TunnelProgram("encap", tunnel.device, hook, *made_from)
            decap = TunnelProgram("decap", tunnel.uplink, hook, *made_from)
            wanted |= {encap.key: encap, decap.key: decap}
        return wanted

    def list(self, plan: NodePlan) -> Mapping[_Key, TunnelProgram]:
        """Return the programs that are attached, but for one that may idle. Raises KernelError."""
        idling = not plan.tunnels and plan != NodePlan()
        return {
            key: program
            for key, (program, _) in self._look().items()
            if not (idling and (program.role, program.hook) == ("decap", "clsact"))
        }

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Attach, replace and detach programs. Raises UnsupportedSystem if there is no libbpf."""
        failures = {}
        have = self._look()
        for position, change in enumerate(changes):
            try:
                if change.want is not None:
                    self._attach(change.want, have[change.key][1] if change.key in have else None)
                elif change.key in have:
                    device, role, _ = change.key
                    succeeded = (device, role, "tcx") in have
                    ipip_programs.detach(self._connection, have[change.key][1], keep_hooks=succeeded)
                self.writes += 1
            except KernelError as error:
                failures[position] = error
        return failures

    def _look(self) -> dict[_Key, tuple[TunnelProgram, Attached]]:
        numbers = self._numbers()
        names = {number: name for name, number in numbers.items()}
        found = {}
        for attached in ipip_programs.find(self._connection, numbers):
            (index, role, hook), config = attached.place, attached.config
            uplink = names.get(config.uplink, "")
            program = TunnelProgram(role, names[index], hook, config.local, uplink, config.build)
            found[program.key] = (program, attached)
        return found

    def _attach(self, program: TunnelProgram, former: Attached | None) -> None:
        numbers = self._numbers()
        for device in (program.device, program.uplink):
            if device not in numbers:
                raise KernelError(f"attach {program}: device {device}", errno.ENODEV)
        place = Place(numbers[program.device], program.role, program.hook)
        config = Config(IPv4Address(program.local), numbers[program.uplink], program.build)
        with ipip_programs.maps(ipip_programs.find(self._connection, numbers)) as share:
            ipip_programs.attach(self._connection, place, config, share, former)


class _MapEntries:
    """One of the programs' maps: what it holds, and changes of it. `writes` counts those carried out so far."""

    repairs_only = False
    compared: Compared = False

    def __init__(self, connection: Connection, numbers: Numbers, name: str) -> None:
        self._connection = connection
        self._numbers = numbers
        self._map = name
        self.writes = 0

    def _items(self) -> dict[bytes, bytes]:
        """Return the map's entries; none if no program is attached. Raises KernelError."""
        with ipip_programs.maps(ipip_programs.find(self._connection, self._numbers())) as maps:
            return bpf.items(maps[self._map]) if self._map in maps else {}

    def _carry_out(self, entries: Iterable[tuple[bytes, bytes | None]]) -> dict[int, KernelError]:
        """Write entries, or with None for a value delete them; return the failures by position.

        Raises KernelError (ENODEV) if no program is attached.
        """
        failures = {}
        with ipip_programs.maps(ipip_programs.find(self._connection, self._numbers())) as maps:
            if self._map not in maps:
                raise KernelError(f"set the map {self._map}: no IPIP program is attached", errno.ENODEV)
            for position, (key, value) in enumerate(entries):
                try:
                    if value is None:
                        bpf.delete(maps[self._map], key)
                    else:
                        bpf.insert(maps[self._map], key, value)
                    self.writes += 1
                except KernelError as error:
                    if value is not None or error.errno != errno.ENOENT:
                        failures[position] = error
        return failures


class TunnelEndpoints(_MapEntries):
    """The nodes whose IPIP packets are taken."""

    name = "tunnel endpoint"

    def __init__(self, connection: Connection, numbers: Numbers) -> None:
        super().__init__(connection, numbers, _ENDPOINTS_MAP)

    def wanted(self, plan: NodePlan) -> Mapping[Address, TunnelEndpoint]:
        """Return the plan's endpoints by address."""
        return {endpoint.key: endpoint for endpoint in plan.endpoints}

    def list(self, plan: NodePlan) -> Mapping[Address, TunnelEndpoint]:
        """Return the map's entries; none if no program is attached. Raises KernelError."""
        del plan
        return {(address := IPv4Address(key)): TunnelEndpoint(address) for key in self._items()}

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Write and delete entries. Raises KernelError (ENODEV) if no program is attached."""
        return self._carry_out((change.key.packed, b"\1" if change.want else None) for change in changes)


class TunnelSources(_MapEntries):
    """From which node each inner source is taken.

    While the map has no entry for the rest of the world, which is written last, none is refused.
    """

    name = "tunnel source"

    def __init__(self, connection: Connection, numbers: Numbers) -> None:
        super().__init__(connection, numbers, _SOURCES_MAP)

    def wanted(self, plan: NodePlan) -> Mapping[Network, TunnelSource]:
        """Return the plan's sources by network."""
        return {source.key: source for source in plan.sources}

    def list(self, plan: NodePlan) -> Mapping[Network, TunnelSource]:
        """Return the map's entries; none if no program is attached, or none is to be. Raises KernelError."""
        if not plan.tunnels:
            return {}  # what an idle program has in its map is asked by nobody
        found: dict[Network, TunnelSource] = {}
        for key, sender in self._items().items():
            prefix, address = _SOURCE.unpack(key)
            network = IPv4Network((address, prefix))
            found[network] = TunnelSource(network, None if sender == _ANY_NODE else IPv4Address(sender))
        return found

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Write and delete entries. Raises KernelError (ENODEV) if no program is attached."""
        return self._carry_out(
            (
                _SOURCE.pack(change.key.prefixlen, change.key.network_address.packed),
                (change.want.sender.packed if change.want.sender else _ANY_NODE) if change.want else None,
            )
            for change in changes
        )


def counters(connection: Connection, numbers: Mapping[str, int]) -> dict[str, int]:
    """Return how many packets the programs on these devices (numbers by name) have seen, by COUNTERS.

    Nothing if none is attached. Replacing the programs does not begin the count again. Raises KernelError.
    """
    with ipip_programs.maps(ipip_programs.find(connection, numbers)) as maps:
        if _COUNTERS_MAP not in maps:
            return {}
        return dict(zip(COUNTERS, bpf.per_cpu_sums(maps[_COUNTERS_MAP], range(len(COUNTERS))), strict=True))
