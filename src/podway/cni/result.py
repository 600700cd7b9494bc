"""Results of ADD: typed, made from a pod's wiring, written and read in every version of the specification.

One shape serves all versions (CNI, "Success"). Two things differ on the wire: before 1.0.0 each of `ips`
states its `version`, and 1.1.0 brought the fields named in NEW_IN_1_1.
"""

from collections.abc import Iterable
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import msgspec

from podway.api.addresses import Address, Family
from podway.cni.spec import VERSIONS
from podway.plan.objects import PodWiring

NEW_IN_1_1 = {
    "interfaces": ("mtu", "socketPath", "pciID"),
    "routes": ("mtu", "advmss", "priority", "table", "scope"),
}


class _Part(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Base of all parts: fields at their default are left out, unknown ones passed over."""


class Interface(_Part, frozen=True, kw_only=True):
    """A link; `sandbox` is the namespace's path as the runtime gave it, empty on the host."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = msgspec.field(default="", name="socketPath")
    pci_id: str = msgspec.field(default="", name="pciID")


class IpConfig(_Part, frozen=True, kw_only=True):
    """An address with its prefix length; `interface` is an index into the result's interfaces."""

    address: str
    gateway: str = ""
    interface: int | None = None


class Route(_Part, frozen=True, kw_only=True):
    """A route inside the sandbox."""

    dst: str
    gw: str = ""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None


class Dns(_Part, frozen=True, kw_only=True):
    """What the runtime is to write into the container's resolv.conf."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Result(_Part, frozen=True, kw_only=True):
    """What an ADD made: its own part, or that of a whole chain so far."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IpConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = Dns()

    def after(self, previous: "Result | None") -> "Result":
        """Return the chain's result: `previous` extended by this one, whose indexes move up."""
        if previous is None:
            return self
        shift = len(previous.interfaces)
        return Result(
            interfaces=previous.interfaces + self.interfaces,
            ips=previous.ips + tuple(_shifted(ip, shift) for ip in self.ips),
            routes=previous.routes + self.routes,
            dns=self.dns if previous.dns == Dns() else previous.dns,
        )

    def addresses(self, ifname: str) -> tuple[Address, ...]:
        """Return the addresses of the interface of this name inside the sandbox."""
        ours = {i for i, link in enumerate(self.interfaces) if link.name == ifname and link.sandbox}
        return tuple(ip_interface(ip.address).ip for ip in self.ips if ip.interface in ours)


def result_of(wiring: PodWiring, *, sandbox: str, dns: Dns) -> Result:
    """Return the result that states this wiring; `sandbox` is the namespace's path as the runtime gave it.

    The bridge, if there is one, stands first (as the `bridge` plugin of containernetworking has it), then the
    host end, then the pod end, to which the addresses belong. Only routes through a
    gateway are stated: a reader may take one without for a route through the address's gateway.
    """
    link, pod = wiring.link, wiring.pod
    gateways = {Family.of(route.gateway): str(route.gateway) for route in pod.routes if route.gateway}
    # A bridge has the MAC and the MTU of all its ports' ends.
    bridge = (Interface(name=wiring.port.bridge, mac=link.mac, mtu=link.mtu),) if wiring.port else ()
    interfaces = (
        *bridge,
        Interface(name=link.name, mac=link.mac, mtu=link.mtu),
        Interface(name=pod.ifname, mac=pod.mac, mtu=pod.mtu, sandbox=sandbox),
    )
    return Result(
        interfaces=interfaces,
        ips=tuple(
            IpConfig(
                address=str(entry.address),
                gateway=gateways.get(Family.of(entry.address), ""),
                interface=len(interfaces) - 1,
            )
            for entry in pod.addresses
        ),
        routes=tuple(
            Route(dst=str(route.destination), gw=str(route.gateway)) for route in pod.routes if route.gateway
        ),
        dns=dns,
    )


def render(result: Result, version: str) -> bytes:
    """Return the result as JSON of this version of the specification, one of VERSIONS."""
    body: dict[str, Any] = msgspec.to_builtins(result)
    if not body.get("dns"):
        body.pop("dns", None)
    if _older(version, "1.1.0"):
        for key, fields in NEW_IN_1_1.items():
            body[key] = [_without(part, fields) for part in body.get(key, ())]
    if _older(version, "1.0.0"):
        body["ips"] = [{"version": str(ip_interface(ip["address"]).version), **ip} for ip in body.get("ips", ())]
    return msgspec.json.encode({"cniVersion": version, **{key: value for key, value in body.items() if value}})


def read(text: bytes | msgspec.Raw) -> Result:
    """Read a result of any version of the specification from 0.3.0 on, as a `prevResult` carries it.

    Raises ValueError (msgspec.DecodeError is one) that says which field is wrong.
    """
    result = msgspec.json.decode(text, type=Result)
    for position, ip in enumerate(result.ips):
        where = f"$.ips[{position}]"
        _require(ip_interface, f"{where}.address", ip.address)
        if ip.gateway:
            _require(ip_address, f"{where}.gateway", ip.gateway)
        if ip.interface is not None and not 0 <= ip.interface < len(result.interfaces):
            raise ValueError(f"{ip.interface} is no index into $.interfaces - at `{where}.interface`")
    for position, route in enumerate(result.routes):
        _require(_any_network, f"$.routes[{position}].dst", route.dst)
        if route.gw:
            _require(ip_address, f"$.routes[{position}].gw", route.gw)
    return result


def _shifted(ip: IpConfig, shift: int) -> IpConfig:
    if ip.interface is None:
        return ip
    return msgspec.structs.replace(ip, interface=ip.interface + shift)


def _older(version: str, other: str) -> bool:
    return VERSIONS.index(version) < VERSIONS.index(other)


def _without(part: dict[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key not in fields}


def _any_network(text: str) -> object:
    # Host bits may be set: libcni takes a route's destination as Go's ParseCIDR does.
    return ip_network(text, strict=False)


def _require(parse: Any, where: str, text: str) -> None:
    try:
        parse(text)
    except ValueError as error:
        raise ValueError(f"{error} - at `{where}`") from None
