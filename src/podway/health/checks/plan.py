"""Plan and kernel: what differs, and who fights."""

from collections import Counter
from collections.abc import Iterator

from podway.health.facts import NodeFacts
from podway.health.finding import Problem, node_check

FIGHT_REPAIRS = 3
FIGHT_SECONDS = 600.0
"""The same thing put right so often within so long is a fight."""


@node_check(
    "drift",
    looks_at="differences between plan and kernel that stay, and changes that the kernel or BIRD refused",
    why="an object that is not as planned is a pod or a range that is not reached",
)
def drift(facts: NodeFacts) -> Iterator[Problem]:
    """The agent repairs differences within a second, so what stays cannot be repaired."""
    for difference in facts.drift:
        yield Problem(
            f"{difference}, and stays so",
            "see the agent's log for what the kernel refuses, or restart the agent: nothing is interrupted",
        )
    for refusal in facts.memory.refused:
        yield Problem(f"refused: {refusal}", "remove what is in its place; the agent then tries again by itself")


@node_check(
    "fight",
    looks_at=f"objects that the agent put right {FIGHT_REPAIRS} times within {FIGHT_SECONDS / 60:g} minutes",
    why="another program sets them back each time, and between two repairs packets are lost",
)
def fight(facts: NodeFacts) -> Iterator[Problem]:
    """Repairs are told in words; the same words are the same object."""
    recent = Counter(r.what for r in facts.memory.repairs if facts.now - r.at <= FIGHT_SECONDS)
    for what, times in recent.items():
        if times >= FIGHT_REPAIRS:
            yield Problem(
                f"{times} times: {what}",
                "find the program: NetworkManager or systemd-networkd (let them leave Podway's devices alone), a "
                "configuration management run, another pod network; `ip monitor` shows its changes",
            )
