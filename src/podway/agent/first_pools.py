"""The pools of a cluster that has none: a network plugin is to work once it is installed."""

import contextlib
from collections.abc import Sequence

import structlog

from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.meta import Metadata
from podway.api.resource import Resource
from podway.api.rules import check_change
from podway.api.validate import validate
from podway.errors import AlreadyExists, InvalidObject, NotFound, ObjectDamaged, StoreForbidden
from podway.store.base import Store

log = structlog.get_logger(__name__)

FIRST_POOL = "podway.io/first-pool"
"""Label of pools that agents made: deploy/rbac.yaml lets them make no others."""


def pool_of(cidr: str) -> IPPool:
    """Return the pool that is made of a network: bare where nodes share a subnet, by VXLAN between subnets.

    Raises InvalidObject if it cannot be one.
    """
    family = "ipv6" if ":" in cidr else "ipv4"
    spec = IPPoolSpec(cidr=cidr, encapsulation="vxlan", when="cross-subnet")
    pool = IPPool(metadata=Metadata(name=f"default-{family}", labels={FIRST_POOL: ""}), spec=spec)
    validate(pool)
    return pool


async def ensure_pools(store: Store, cidrs: Sequence[str], others: Sequence[Resource]) -> tuple[IPPool, ...]:
    """Make pools of these networks, as far as the cluster has none of their family; return what is there then.

    That is what was made here, and by another agent that was quicker. `others` are the cluster's objects. What
    cannot be made is told in the log: there may be pools later. Raises StoreError.
    """
    there = {pool.family for pool in others if isinstance(pool, IPPool) and not pool.for_services}
    made = []
    for cidr in cidrs:
        try:
            pool = pool_of(cidr)
            if pool.family in there:
                continue
            check_change(pool, others)
            made.append(await store.create(pool))
            log.info("the cluster had no pool: made one", pool=pool.metadata.name, cidr=cidr)
        except AlreadyExists:
            with contextlib.suppress(NotFound, ObjectDamaged):  # all is told of these later, as of any other
                made.append(await store.get(IPPool, pool.metadata.name))
        except (InvalidObject, StoreForbidden) as error:
            log.error("no pool can be made of what was told", cidr=cidr, problem=error.message, hint=error.hint)
    return tuple(made)
