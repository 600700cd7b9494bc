"""Records about a kernel as plain JSON values and back: the form in which agents tell them.

Addresses and networks are text. What is a mapping with a compound key here is a list of rows there.
"""

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import msgspec

from podway.api.addresses import Address
from podway.kernel.network import LinkRecord, Lookup, NextHop, RouteRecord
from podway.probe.capture import Frame
from podway.probe.facts import KernelState, RouteLookup, SpoofRefused


def plain(record: msgspec.Struct) -> dict[str, Any]:
    """Return a record as JSON values, addresses and networks as text."""
    values: dict[str, Any] = msgspec.to_builtins(record, enc_hook=str)
    return values


def plain_lookup(lookup: RouteLookup) -> dict[str, Any]:
    """Return a way as JSON values; `{}` is the refusal of a source."""
    return {} if isinstance(lookup, SpoofRefused) else plain(lookup)


def plain_kernel_state(kernel_state: KernelState) -> dict[str, Any]:
    """Return a ground as JSON values."""
    return {
        "links": [plain(link) for link in kernel_state.links.values()],
        "addresses": [[device, str(address)] for device, address in kernel_state.addresses],
        "neighbours": [
            [device, str(address), mac, (device, address) in kernel_state.permanent]
            for (device, address), mac in kernel_state.neighbours.items()
        ],
        "forwarding": [
            [device, mac, str(endpoint)] for (device, mac), endpoint in kernel_state.forwarding.items()
        ],
        "programs": sorted(kernel_state.programs),
        "tunnel_sources": [str(address) for address in kernel_state.tunnel_sources],
    }


def read_lookup(values: dict[str, Any]) -> RouteLookup:
    """Return the way that `plain_lookup` told."""
    if not values:
        return SpoofRefused()
    matched = values["matched"]
    return Lookup(
        **{
            **values,
            "gateway": _address(values["gateway"]),
            "source": _address(values["source"]),
            "matched": ip_network(matched) if matched else None,
            "next_hops": _next_hops(values),
        }
    )


def read_route(values: dict[str, Any]) -> RouteRecord:
    """Return the route that `plain` told."""
    return RouteRecord(
        **{
            **values,
            "destination": ip_network(values["destination"]),
            "gateway": _address(values["gateway"]),
            "source": _address(values["source"]),
            "next_hops": _next_hops(values),
        }
    )


def read_kernel_state(values: dict[str, Any]) -> KernelState:
    """Return the ground that `plain_kernel_state` told."""
    links = msgspec.convert(values["links"], list[LinkRecord])
    rows = [(device, ip_address(address), mac, fixed) for device, address, mac, fixed in values["neighbours"]]
    return KernelState(
        {link.name: link for link in links},
        tuple((device, ip_interface(address)) for device, address in values["addresses"]),
        {(device, address): mac for device, address, mac, _ in rows},
        frozenset((device, address) for device, address, _, fixed in rows if fixed),
        {(device, mac): ip_address(endpoint) for device, mac, endpoint in values["forwarding"]},
        frozenset((device, role) for device, role in values["programs"]),
        frozenset(map(ip_address, values["tunnel_sources"])),
    )


def read_frames(values: list[Any]) -> list[Frame]:
    """Return the frames that `plain` told."""
    return msgspec.convert(values, list[Frame])


def _next_hops(values: dict[str, Any]) -> tuple[NextHop, ...]:
    return tuple(
        NextHop(hop["index"], _address(hop["gateway"]), hop["weight"]) for hop in values.get("next_hops", ())
    )


def _address(text: str | None) -> Address | None:
    return ip_address(text) if text else None
