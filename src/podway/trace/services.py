"""Traces to Services: which backend a node leads its pods' connections to, and by which addresses. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address

import msgspec

from podway.api.addresses import Address, Family
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.service import Service
from podway.api.resource import Resource, of_kind
from podway.errors import InvalidInput
from podway.probe.build import Protocol
from podway.services.explain import Backend, Explainer, Frontend
from podway.trace.names import DEFAULT_NAMESPACE, Subject, resolve
from podway.trace.report import ThroughService


class Way(msgspec.Struct, frozen=True):
    """What a trace to a Service follows: a backend, its port, and for each family what is translated."""

    target: Subject
    protocol: Protocol
    port: int
    through: Mapping[Family, ThroughService]


def find_service(text: str, resources: Iterable[Resource]) -> Service | None:
    """Return the Service that a text names: `web`, `shop/web`, `service/shop/web`, or by one of its addresses.

    Of several of one name the one in the namespace `default` is meant. Raises InvalidInput if several have it
    elsewhere.
    """
    known = tuple(resources)
    address = _address(text)
    if address is not None:
        return Explainer(known).at(address)
    name = text.removeprefix("service/").removeprefix("svc/")
    found = [one for one in of_kind(Service, known) if name in (one.metadata.name, _name(one))]
    found = [one for one in found if one.metadata.namespace == DEFAULT_NAMESPACE] or found
    if len(found) > 1:
        raise InvalidInput(
            f"{text!r} can mean Service {' or '.join(map(_name, found))}",
            hint=f"write {' or '.join(map(_name, found))}",
        )
    return found[0] if found else None


def way(
    service: Service,
    text: str,
    source: Subject,
    resources: Iterable[Resource],
    *,
    protocol: Protocol | None,
    port: int = 0,
    families: Sequence[Family] = (),
) -> Way:
    """Return what connections from a place to a Service become; of several backends the first is followed.

    `text` is how the Service was named: by an address only this one is meant. Raises InvalidInput if the Service
    is not served, has no such port, or has no backend there, with the reasons.
    """
    known = tuple(resources)
    told = Explainer(known).explain(service, [source.node] if source.node else ())
    name, address = f"Service {_name(service)}", _address(text)
    if told.why_none:
        raise InvalidInput(f"{name}: {told.why_none}", hint=f"podway describe service {_name(service)}")
    wanted = [
        one
        for one in told.frontends
        if (address is None or ip_address(one.address) == address)
        and one.port == (port or told.frontends[0].port)
        and one.protocol == (protocol or one.protocol)
        and (not families or Family.of(ip_address(one.address)) in families)
        and not one.taken_by
    ]
    if not wanted or wanted[0].protocol not in ("TCP", "UDP"):
        there = ", ".join(dict.fromkeys(f"{one.port}/{one.protocol}" for one in told.frontends))
        raise InvalidInput(f"{name} has no such port to trace to", hint=f"it has {there}")
    wanted = [one for one in wanted if one.protocol == wanted[0].protocol]
    used = [(one, backend) for one in wanted for backend in one.backends if backend.used_on]
    if not used:
        reasons = dict.fromkeys(why.why for one in wanted for each in one.backends for why in each.not_used)
        raise InvalidInput(
            f"{name} has no backend that {source.node or 'a node'} uses: {'; '.join(reasons) or 'no endpoints'}",
            hint=f"podway describe service {_name(service)}",
        )
    _, first = used[0]
    served = _who_serves(known, source)
    through: dict[Family, ThroughService] = {}
    for frontend, backend in used:
        family = Family.of(ip_address(backend.address))
        if family not in through and _same(backend, first):
            through[family] = _through(service, frontend, backend, served)
    addresses = tuple(ip_address(one.backend) for one in through.values())
    target = msgspec.structs.replace(resolve(first.address, known), addresses=addresses)
    return Way(target, Protocol(wanted[0].protocol), first.port, through)


def served_by(node: str, service: ThroughService | None, fallbacks: Mapping[str, str]) -> ThroughService | None:
    """Return how a Service is reached from a node, of which may be known that it does without the flow engine."""
    reason = fallbacks.get(node, "")
    if service is None or service.problem or not reason:
        return service
    problem = f"Podway serves none on node {node}, another proxy may: {reason}"
    return msgspec.structs.replace(service, problem=problem)


def _same(one: Backend, other: Backend) -> bool:
    """Whether two are the same pod in two families, at one port; what is no pod has one address."""
    who = (one.pod, other.pod) if one.pod else (one.address, other.address)
    return who[0] == who[1] and one.port == other.port


def _through(service: Service, frontend: Frontend, backend: Backend, problem: str) -> ThroughService:
    return ThroughService(
        _name(service),
        frontend.address,
        frontend.port,
        backend.address,
        backend.port,
        sum(bool(one.used_on) for one in frontend.backends),
        problem,
    )


def _who_serves(resources: Iterable[Resource], source: Subject) -> str:
    """Return why it is not Podway that leads this source's connections; empty if it is."""
    config = next(iter(of_kind(NetworkConfig, resources)), None)
    if config is None or config.spec.services == "off":
        return "nobody of Podway's serves Services: spec.services of the NetworkConfig is off"
    return "" if source.pod else f"Podway serves pods: {source.label} is led by another proxy, if any"


def _address(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _name(service: Service) -> str:
    return f"{service.metadata.namespace}/{service.metadata.name}"
