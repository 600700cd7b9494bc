"""What people get wrong in Services that are valid: nobody answers there, or another does. Pure."""

from collections.abc import Iterable, Iterator

from podway.api.addresses import Address, Family
from podway.api.fields import Problem, parse_legacy_address
from podway.api.kinds.endpoint_slice import EndpointSlice
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.kinds.service import Service, ServicePort
from podway.api.resource import Key, Resource, key, of_kind
from podway.cluster.view import ClusterView
from podway.services.advertising import EXCLUDED, Reach, leading, reaches
from podway.services.endpoints import FINISHED, selects, target_port
from podway.services.explain import Explainer
from podway.services.maps import unpacked
from podway.services.outside import ALLOCATED, is_of_our_class
from podway.services.planner import serves, wanted_frontends


def lint(objects: Iterable[Resource]) -> tuple[tuple[Key, Problem], ...]:
    """Return for each Service what is probably not meant: the field, what is wrong with it, and what to do."""
    known = tuple(objects)
    explainer = Explainer(known)
    slices: dict[tuple[str, str], list[EndpointSlice]] = {}
    for piece in of_kind(EndpointSlice, known):
        if piece.service:
            slices.setdefault(piece.service, []).append(piece)
    pods: dict[str, list[Pod]] = {}
    for pod in of_kind(Pod, known):
        pods.setdefault(pod.metadata.namespace, []).append(pod)
    found = []
    owners = _owners(known)
    for service in explainer.services:
        for number, text in enumerate(service.spec.external_ips):
            if told := owners.get(parse_legacy_address(text)):
                found.append((key(service), (f"spec.externalIPs[{number}]", f"{text} is {told[0]}", told[1])))
        name = (service.metadata.namespace, service.metadata.name)
        own = slices.get(name, [])
        problems = _of(explainer, service, own, [] if own else pods.get(name[0], []))
        found += [(key(service), problem) for problem in problems]
    return tuple(sorted(found))


def _owners(objects: Iterable[Resource]) -> dict[Address, tuple[str, str]]:
    """Return whose the addresses of pods and nodes are, and what to do where a Service claims one."""
    taken = "name another address: this pod keeps what is sent to it"
    found = {
        address: (f"pod {pod.metadata.namespace}/{pod.metadata.name}'s", taken)
        for pod in of_kind(Pod, objects)
        if not pod.spec.host_network and pod.status.phase not in FINISHED
        for address in pod.addresses
    }
    taken = "name another address, or use a node port: what the node itself serves at these ports is not reached"
    for node in of_kind(Node, objects):
        found.update(dict.fromkeys(node.internal_addresses, (f"node {node.metadata.name}'s", taken)))
    return found


def _of(explainer: Explainer, service: Service, slices: list[EndpointSlice], pods: list[Pod]) -> Iterator[Problem]:
    told: set[tuple[str, str]] = set()
    for wanted in wanted_frontends(service):
        index = service.spec.ports.index(wanted.port)
        if taken := explainer.taken_by(service, wanted):
            address = f"{wanted.port.protocol} {unpacked(wanted.key.address)} port {wanted.port.port}"
            hint = "give one of the two another address or port; until then only the other one is served"
            field = {"cluster": "clusterIP", "external": "externalIPs"}.get(wanted.kind, "")
            where = f"spec.{field}" if field else "status.loadBalancer.ingress"
            yield where, f"{address} is Service {'/'.join(taken)}'s", hint
        every = explainer.candidates(service, wanted)
        port = f"spec.ports[{index}]"
        if any(one.ready or one.last_resort for one in every):
            if not any(serves(wanted.port, one) for one in every) and (port, "sctp") not in told:
                told.add((port, "sctp"))
                hint = "give it the port's number at the pods, or kube-proxy the Service: SCTP is not translated"
                yield f"{port}.targetPort", "SCTP leads to another port number", hint
            continue
        family = f"IPv{wanted.version}"
        if (port, family) in told:
            continue
        told.add((port, family))
        if problem := _no_such_port(wanted.port, service, slices, pods):
            if (port, "name") not in told:
                told.add((port, "name"))
                yield f"{port}.targetPort" if not slices else f"{port}.name", *problem
        elif every:
            state = "terminating, and none serves any more" if all(one.terminating for one in every) else "ready"
            text = f"none of {len(every)} {family} endpoints is ready" if state == "ready" else f"all are {state}"
            yield port, text, "look at its pods: podway get pods -A"
        else:
            hint = "compare its selector with the pods' labels: podway get pods -A -o wide"
            yield port, f"has no {family} endpoints: connections are refused", hint


def _no_such_port(
    port: ServicePort, service: Service, slices: list[EndpointSlice], pods: list[Pod]
) -> tuple[str, str] | None:
    """Return why a port has no endpoints though there are some: its name is none of theirs."""
    if slices:
        there = [one for piece in slices if piece.endpoints for one in piece.ports or ()]
        names = {(one.name, one.protocol) for one in there}
        if not names or (port.name, port.protocol) in names:
            return None
        shown = ", ".join(sorted(f"{name or '(none)'}/{protocol}" for name, protocol in names))
        return (
            f"no slice has a port called {port.name or '(none)'}/{port.protocol}",
            f"slices have {shown}: give the Service's port one of these names",
        )
    selected = [pod for pod in pods if selects(service, pod)]
    if not selected or any(target_port(port, pod) is not None for pod in selected):
        return None
    return (
        f"no pod that it selects has a {port.protocol} port called {port.target_port!r}",
        "name a containerPort so, or write the port's number",
    )


def lint_addresses(view: ClusterView) -> Iterator[tuple[Key, Problem]]:
    """Yield for Services why they are not reached from outside: no address, or one that nobody tells of."""
    if not view.serves or view.unserved:
        return
    for service in view.namespaced_table(Service).values():
        if not is_of_our_class(service):
            continue
        told = next((one for one in service.status.conditions if one.type == ALLOCATED), None)
        if told is not None and told.status != "True":
            hint = "add a pool with use: services, widen or correct what it asks for: podway get pools -o wide"
            yield key(service), ("status.loadBalancer", f"it lacks an address: {told.message}", hint)
        for one in reaches(view, service):
            if not one.nodes and leading(view, service, one.address.version):
                yield key(service), ("status.loadBalancer.ingress", *_why_nobody(view, one))


def _why_nobody(view: ClusterView, reach: Reach) -> tuple[str, str]:
    """Return why nobody tells of an address though some node leads to an endpoint, and what to do."""
    pool = f"IPPool/{reach.pool}"
    if reach.advertise == "layer2":
        problem = f"nobody answers for {reach.address}: no node that may has it in the subnet of its uplink"
        return problem, f"give {pool} a range of the nodes' subnet, or widen its nodeSelector"
    if not any(peer.family == reach.address.version for peer in view.peers.values()):
        problem = f"nobody is told of {reach.address}: there is no {Family.of(reach.address).label} BGPPeer"
        return problem, f"add a BGPPeer, or set advertise: layer2 of {pool} where nodes share a segment"
    problem = f"nobody tells of {reach.address}: no node that leads to an endpoint and may has a BGPPeer"
    return problem, f"widen nodeSelector of {pool} or of a BGPPeer, or take the label {EXCLUDED} from nodes"
