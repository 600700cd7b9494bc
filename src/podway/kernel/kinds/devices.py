"""The devices of a node besides pod links: overlay devices and the bridge, which the engine makes and removes."""

import errno
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

import msgspec

from podway.api.addresses import Family
from podway.errors import KernelError
from podway.kernel import offload
from podway.kernel.engine import Compared, one_by_one
from podway.kernel.kinds.inventory import Inventory
from podway.kernel.netlink import Connection, Request
from podway.kernel.rtnl import links
from podway.kernel.rtnl.links import LinkRecord
from podway.plan.changes import Change
from podway.plan.objects import DEVICE_GROUP, Device, NodePlan, Vxlan

_LINK_KIND = {"vxlan": "vxlan", "ipip": "veth", "bridge": "bridge"}
"""What the kernel calls each kind of device; `ipip` is one end of a veth pair."""


class OtherDevice(msgspec.Struct, frozen=True):
    """A device that no plan of ours can mean, or not ours at all: `what` says what is the matter with it."""

    name: str
    what: str
    ours: bool

    def __str__(self) -> str:
        return f"device {self.name}, {self.what}"


class Devices:
    """Devices of our group. Begins a comparison: its `list` takes the look that the other kinds share."""

    name = "device"
    repairs_only = False
    compared: Compared = "by key"

    def __init__(self, connection: Connection, inventory: Inventory, netns_fd: int | None) -> None:
        self._connection = connection
        self._inventory = inventory
        self._netns = netns_fd
        self._turned_off: dict[str, frozenset[str]] = {}
        self.writes = 0
        """How often offloads were set."""

    def turn_off(self, device: str, offloads: frozenset[str]) -> None:
        """Turn offloads of a device off, and again whenever it is made anew. Raises KernelError."""
        self._turned_off[device] = offloads
        active = offload.features(device, self._netns) if offloads else {}
        if any(active.get(name) for name in offloads):
            offload.set_features(device, dict.fromkeys(offloads, False), self._netns)
            self.writes += 1

    def wanted(self, plan: NodePlan) -> Mapping[str, Device]:
        """Return the plan's devices by name."""
        return {device.key: device for device in plan.devices}

    def list(self, plan: NodePlan) -> Mapping[str, Any]:
        """Return our devices by name, and those of others that have a name that the plan wants."""
        wanted = self.wanted(plan)
        found = {
            record.name: self._read(record, wanted.get(record.name))
            for record in self._inventory.look()
            if record.group == DEVICE_GROUP or record.name in wanted
        }
        self._inventory.refused = frozenset(
            name for name, have in found.items() if isinstance(have, OtherDevice) and not have.ours
        )
        return found

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Make, repair and remove devices; what cannot be repaired in place is made anew."""
        failures = one_by_one(changes, self._carry_out)
        there = {record.name for record in self._inventory.look() if record.group == DEVICE_GROUP}
        self._inventory.refused |= {changes[position].key for position in failures} - there
        return failures

    def _read(self, record: LinkRecord, want: Device | None) -> Device | OtherDevice:
        if record.group != DEVICE_GROUP and not _lost_its_group(record, want):
            kind = record.kind or "physical"
            return OtherDevice(record.name, f"a {kind} device that is not Podway's", ours=False)
        if want is None or record.kind != _LINK_KIND[want.kind]:
            return OtherDevice(record.name, f"a {record.kind} device", ours=True)
        flaw = _flaw(record, want)
        if flaw:
            return OtherDevice(record.name, flaw, ours=True)
        return Device(record.name, want.kind, record.mac, record.mtu, self._vxlan(record))

    def _vxlan(self, record: LinkRecord) -> Vxlan | None:
        if record.vxlan is None or not record.vxlan.local:
            return None
        uplink = self._inventory.by_index.get(record.vxlan.uplink)
        return Vxlan(
            record.vxlan.vni,
            record.vxlan.port,
            ip_address(record.vxlan.local),
            uplink.name if uplink else "",
        )

    def _carry_out(self, change: Change) -> None:
        have, want = change.have, change.want
        if want is None:
            links.remove_if_there(self._connection, have.name)
        elif have is None:
            self._make(want)
        elif isinstance(have, OtherDevice) and not have.ours:
            raise KernelError(
                f"create {want}: {have} is there",
                errno.EEXIST,
                hint=f"remove it once nothing needs it any more: ip link delete {want.name}",
            )
        elif not self._repair(have, want):
            links.remove_if_there(self._connection, have.name)
            self._make(want)

    def _repair(self, have: Device | OtherDevice, want: Device) -> bool:
        """Put right what can be in place; False if the device must be made anew."""
        record = links.find(self._connection, have.name)
        if record.kind != _LINK_KIND[want.kind]:
            return False
        requests = _others_end_up(want)
        if want.vxlan:
            there = self._vxlan(record)
            uplink = self._uplink(want, want.vxlan)
            if there is None or record.vxlan is None or not _same_tunnel(there, want.vxlan):
                return False
            if record.vxlan.remote or record.vxlan.proxy:
                return False
            requests.append(links.change_vxlan(record.index, want.vxlan, uplink, label=want.name))
        requests.append(_dress(want, record))
        self._connection.transact(requests)
        return True

    def _make(self, want: Device) -> None:
        """Make a device, or nothing. Raises KernelError."""
        new = self._new(want)
        try:
            self._connection.transact([new])
        except KernelError as error:
            raise self._explained(want, error) from error
        try:
            record = links.find(self._connection, want.name)
            self._connection.transact(
                [
                    links.change(want.name, without_ipv6_autoconf=True),
                    *_others_end_up(want),
                    _dress(want, record),
                ]
            )
            self.turn_off(want.name, self._turned_off.get(want.name, frozenset()))
        except KernelError as error:
            links.remove_if_there(self._connection, want.name)
            raise self._explained(want, error) from error

    def _new(self, want: Device) -> Request:
        match want.kind:
            case "vxlan" if want.vxlan:
                uplink = self._uplink(want, want.vxlan)
                return links.new_vxlan(
                    want.name, want.vxlan, uplink, mac=want.mac, mtu=want.mtu, group=DEVICE_GROUP
                )
            case "ipip":
                peer = links.Peer(other_end(want), mtu=want.mtu)
                return links.new_veth(want.name, peer, mac=want.mac, mtu=want.mtu, group=DEVICE_GROUP)
            case _:
                # A bridge follows the smallest MTU of its ports until somebody changes its own
                # (br_mtu_auto_adjust); so it starts with another than the one it then is given.
                return links.new_bridge(want.name, mac=want.mac, mtu=want.mtu - 1, group=DEVICE_GROUP)

    def _uplink(self, want: Device, settings: Vxlan) -> int:
        if not settings.uplink:
            return 0
        index = self._inventory.numbers.get(settings.uplink)
        if index is None:
            raise KernelError(f"create {want} on {settings.uplink}", errno.ENODEV)
        return index

    def _explained(self, want: Device, error: KernelError) -> KernelError:
        """Return the error with what to do about it."""
        if error.errno == errno.EEXIST and want.vxlan:
            taken = self._with_vni(want.vxlan)
            if taken:
                return KernelError(
                    f"create {want}: device {taken} has VNI {want.vxlan.vni} at UDP port {want.vxlan.port}",
                    errno.EEXIST,
                    hint=f"remove it (ip link delete {taken}), or set another vni or port: "
                    "spec.vxlan of NetworkConfig/default",
                )
        if error.errno == errno.EEXIST and want.kind == "ipip":
            hint = f"one of {want.name} and {other_end(want)} is there: remove it with ip link delete"
            return KernelError(f"create {want}", errno.EEXIST, hint=hint)
        if error.errno == errno.EADDRINUSE and want.vxlan:
            return KernelError(
                f"create {want}: UDP port {want.vxlan.port} is taken",
                errno.EADDRINUSE,
                hint=f"find who has it (ss -ulnp sport = :{want.vxlan.port}), or set another port: "
                "spec.vxlan.port of NetworkConfig/default",
            )
        if error.errno == errno.EOPNOTSUPP:
            kind = _LINK_KIND[want.kind]
            hint = f"load the kernel module {kind} (modprobe {kind}, CONFIG_{kind.upper()})"
            return KernelError(f"create {want}: the kernel has no {kind} devices", errno.EOPNOTSUPP, hint=hint)
        return error

    def _with_vni(self, settings: Vxlan) -> str:
        """Return the device beside which the kernel makes no other of these settings (vxlan_config_validate)."""
        wanted = (settings.vni, settings.port, Family.of(settings.local))
        for record in self._inventory.look():
            there = record.vxlan
            if there and (there.vni, there.port, there.underlay) == wanted:
                return record.name
        return ""


def other_end(device: Device) -> str:
    """Return the name of the far end of an `ipip` device's veth pair."""
    return f"{device.name}0"


def _lost_its_group(record: LinkRecord, want: Device | None) -> bool:
    """Tell whether a device without our mark is ours all the same: nobody else computes its hardware address."""
    return want is not None and record.mac == want.mac and record.kind == _LINK_KIND[want.kind]


def _flaw(record: LinkRecord, want: Device) -> str:
    """Say what is wrong with a device of ours that a plan's Device has no field for; empty if nothing is."""
    if record.group != DEVICE_GROUP:
        return f"in group {record.group}"
    if not record.up:
        return "down"
    # A bridge has a carrier only once it has a port.
    if not record.running and want.kind == "ipip":
        return f"whose other end {other_end(want)} is down"
    vxlan = record.vxlan
    if vxlan and vxlan.learning:
        return "which learns hardware addresses"
    if vxlan and (vxlan.remote or vxlan.proxy):
        return "which floods or answers for others"
    if vxlan and not vxlan.inherits:
        return "whose outer headers ignore DF or DSCP of the inner ones"
    return ""


def _same_tunnel(have: Vxlan, want: Vxlan) -> bool:
    """Tell whether one can become the other in place (vxlan_changelink refuses VNI and port, and to unbind)."""
    if have.uplink and not want.uplink:
        return False
    return (have.vni, have.port, have.local.version) == (want.vni, want.port, want.local.version)


def _others_end_up(want: Device) -> list[Request]:
    """Build the requests that put up the far end of an `ipip` device, as carrier, without addresses."""
    if want.kind != "ipip":
        return []
    end = other_end(want)
    return [links.change(end, without_ipv6_autoconf=True), links.change(end, up=True, mtu=want.mtu)]


def _dress(want: Device, record: LinkRecord) -> Request:
    """Build the request that gives a device all that a plan says of every kind, and puts it up."""
    return links.change(
        record.index,
        up=True,
        mac="" if record.mac == want.mac else want.mac,
        mtu=0 if record.mtu == want.mtu else want.mtu,
        group=None if record.group == DEVICE_GROUP else DEVICE_GROUP,
        label=want.name,
    )
