"""Addresses for Services, as Kubernetes' API server gives them: for clusters that have no such server. Pure."""

from collections.abc import Iterable, Sequence
from itertools import chain

import msgspec

from podway.api.addresses import Address, Network
from podway.api.kinds.service import Service
from podway.api.resource import invalid

SINGLE, PREFER_DUAL, REQUIRE_DUAL = "SingleStack", "PreferDualStack", "RequireDualStack"


def addressed(
    new: Service, old: Service | None, networks: Sequence[Network], others: Iterable[Service], *, number: int = 0
) -> Service:
    """Return a Service with the addresses that it has, or else with new ones, of ranges of Services' addresses.

    What says its addresses keeps them, and so does what needs none (headless, ExternalName), or has no range to
    have one of. The first range of each family counts; `ipFamilies` and `ipFamilyPolicy` say which of them, in
    which order. `number` is the place in its range of an address that is wanted, 0 if any free one is. Raises
    InvalidObject if a family that is asked for has no range, or a range no free address.
    """
    spec = new.spec
    if spec.cluster_ip or spec.cluster_ips or spec.type == "ExternalName" or not networks:
        return new
    if old is not None and old.cluster_addresses:
        return _with(new, tuple(map(str, old.cluster_addresses)))
    taken = {address for one in others for address in one.cluster_addresses}
    return _with(new, tuple(str(_free(new, network, taken, number)) for network in _ranges(new, networks)))


def _with(service: Service, addresses: tuple[str, ...]) -> Service:
    spec = msgspec.structs.replace(service.spec, cluster_ip=addresses[0], cluster_ips=addresses)
    return msgspec.structs.replace(service, spec=spec)


def _ranges(service: Service, networks: Sequence[Network]) -> list[Network]:
    """Return the range of each family that a Service is to have an address of."""
    first: dict[str, Network] = {}
    for network in networks:
        first.setdefault(f"IPv{network.version}", network)
    spec = service.spec
    order = [*dict.fromkeys((*spec.ip_families, *first))]
    count = len(spec.ip_families) or 1
    if spec.ip_family_policy in (PREFER_DUAL, REQUIRE_DUAL):
        count = 2
    missing = [family for family in spec.ip_families if family not in first]
    if missing:
        hint = (
            f"there are {', '.join(first)}: choose of these, or add a range to serviceCidrs of the NetworkConfig"
        )
        raise invalid(service, "spec.ipFamilies", f"{missing[0]} is a family without Services' addresses", hint)
    if spec.ip_family_policy == REQUIRE_DUAL and len(first) < 2:
        hint = f"write {PREFER_DUAL}, or add a range to serviceCidrs of the NetworkConfig"
        raise invalid(service, "spec.ipFamilyPolicy", "Services have addresses of one family only", hint)
    return [first[family] for family in order[:count]]


def _free(service: Service, network: Network, taken: set[Address], wanted: int) -> Address:
    """Return the wanted address of a range if it is free, else the first that is.

    The first ones are left to who writes addresses by hand until all others are taken; a range of up to 16 has
    none of these. Kubernetes does the same (KEP-3070).
    """
    end = network.num_addresses - 1
    if 0 < wanted < end and network[wanted] not in taken:
        return network[wanted]
    by_hand = min(max(16, network.num_addresses // 16), 256) if network.num_addresses > 16 else 0
    above = range(by_hand + 1, min(end, by_hand + len(taken) + 2))
    for number in chain(above, range(1, min(end, by_hand + 1))):
        if network[number] not in taken:
            return network[number]
    problem = f"no address of {network} is free"
    raise invalid(service, "spec.clusterIP", problem, "add a range to serviceCidrs of the NetworkConfig")
