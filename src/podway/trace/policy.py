"""What policies say of the conversation that is traced, and what that means for its verdict. Pure."""

from collections.abc import Iterable, Mapping

import msgspec

from podway.api.addresses import Address, Family
from podway.api.kinds.cluster_network_policy import ClusterNetworkPolicy
from podway.api.kinds.network_policy import NetworkPolicy
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.resource import subject
from podway.cluster.view import ClusterView
from podway.policy.explain import End, Judge, Reason
from podway.policy.maps import Direction
from podway.probe.build import Protocol
from podway.probe.packet import ECHO_REQUEST, ICMP
from podway.trace.names import Subject
from podway.trace.report import PolicySaid, Verdict

_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17}


class PolicyJudge:
    """Says what the policies of a cluster mean for connections in it."""

    def __init__(self, view: ClusterView, fallbacks: Mapping[str, str]) -> None:
        """`fallbacks` says of nodes that do without the flow engine, as settings let them, why."""
        self._view = view
        self._fallbacks = fallbacks
        self._judge = Judge(obj for table in view.tables.values() for obj in table.values())

    def said(
        self, source: Subject, target: Subject, addresses: tuple[Address, Address], protocol: Protocol, port: int
    ) -> tuple[PolicySaid, ...]:
        """Return what is said at each end that is a pod; nothing where no policy selects either."""
        if not any(self._view.tables[kind.KIND] for kind in (NetworkPolicy, ClusterNetworkPolicy)):
            return ()
        family = Family.of(addresses[1])
        asked = (_NUMBERS.get(protocol, 0), port)
        if protocol is Protocol.ICMP:
            asked = (ICMP[family], ECHO_REQUEST[family] << 8)
        reasons = self._judge.reasons(self._end(source), self._end(target), addresses, *asked)
        if not any(reason.selected for reason in reasons):
            return ()
        # What a node has learned of names is not known here: what they may allow is not said to be denied.
        return tuple(
            PolicySaid(
                one.direction,
                one.pod,
                one.allowed or one.unless_named,
                one.reason,
                one.audit,
                self._unenforced(one, target if one.direction == Direction.INGRESS else source),
            )
            for one in reasons
        )

    def _unenforced(self, reason: Reason, end: Subject) -> str:
        """Return why nobody sees to it that the policies hold that select a pod; empty if somebody is to."""
        if not reason.selected:
            return ""
        if self._view.config.data_path == "kernel":
            return "spec.dataPath of the NetworkConfig is kernel"
        fallback = self._fallbacks.get(end.node, "")
        return f"node {end.node}: {fallback}" if fallback else ""

    def _end(self, one: Subject) -> End:
        namespace, _, name = one.pod.partition("/")
        found = self._view.find((Pod.KIND, namespace, name)) if one.pod else None
        if isinstance(found, Pod):
            return End(subject((Pod.KIND, namespace, name)), one.addresses, found, one.node)
        label = subject((Node.KIND, "", one.node)) if one.ours else one.label
        return End(label, one.addresses, None, one.node if one.ours else "")


def with_policy(verdict: Verdict, policy: Iterable[PolicySaid], *, sent: bool) -> Verdict:
    """Return a verdict on the way there that heeds what enforced policies say; `sent`: a packet was."""
    denying = next((one for one in policy if one.denies), None)
    if denying is None:
        return verdict
    reason = f"{denying.direction} of {denying.pod}: {denying.reason}"
    if sent and verdict.outcome == "delivered":
        return msgspec.structs.replace(
            verdict,
            code="policy-not-held",
            problem=f"it arrived, though policies deny it: {reason}",
            advice="look at the data path of the nodes at both ends: podway status, podway doctor",
        )
    return msgspec.structs.replace(
        verdict,
        outcome="lost",
        code="denied",
        problem=f"policies deny it: {reason}",
        advice="if it is to be allowed, change the policies: podway policy list shows those of a pod",
    )
