"""Addresses by which Services of type LoadBalancer are reached from outside, given from pools. Pure.

What stands in a Service's status is where its addresses are kept: whoever gives addresses adopts it, so they are
the same after a restart. Of two Services with one address the older one has it. What is ours carries a condition,
ALLOCATED, in its status; a Service whose addresses another load balancer gave has none, and is left alone, unless
all of its addresses are in pools of ours: then they are adopted.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from podway.api.addresses import Address, Family, Network
from podway.api.fields import parse_address, parse_legacy_address
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.service import LoadBalancerIngress, Service
from podway.api.status import Condition

ALLOCATED = "podway.io/Allocated"
"""The type of the condition that tells whether a Service has the addresses that it asks for."""

WANTED = "podway.io/addresses"
"""The annotation by which a Service wants certain addresses, separated by commas, at most one of each family."""

POOL = "podway.io/pool"
"""The annotation by which a Service wants addresses of one pool."""

CLASSES = "podway.io/"
"""What load balancer classes of ours begin with."""

SINGLE, PREFER_DUAL = "SingleStack", "PreferDualStack"

Reason = Literal["Allocated", "NoPool", "PoolFull", "NotInPool", "AddressTaken", "Invalid"]
"""In one word how a Service fares."""

ServiceName = tuple[str, str]

Labels = Callable[[str], Mapping[str, str]]
"""From a namespace to its labels."""


class Outcome(msgspec.Struct, frozen=True):
    """What a Service is to have: its addresses, and why not more. Without a reason it is none of ours any more.

    `full` names the pools that had no address for it.
    """

    service: Service
    addresses: tuple[Address, ...] = ()
    reason: Reason | None = None
    message: str = ""
    full: tuple[str, ...] = ()


class _Unmet(Exception):
    """An address cannot be given."""

    def __init__(self, reason: Reason, message: str, full: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.message = message
        self.full = full


def concerns(service: Service) -> bool:
    """Tell whether a Service matters here: it is to have addresses, or has some that nobody else may have."""
    return service.spec.type == "LoadBalancer" or bool(service.spec.external_ips) or _is_ours(service)


def allocate(
    services: Iterable[Service],
    pools: Collection[IPPool],
    labels: Labels,
    *,
    aside: Collection[IPPool] = (),
    unreadable: bool = False,
    reserved: Collection[Address] = (),
    held: Mapping[Address, ServiceName] | None = None,
) -> tuple[Outcome, ...]:
    """Return what each Service is to have that is ours, or was.

    `pools` are those for Services that hold. Those that are set `aside` give no more, like disabled ones, and take
    nothing away. While there are `unreadable` ones, of which the ranges are not known, an address that is in no
    other may be of theirs, and stays. `reserved` are addresses that no Service may have, such as nodes'. `held`
    says which were given a moment ago, to whom: the Service as it is known may not show it yet.
    """
    giver = _Giver((*pools, *map(_retired, aside)), labels, reserved, held or {}, unreadable=unreadable)
    ours, outcomes = [], []
    for service in sorted(services, key=_age):
        if _is_managed(service, pools):
            ours.append(service)
        elif _is_ours(service):
            outcomes.append(Outcome(service))
        else:
            giver.take(service)
    for service in ours:
        giver.keep(service)
    return (*outcomes, *map(giver.give, ours))


def status_patch(outcome: Outcome, now: str) -> dict[str, Any] | None:
    """Return the merge patch that makes of a Service's status what it is to be; None if it is so.

    `now` is RFC 3339.
    """
    service = outcome.service
    told = next((one for one in service.status.conditions if one.type == ALLOCATED), None)
    conditions = [one for one in service.status.conditions if one.type != ALLOCATED]
    if outcome.reason is not None:
        word = "True" if outcome.reason == "Allocated" else "False"
        since = told.last_transition_time if told and told.status == word else now
        conditions.append(
            Condition(
                type=ALLOCATED,
                status=word,
                observed_generation=service.metadata.generation,
                last_transition_time=since,
                reason=outcome.reason,
                message=outcome.message,
            )
        )
    ingress = [LoadBalancerIngress(ip=str(address)) for address in outcome.addresses]
    known = service.status.load_balancer.ingress
    same = [one.ip for one in ingress] == [one.ip for one in known] and all(one.ip_mode == "VIP" for one in known)
    if same and tuple(conditions) == service.status.conditions:
        return None
    status: dict[str, Any] = {"conditions": msgspec.to_builtins(conditions) or None}
    if not same:
        status["loadBalancer"] = {"ingress": [{"ip": one.ip, "ipMode": "VIP"} for one in ingress] or None}
    return {"status": status}


def pool_of(address: Address, pools: Iterable[IPPool]) -> IPPool | None:
    """Return the pool that an address is of."""
    return next((pool for pool in pools if _within(address, pool.network)), None)


def is_of_our_class(service: Service) -> bool:
    """Tell whether a Service asks for a load balancer of ours, or of whoever gives one."""
    spec = service.spec
    return spec.type == "LoadBalancer" and (
        not spec.load_balancer_class or spec.load_balancer_class.startswith(CLASSES)
    )


def _is_ours(service: Service) -> bool:
    return any(one.type == ALLOCATED for one in service.status.conditions)


def _is_managed(service: Service, pools: Collection[IPPool]) -> bool:
    if not is_of_our_class(service) or service.metadata.deletion_timestamp:
        return False
    if _is_ours(service) or service.spec.load_balancer_class:
        return True
    ingress = service.status.load_balancer.ingress
    return bool(pools) and all(one.ip and pool_of(parse_legacy_address(one.ip), pools) for one in ingress)


def _age(service: Service) -> tuple[str, str, str]:
    return (service.metadata.creation_timestamp, *_name(service))


def _name(service: Service) -> ServiceName:
    return (service.metadata.namespace, service.metadata.name)


def _retired(pool: IPPool) -> IPPool:
    """Return what is left of a pool that is set aside: its range. Its selector may be what is wrong with it."""
    spec = msgspec.structs.replace(pool.spec, disabled=True, namespace_selector=None)
    return msgspec.structs.replace(pool, spec=spec)


def _within(address: Address, network: Network) -> bool:
    return address.version == network.version and address in network


class _Giver:
    """Gives addresses of pools, each to one Service."""

    def __init__(
        self,
        pools: Iterable[IPPool],
        labels: Labels,
        reserved: Collection[Address],
        held: Mapping[Address, ServiceName],
        *,
        unreadable: bool,
    ) -> None:
        self._unreadable = unreadable
        # As for pods: whoever wrote a selector meant it.
        self._pools = sorted(pools, key=lambda pool: (pool.spec.namespace_selector is None, pool.metadata.name))
        self._labels = labels
        self._taken: dict[Address, str | ServiceName] = dict.fromkeys(reserved, "a node or router")
        self._held = held
        self._kept: dict[ServiceName, dict[Family, Address]] = {}
        self._next: dict[str, int] = {}
        """Of each pool the number of the first address that may be free."""

    def take(self, service: Service) -> None:
        """Let no other Service have the addresses of one that is none of ours."""
        external = tuple(map(parse_legacy_address, service.spec.external_ips))
        for address in (*service.load_balancer_addresses, *external):
            self._taken.setdefault(address, _name(service))

    def keep(self, service: Service) -> None:
        """Let a Service keep of its addresses what it may have; the older ones are asked first."""
        name = _name(service)
        mine = self._kept[name] = {}
        held = (address for address, owner in self._held.items() if owner == name)
        for address in (*service.load_balancer_addresses, *held):
            family = Family.of(address)
            fits = any(_within(address, pool.network) for pool in self._fitting(service, family))
            lost = self._unreadable and pool_of(address, self._pools) is None
            if (fits or lost) and family not in mine and address not in self._taken:
                mine[family] = address
                self._taken[address] = name

    def give(self, service: Service) -> Outcome:
        """Return what a Service is to have; all have kept what they may."""
        mine = self._kept[_name(service)]
        try:
            wanted = _wanted(service)
        except ValueError as error:
            return Outcome(
                service,
                tuple(mine.values()),
                "Invalid",
                f"{WANTED if WANTED in service.metadata.annotations else 'loadBalancerIP'}: {error}",
            )
        found: dict[Family, Address] = {}
        unmet: list[_Unmet] = []
        families = self._families(service, wanted)
        for family in families:
            try:
                found[family] = self._address(service, family, mine.get(family), wanted.get(family))
            except _Unmet as error:
                unmet.append(error)
                if family in mine:
                    found[family] = mine[family]
        for family, address in mine.items():
            if found.get(family) != address:
                del self._taken[address]
        if unmet and service.spec.ip_family_policy == PREFER_DUAL and found:
            unmet = [one for one in unmet if one.reason != "NoPool"]
        if not unmet:
            pools = dict.fromkeys(map(self._pool, found.values()))
            return Outcome(service, tuple(found.values()), "Allocated", f"of {', '.join(pools)}")
        message = "; ".join(dict.fromkeys(one.message for one in unmet))
        full = tuple(dict.fromkeys(name for one in unmet for name in one.full))
        return Outcome(service, tuple(found.values()), unmet[0].reason, message, full)

    def _pool(self, address: Address) -> str:
        pool = pool_of(address, self._pools)
        return f"IPPool/{pool.metadata.name}" if pool else "an IPPool that cannot be read"

    def _families(self, service: Service, wanted: Mapping[Family, Address]) -> tuple[Family, ...]:
        """Return the families that a Service is to have an address of, in its own order.

        An API server writes them into each Service. Elsewhere they are those of its addresses in the cluster.
        """
        spec = service.spec
        known = {family.label: family for family in Family}
        stated = [known[text] for text in spec.ip_families if text in known]
        own = stated or [Family.of(address) for address in service.cluster_addresses]
        if not own:
            own = [*wanted] or [family for family in Family if self._fitting(service, family)] or [Family.IPV4]
            own = own[:1] if spec.ip_family_policy in ("", SINGLE) else own
        return tuple(dict.fromkeys(own))

    def _fitting(self, service: Service, family: Family) -> list[IPPool]:
        """Return the pools that may serve a Service, the most specific first."""
        labels = self._labels(service.metadata.namespace)
        only = service.metadata.annotations.get(POOL)
        return [
            pool
            for pool in self._pools
            if pool.family is family
            and (only is None or pool.metadata.name == only)
            and (pool.spec.namespace_selector is None or pool.spec.namespace_selector.matches(labels))
        ]

    def _address(self, service: Service, family: Family, has: Address | None, wants: Address | None) -> Address:
        if has is not None and wants in (None, has):
            return has
        pools = [pool for pool in self._fitting(service, family) if not pool.spec.disabled]
        if not pools:
            only = service.metadata.annotations.get(POOL)
            what = f"IPPool/{only} is no {family.label} pool" if only else f"no {family.label} pool is"
            text = f"{what} with use: services for namespace {service.metadata.namespace}"
            raise _Unmet("NoPool", text)
        if wants is None:
            return self._free(service, family, pools)
        if not any(_within(wants, pool.network) and not _excluded(wants, pool) for pool in pools):
            raise _Unmet("NotInPool", f"{wants} is in none of {_names(pools)}, or excluded there")
        owner = self._owner(wants, service)
        if owner is not None:
            raise _Unmet("AddressTaken", f"{wants} is the address of {owner}")
        self._taken[wants] = _name(service)
        return wants

    def _owner(self, address: Address, service: Service) -> str | None:
        name = _name(service)
        owner = self._taken.get(address) or self._held.get(address)
        if owner is None or owner == name:
            return None
        return owner if isinstance(owner, str) else f"Service {'/'.join(owner)}"

    def _free(self, service: Service, family: Family, pools: Iterable[IPPool]) -> Address:
        for pool in pools:
            for address in self._from(pool):
                if self._owner(address, service) is None:
                    self._taken[address] = _name(service)
                    return address
        names = tuple(pool.metadata.name for pool in pools)
        raise _Unmet("PoolFull", f"no {family.label} address is free in {_names(pools)}", names)

    def _from(self, pool: IPPool) -> Iterator[Address]:
        """Yield the addresses of a pool that may be free, in their order."""
        network, excluded = pool.network, pool.excluded_networks
        first = int(network.network_address)
        number = self._next.get(pool.metadata.name, 0)
        while number < network.num_addresses:
            address = network[number]
            inside = next((one for one in excluded if address in one), None)
            number = number + 1 if inside is None else int(inside.broadcast_address) - first + 1
            self._next[pool.metadata.name] = number
            if inside is None:
                yield address


def _excluded(address: Address, pool: IPPool) -> bool:
    return any(address in network for network in pool.excluded_networks)


def _names(pools: Iterable[IPPool]) -> str:
    return ", ".join(f"IPPool/{pool.metadata.name}" for pool in pools)


def _wanted(service: Service) -> dict[Family, Address]:
    """Return the addresses that a Service wants. Raises ValueError if the annotation cannot be read.

    `loadBalancerIP`, which is deprecated, counts where there is no annotation; an API server takes any text there.
    """
    text = service.metadata.annotations.get(WANTED, "")
    found: dict[Family, Address] = {}
    for part in filter(None, map(str.strip, (text or service.spec.load_balancer_ip).split(","))):
        address = parse_address(part)
        if Family.of(address) in found:
            raise ValueError(f"{part} is the second address of its family")
        found[Family.of(address)] = address
    return found
