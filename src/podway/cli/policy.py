"""`podway policy`: what policies mean for pods and connections."""

import sys
from collections.abc import Sequence
from typing import Any

import click

from podway.api.kinds.network_config import NetworkConfig, NetworkConfigSpec
from podway.api.kinds.pod import Pod
from podway.api.resource import Resource, of_kind, subject
from podway.cli.agents import agents, ask_all
from podway.cli.complete import complete_namespaces
from podway.cli.get import everything
from podway.cli.help import examples
from podway.cli.kinds import DEFAULT_NAMESPACE, namespace_option
from podway.cli.mistakes import Group
from podway.cli.options import GlobalOptions, cluster_options
from podway.errors import AgentError, InvalidArgument, PodwayError

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

    FROM and TO are pods, nodes or addresses. A Service's address is no pod's: name a pod behind it, and its port.
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
    for wanted, directions in policies:
        click.echo(f"{subject(wanted)}: {', '.join(directions) or 'no rules'}")
    if not policies:
        click.echo(f"no policy selects {found.name}")
    _say_what_is_not_enforced(options, objects)


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
