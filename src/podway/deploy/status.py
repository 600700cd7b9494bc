"""How Podway is in a cluster, as the API server knows it: versions, agents, controller, definitions, pools."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from podway import __version__
from podway.api.resource import GROUP
from podway.deploy import rollout
from podway.deploy.api import Api, place
from podway.deploy.errands import CLEANER, is_parked
from podway.deploy.objects import AGENT, CONTROLLER, NAMESPACE, Object, image_of, version_of
from podway.deploy.preflight import definition_states
from podway.errors import ClusterError


class NodeStatus(msgspec.Struct, frozen=True, rename="camel"):
    """Podway on one node."""

    node: str
    version: str
    ready: bool
    network: str
    """The condition NetworkUnavailable in words."""
    kernel: str
    why: str
    """Why the agent is not ready; empty if it is."""


class Status(msgspec.Struct, frozen=True, rename="camel"):
    """Podway in a cluster."""

    server: str
    kubernetes: str
    command: str
    """The version of the Podway that asks."""
    image: str
    """What agents are to run."""
    nodes: tuple[NodeStatus, ...]
    controllers_ready: int
    controllers_wanted: int
    controller: str
    """The one that works, empty if none does."""
    definitions: Mapping[str, str]
    """By name: current, older, newer, changed, missing, unknown."""
    pools: Mapping[str, str]
    """By name, whether each holds, in words."""
    cleaner: str = ""
    """What is to be said of the DaemonSet that an unfinished `uninstall` left; empty if there is none."""

    def problems(self) -> Iterator[str]:
        """Yield what is not as it ought to be."""
        for one in self.nodes:
            if not one.ready:
                yield f"{one.node}: {one.why}"
        if versions := {one.version for one in self.nodes if one.version} - {version_of(self.image)}:
            yield f"agents of other versions run: {', '.join(sorted(versions))}"
        if self.cleaner:
            yield f"{self.cleaner}; podway cluster upgrade removes it, podway cluster uninstall ends what it began"
        if not self.controllers_ready:
            yield "no controller is ready"
        for name, state in sorted(self.definitions.items()):
            if state != "current":
                yield f"definition {name}: {state}"
        for name, state in sorted(self.pools.items()):
            if not state.startswith("accepted"):
                yield f"IPPool {name}: {state}"


async def ask(api: Api) -> Status:
    """Ask an API server. Raises ClusterError if Podway is not installed, StoreUnavailable and StoreForbidden."""
    version, daemonset, lease, cleaner = await asyncio.gather(
        api.find("/version"),
        api.find(place("apps/v1", "daemonsets", NAMESPACE, AGENT)),
        api.find(place("coordination.k8s.io/v1", "leases", NAMESPACE, CONTROLLER)),
        api.find(place("apps/v1", "daemonsets", NAMESPACE, CLEANER)),
    )
    definitions, pools, nodes = await asyncio.gather(
        api.list(place("apiextensions.k8s.io/v1", "customresourcedefinitions")),
        api.list(place(f"{GROUP}/v1", "ippools")),
        api.list(place("v1", "nodes")),
    )
    looked = await rollout.look(api)
    if daemonset is None:
        left = left_behind(cleaner)
        ends = "; or podway cluster uninstall, which ends what it began" if left else ""
        raise ClusterError(
            f"Podway is not installed at {api.server}{f': {left}' if left else ''}",
            hint=f"podway cluster install{ends}",
        )
    by_name = {one["metadata"]["name"]: one for one in nodes}
    ready, wanted = looked.controllers
    return Status(
        server=api.server,
        kubernetes=(version or {}).get("gitVersion", "?"),
        command=__version__,
        image=image_of(daemonset),
        nodes=tuple(_node(by_name[agent.node], agent) for agent in looked.agents if agent.node in by_name),
        controllers_ready=ready,
        controllers_wanted=wanted,
        controller=(lease or {}).get("spec", {}).get("holderIdentity", "") if ready else "",
        definitions=definition_states(definitions),
        pools={one["metadata"]["name"]: accepted(one) for one in pools},
        cleaner=left_behind(cleaner),
    )


def left_behind(cleaner: Object | None) -> str:
    """Return in words what an `uninstall` that did not end well left, empty if none did."""
    if cleaner is None:
        return ""
    cleans = (
        "is parked, and cleans no node" if is_parked(cleaner) else "takes Podway out of every node it comes to"
    )
    return f"DaemonSet {CLEANER} stands, of an uninstall that did not end: it {cleans}"


def _node(node: Object, agent: rollout.AgentOn) -> NodeStatus:
    status = node.get("status", {})
    return NodeStatus(
        node=agent.node,
        version=version_of(agent.image) if agent.image else "",
        ready=agent.ready,
        network=network(status.get("conditions") or ()),
        kernel=status.get("nodeInfo", {}).get("kernelVersion", ""),
        why=agent.why,
    )


def network(conditions: Sequence[Mapping[str, Any]]) -> str:
    """Return in a word what a Node's conditions say of its network."""
    for one in conditions:
        if one["type"] == "NetworkUnavailable":
            return "available" if one["status"] == "False" else f"unavailable ({one.get('reason', '?')})"
    return "not told"


def accepted(pool: Object) -> str:
    """Return in words whether a pool holds, as the controller says."""
    for one in pool.get("status", {}).get("conditions") or ():
        if one["type"] == "Accepted":
            if one["status"] == "True":
                return f"accepted, {pool['spec']['cidr']}"
            return f"not accepted: {one.get('message') or one.get('reason', '')}"
    return "not judged yet"
