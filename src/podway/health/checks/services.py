"""Services: whether they are served, and those at which nobody answers."""

from collections.abc import Iterable, Iterator

from podway.api.kinds.service import Service
from podway.api.resource import Key, key, subject
from podway.cluster.view import ClusterView
from podway.health.facts import NodeFacts
from podway.health.finding import Problem, Severity, node_check
from podway.policy.lint import Doors
from podway.services.advertising import EXCLUDED
from podway.services.explain import EACH_NODE, Explainer
from podway.services.lint import lint, lint_addresses
from podway.services.maps import PROTOCOLS
from podway.services.planner import frontends_from_outside, wanted_frontends


@node_check(
    "services",
    looks_at="where Podway serves Services: whether it does on the node, Services without ready endpoints, port "
    "names that match nothing, two Services of one address and port, policies that let nobody in at any "
    "endpoint, Services that lack an address outside, such addresses that nobody tells of, external addresses "
    "that are a pod's or a node's, and node ports at which a program of the node listens",
    why="connections to such a Service are refused or dropped, or go to another one's pods, or never come",
)
def services(facts: NodeFacts) -> Iterator[Problem]:
    """What is wrong with a Service all agents find alike; it is told once."""
    memory = facts.memory
    if memory.fallback and memory.view.serves:
        if count := len(memory.view.namespaced_table(Service)):
            yield Problem(
                f"Podway serves none of the cluster's {count} Services here: {memory.fallback}",
                "mend that, or have kube-proxy serve them on this node, too; for nobody outside to be led to it "
                f"label it {EXCLUDED}",
                severity=Severity.WARNING,
            )
    elif memory.services_problem:
        yield Problem(
            f"Services are not served as they should be: {memory.services_problem}",
            "mend that: the agent tries again by itself; spec.services of the NetworkConfig says what is wanted",
        )
    if not memory.view.serves or memory.view.unserved:
        return
    for whose, (field, problem, hint) in lint(
        obj for table in memory.view.tables.values() for obj in table.values()
    ):
        yield Problem(f"{field}: {problem}", hint, subject(whose), Severity.WARNING)
    for whose, (field, problem, hint) in lint_addresses(memory.view):
        yield Problem(f"{field}: {problem}", hint, subject(whose), Severity.WARNING)
    yield from _shut_out(memory.view)
    if memory.view.config.services == "all":
        yield from _held(facts)


def _held(facts: NodeFacts) -> Iterator[Problem]:
    """Yield node ports that are also a program's of the node, which clients outside do not reach."""
    for service in facts.memory.view.namespaced_table(Service).values():
        ports = {
            (one.key.port, one.port.protocol)
            for one in frontends_from_outside(service, EACH_NODE)
            if one.kind == "node port"
        }
        for number, protocol in sorted(ports):
            if number in facts.settings.served_ports.get(protocol, ()):
                yield Problem(
                    f"node port {number}/{protocol} is a program's on {facts.memory.node}, too: clients outside "
                    "reach the Service, and never that program",
                    f"see which one it is: ss -lnp 'sport = :{number}'; give it, or the Service, another port",
                    subject(key(service)),
                    Severity.WARNING,
                )


def _shut_out(view: ClusterView) -> Iterator[Problem]:
    objects = tuple(obj for table in view.tables.values() for obj in table.values())
    explainer, doors = Explainer(objects), Doors(objects)
    for service in explainer.services:
        told = set()
        for wanted in wanted_frontends(service):
            port = f"{wanted.port.port}/{wanted.port.protocol}"
            pods = [(explainer.pod_at(one), one) for one in explainer.candidates(service, wanted) if one.ready]
            shut = [
                doors.shut_by(pod, PROTOCOLS[wanted.port.protocol], one.port) if pod else () for pod, one in pods
            ]
            if shut and all(shut) and port not in told:
                told.add(port)
                yield Problem(
                    f"port {port}: {_names(shut)} let nobody in at any of its endpoints",
                    f"allow port {pods[0][1].port} of its pods by an ingress rule: podway policy list POD",
                    subject(key(service)),
                    Severity.WARNING,
                )


def _names(found: Iterable[tuple[Key, ...]]) -> str:
    return ", ".join(dict.fromkeys(subject(one) for keys in found for one in keys))
