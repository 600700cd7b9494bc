"""`podway policy`: what policies mean for pods and connections."""

import sys
from collections.abc import Sequence
from typing import Any

import click

from podway.api.audit import is_audited
from podway.api.kinds.cluster_network_policy import ClusterNetworkPolicy
from podway.api.kinds.network_config import NetworkConfig, NetworkConfigSpec
from podway.api.kinds.network_policy import NetworkPolicy
from podway.api.kinds.pod import Pod
from podway.api.resource import Resource, key, of_kind, subject
from podway.cli.agents import agents, ask_all
from podway.cli.complete import complete_namespaces, complete_policies
from podway.cli.get import everything
from podway.cli.help import examples
from podway.cli.kinds import DEFAULT_NAMESPACE, namespace_option
from podway.cli.mistakes import Group
from podway.cli.options import GlobalOptions, cluster_options
from podway.cli.output import print_table
from podway.errors import AgentError, Conflict, InvalidArgument, NotFound, PodwayError

DEFAULT_PROTOCOL = "tcp"


@click.group(
    cls=Group,
    epilog=examples("podway policy explain web client --port 80", "podway policy list web", "podway policy lint"),
)
def policy() -> None:
    """Say what policies mean, by the cluster's objects."""


@policy.command(
    epilog=examples(
        "podway policy explain web client --port 80",
        "podway policy explain web 192.0.2.1 --port 53 --proto udp",
    )
)
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--port", metavar="P", type=click.IntRange(1, 65535), required=True, help="TO's port.")
@click.option(
    "--proto",
    type=click.Choice(["tcp", "udp", "sctp"], case_sensitive=False),
    default=DEFAULT_PROTOCOL,
    show_default=True,
    help="The protocol.",
)
@namespace_option
@cluster_options
@click.pass_obj
def explain(
    options: GlobalOptions, *, source: str, target: str, port: int, proto: str, namespace: str | None
) -> None:
    """Say whether a connection is allowed, and by which rule of each end.

    FROM and TO are pods, nodes or addresses, TO also the name of a domain. A Service's address is no pod's: name
    a pod behind it, and its port.
    """
    from podway.policy import explain as judge
    from podway.policy.rules import PROTOCOLS

    objects = options.run(everything)
    near, far = (judge.find_end(objects, text, namespace or DEFAULT_NAMESPACE) for text in (source, target))
    for found in judge.explain(objects, near, far, PROTOCOLS[proto.upper()], port):
        verdict = "allowed" if found.allowed else "denied"
        click.echo(f"{found.source} -> {found.destination} ({found.address}) {proto} port {port}: {verdict}")
        for reason in found.reasons:
            said = "allowed" if reason.allowed else "denied"
            where = f"{reason.direction} of {reason.pod}" if reason.direction else reason.pod
            click.echo(f"  {where}: {said}: {reason.reason}")
            if reason.audit:
                click.echo(f"    audited policies would deny it: {reason.audit}")
    _say_what_is_not_enforced(options, objects)


@policy.command("list", epilog=examples("podway policy list web", "podway policy list shop/client"))
@click.argument("pod", metavar="POD")
@namespace_option
@cluster_options
@click.pass_obj
def list_policies(options: GlobalOptions, *, pod: str, namespace: str | None) -> None:
    """List the policies that select a pod, with their directions."""
    from podway.policy import explain as judge

    objects = options.run(everything)
    found = judge.find_end(objects, pod, namespace or DEFAULT_NAMESPACE)
    if found.pod is None:
        raise InvalidArgument(f"{found.name} is no pod", hint="name a pod: podway get pods -A")
    policies = judge.policies_of(objects, found.pod)
    audited = {key(one) for one in _policies(objects) if is_audited(one)}
    for wanted, directions in policies:
        note = " (audited: it only reports)" if wanted in audited else ""
        click.echo(f"{subject(wanted)}: {', '.join(directions) or 'no rules'}{note}")
    if not policies:
        click.echo(f"no policy selects {found.name}")
    _say_what_is_not_enforced(options, objects)


@policy.command("names", epilog=examples("podway policy names", "podway policy names www.example.com"))
@click.argument("name", required=False)
@cluster_options
@click.pass_obj
def names(options: GlobalOptions, *, name: str | None) -> None:
    """List the addresses that nodes know by names of domains in policies.

    They are learned from the answers of DNS that pods get. SECONDS are how long that holds yet; while connections
    to an address are open it is prolonged. With NAME those of one name only.
    """
    rows = []
    for node, answer in sorted(ask_all(agents(options), "names").items()):
        if isinstance(answer, AgentError):
            click.echo(f"{node}: {answer.message}", err=True)
            continue
        rows += [
            [one["name"], one["address"], node, str(one["seconds"])]
            for one in answer
            if name is None or one["name"] == name.lower().removesuffix(".")
        ]
    if rows:
        print_table(["NAME", "ADDRESS", "NODE", "SECONDS"], sorted(rows))
    else:
        click.echo("no node knows an address by a name")


@policy.command("suggest", epilog=examples("podway policy suggest shop", "podway policy suggest shop --since 2h"))
@click.argument("namespace", metavar="NAMESPACE", shell_complete=complete_namespaces)
@click.option("--since", metavar="AGO", default="24h", show_default=True, help="What was seen from then on.")
@cluster_options
@click.pass_obj
def suggest_policies(options: GlobalOptions, *, namespace: str, since: str) -> None:
    """Write the least policies that allow what was seen in a NAMESPACE.

    By what nodes recorded (`podway flows`): one NetworkPolicy for all pods of the same labels, with what they were
    seen to take and to make. What was denied stays so. Comments tell what was seen too rarely to be sure of, and
    what no policy can say. Read it, and try it: podway plan -f FILE --flows 24h.
    """
    from podway.api.encode import to_builtins, to_yaml
    from podway.cli.flows import plain
    from podway.cli.seen import seen
    from podway.preview.flows import suggest

    objects = options.run(everything)
    if not any(pod.metadata.namespace == namespace for pod in of_kind(Pod, objects)):
        raise InvalidArgument(f"namespace {namespace} has no pods", hint="podway get pods -A")
    found = suggest(objects, namespace, seen(options, "--since", since, namespace))
    for note in found.notes:
        click.echo(f"# {plain(note)}")
    for position, one in enumerate(found.policies):
        if position:
            click.echo("---")
        click.echo(to_yaml(to_builtins(one)), nl=False)


@policy.command("lint", epilog=examples("podway policy lint"))
@cluster_options
@click.pass_obj
def lint_policies(options: GlobalOptions) -> None:
    """Tell what is valid, but probably not meant.

    Exits with 1 if there is anything.
    """
    from podway.policy.lint import lint

    objects: Sequence[Resource] = options.run(everything)
    found: Sequence[Any] = lint(objects)
    for wanted, (field, problem, hint) in found:
        click.echo(f"{subject(wanted)}: {field}: {problem}\n  hint: {hint}")
    if not found:
        click.echo("nothing found")
    _say_what_is_not_enforced(options, objects)
    if found:
        sys.exit(1)


@policy.command(
    "audit",
    epilog=examples(
        "podway policy audit shop/deny-all             # from now on it only reports",
        "podway policy audit                           # what audited policies would have denied in the last hour",
        "podway flows --verdict audited --policy shop/deny-all --since 1d",
        "podway policy audit shop/deny-all --enforce   # from now on it holds",
    ),
)
@click.argument("name", metavar="[POLICY]", required=False, shell_complete=complete_policies)
@click.option("--enforce", is_flag=True, help="Have it hold again.")
@click.option(
    "--since", metavar="AGO", default="1h", show_default=True, help="Without POLICY: count from then on."
)
@cluster_options
@click.pass_obj
def audit_policies(options: GlobalOptions, *, name: str | None, enforce: bool, since: str) -> None:
    """Have a POLICY report what it would deny, and deny nothing.

    Without POLICY: tell what was reported. POLICY is NAMESPACE/NAME, or the NAME of a ClusterNetworkPolicy. The
    mark is an annotation, podway.io/audit, of which only the value `true` counts; manifests may have it, too. All
    other policies go on to hold. While the policy is audited its pods are as open as the others leave them.
    """
    if name is None:
        if enforce:
            raise click.UsageError("--enforce is for one policy: name it")
        _show_audits(options, since)
        return
    from podway.api.assign import assign
    from podway.store.base import Store

    found = _policy_named(options.run(everything), name)

    async def mark(store: Store) -> bool:
        while True:
            old = await store.get(type(found), found.metadata.name, namespace=found.metadata.namespace)
            if is_audited(old) is not enforce:
                return False
            try:
                await store.update(assign(old, ["audit=" if enforce else "audit=true"]))
            except Conflict:
                continue  # somebody was quicker: look again
            return True

    changed = options.run(mark)
    said = "holds from now on" if enforce else "only reports from now on: podway flows --verdict audited"
    if not changed:
        said = "holds already" if enforce else "only reports already"
    click.echo(f"{subject(key(found))}: {said}")


def _policies(objects: Sequence[Resource]) -> tuple[NetworkPolicy | ClusterNetworkPolicy, ...]:
    return (*of_kind(NetworkPolicy, objects), *of_kind(ClusterNetworkPolicy, objects))


def _policy_named(objects: Sequence[Resource], name: str) -> NetworkPolicy | ClusterNetworkPolicy:
    for one in _policies(objects):
        told = subject(key(one))
        if name in (told, told.partition("/")[2]):
            return one
    raise NotFound(
        f"there is no policy {name}", hint="podway get networkpolicies -A; podway get clusternetworkpolicies"
    )


def _show_audits(options: GlobalOptions, since: str) -> None:
    import time

    from podway.cli.flows import moment_of, plain, sum_up
    from podway.cli.output import print_table

    objects = options.run(everything)
    audited = [subject(key(one)) for one in _policies(objects) if is_audited(one)]
    params = {"since": moment_of("--since", since, time.time()), "verdicts": ["audited"]}
    whole, notes, silent = sum_up(agents(options), "policy", params)
    for note in (*(error.message for error in silent.values()), *notes):
        click.echo(f"podway: {plain(note)}", err=True)
    counts = {row.key: row.audited for row in whole.rows if row.audited}
    if not audited and not counts:
        click.echo("no policy is audited: podway policy audit POLICY")
        return
    print_table(
        ["POLICY", "NOW", f"WOULD HAVE DENIED ({since})"],
        [
            [plain(one), "reports" if one in audited else "holds, or is gone", str(counts.get(one, 0))]
            for one in sorted({*audited, *counts}, key=lambda one: (-counts.get(one, 0), one))
        ],
    )


def _say_what_is_not_enforced(options: GlobalOptions, objects: Sequence[Resource]) -> None:
    """Say where nothing enforces what was said: by the settings, and on nodes whose agents can be asked."""
    spec = next((one.spec for one in of_kind(NetworkConfig, objects)), NetworkConfigSpec())
    if spec.data_path == "kernel":
        told = "nothing enforces policies here: podway set config dataPath=ebpf"
    else:
        without = _without_enforcement(options)
        told = f"nothing enforces policies on {', '.join(without)}: see `podway status`" if without else ""
    if told:
        click.echo(f"note: {told}", err=True)


def _without_enforcement(options: GlobalOptions) -> list[str]:
    try:
        answers = ask_all(agents(options), "status")
    except PodwayError:  # a snapshot, or nobody here who may be asked: what policies mean is said all the same
        return []
    return [
        node
        for node, answer in answers.items()
        if not isinstance(answer, AgentError) and answer["data_path"]["in_force"] != "ebpf"
    ]
