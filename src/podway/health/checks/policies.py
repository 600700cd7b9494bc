"""Policies: whether they are in force, and pods that are cut off in doubt."""

from collections.abc import Iterator

from podway.health.facts import NodeFacts
from podway.health.finding import Problem, Severity, node_check


@node_check(
    "policies",
    looks_at="whether the cluster's policies are enforced on the node, and pods that are cut off since nothing is "
    "known of them",
    why="without enforcement every pod reaches every other one, whatever policies say; a pod that is cut off "
    "reaches nobody, and only its own node reaches it",
)
def policies(facts: NodeFacts) -> Iterator[Problem]:
    """Policies that nobody wrote are not missed."""
    memory = facts.memory
    count = facts.policies
    wanted = memory.view.config.data_path
    if memory.policy_problem:
        yield Problem(
            f"policies are not enforced as they should be: {memory.policy_problem}",
            "mend that: the agent tries again by itself; spec.dataPath of the NetworkConfig says what is wanted",
            severity=Severity.ERROR if wanted == "ebpf" or count else Severity.WARNING,
        )
    elif count and not memory.enforced:
        yield Problem(
            f"nothing enforces the cluster's policies, of which there are {count}",
            "podway set config dataPath=ebpf",
            severity=Severity.WARNING,
        )
    for pod in memory.cut_off:
        yield Problem(
            "is cut off: there is no Pod of this name, or it has ended, or is another node's, or cannot be read",
            "delete what runs there, or apply its Pod anew; `podway get pods -A` shows what there is",
            f"pod {pod}",
        )
