"""What the container runtime reads, and what it left to do."""

from collections.abc import Iterator
from pathlib import Path

from podway.api.addresses import Address
from podway.cluster.view import ClusterView
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
        return
    if facts.files.unreadable:
        yield Problem(facts.files.unreadable, "podway install", f"{directory}/{FILE_NAME}")
    if names[0] != FILE_NAME:
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
    "cni-chain",
    looks_at="the plugins that are chained behind Podway's in the runtime's configuration",
    why="the runtime runs all of them or gives up: while one is missing no pod starts, and none is taken down",
)
def cni_chain(facts: NodeFacts) -> Iterator[Problem]:
    """Runtimes look for the plugins in the directory where Podway's is."""
    directory = Path(facts.files.plugin_path).parent
    for name in facts.files.lacking:
        yield Problem(
            f"{facts.files.directory}/{FILE_NAME} chains the plugin {name}, which is not in {directory}",
            "install it there (Debian: containernetworking-plugins, which puts it into /usr/lib/cni), or take "
            f"{name} out of the configuration",
            f"plugin {name}",
        )


@node_check(
    "leases",
    looks_at="the leases of pods beside the Pods of this node in the cluster's store",
    why="an address that nobody uses is lost to the pool; a Pod without its lease is cut off",
)
def leases(facts: NodeFacts) -> Iterator[Problem]:
    """Only where Pods are written into the store: not on a host whose runtime tells nobody."""
    if facts.pods_known is None:
        return
    view = facts.memory.view
    for lease in facts.memory.leases:
        if lease.pod and not any(_named(lease.pod, pod.name) for pod in facts.pods_known):
            yield Problem(
                f"{', '.join(map(str, lease.addresses))} is leased to {lease.pod}, and there is no such Pod",
                f"end what still runs in it and remove its network namespace {lease.netns} "
                f"({_removal(lease.netns)}): the agent then frees its lease",
                f"lease of {lease.pod}",
                Severity.WARNING,
            )
    held = {address for lease in facts.memory.leases for address in lease.addresses}
    for pod in facts.pods_known:
        if pod.node != facts.memory.node:
            continue
        lost = [address for address in pod.addresses if address not in held and _in_pools(view, address)]
        if lost:
            yield Problem(
                f"its address {', '.join(map(str, lost))} is not leased on this node",
                "delete the Pod, so that it is started anew",
                f"Pod {pod.name}",
            )


def _named(told: str, name: str) -> bool:
    """Compare a lease's name, which the kernel may have cut, with a Pod's."""
    return told == name or ("~" in told and name.startswith(told.rpartition("~")[0]))


def _removal(path: str) -> str:
    directory, _, name = path.rpartition("/")
    return f"ip netns delete {name}" if directory in {"/run/netns", "/var/run/netns"} else "crictl stopp POD"


def _in_pools(view: ClusterView, address: Address) -> bool:
    return any(address in pool.network for pool in view.pools.values())


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
