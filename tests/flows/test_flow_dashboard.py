"""What dashboards made for Hubble find: counts of what was told, and series for what they ask."""

import re
from collections import Counter
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from podway.agent import metrics
from podway.flows.dashboard import OTHER, PORTS, Dashboard
from podway.kernel.bpf.flow_layout import EventKind, FlowFlag, FlowState, Reason
from tests.flows.flow_events import event

EXPRESSIONS = (
    "sum(rate(hubble_flows_processed_total[1m])) by (pod, verdict)",
    'sum(rate(hubble_flows_processed_total{type="Drop"}[5m])) by (protocol)',
    "sum by (reason) (rate(hubble_drop_total[5m]))",
    'sum(rate(hubble_drop_total{reason="POLICY_DENIED"}[5m])) by (protocol)',
    'rate(hubble_tcp_flags_total{flag="RST", family="IPv4"}[5m]) / rate(hubble_tcp_flags_total{flag="SYN"}[5m])',
    'sum(increase(hubble_policy_verdicts_total{action="dropped", direction="ingress"}[1h])) by (match)',
    "topk(10, sum by (port) (rate(hubble_port_distribution_total[5m])))",
)
"""As dashboards write them."""

_NEAR = int(IPv6Address("ff00::ffff:ffff:ffff"))


def told() -> Dashboard:
    """One flow, refused by a rule, another that is reset, and a question to DNS."""
    found = Dashboard()
    denied = event(EventKind.PACKET_DROPPED, reason=Reason.DENIED_INGRESS, rules=(0, 7))
    found.take(event(rules=(0, 9)) * 2 + denied * 3)
    found.take(event(EventKind.PACKET_DROPPED, reason=Reason.NOT_OWN_SOURCE, protocol=17, counts=(5, 300, 0, 0)))
    found.take(event(EventKind.FLOW_END, state=FlowState.RESET) + event(source="fd00::1", destination="fd00::2"))
    found.take(event(EventKind.FLOW_END, protocol=17, ports=(4000, 53), counts=(2, 120, 2, 300)))
    found.take(event(EventKind.FLOW_AUDITED, reason=Reason.DENIED_EGRESS, rules=(7, 0)))
    return found


def test_what_is_told_is_counted_with_the_labels_that_dashboards_know() -> None:
    found = told()
    assert found.processed == {
        ("TCP", "Trace", "", "FORWARDED"): 3,
        ("TCP", "Drop", "", "DROPPED"): 3,
        ("UDP", "Drop", "", "DROPPED"): 5,
        ("TCP", "PolicyVerdict", "", "AUDIT"): 1,
    }
    assert found.drops == {("POLICY_DENIED", "TCP"): 3, ("NOT_OWN_SOURCE", "UDP"): 5}
    assert found.verdicts == {
        ("ingress", "rule", "forwarded"): 2,
        ("ingress", "rule", "dropped"): 3,
        ("egress", "rule", "audit"): 1,
    }
    assert found.flags == {("SYN", "IPv4"): 2, ("SYN", "IPv6"): 1, ("RST", "IPv4"): 1}
    assert (found.ports, found.queries) == ({("TCP", "80"): 3}, 2)


@given(
    st.lists(
        st.ip_addresses() | st.integers(0, 2**128 - 1).map(lambda bits: IPv6Address(bits & _NEAR)), max_size=9
    )
)
@example([IPv6Address("fd00::1:0:ff00:1:2"), IPv6Address("64:ff9b::192.0.2.1"), IPv6Address("::fffe:0:1")])
def test_the_family_of_a_flow_is_that_of_its_addresses(sources: list[IPv4Address | IPv6Address]) -> None:
    """Also of those of IPv6 that resemble addresses of IPv4 mapped to it in most of their bytes."""
    found = Dashboard()
    found.take(b"".join(event(source=str(one), destination=str(one)) for one in sources))
    six = sum(one.version == 6 and not one.ipv4_mapped for one in sources)
    assert found.flags == +Counter({("SYN", "IPv6"): six, ("SYN", "IPv4"): len(sources) - six})


def test_ports_have_few_series_and_none_is_that_of_who_called() -> None:
    found = Dashboard()
    found.take(b"".join(event(ports=(9, port)) for port in range(1, 3 * PORTS)))
    found.take(event(ports=(80, 40000), flags=FlowFlag.REPLY))  # of a connection from before: told by its answer
    assert len(found.ports) == PORTS + 1
    assert found.ports.total() == 3 * PORTS - 1
    assert found.ports["TCP", OTHER] == 2 * PORTS - 1


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_of_dashboards_find_series(expression: str) -> None:
    """Each selector with the values that it asks for is met by what is counted; `by` names labels, or targets'."""
    found, known = told(), {metric.name: metric for metric in metrics.METRICS}
    counts: dict[str, Counter[tuple[str, ...]]] = {
        metrics.PROCESSED.name: found.processed,
        metrics.DROPS.name: found.drops,
        metrics.VERDICTS.name: found.verdicts,
        metrics.FLAGS.name: found.flags,
        metrics.PORTS.name: found.ports,
    }
    selectors = re.findall(r"(hubble_\w+)(?:\{([^}]*)\})?\[", expression)
    assert selectors
    for name, inside in selectors:
        labels = known[name].labels
        wanted = dict(re.findall(r'(\w+)="([^"]*)"', inside))
        assert wanted.keys() <= set(labels)
        assert any(wanted.items() <= set(zip(labels, values, strict=True)) for values in counts[name])
        for group in re.findall(r"by \(([^)]*)\)", expression):
            assert set(group.split(", ")) - {"pod"} <= set(labels)
