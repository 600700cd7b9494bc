"""Policies: whether they are in force, and pods that are cut off in doubt."""

from collections.abc import Iterator

from podway.api.resource import subject
from podway.health.facts import NodeFacts
from podway.health.finding import Problem, Severity, node_check
from podway.policy.lint import lint


@node_check(
    "policies",
    looks_at="whether the cluster's policies are enforced on the node, pods that are cut off since nothing is "
    "known of them, and, where they are enforced, what of them is probably not meant (`podway policy lint`)",
    why="without enforcement every pod reaches every other one, whatever policies say; a pod that is cut off "
    "reaches nobody, and only its own node reaches it",
)
def policies(facts: NodeFacts) -> Iterator[Problem]:
    """Policies that nobody wrote are not missed. What all agents find wrong with a policy is told once."""
    memory = facts.memory
    count = facts.policies
    if memory.fallback:
        if count:
            yield Problem(
                f"nothing enforces the cluster's policies here, of which there are {count}: {memory.fallback}",
                "mend that, or have the pods that they select run on other nodes; with dataPath=auto a node that "
                "cannot enforce policies goes on without",
                severity=Severity.WARNING,
            )
    elif memory.policy_problem:
        yield Problem(
            f"policies are not enforced as they should be: {memory.policy_problem}",
            "mend that: the agent tries again by itself; spec.dataPath of the NetworkConfig says what is wanted",
            severity=Severity.ERROR if memory.view.config.data_path == "ebpf" or count else Severity.WARNING,
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
    if memory.enforced and not memory.view.unjudged:
        known = (obj for table in memory.view.tables.values() for obj in table.values())
        for whose, (field, problem, hint) in lint(known):
            yield Problem(f"{field}: {problem}", hint, subject(whose), Severity.WARNING)
