"""What the API's text says of a connection, as plainly as it can be written: the oracle of the planner's tests.

It reads manifests as they are written in YAML, and shares no code with what it judges. Sources: the
documentation of networking.k8s.io/v1 NetworkPolicy, and the comments of policy.networking.k8s.io/v1beta1
ClusterNetworkPolicy.
"""

from ipaddress import ip_address, ip_network
from typing import Any

PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}


def selected(selector: Any, labels: Any) -> Any:
    """Whether a label selector matches labels."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for one in selector.get("matchExpressions", []):
        key, values = one["key"], one.get("values", [])
        holds = {
            "In": key in labels and labels[key] in values,
            "NotIn": bool(values) and (key not in labels or labels[key] not in values),
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[one["operator"]]
        if not holds:
            return False
    return True


class Model:
    """A cluster, and the verdict on a connection."""

    def __init__(self, *objects: Any) -> None:
        self.objects = [obj for obj in objects if obj is not None]

    def of(self, kind: Any) -> Any:
        return [obj for obj in self.objects if obj["kind"] == kind]

    def namespace_labels(self, name: Any) -> Any:
        """The labels of a namespace, or None if it is not known: then no selector matches it."""
        for obj in self.of("Namespace"):
            if obj["metadata"]["name"] == name:
                return {**obj["metadata"].get("labels", {}), "kubernetes.io/metadata.name": name}
        return None

    def pod_at(self, address: Any) -> Any:
        """The pod that has an address, None if none: pods of the host's network and finished ones have none."""
        claimants = [
            pod
            for pod in self.of("Pod")
            if not pod.get("spec", {}).get("hostNetwork")
            and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")
            and any(ip_address(ip["ip"]) == ip_address(address) for ip in pod.get("status", {}).get("podIPs", []))
        ]

        def order(pod: Any) -> Any:
            meta = pod["metadata"]
            going = bool(meta.get("deletionTimestamp"))
            return (
                not going,
                meta.get("creationTimestamp", ""),
                meta.get("uid", ""),
                meta["namespace"],
                meta["name"],
            )

        return max(claimants, key=order, default=None)

    def node_at(self, address: Any) -> Any:
        """The nodes that have an address."""
        return [
            node
            for node in self.of("Node")
            if any(entry["address"] == address for entry in node.get("status", {}).get("addresses", []))
        ]

    def is_pod(self, address: Any, namespace_selector: Any, pod_selector: Any, namespace: Any = None) -> Any:
        """Whether an address is a pod's of these namespaces and labels; without a selector, of this namespace."""
        pod = self.pod_at(address)
        return pod is not None and self.pod_is(pod, namespace_selector, pod_selector, namespace)

    def pod_is(self, pod: Any, namespace_selector: Any, pod_selector: Any, namespace: Any = None) -> Any:
        """Whether a pod is one of these namespaces and labels."""
        where = pod["metadata"]["namespace"]
        if namespace_selector is None:
            if where != namespace:
                return False
        else:
            labels = self.namespace_labels(where)
            if labels is None or not selected(namespace_selector, labels):
                return False
        return selected(pod_selector, pod["metadata"].get("labels", {}))

    def named_ports(self, address: Any, name: Any) -> Any:
        """Protocol and number of the ports of a name that the pod of an address serves."""
        pod = self.pod_at(address)
        if pod is None:
            return []
        spec = pod.get("spec", {})
        containers = spec.get("containers", []) + [
            one for one in spec.get("initContainers", []) if one.get("restartPolicy") == "Always"
        ]
        return [
            (PROTOCOLS[port.get("protocol", "TCP")], port["containerPort"])
            for container in containers
            for port in container.get("ports", [])
            if port.get("name") == name
        ]

    # NetworkPolicy

    def network_policy_peer(self, peer: Any, namespace: Any, address: Any) -> Any:
        if "ipBlock" in peer:
            block = peer["ipBlock"]
            return inside(address, block["cidr"]) and not any(
                inside(address, part) for part in block.get("except", [])
            )
        if "podSelector" not in peer and "namespaceSelector" not in peer:
            return False
        return self.is_pod(address, peer.get("namespaceSelector"), peer.get("podSelector", {}), namespace)

    def network_policy_port(self, entry: Any, destination: Any, protocol: Any, port: Any) -> Any:
        wanted = PROTOCOLS[entry.get("protocol", "TCP")]
        if "port" not in entry:
            return protocol == wanted
        if isinstance(entry["port"], str):
            return protocol == wanted and (protocol, port) in self.named_ports(destination, entry["port"])
        return protocol == wanted and entry["port"] <= port <= entry.get("endPort", entry["port"])

    def network_policies(
        self, pod: Any, direction: Any, peer: Any, destination: Any, protocol: Any, port: Any
    ) -> Any:
        """None if no policy isolates the pod in this direction; else the rules that allow."""
        isolated, allowing = False, set()
        for policy in self.of("NetworkPolicy"):
            spec, meta = policy["spec"], policy["metadata"]
            types = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
            if (
                meta["namespace"] != pod["metadata"]["namespace"]
                or direction.capitalize() not in types
                or not selected(spec.get("podSelector", {}), pod["metadata"].get("labels", {}))
            ):
                continue
            isolated = True
            for index, rule in enumerate(spec.get(direction, [])):
                peers = rule.get("from" if direction == "ingress" else "to", [])
                ports = rule.get("ports", [])
                if (
                    not peers or any(self.network_policy_peer(one, meta["namespace"], peer) for one in peers)
                ) and (
                    not ports or any(self.network_policy_port(one, destination, protocol, port) for one in ports)
                ):
                    allowing.add(("NetworkPolicy", meta["namespace"], meta["name"], index))
        return allowing if isolated else None

    # ClusterNetworkPolicy

    def cluster_pods(self, part: Any, address: Any) -> Any:
        if "namespaces" in part:
            return self.is_pod(address, part["namespaces"], {})
        if "pods" in part:
            pods = part["pods"]
            return self.is_pod(address, pods.get("namespaceSelector", {}), pods.get("podSelector", {}))
        return False

    def subject(self, part: Any, pod: Any) -> Any:
        if "namespaces" in part:
            return self.pod_is(pod, part["namespaces"], {})
        return self.pod_is(pod, part["pods"]["namespaceSelector"], part["pods"]["podSelector"])

    def cluster_peer(self, peer: Any, address: Any) -> Any:
        if "nodes" in peer:
            # An address is one holder's: a pod's that claims it is not its node's.
            return self.pod_at(address) is None and any(
                selected(peer["nodes"], node["metadata"].get("labels", {})) for node in self.node_at(address)
            )
        if "networks" in peer:
            return any(inside(address, network) for network in peer["networks"])
        return self.cluster_pods(peer, address)

    def cluster_protocol(self, entry: Any, destination: Any, protocol: Any, port: Any) -> Any:
        if "destinationNamedPort" in entry:
            return (protocol, port) in self.named_ports(destination, entry["destinationNamedPort"])
        ((name, match),) = entry.items()
        if protocol != PROTOCOLS[name.upper()]:
            return False
        wanted = match.get("destinationPort")
        if wanted is None:
            return True
        if "range" in wanted:
            return wanted["range"]["start"] <= port <= wanted["range"]["end"]
        return port == wanted["number"]

    def tier(
        self, name: Any, pod: Any, direction: Any, peer: Any, destination: Any, protocol: Any, port: Any
    ) -> Any:
        """The first rule of a tier that matches: its action and itself; None if none does."""
        subjects = [
            policy
            for policy in self.of("ClusterNetworkPolicy")
            if policy["spec"]["tier"] == name and self.subject(policy["spec"]["subject"], pod)
        ]
        for policy in sorted(subjects, key=lambda one: (one["spec"]["priority"], one["metadata"]["name"])):
            for index, rule in enumerate(policy["spec"].get(direction, [])):
                peers = rule["from" if direction == "ingress" else "to"]
                protocols = rule.get("protocols", [])
                known = all(set(one) & {"namespaces", "pods", "nodes", "networks"} for one in peers)
                by = ("ClusterNetworkPolicy", "", policy["metadata"]["name"], index)
                if not known:
                    if rule["action"] != "Accept":
                        return "Deny", by
                    continue
                if any(self.cluster_peer(one, peer) for one in peers) and (
                    not protocols
                    or any(self.cluster_protocol(one, destination, protocol, port) for one in protocols)
                ):
                    return rule["action"], by
        return None

    def judge(self, pod: Any, direction: Any, peer: Any, destination: Any, protocol: Any, port: Any) -> Any:
        """Whether a pod's policies allow a connection in a direction, and the rules that may be named for it."""
        about = (pod, direction, peer, destination, protocol, port)
        said = self.tier("Admin", *about)
        if said and said[0] != "Pass":
            return said[0] == "Accept", {said[1]}
        allowing = self.network_policies(*about)
        if allowing is not None:
            return bool(allowing), allowing
        said = self.tier("Baseline", *about)
        if said and said[0] != "Pass":
            return said[0] == "Accept", {said[1]}
        return True, set()

    def verdict(self, source: Any, destination: Any, protocol: Any, port: Any) -> Any:
        """Whether a connection is allowed, and per direction what `judge` says of it."""
        if source == destination:
            return True, {}
        ends = {"egress": (self.pod_at(source), destination), "ingress": (self.pod_at(destination), source)}
        said: Any = {}
        for direction, (pod, peer) in ends.items():
            if pod is None:
                continue
            own = [node for node in self.node_at(peer) if node["metadata"]["name"] == pod["spec"].get("nodeName")]
            if direction == "ingress" and own:
                said[direction] = (True, set())
            else:
                said[direction] = self.judge(pod, direction, peer, destination, protocol, port)
        return all(allowed for allowed, _ in said.values()), said


def inside(address: Any, network: Any) -> Any:
    """Whether an address lies in a network of its family."""
    net = ip_network(network, strict=False)
    return ip_address(address).version == net.version and ip_address(address) in net
