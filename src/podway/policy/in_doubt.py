"""What holds in the place of a policy that cannot be read, and of which no good state is known. Pure.

Whoever wrote it wanted less to be allowed, so the doubt closes, for whom the policy can be told to be.
"""

import msgspec

from podway.api.checked import RejectedObject
from podway.api.kinds.cluster_network_policy import (
    MOST_PRIORITY,
    ClusterNetworkPolicy,
    ClusterPolicyEgressRule,
    ClusterPolicyIngressRule,
)
from podway.api.kinds.network_policy import NetworkPolicy, NetworkPolicySpec
from podway.api.meta import Metadata


def stand_in(rejected: RejectedObject) -> NetworkPolicy | ClusterNetworkPolicy | None:
    """Return the policy to go by in its place; None if it is none, or nobody can be told for whom it is.

    A NetworkPolicy isolates all pods of its namespace. A ClusterNetworkPolicy whose subject can be read denies its
    subject all in the directions in which it has rules, at its own place among the others.
    """
    kind, namespace, name = rejected.key
    if kind == NetworkPolicy.KIND:
        spec = NetworkPolicySpec(policy_types=("Ingress", "Egress"))
        return NetworkPolicy(metadata=Metadata(name=name, namespace=namespace), spec=spec)
    found = rejected.found
    if not isinstance(found, ClusterNetworkPolicy):
        return None
    if any(field.startswith("spec.subject") for field, *_ in found.problems()):
        return None
    closed = msgspec.structs.replace(
        found.spec,
        priority=min(max(found.spec.priority, 0), MOST_PRIORITY),
        # A rule to deny without a known peer denies everybody (podway.policy.rules).
        ingress=(ClusterPolicyIngressRule(action="Deny"),) if found.spec.ingress else (),
        egress=(ClusterPolicyEgressRule(action="Deny"),) if found.spec.egress else (),
    )
    return msgspec.structs.replace(found, spec=closed)
