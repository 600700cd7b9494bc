"""What a preview says of nodes whose ranges Kubernetes gives out."""

import msgspec

from podway.api.kinds.node import NodeSpec
from podway.cluster.view import ClusterView
from podway.preview.settle import settle
from tests import builders


def test_nodes_claim_what_they_were_given_and_those_without_are_told() -> None:
    given = msgspec.structs.replace(
        builders.node("n1", "172.30.0.1/24"), spec=NodeSpec(pod_cidrs=("10.244.9.0/24",))
    )
    pool = builders.pool("pods", "10.244.0.0/16", ranges="podCIDRs")
    settled = settle(ClusterView.of([given, builders.node("n2", "172.30.0.2/24"), pool]), {})
    assert [(block.spec.cidr, block.spec.node) for block in settled.claimed] == [("10.244.9.0/24", "n1")]
    assert settled.unserved == (("n2", "pods"),)
    assert settle(settled.view, {}).claimed == ()
