"""Bridge attach: what the rules of the IP layer see of it."""

from collections.abc import Iterator

from podway.health.facts import NodeFacts
from podway.health.finding import Problem, Severity, node_check
from podway.plan.bridge import BRIDGE_NETFILTER
from podway.plan.objects import BRIDGE_DEVICE


@node_check(
    "bridge-netfilter",
    looks_at="whether others' forwarding rules see packets between pods of the bridge: they do with br_netfilter",
    why="without it such packets pass by all rules: Services and policies do not hold between pods of one node",
    caused=False,
)
def bridge_netfilter(facts: NodeFacts) -> Iterator[Problem]:
    """It matters where somebody has such rules. The plan has the settings if the kernel does."""
    plan = facts.memory.plan
    bridged = any(device.name == BRIDGE_DEVICE for device in plan.devices)
    if not bridged or any(sysctl.path in BRIDGE_NETFILTER for sysctl in plan.sysctls):
        return
    ruled = [
        chain
        for chain in facts.firewall.rules.chains
        if chain.hook in {"prerouting", "forward", "postrouting"} and (chain.rules or chain.policy != "accept")
    ]
    if ruled:
        yield Problem(
            f"the kernel has no br_netfilter, so {ruled[0]} does not see what pods of this node send each other",
            "modprobe br_netfilter (and name it in /etc/modules-load.d/podway.conf), or set spec.attach of the "
            "pods' IPPools to routed",
            BRIDGE_DEVICE,
            Severity.WARNING,
        )
