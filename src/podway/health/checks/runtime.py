"""What the container runtime reads, and what it left to do."""

from collections.abc import Iterator

from podway.cni.conflist import FILE_NAME
from podway.health.facts import NodeFacts
from podway.health.finding import Problem, Severity, node_check

PATIENCE = 30.0
"""Seconds that a DEL may wait: the agent looks every five."""


@node_check(
    "cni-config",
    looks_at="the files in the runtime's configuration directory, in the order in which runtimes take them",
    why="the runtime takes the first file by name: another network's before ours means pods without Podway",
)
def cni_config(facts: NodeFacts) -> Iterator[Problem]:
    """Where no runtime reads a directory (in a lab) there is nothing to find."""
    names, directory = facts.files.configurations, facts.files.directory
    if names is None:
        return
    if FILE_NAME not in names:
        yield Problem(f"{FILE_NAME} is missing in {directory}", "podway install", directory, Severity.WARNING)
    elif names[0] != FILE_NAME:
        yield Problem(
            f"{names[0]} comes before {FILE_NAME}",
            f"if its network is gone: rm {directory}/{names[0]}; else rename it so that it comes later",
            directory,
        )


@node_check(
    "cni-plugin",
    looks_at="the plugin's binary beside the one that belongs to this agent",
    why="without the binary no pod starts; one of another version may speak another protocol with the agent",
)
def cni_plugin(facts: NodeFacts) -> Iterator[Problem]:
    """Only where a runtime has a configuration that calls it."""
    if not facts.files.configurations or FILE_NAME not in facts.files.configurations:
        return
    if facts.files.plugin == "missing":
        yield Problem(f"{facts.files.plugin_path} is missing", "podway install", facts.files.plugin_path)
    elif facts.files.plugin == "other":
        yield Problem(
            f"{facts.files.plugin_path} is of another version than the agent",
            "podway install",
            facts.files.plugin_path,
            Severity.WARNING,
        )


@node_check(
    "cni-spool",
    looks_at="DELs that the plugin left for the agent because none answered",
    why="until they are carried out, the addresses of pods that are gone stay taken",
)
def cni_spool(facts: NodeFacts) -> Iterator[Problem]:
    """The agent carries them out within seconds; those that stay fail each time."""
    old = [age for age in facts.files.waiting if age > PATIENCE]
    if old:
        yield Problem(
            f"{len(old)} DELs wait, the oldest for {max(old):.0f} s",
            "the agent's log says why they fail: look for `spooled DEL`",
            severity=Severity.WARNING,
        )
