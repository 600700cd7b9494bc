"""The node's own device and addresses, and the ways to next hops that depend on them."""

from collections.abc import Iterator

from podway.health.facts import NodeFacts
from podway.health.finding import Problem, node_check
from podway.plan.uplink import without_address


@node_check(
    "uplink",
    looks_at="the device and the addresses by which other nodes know this node: whether it has them still, and "
    "one of every family that its pods and the other nodes have",
    why="other nodes send pods' packets to the address that is registered: without it those pods are cut off",
)
def uplink(facts: NodeFacts) -> Iterator[Problem]:
    """The agent follows the uplink wherever it goes; what it cannot follow is told here."""
    memory = facts.memory
    if memory.uplink_problem:
        yield Problem(
            memory.uplink_problem,
            "give the node its address back (ip address add), or name the device with the agent's --interface; "
            "the agent looks every second",
            memory.uplink.device,
        )
    pools = [memory.view.pools[name] for name in memory.pools if name in memory.view.pools]
    for family, names in without_address(memory.view, memory.node, memory.uplink, pools):
        yield Problem(
            f"the node has no {family.label} address, and others have: {', '.join(names)} cannot reach them",
            f"give {memory.uplink.device} an {family.label} address in the other nodes' subnet; the agent takes "
            "it over by itself",
            memory.uplink.device,
        )


@node_check(
    "next-hop",
    looks_at="routes that other nodes or peers advertised, and to whose next hops BIRD knows no way",
    why="such a route is not in the kernel: packets to those pods are dropped, though the session is established",
)
def next_hop(facts: NodeFacts) -> Iterator[Problem]:
    """The agent has BIRD find out its subnets anew, so what stays has a cause outside BIRD."""
    for route in facts.routing.unreachable:
        yield Problem(
            f"BIRD was told {route.network} by {route.protocol}, and knows no way to its next hop",
            "see where the next hop is (birdc show route all for that network, ip route get NEXT-HOP), and give "
            "the node an address in its subnet or a route to it",
            f"route {route.network}",
        )
