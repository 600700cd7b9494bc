"""Clusters and policies as manifests, made by hand or by hypothesis, and planners that are fed with them."""

from typing import Any

import msgspec
from hypothesis import strategies as st

from podway.api.kinds.cluster_network_policy import ClusterNetworkPolicy
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.network_policy import NetworkPolicy
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.resource import key
from podway.policy.lookup import PolicyMaps
from podway.policy.maps import Direction, EndpointRules, Prefix
from podway.policy.planner import PolicyPlanner
from tests.policy.model import PROTOCOLS, Model

TYPES = {kind.KIND: kind for kind in (Pod, Namespace, Node, NetworkPolicy, ClusterNetworkPolicy)}
NODES = {"n1": ["172.30.0.1", "fd30::1"], "n2": ["172.30.0.2", "fd30::2"]}
OUTSIDE = ["192.0.2.7", "2001:db8::7"]


def resource(manifest: Any) -> Any:
    return msgspec.convert(manifest, TYPES[manifest["kind"]])


def pod(
    namespace: Any,
    name: Any,
    *ips: Any,
    labels: Any = None,
    node: Any = "n1",
    ports: Any = (),
    phase: Any = "Running",
    **meta: Any,
) -> Any:
    containers = [{"ports": [{"name": n, "protocol": p, "containerPort": number} for n, p, number in ports]}]
    return {
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": labels or {}, **meta},
        "spec": {"nodeName": node, "containers": containers},
        "status": {"phase": phase, "podIPs": [{"ip": ip} for ip in ips]},
    }


def namespace(name: Any, **labels: Any) -> Any:
    return {"kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def node(name: Any, **labels: Any) -> Any:
    addresses = [{"type": "InternalIP", "address": ip} for ip in NODES[name]]
    return {"kind": "Node", "metadata": {"name": name, "labels": labels}, "status": {"addresses": addresses}}


def network_policy(name: Any = "p", *, where: Any = "x", **spec: Any) -> Any:
    return {"kind": "NetworkPolicy", "metadata": {"namespace": where, "name": name}, "spec": spec}


def cluster_policy(
    name: Any = "c", *, tier: Any = "Admin", priority: Any = 10, subject: Any = None, **rules: Any
) -> Any:
    spec = {"tier": tier, "priority": priority, "subject": subject or {"namespaces": {}}, **rules}
    return {"kind": "ClusterNetworkPolicy", "metadata": {"name": name}, "spec": spec}


def audited(policy: Any) -> Any:
    """A policy that only reports."""
    return {**policy, "metadata": {**policy["metadata"], "annotations": {"podway.io/audit": "true"}}}


def is_audited(manifest: Any) -> Any:
    return manifest["metadata"].get("annotations", {}).get("podway.io/audit") == "true"


class Planned:
    """The policies of a cluster as its nodes have them: a planner and its maps for each."""

    def __init__(self, *manifests: Any) -> None:
        self.now: dict[Any, Any] = {}
        self.planners = {name: PolicyPlanner(name) for name in NODES}
        self.maps = {name: PolicyMaps() for name in NODES}
        self.put(*manifests)

    def put(self, *manifests: Any) -> None:
        for manifest in manifests:
            obj = resource(manifest)
            self.now[key(obj)] = manifest
            for planner in self.planners.values():
                planner.put(obj)
        self.settle()

    def drop(self, *manifests: Any) -> None:
        for manifest in manifests:
            wanted = key(resource(manifest))
            self.now.pop(wanted, None)
            for planner in self.planners.values():
                planner.drop(wanted)
        self.settle()

    def settle(self) -> None:
        deltas = {name: planner.settle() for name, planner in self.planners.items()}
        for name, delta in deltas.items():
            self.maps[name].apply(delta)
        self.last = deltas

    @property
    def model(self) -> Any:
        """What is enforced: policies that are audited are as if they were not there."""
        return Model(*(one for one in self.now.values() if not is_audited(one)))

    @property
    def model_of_all(self) -> Any:
        """What would be enforced if no policy were audited."""
        return Model(*self.now.values())

    def decide(self, pod: Any, direction: Any, peer: Any, protocol: Any, port: Any, *, audit: Any = False) -> Any:
        """What the maps of a pod's node say, and the rule by (kind, namespace, name, index).

        Of an `audit` where there is none that is what is enforced.
        """
        meta, where = pod["metadata"], pod["spec"]["nodeName"]
        maps = self.maps[where]
        rules = maps.endpoints.get((meta["namespace"], meta["name"]), EndpointRules())
        enforced, audited = rules.of(Direction(direction)), rules.of(Direction(direction), audit=True)
        number = audited if audit and audited else enforced
        decision = maps.decide(number, Prefix.host(peer), protocol, port)
        name = self.planners[where].rule_name(decision.rule)
        return decision.allowed, name and (*name.policy, name.place)

    def allows(self, source: Any, destination: Any, port: Any = 80, protocol: Any = "TCP") -> Any:
        """Whether the maps of both ends allow a connection; checked against the model, and so are audits."""
        self._verdict(self.model_of_all, source, destination, port, protocol, audit=True)
        return self._verdict(self.model, source, destination, port, protocol, audit=False)

    def _verdict(self, model: Any, source: Any, destination: Any, port: Any, protocol: Any, *, audit: Any) -> Any:
        number = PROTOCOLS.get(protocol, protocol)
        allowed, said = model.verdict(source, destination, number, port)
        ends = {"egress": (model.pod_at(source), destination), "ingress": (model.pod_at(destination), source)}
        found = True
        for direction, (allowed_there, by) in said.items():
            one, peer = ends[direction]
            if direction == "ingress" and one["spec"]["nodeName"] in [
                node["metadata"]["name"] for node in model.node_at(peer)
            ]:
                continue  # the data path's own rule
            decided, rule = self.decide(one, direction, peer, number, port, audit=audit)
            assert decided == allowed_there, (direction, source, destination, protocol, port, rule, by)
            if by:
                assert rule in by, (direction, rule, by)
            elif decided:
                assert rule is None, rule
            else:
                assert rule[3] is None, rule
            found = found and decided
        assert found == allowed
        return found


# What hypothesis makes clusters of: few names, so that things meet.

KEYS, VALUES = ["app", "role"], ["a", "b"]
labels = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=2)
requirements = st.one_of(
    st.builds(
        lambda key, operator, values: {"key": key, "operator": operator, "values": values},
        st.sampled_from(KEYS),
        st.sampled_from(["In", "NotIn"]),
        st.lists(st.sampled_from(VALUES), min_size=1, max_size=2, unique=True),
    ),
    st.builds(
        lambda key, operator: {"key": key, "operator": operator},
        st.sampled_from(KEYS),
        st.sampled_from(["Exists", "DoesNotExist"]),
    ),
)
selectors = st.one_of(
    st.just({}),
    labels.map(lambda wanted: {"matchLabels": wanted} if wanted else {}),
    st.lists(requirements, min_size=1, max_size=2).map(lambda wanted: {"matchExpressions": wanted}),
)
SPACES = ["x", "y", "z"]
CIDRS = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.1.0/24",
    "10.1.1.1/32",
    "172.30.0.0/24",
    "::/0",
    "fd00::/16",
]
IPS = [f"10.1.{i}.{j}" for i in (1, 2) for j in (1, 2)]
NAMES, NUMBERS, NAMED = ["web", "dns"], [53, 80, 443, 8080], ["TCP", "UDP", "SCTP"]


@st.composite
def pods(draw: Any) -> Any:
    name = draw(st.sampled_from("abcdef"))
    ip = draw(st.sampled_from(IPS))
    made = pod(
        draw(st.sampled_from(SPACES)),
        name,
        ip,
        *draw(st.sampled_from([(), ("fd00::" + ip[-3:].replace(".", ":"),)])),
        labels=draw(labels),
        node=draw(st.sampled_from(list(NODES))),
        ports=draw(
            st.lists(
                st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMED), st.sampled_from(NUMBERS)), max_size=3
            )
        ),
        phase=draw(st.sampled_from(["Running", "Running", "Running", "Pending", "Succeeded", "Failed"])),
        uid=draw(st.sampled_from("123")),
        creationTimestamp=draw(st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"])),
    )
    if draw(st.integers(0, 7)) == 0:
        made["metadata"]["deletionTimestamp"] = "2026-01-03T00:00:00Z"
    if draw(st.integers(0, 7)) == 0:
        made["spec"]["hostNetwork"] = True
    return made


@st.composite
def blocks(draw: Any) -> Any:
    cidr = draw(st.sampled_from(CIDRS))
    inner = [one for one in CIDRS if one != cidr and (":" in one) == (":" in cidr)]
    return {
        "cidr": cidr,
        "except": draw(st.lists(st.sampled_from(inner), max_size=2, unique=True)) if inner else [],
    }


peers = st.one_of(
    st.builds(lambda one: {"podSelector": one}, selectors),
    st.builds(lambda one: {"namespaceSelector": one}, selectors),
    st.builds(lambda one, other: {"podSelector": one, "namespaceSelector": other}, selectors, selectors),
    st.builds(lambda one: {"ipBlock": one}, blocks()),
    st.just({}),
)
ports = st.one_of(
    st.builds(lambda p: {"protocol": p}, st.sampled_from(NAMED)),
    st.builds(lambda n: {"port": n}, st.sampled_from(NUMBERS)),
    st.builds(lambda p, n: {"protocol": p, "port": n}, st.sampled_from(NAMED), st.sampled_from(NUMBERS + NAMES)),
    st.builds(lambda n, d: {"port": n, "endPort": n + d}, st.sampled_from(NUMBERS), st.integers(0, 900)),
)


def rules(field: Any) -> Any:
    return st.builds(
        lambda some, which: {**({field: some} if some else {}), **({"ports": which} if which else {})},
        st.lists(peers, max_size=3),
        st.lists(ports, max_size=2),
    )


@st.composite
def network_policies(draw: Any) -> Any:
    spec = {"podSelector": draw(selectors)}
    if draw(st.booleans()):
        spec["ingress"] = draw(st.lists(rules("from"), max_size=3))
    if draw(st.booleans()):
        spec["egress"] = draw(st.lists(rules("to"), max_size=3))
    types = draw(st.sampled_from([None, ["Ingress"], ["Egress"], ["Ingress", "Egress"]]))
    if types:
        spec["policyTypes"] = types
    return network_policy(draw(st.sampled_from("pqr")), where=draw(st.sampled_from(SPACES)), **spec)


cluster_pods = st.one_of(
    st.builds(lambda one: {"namespaces": one}, selectors),
    st.builds(lambda one, other: {"pods": {"namespaceSelector": one, "podSelector": other}}, selectors, selectors),
)
egress_peers = st.one_of(
    cluster_pods,
    st.builds(lambda one: {"nodes": one}, selectors),
    st.builds(
        lambda some: {"networks": some}, st.lists(st.sampled_from(CIDRS), min_size=1, max_size=2, unique=True)
    ),
)
transport = st.one_of(
    st.just({}),
    st.builds(lambda n: {"destinationPort": {"number": n}}, st.sampled_from(NUMBERS)),
    st.builds(
        lambda n, d: {"destinationPort": {"range": {"start": n, "end": n + d}}},
        st.sampled_from(NUMBERS),
        st.integers(1, 900),
    ),
)
protocols = st.one_of(
    st.builds(lambda name, match: {name: match}, st.sampled_from(["tcp", "udp", "sctp"]), transport),
    st.builds(lambda name: {"destinationNamedPort": name}, st.sampled_from(NAMES)),
)


def cluster_rules(field: Any, some: Any) -> Any:
    return st.lists(
        st.builds(
            lambda action, which, what: {"action": action, field: which, **({"protocols": what} if what else {})},
            st.sampled_from(["Accept", "Deny", "Pass"]),
            st.lists(some | st.just({}), min_size=1, max_size=2),
            st.lists(protocols, max_size=2),
        ),
        max_size=3,
    )


cluster_policies = st.builds(
    lambda name, tier, priority, subject, ingress, egress: cluster_policy(
        name, tier=tier, priority=priority, subject=subject, ingress=ingress, egress=egress
    ),
    st.sampled_from("cde"),
    st.sampled_from(["Admin", "Baseline"]),
    st.sampled_from([1, 2, 1000]),
    cluster_pods,
    cluster_rules("from", cluster_pods),
    cluster_rules("to", egress_peers),
)
namespaces = st.builds(lambda name, some: namespace(name, **some), st.sampled_from(SPACES), labels)
nodes = st.builds(lambda name, some: node(name, **some), st.sampled_from(list(NODES)), labels)
policies = st.one_of(network_policies(), network_policies(), cluster_policies)
objects = st.one_of(pods(), pods(), policies, policies, policies.map(audited), namespaces, nodes)
