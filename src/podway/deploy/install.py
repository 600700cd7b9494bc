"""Podway comes into a cluster, and changes there: one node at a time, and back."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias

import msgspec
import yaml

from podway.agent.first_pools import pool_of
from podway.api.kinds.ip_pool import Encapsulation, IPPool, When
from podway.api.validate import validate
from podway.deploy import kube_proxy, rollout
from podway.deploy.api import Api, place
from podway.deploy.errands import FORGET_RIGHTS, fetcher, forget_errands, run_errand
from podway.deploy.objects import (
    AGENT,
    CONTROLLER,
    NAMESPACE,
    POOLS,
    Choices,
    Object,
    chosen,
    image_of,
    objects,
    server_of,
    subject,
    workload,
)
from podway.deploy.preflight import Facts, Finding, gather, judge, rights
from podway.deploy.rollout import Report, installed_image
from podway.errors import ClusterError, InvalidObject

VERBS = ("get", "create", "patch")
ESTABLISHED_SECONDS = 30.0
CONFLICTS_SHOWN = 20
KUBECTL_APPLY = "kubectl-client-side-apply"
"""The field manager of `kubectl apply` without --server-side."""
OWN_KINDS = {"CustomResourceDefinition"}
"""What is Podway's own altogether: definitions are as its code has them, whoever applied them before."""
REVISION = "deployment.kubernetes.io/revision"

KubeProxy: TypeAlias = Literal["replace", "keep"]
"""Whether Podway serves all Services in kube-proxy's place, or kube-proxy those of whom Podway does not serve."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How Podway is to come or to be changed; what is empty is as it is there, or as the manifests say."""

    image: str = ""
    pools: tuple[str, ...] = ()
    encapsulation: Encapsulation | None = None
    when: When = "always"
    patience: float = 300.0
    """Seconds that each node's agent may take."""
    force: bool = False
    """Whether fields that others have set otherwise are overwritten."""
    kube_proxy: KubeProxy | None = None
    """What becomes of kube-proxy; None: what there is stays."""
    server: tuple[str, str] | None = None
    """Host and port at which agents ask the API server, in place of the Service kubernetes."""


class Look(Protocol):
    """Takes what a preflight found."""

    def __call__(self, finding: Finding, /) -> None:
        """Show it."""


def planned(settings: Settings) -> tuple[dict[str, Any], ...]:
    """Return all that `install` applies in a cluster that has nothing of Podway yet. Raises InvalidObject."""
    made = objects(Choices(image=settings.image, pools=settings.pools, server=settings.server))
    return (*made, *_pools(settings, made))


def manifests(settings: Settings) -> str:
    """Return the same as YAML. Raises InvalidObject."""
    return yaml.safe_dump_all(planned(settings), sort_keys=False)


def configured(made: Sequence[Object]) -> tuple[str, ...]:
    """Return the networks that the manifests' ConfigMap names."""
    config = next(one for one in made if one["kind"] == "ConfigMap")
    return tuple(part.strip() for part in config["data"][POOLS].split(","))


def _pools(settings: Settings, made: Sequence[Object]) -> tuple[dict[str, Any], ...]:
    """Return the pools that are made here: with an encapsulation of one's choice; agents make the others."""
    networks = [*map(pool_of, configured(made))]
    if len({pool.family for pool in networks}) < len(networks):
        raise InvalidObject(
            "pool", "", "two of one family", hint="state one IPv4 and one IPv6 range; add others later"
        )
    return () if settings.encapsulation is None else tuple(_shape(pool, settings) for pool in networks)


def _shape(pool: IPPool, settings: Settings) -> dict[str, Any]:
    assert settings.encapsulation is not None
    when: When = "always" if settings.encapsulation == "none" else settings.when
    spec = msgspec.structs.replace(pool.spec, encapsulation=settings.encapsulation, when=when)
    validate(msgspec.structs.replace(pool, spec=spec))
    return {
        "apiVersion": pool.api_version,
        "kind": pool.KIND,
        "metadata": {"name": pool.metadata.name},
        "spec": {"cidr": spec.cidr, "encapsulation": settings.encapsulation, "when": when},
    }


async def install(api: Api, settings: Settings, report: Report, show: Look) -> None:
    """Have Podway be the network of a cluster, and wait until every node has a ready agent.

    Raises ClusterError if something forbids it (nothing is changed then), or if an agent does not come up.
    """
    proxys = kube_proxy.RIGHTS if settings.kube_proxy else ()
    facts = await gather(api, (*rights(planned(settings), VERBS), *FORGET_RIGHTS, *proxys))
    # What may not be read is told as a denied right.
    proxy = await kube_proxy.look(api) if settings.kube_proxy and not facts.denied else kube_proxy.UNKNOWN
    replaces = settings.kube_proxy == "replace"
    settings = msgspec.structs.replace(
        settings,
        pools=settings.pools or facts.configured,
        server=kube_proxy.server_for(facts, proxy) if replaces else server_of(facts.agent),
    )
    made = planned(settings)
    about = kube_proxy.judge(facts, proxy) if replaces and not facts.denied else ()
    _require((*judge(facts, configured(made)), *about), show)
    there, wanted = installed_image(facts.agent), image_of(workload(made, AGENT))
    if there and there != wanted:
        raise ClusterError(f"{there} is installed, and not {wanted}", hint="podway cluster upgrade")
    _require_free(facts, made, settings)
    await _require_unheld(api, made, report, force=settings.force)
    await forget_errands(api, report, settings.patience)
    await _apply(api, [one for one in made if one["kind"] != "IPPool"], report, force=settings.force)
    if pools := [one for one in made if one["kind"] == "IPPool"]:
        await _apply(api, pools, report, force=settings.force)
    await _wait(api, report, settings.patience)
    agent = workload(made, AGENT)
    if replaces:
        await kube_proxy.replace(api, facts, proxy, agent, report, settings.patience)
    elif settings.kube_proxy == "keep" and proxy.replaced:
        await kube_proxy.bring_back(api, proxy, agent, report, patience=settings.patience)


def _require_free(facts: Facts, made: Sequence[Object], settings: Settings) -> None:
    """Raise ClusterError if pools that there are count, and others were asked for."""
    if not facts.pools:
        return
    there = {one["spec"]["cidr"]: one for one in facts.pools}
    asked = configured(made) if settings.pools and settings.pools != facts.configured else ()
    other = [cidr for cidr in asked if cidr not in there]
    if other:
        raise ClusterError(
            f"--pool {other[0]}: the cluster has pools already, which count alone: {', '.join(sorted(there))}",
            hint="add one: podway apply -f, or kubectl apply -f",
        )
    for pool in (one for one in made if one["kind"] == "IPPool"):
        found = there.get(pool["spec"]["cidr"], {"spec": {}, "metadata": {"name": "?"}})
        if found["spec"].get("encapsulation", "none") != pool["spec"]["encapsulation"]:
            name, wanted = found["metadata"]["name"], pool["spec"]["encapsulation"]
            raise ClusterError(
                f"IPPool/{name} is there already, with encapsulation {found['spec'].get('encapsulation', 'none')}",
                hint=f"change it without a break: podway set pool/{name} encapsulation={wanted}",
            )


def _require(findings: Sequence[Finding], show: Look) -> None:
    for finding in findings:
        show(finding)
    failed = [one for one in findings if one.level == "fails"]
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise ClusterError(f"nothing was changed: {failed[0].what}{more}", hint=failed[0].hint)


async def _require_unheld(api: Api, made: Sequence[Object], report: Report, *, force: bool) -> None:
    """Raise ClusterError that names the fields that others have set otherwise than they will be, unless by force.

    With `force` they are reported: they are about to be overwritten.
    """
    settable = [one for one in made if one["kind"] not in OWN_KINDS]
    found = await asyncio.gather(*map(api.conflicts, settable))
    held = [
        (f"{subject(obj)}: {field}, set by {manager}", manager)
        for obj, each in zip(settable, found, strict=True)
        for field, manager in each
    ]
    if force:
        for told, _ in held:
            report(f"overwritten: {told}")
    elif held:
        lines = "".join(f"\n  {told}" for told, _ in held[:CONFLICTS_SHOWN])
        more = f"\n  and {len(held) - CONFLICTS_SHOWN} more" if len(held) > CONFLICTS_SHOWN else ""
        by_kubectl = (
            f"{KUBECTL_APPLY} is kubectl apply: go on with it and this version's manifests, or hand them over: "
            if any(manager == KUBECTL_APPLY for _, manager in held)
            else "note what is to stay; "
        )
        raise ClusterError(
            f"nothing was changed: others have set {len(held)} fields otherwise:{lines}{more}",
            hint=f"{by_kubectl}--force-conflicts overwrites them; what is to differ can be set again afterwards",
        )


async def _apply(api: Api, made: Sequence[Object], report: Report, *, force: bool) -> None:
    for obj in made:
        await api.apply(obj, force=force or obj["kind"] in OWN_KINDS)
        # What is of a kind that has just been defined comes after it is served.
        if obj["kind"] == "CustomResourceDefinition":
            await _until_established(api, obj)
    report(f"{len(made)} objects are applied")


async def _until_established(api: Api, definition: Object) -> None:
    deadline = time.monotonic() + ESTABLISHED_SECONDS
    name = definition["metadata"]["name"]
    path = place(definition["apiVersion"], "customresourcedefinitions", "", name)
    while True:
        found = await api.find(path) or {}
        conditions = {one["type"]: one for one in found.get("status", {}).get("conditions") or ()}
        if conditions.get("Established", {}).get("status") == "True":
            return
        if time.monotonic() > deadline:
            told = "; ".join(one.get("message", "") for one in conditions.values() if one["status"] == "False")
            raise ClusterError(f"{subject(definition)} is not served: {told or 'the API server does not say why'}")
        await asyncio.sleep(0.1)


async def _wait(api: Api, report: Report, patience: float) -> None:
    looked = await rollout.until_ready(api, report, patience)
    await rollout.until_controlled(api, report, patience)
    ready, images = sum(one.ready for one in looked.agents), ", ".join(rollout.images(looked)) or "none"
    report(f"{ready} of {len(looked.agents)} nodes have a ready agent of {images}")


async def upgrade(api: Api, settings: Settings, report: Report, show: Look) -> None:
    """Have agents and controller be of another version, one node at a time, and wait for each.

    Kubernetes itself goes on to the next node only when the former one's agent is ready. Raises ClusterError if
    something forbids it (nothing is changed then), or that names the node at which it stopped.
    """
    made = objects(Choices(image=settings.image))
    facts = await gather(api, (*rights(made, VERBS), *FORGET_RIGHTS))
    if facts.agent is None:
        raise ClusterError("Podway is not installed here", hint="podway cluster install")
    server = server_of(facts.agent)
    made = objects(Choices(image=settings.image, pools=facts.configured, server=server))
    # Pools and nodes are as they have worked so far.
    about = msgspec.structs.replace(facts, pools=(), daemonsets=(), services=())
    _require(judge(about, ()), show)
    before, after = installed_image(facts.agent), image_of(workload(made, AGENT))
    report(f"from {before} to {after}" if before != after else f"{after} stays; its objects are applied anew")
    await _require_unheld(api, made, report, force=settings.force)
    await forget_errands(api, report, settings.patience)
    for one in (await rollout.look(api)).agents:
        if not one.ready:
            report(f"{one.node}: the agent is not ready before the upgrade: {one.why}")
    await _fetch(api, workload(made, AGENT), after, report, settings.patience)
    await _change(api, [one for one in made if one["kind"] != "Deployment"], report, settings)
    await _apply(api, [workload(made, CONTROLLER)], report, force=settings.force)
    await _wait(api, report, settings.patience)


async def _fetch(api: Api, agent: Object, image: str, report: Report, patience: float) -> None:
    """Have every node fetch an image before any agent ends for it: one that waits for an image serves nobody.

    Raises ClusterError that names the nodes that cannot.
    """
    try:
        await run_errand(api, fetcher(agent, image), report, "the image is there", patience=patience)
    except ClusterError as error:
        raise ClusterError(
            f"nothing was changed, {image} cannot be run everywhere: {error.message}",
            hint="import it there (ctr --namespace k8s.io images import), or name another: --image",
        ) from error


async def _change(api: Api, made: Sequence[Object], report: Report, settings: Settings) -> None:
    await _apply(api, made, report, force=settings.force)
    try:
        await rollout.until_ready(api, report, settings.patience)
    except ClusterError as error:
        raise ClusterError(
            f"the change stopped, and the nodes after it keep the agents that they have: {error.message}",
            hint=f"go back: podway cluster upgrade --rollback; or look: {error.hint}",
        ) from error


async def roll_back(api: Api, settings: Settings, report: Report) -> None:
    """Have agents and controller run what they ran before the last change, one node at a time.

    Definitions and rights stay: those of a newer Podway allow and know all that an older one needs. Raises
    ClusterError if no former revision is known, or that names the node at which it stopped.
    """
    daemonset = await api.find(place("apps/v1", "daemonsets", NAMESPACE, AGENT))
    deployment = await api.find(place("apps/v1", "deployments", NAMESPACE, CONTROLLER))
    if daemonset is None:
        raise ClusterError("Podway is not installed here", hint="podway cluster install")
    revisions = await api.list(place("apps/v1", "controllerrevisions", NAMESPACE))
    template = rollout.former_template(revisions, daemonset)
    if template is None:
        raise ClusterError(
            "no former revision of the agents is known: nothing to go back to",
            hint="name what to run: podway cluster upgrade --image IMAGE",
        )
    # Where kube-proxy was replaced since, no agent could start without what says where the API server is.
    former = chosen(_with_template(daemonset, template), Choices(server=server_of(daemonset)))
    report(f"back from {image_of(daemonset)} to {image_of(former)}")
    await forget_errands(api, report, settings.patience)
    # What ran before is gone back to as a whole, whoever set which part of it.
    await _change(api, [former], report, msgspec.structs.replace(settings, force=True))
    if deployment is not None:
        replicas = await api.list(place("apps/v1", "replicasets", NAMESPACE))
        older = former_replica_template(replicas, deployment, image_of(former))
        if older is not None:
            await _apply(api, [_with_template(deployment, older)], report, force=True)
    await _wait(api, report, settings.patience)


def former_replica_template(replicas: Sequence[Object], deployment: Object, image: str) -> dict[str, Any] | None:
    """Return the newest pod template of a Deployment that is of an image, None if it has that or none is known."""
    uid = deployment["metadata"].get("uid", "")
    own = [
        one
        for one in replicas
        if any(owner.get("uid") == uid for owner in one["metadata"].get("ownerReferences", ()))
        and image_of(one) == image
    ]
    if image_of(deployment) == image or not own:
        return None
    newest = max(own, key=lambda one: int(one["metadata"].get("annotations", {}).get(REVISION, "0")))
    template: dict[str, Any] = newest["spec"]["template"]
    labels = {name: value for name, value in template["metadata"]["labels"].items() if name != "pod-template-hash"}
    return {**template, "metadata": {**template["metadata"], "labels": labels}}


def _with_template(owner: Object, template: dict[str, Any]) -> dict[str, Any]:
    """Return what is applied to have a workload run another template; nothing else of it is touched."""
    metadata = {name: value for name, value in template.get("metadata", {}).items() if value is not None}
    made = {one["metadata"]["name"]: one for one in objects() if one["kind"] in {"DaemonSet", "Deployment"}}
    ours = made[owner["metadata"]["name"]]
    kept = {name: owner["spec"][name] for name in ours["spec"] if name != "template" and name in owner["spec"]}
    return {**ours, "spec": {**kept, "template": {**template, "metadata": metadata}}}
