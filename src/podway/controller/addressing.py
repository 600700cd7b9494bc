"""Services' addresses from outside, written into their status (podway.services.outside says which)."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime

import structlog

from podway.api.addresses import Address
from podway.api.checked import RejectedObject
from podway.api.judgement import JUDGED_BY, judge
from podway.api.kinds.bgp_peer import BGPPeer
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.node import Node
from podway.api.kinds.node_lease import CONTROLLER, LEASES, NodeLease
from podway.api.kinds.service import Service
from podway.api.resource import Resource, key, of_kind
from podway.errors import Conflict, NotFound
from podway.services.outside import Outcome, ServiceName, allocate, concerns, status_patch
from podway.store.base import Store, list_all

log = structlog.get_logger(__name__)

REMEMBERED = 60.0
"""Seconds for which it is remembered at most whose an address is that was just given, until its Service, as it is
followed, shows it."""

KINDS: tuple[type[Resource], ...] = (Service, Namespace, *JUDGED_BY)
"""What decides on addresses."""


class Addressing:
    """Keeps the addresses of Services as they are to be. One controller does so at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[Address, tuple[ServiceName, float]] = {}
        """Whose addresses are that were given lately, and since when."""
        self._adopted = False
        self.full: tuple[str, ...] = ()
        """Pools that had no address left for a Service."""
        self.unmet = 0
        """How many Services have not all that they ask for."""

    def leave(self) -> None:
        """Note that another controller gives addresses from here on."""
        self._adopted = False

    async def keep(
        self, objects: Iterable[Resource], leads: Callable[[], bool], rejected: Iterable[RejectedObject] = ()
    ) -> None:
        """Write what is not as it is to be, of these objects, for as long as this controller `leads`.

        `rejected` are those that are none. Raises StoreError.
        """
        known = tuple(objects)
        if not self._adopted:
            # What is followed may lag behind what the controller before this one gave last.
            await self._adopt()
        now = time.monotonic()
        shown = {
            (_name(one), address) for one in of_kind(Service, known) for address in one.load_balancer_addresses
        }
        self._held = {
            address: (owner, since)
            for address, (owner, since) in self._held.items()
            if now - since < REMEMBERED and (owner, address) not in shown
        }
        held = {address: owner for address, (owner, _) in self._held.items()}
        outcomes = outcomes_of(known, held, rejected)
        self.full = tuple(dict.fromkeys(name for one in outcomes for name in one.full))
        self.unmet = sum(one.reason not in (None, "Allocated") for one in outcomes)
        for outcome in outcomes:
            if not leads():
                return
            if await write(self._store, outcome):
                self._remember(outcome.service, outcome.addresses, now)
                _tell(outcome)

    async def _adopt(self) -> None:
        now = time.monotonic()
        for service in (await self._store.list(Service)).items:
            if concerns(service):
                self._remember(service, service.load_balancer_addresses, now)
        self._adopted = True

    def _remember(self, service: Service, addresses: Iterable[Address], now: float) -> None:
        owner = _name(service)
        self._held = {address: one for address, one in self._held.items() if one[0] != owner}
        self._held.update(dict.fromkeys(addresses, (owner, now)))


def _name(service: Service) -> ServiceName:
    return (service.metadata.namespace, service.metadata.name)


def outcomes_of(
    objects: Iterable[Resource], held: Mapping[Address, ServiceName], rejected: Iterable[RejectedObject] = ()
) -> tuple[Outcome, ...]:
    """Return what is to become of the Services among a cluster's objects; `rejected` are those that are none."""
    known = tuple(objects)
    services = tuple(filter(concerns, of_kind(Service, known)))
    if not services:
        return ()
    pools = [pool for pool in of_kind(IPPool, known) if pool.for_services]
    aside, unreadable = _set_aside(rejected)
    if pools:
        verdicts = judge(known)
        aside += [pool for pool in pools if not verdicts[key(pool)].accepted]
        pools = [pool for pool in pools if verdicts[key(pool)].accepted]
    labels = {one.metadata.name: one.metadata.labels for one in of_kind(Namespace, known)}
    return allocate(
        services,
        pools,
        lambda name: {"kubernetes.io/metadata.name": name, **labels.get(name, {})},
        aside=aside,
        unreadable=unreadable,
        reserved=frozenset(_reserved(known)),
        held=held,
    )


def _set_aside(rejected: Iterable[RejectedObject]) -> tuple[list[IPPool], bool]:
    """Return the rejected pools for Services of which the range can be read, and whether there are others."""
    aside, unreadable = [], False
    for one in rejected:
        if one.key[0] != IPPool.KIND:
            continue
        match one.found:
            case IPPool() if _is_readable(one.found):
                aside += [one.found] if one.found.for_services else []
            case _:
                unreadable = True
    return aside, unreadable


def _is_readable(pool: IPPool) -> bool:
    try:
        _ = pool.network
    except ValueError:
        return False
    return True


def _reserved(objects: Iterable[Resource]) -> Iterator[Address]:
    for obj in objects:
        if isinstance(obj, Node):
            yield from obj.internal_addresses
            for interface in obj.interface_addresses:
                # The first and last of a subnet are nobody's: its own, broadcast, any router (RFC 4291, 2.6.1).
                yield from (interface.ip, interface.network.network_address, interface.network.broadcast_address)
        elif isinstance(obj, BGPPeer):
            yield obj.address


async def write(store: Store, outcome: Outcome) -> bool:
    """Write what a Service is to have; tell whether it had to be, and was. Raises StoreError."""
    service = outcome.service
    patch = status_patch(outcome, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    if patch is None:
        return False
    name, namespace = service.metadata.name, service.metadata.namespace
    version = service.metadata.resource_version
    try:
        await store.patch_status(Service, name, patch, namespace=namespace, resource_version=version)
    except (Conflict, NotFound):
        return False  # it is another by now: the next look tells
    return True


def _tell(outcome: Outcome) -> None:
    name, addresses = "/".join(_name(outcome.service)), list(map(str, outcome.addresses))
    if outcome.reason in (None, "Allocated"):
        log.info("a Service's addresses", service=name, addresses=addresses)
    else:
        log.warning("a Service lacks an address", service=name, addresses=addresses, why=outcome.message)


async def give_addresses(store: Store) -> None:
    """Give Services their addresses, in a cluster that no controller works for. Raises StoreError."""
    try:
        lease = await store.get(NodeLease, CONTROLLER, namespace=LEASES)
    except NotFound:
        pass
    else:
        if lease.holds(time.time()):
            return
    listing = await list_all(store, KINDS)
    for outcome in outcomes_of(listing.items, {}, listing.rejected):
        await write(store, outcome)
