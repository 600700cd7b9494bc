"""Settings of a lab's network, changed while it runs, and the wait until every node has carried them out."""

import time
from collections.abc import Callable
from functools import partial

import msgspec

from bench.labs import Lab
from podway.api.addresses import Family
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import Distribution, Encapsulation, IPPool, When
from podway.api.kinds.network_config import NetworkConfig, ReflectorSettings
from podway.kernel.netlink import Connection
from podway.kernel.netlink import constants as c
from podway.kernel.rtnl import links, routes
from podway.lab import facts, names, topology
from podway.plan.fabric import DEVICES
from podway.plan.objects import ROUTE_PROTOCOL

LOOK = 0.02
PATIENCE = 400.0
"""Seconds that all nodes may take: a hundred of them are slow on two cores."""

_PROTOCOLS: dict[Distribution, int] = {"bgp": c.RTPROT_BIRD, "store": ROUTE_PROTOCOL}


class Settings(msgspec.Struct, frozen=True):
    """What the cluster's one pool and its configuration ask for; with `reflectors` 0 the nodes form a mesh."""

    distribution: Distribution = "bgp"
    encapsulation: Encapsulation = "none"
    when: When = "always"
    reflectors: int = 0

    def sessions(self, nodes: int) -> int:
        """Return how many BGP sessions so many nodes have with each other, each counted at both ends."""
        if self.distribution == "store":
            return 0
        chosen = self.reflectors or nodes
        return chosen * (nodes - 1) + (nodes - chosen) * chosen


def switch(cluster: Lab, settings: Settings) -> float:
    """Apply settings; return seconds from the command until all nodes have carried them out.

    Nodes of the lab share a subnet. Raises TimeoutError.
    """
    wanted = _objects(cluster, settings)
    begun = time.monotonic()
    cluster.apply(*wanted)

    def wait(done: Callable[[], bool], what: str) -> None:
        while not done():
            if time.monotonic() > begun + PATIENCE:
                raise TimeoutError(f"{settings} is not carried out after {PATIENCE:g} s: {what}")
            time.sleep(LOOK)

    for node in cluster.nodes:
        with topology.connection(names.node_netns(cluster.name, node)) as kernel:
            wait(partial(_as_wanted, cluster, node, kernel, settings), f"routes and devices of {node}")
    wait(partial(_sessions_as_wanted, cluster, settings), "BGP sessions")
    return time.monotonic() - begun


def _objects(cluster: Lab, settings: Settings) -> tuple[IPPool, NetworkConfig]:
    """Return the cluster's pool and configuration with these settings."""
    pool, config = cluster.only(IPPool), cluster.only(NetworkConfig)
    pool_spec = msgspec.structs.replace(
        pool.spec,
        distribution=settings.distribution,
        encapsulation=settings.encapsulation,
        when=settings.when,
    )
    bgp = msgspec.structs.replace(
        config.spec.bgp,
        topology="reflectors" if settings.reflectors else "mesh",
        reflectors=ReflectorSettings(count=settings.reflectors or ReflectorSettings().count),
    )
    config_spec = msgspec.structs.replace(config.spec, bgp=bgp)
    return msgspec.structs.replace(pool, spec=pool_spec), msgspec.structs.replace(config, spec=config_spec)


def _as_wanted(cluster: Lab, node: str, kernel: Connection, settings: Settings) -> bool:
    """Tell whether a node has one route to each block of others, as the settings want it, and no idle device."""
    blocks = facts.ask(cluster.name, lambda store: store.list(AddressBlock)).items
    others = {block.network for block in blocks if block.spec.node != node}
    devices = {link.index: link.name for link in links.dump(kernel)}
    encapsulated = DEVICES.get(settings.encapsulation)
    device = encapsulated if encapsulated and settings.when == "always" else topology.UPLINK
    found = [
        (route.destination, devices.get(route.index), route.protocol)
        for route in routes.dump(kernel, Family.IPV4)
        if route.type == "unicast" and route.destination in others
    ]
    protocol = _PROTOCOLS[settings.distribution]
    wanted = {(network, device, protocol) for network in others}
    held = set(DEVICES.values()) & set(devices.values())
    return len(found) == len(wanted) and set(found) == wanted and held == {encapsulated} - {None}


def _sessions_as_wanted(cluster: Lab, settings: Settings) -> bool:
    states = [peer["state"] for node in cluster.nodes for peer in cluster.peers(node)]
    return len(states) == settings.sessions(len(cluster.nodes)) and set(states) <= {"Established"}
