"""Services of a lab: their addresses, the pods behind them, and a DNS that knows their names.

What a control plane does for Services, as far as a lab needs it. Who is behind a Service nobody has to write down:
where there are no EndpointSlices, agents go by the pods that its selector selects (podway.services.endpoints).
"""

import time
from collections.abc import Sequence
from functools import partial
from ipaddress import ip_network

import msgspec

from podway.api.addresses import Family, Network
from podway.api.kinds.endpoint_slice import EndpointSlice
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.kinds.service import Service, ServicePort, ServiceSpec
from podway.api.meta import Metadata
from podway.api.resource import Resource
from podway.api.rules import check_change
from podway.api.validate import validate
from podway.errors import AgentError, InvalidArgument, LabError
from podway.lab import agents, dns, facts, names, pods, resolving, state
from podway.lab.fabric import Fabric
from podway.lab.state import LabState
from podway.services.allocation import PREFER_DUAL, addressed
from podway.services.planner import ServicePlanner, wanted_frontends
from podway.store.base import Store

RANGES: dict[Family, tuple[Network, ...]] = {
    Family.IPV4: tuple(map(ip_network, ("10.96.0.0/16", "172.20.0.0/16", "192.168.96.0/20"))),
    Family.IPV6: tuple(map(ip_network, ("fd00:10:96::/112", "fd00:10:97::/112"))),
}
"""The ranges of Services' addresses, if nobody chose any: the first that overlaps no range of the lab."""

DNS_NUMBER = 10
"""The place of DNS in the first range of each family, as kubeadm has it."""

SERVE_SECONDS = 15.0
"""How long agents may take to serve what is new."""

APP = "app"
"""The label by which pods belong to a Service that is made for them."""


def require_served(lab: str) -> None:
    """Raise LabError if the lab's settings have nobody serve Services."""
    (config,) = facts.ask(lab, lambda store: store.list(NetworkConfig)).items
    if config.spec.services == "off":
        raise LabError(
            f"lab {lab}: Services are not served here",
            hint=f"podway set config dataPath=ebpf services=pods --wait{names.option(lab)}",
        )


def ensure(lab: str) -> None:
    """Give a lab ranges for Services, and a DNS for their names, unless it has them.

    Raises LabError, also if Services are not served, StoreError, KernelError, InvalidArgument.
    """
    require_served(lab)
    current = state.load(lab)
    current.require_plain()
    facts.ask(lab, lambda store: _ensure_ranges(store, current))
    known = facts.ask(lab, lambda store: store.list(Pod)).items
    if not any(pods.is_dns(pod) for pod in known):
        dns_ports = tuple(
            ServicePort(name=protocol.lower(), protocol=protocol, port=dns.PORT) for protocol in ("UDP", "TCP")
        )
        labels = {"k8s-app": resolving.SERVICE}
        facts.ask(
            lab, lambda store: _make(store, resolving.NAMESPACE, resolving.SERVICE, labels, dns_ports, DNS_NUMBER)
        )
        pods.run(lab, "dns", namespace=resolving.NAMESPACE, labels=labels, resolves=True)


def prepare(lab: str, name: str, namespace: str, serve: int, labels: dict[str, str]) -> dict[str, str]:
    """Make a Service for pods that serve this port, unless it is there; return the labels its pods have.

    A new one has the port as its own, and selects by the label `app`. Raises what `ensure` raises, and
    InvalidObject, or InvalidArgument if the Service is there and does not lead to such a pod.
    """
    ensure(lab)
    wanted = {APP: name, **labels}
    service = facts.ask(
        lab, lambda store: _make(store, namespace, name, {APP: wanted[APP]}, (ServicePort(port=serve),))
    )
    wanted = {**wanted, **service.spec.selector}
    clash = next((key for key, value in labels.items() if wanted[key] != value), None)
    if clash is not None or not service.spec.selector:
        told = f"selects {clash}={wanted[clash]}" if clash else "selects no pods"
        raise InvalidArgument(f"Service {namespace}/{name} {told}", hint=f"podway get service {name} -o yaml")
    ports = {port.target_port or port.port for port in service.spec.ports}
    if serve not in ports and all(isinstance(port, int) for port in ports):
        there = ", ".join(map(str, sorted(ports, key=str)))
        raise InvalidArgument(
            f"Service {namespace}/{name} leads to port {there} of its pods, not to {serve}",
            hint=f"--serve {there}, or another --service",
        )
    return wanted


def free_name(lab: str, service: str, namespace: str) -> str:
    """Return a name for one more pod of a Service: `web-1`, `web-2` and so on."""
    every = facts.ask(lab, lambda store: store.list(Pod)).items
    taken = {pod.metadata.name for pod in every if pod.metadata.namespace == namespace}
    return next(name for number in range(1, len(taken) + 2) if (name := f"{service}-{number}") not in taken)


def wait_served(lab: str) -> None:
    """Wait until all agents that answer serve what is in the store. Raises LabError."""
    deadline = time.monotonic() + SERVE_SECONDS
    while behind := [node for node in state.load(lab).running if not _serves(lab, node)]:
        if time.monotonic() > deadline:
            raise LabError(
                f"lab {lab}: {', '.join(behind)} do not serve it yet",
                hint=f"podway doctor{names.option(lab)}",
            )
        time.sleep(0.05)


def _serves(lab: str, node: str) -> bool:
    try:
        told = agents.status(lab, node)["services"]
    except AgentError:
        return True  # nobody waits for an agent that is down
    every = facts.ask(lab, _facts)
    config = next((one for one in every if isinstance(one, NetworkConfig) and one.spec.services == "all"), None)
    own = [one.ip for one in state.load(lab).addresses(node)] if config else []
    within = config.spec.node_port_networks if config else ()
    ports = [one for one in own if not within or any(one in network for network in within)]
    planner = ServicePlanner(node, wanted=partial(wanted_frontends, node_ports=ports))
    for obj in every:
        planner.put(obj)
    planner.settle()
    return not told["pending"] and (told["frontends"], told["backends"]) == planner.counts()


async def _facts(store: Store) -> tuple[Resource, ...]:
    kinds: tuple[type[Resource], ...] = (Service, EndpointSlice, Pod, Node, NetworkConfig)
    return tuple([obj for kind in kinds for obj in (await store.list(kind)).items])


async def _ensure_ranges(store: Store, current: LabState) -> None:
    (config,) = (await store.list(NetworkConfig)).items
    pools = [pool.network for pool in (await store.list(IPPool)).items]
    there = {Family.of(network) for network in config.spec.service_networks}
    missing = sorted({Family.of(network) for network in pools} - there)
    if not missing:
        return
    chosen = (str(_range(family, pools, current.fabric)) for family in missing)
    spec = msgspec.structs.replace(config.spec, service_cidrs=(*config.spec.service_cidrs, *chosen))
    await store.update(msgspec.structs.replace(config, spec=spec))


def _range(family: Family, pools: Sequence[Network], fabric: Fabric) -> Network:
    taken = [*pools, *fabric.estate]
    for network in RANGES[family]:
        if not any(network.version == other.version and network.overlaps(other) for other in taken):
            return network
    tried = ", ".join(map(str, RANGES[family]))
    raise InvalidArgument(
        f"the lab's ranges leave no {family.label} range for Services (tried {tried})",
        hint="choose one: podway set config serviceCidrs=NETWORK",
    )


async def _make(
    store: Store,
    namespace: str,
    name: str,
    selector: dict[str, str],
    ports: tuple[ServicePort, ...],
    number: int = 0,
) -> Service:
    """Return the Service of this name, which is made if it is not there, with an address of each family.

    `number` is the place of its addresses in their ranges, 0 for whichever is free.
    """
    others = (await store.list(Service)).items
    for one in others:
        if (one.metadata.namespace, one.metadata.name) == (namespace, name):
            return one
    (config,) = (await store.list(NetworkConfig)).items
    service = Service(
        metadata=Metadata(name=name, namespace=namespace),
        spec=ServiceSpec(selector=selector, ports=ports, ip_family_policy=PREFER_DUAL),
    )
    service = addressed(service, None, config.spec.service_networks, others, number=number)
    validate(service)
    check_change(service, (*others, service))
    await facts.ensure_namespace(store, namespace)
    return await store.create(service)
