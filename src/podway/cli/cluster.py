"""`podway cluster`: Podway comes into a Kubernetes cluster, is changed there, and leaves it. Needs no root."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from podway.api.encode import to_json
from podway.api.kinds.ip_pool import Encapsulation, When
from podway.cli.help import examples
from podway.cli.mistakes import Group, Mistake
from podway.cli.options import GlobalOptions, cluster_options
from podway.cli.output import print_table
from podway.errors import ClusterError

if TYPE_CHECKING:  # aiohttp takes long to import
    from podway.deploy.api import Api
    from podway.deploy.install import KubeProxy
    from podway.deploy.preflight import Finding

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

PATIENCE = 300.0
SHOWN = 10


@click.group(
    cls=Group,
    epilog=examples(
        "podway cluster install --pool 10.244.0.0/16",
        "podway cluster status",
        "podway cluster upgrade",
        "podway cluster uninstall",
    ),
)
def cluster() -> None:
    """Install Podway in a Kubernetes cluster, change it there, and take it out again.

    The cluster is the one of the kubeconfig (KUBECONFIG, else ~/.kube/config), or that of --store
    kubernetes:///path/of/a/kubeconfig, or the lab's if it is a Kubernetes. Needs no root, but the rights of an
    administrator there.
    """


def _image(text: str) -> Callable[[F], F]:
    return click.option("--image", metavar="IMAGE", default="", help=text)


def _directory(name: str, text: str) -> Callable[[F], F]:
    def absolute(_context: click.Context, _parameter: click.Parameter, path: str) -> str:
        if path and not path.startswith("/"):
            raise Mistake(
                f"{name} {path}: it is a directory of every node", hint="say it from the root: /opt/cni/bin"
            )
        return path

    return click.option(name, metavar="DIR", default="", callback=absolute, help=text)


_force_conflicts = click.option(
    "--force-conflicts", "force", is_flag=True, help="Overwrite what others have set otherwise in these objects."
)
_timeout = click.option(
    "--timeout",
    "patience",
    type=click.FloatRange(min=1),
    default=PATIENCE,
    show_default=True,
    metavar="SECONDS",
    help="How long each node may take.",
)


@cluster.command(
    short_help="Have Podway be a cluster's network.",
    epilog=examples(
        "podway cluster install",
        "podway cluster install --pool 10.128.0.0/14 --pool fd00:10:128::/48 --encapsulation vxlan",
        "podway cluster install --image registry.example.com/podway:0.1.0",
        "podway cluster install --kube-proxy replace",
        "podway cluster install --dry-run > podway.yaml",
    ),
)
@click.option(
    "--pool",
    "pools",
    multiple=True,
    metavar="CIDR",
    help="Pod addresses of a cluster that has no pool yet; one of each family at most.  [default: 10.244.0.0/16]",
)
@click.option(
    "--encapsulation",
    type=click.Choice(get_args(Encapsulation)),
    help="Encapsulation of pod packets between nodes.  [default: vxlan between subnets, none within one]",
)
@click.option(
    "--when",
    type=click.Choice(get_args(When)),
    help="With --encapsulation: between which nodes.  [default: always]",
)
@_image("What agents and controller run.  [default: the image of this version]")
@click.option(
    "--kube-proxy",
    type=click.Choice(["replace", "keep"]),
    help="Serve Services in kube-proxy's place, or bring it back.  [default: what there is stays]",
)
@_force_conflicts
@_timeout
@click.option("--dry-run", is_flag=True, help="Print the manifests, and ask nobody.")
@cluster_options
@click.pass_obj
def install(
    options: GlobalOptions,
    *,
    pools: tuple[str, ...],
    encapsulation: Encapsulation | None,
    when: When | None,
    image: str,
    kube_proxy: KubeProxy | None,
    force: bool,
    patience: float,
    dry_run: bool,
) -> None:
    """Have Podway be the network of a cluster that has none, and wait until it is.

    First it looks whether anything forbids it: rights, versions, another plugin, ranges that overlap, nodes. Then
    nothing is changed. Doing it again does no harm.

    With --kube-proxy replace Podway serves all Services once its agents are ready; kube-proxy is stopped then, and
    its rules are removed. With keep it is started again, and Podway serves pods alone.
    """
    from podway.deploy import install as deploy

    if when and encapsulation in {None, "none"}:
        raise Mistake(f"--when {when}: there is no encapsulation", hint="add --encapsulation vxlan or ipip")
    if dry_run and kube_proxy:
        raise Mistake(f"--kube-proxy {kube_proxy}: no manifest does that", hint="leave out --dry-run")
    settings = deploy.Settings(
        image=image,
        pools=pools,
        kube_proxy=kube_proxy,
        encapsulation=encapsulation,
        when=when or "always",
        patience=patience,
        force=force,
    )
    if dry_run:
        click.echo(deploy.manifests(settings), nl=False)
        return
    deploy.planned(settings)  # what cannot be right is said before anybody is asked
    _run(options, lambda api: deploy.install(api, settings, click.echo, _show))


@cluster.command(
    short_help="Run another version, node by node.",
    epilog=examples(
        "podway cluster upgrade",
        "podway cluster upgrade --image registry.example.com/podway:0.1.0",
        "podway cluster upgrade --rollback",
    ),
)
@_image("What agents and controller are to run.  [default: the image of this version]")
@_force_conflicts
@_timeout
@click.option("--rollback", is_flag=True, help="Back to what ran before the last change.")
@cluster_options
@click.pass_obj
def upgrade(options: GlobalOptions, *, image: str, force: bool, patience: float, rollback: bool) -> None:
    """Have agents and controller run this version, one node after the other. Pods and connections go on.

    Where others have set something otherwise than this version has it, they are named with object and field, and
    nothing is changed without --force-conflicts.

    The next node's agent is replaced when the former one is ready. When one does not come up, the rest keeps what
    it has, and the command says which node and why.
    """
    from podway.deploy import install as deploy

    if rollback and image:
        raise Mistake("--rollback goes back to what ran before, --image says what to run", hint="leave one out")
    if rollback and force:
        raise Mistake("--force-conflicts: --rollback goes back to a whole pod template", hint="leave one out")
    settings = deploy.Settings(image=image, patience=patience, force=force)
    if rollback:
        _run(options, lambda api: deploy.roll_back(api, settings, click.echo))
    else:
        _run(options, lambda api: deploy.upgrade(api, settings, click.echo, _show))


@cluster.command(
    short_help="Show how Podway is.", epilog=examples("podway cluster status", "podway cluster status -o json")
)
@click.option("-o", "--output", type=click.Choice(["json"]), help="All that is known, for programs.")
@cluster_options
@click.pass_obj
def status(options: GlobalOptions, *, output: str | None) -> None:
    """Show versions, every node's agent, controller, definitions, pools; exit status 1 if any is not right."""
    import msgspec

    from podway.deploy.status import ask

    told = _run(options, ask)
    problems = list(told.problems())
    if output == "json":
        click.echo(to_json({**msgspec.to_builtins(told), "problems": problems}), nl=False)
        sys.exit(1 if problems else 0)
    ready = sum(one.ready for one in told.nodes)
    current = sum(state == "current" for state in told.definitions.values())
    click.echo(f"API server    {told.server}, Kubernetes {told.kubernetes}")
    click.echo(f"Podway        {told.image}; this command is of {told.command}")
    click.echo(f"definitions   {current} of {len(told.definitions)} current")
    works = f", {told.controller} works" if told.controller else ""
    click.echo(f"controller    {told.controllers_ready} of {told.controllers_wanted} ready{works}")
    for name, state in told.pools.items():
        click.echo(f"pool          {name}: {state}")
    click.echo(f"agents        {ready} of {len(told.nodes)} ready\n")
    if told.nodes:
        rows = [
            (one.node, "ready" if one.ready else "not ready", one.version, one.network, one.kernel)
            for one in told.nodes
        ]
        print_table(("NODE", "AGENT", "VERSION", "NETWORK", "KERNEL"), rows)
    for problem in problems:
        click.echo(f"podway: {problem}", err=True)
    sys.exit(1 if problems else 0)


@cluster.command(
    short_help="Take Podway out of a cluster.",
    epilog=examples(
        "podway cluster uninstall                       # asks before",
        "podway cluster uninstall --yes --with-pods",
        "podway cluster uninstall --without-node node7  # that is not coming back",
        "podway cluster uninstall --image registry.example.com/podway:0.1.0",
    ),
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--with-pods", is_flag=True, help="Even if pods are attached, which lose their network.")
@click.option(
    "--without-node",
    "without",
    multiple=True,
    metavar="NODE",
    help="Leave this node as it is, since it cannot be reached; may be repeated.",
)
@_image("What cleans the nodes.  [default: the agents' image]")
@_directory("--plugin-dir", "The nodes' directory of CNI plugins.  [default: the agents']")
@_directory("--conf-dir", "The nodes' directory of CNI configurations.  [default: the agents']")
@_timeout
@cluster_options
@click.pass_obj
def uninstall(
    options: GlobalOptions,
    *,
    yes: bool,
    with_pods: bool,
    without: tuple[str, ...],
    image: str,
    plugin_dir: str,
    conf_dir: str,
    patience: float,
) -> None:
    """Take Podway out of a cluster: off every node, and all its objects, with the definitions and what is of them.

    On the nodes links, routes, firewall tables and files go, and settings are set back. What pods still use is
    said first, and nothing is done without --with-pods then.
    """
    from podway.deploy import uninstall as deploy
    from podway.deploy.errands import Cleaning

    chosen = Cleaning(image=image, plugins=plugin_dir, configuration=conf_dir)

    async def work(api: Api) -> None:
        present = await deploy.find(api)
        if not present.objects:
            click.echo(f"nothing of Podway is at {api.server}")
            return
        names = {one["metadata"]["name"] for one in present.nodes}
        if unknown := sorted(set(without) - names):
            raise ClusterError(f"there is no Node {unknown[0]}", hint=f"there is: {', '.join(sorted(names))}")
        click.echo(f"at {api.server}: {len(present.objects)} objects of Podway, {len(names)} nodes")
        for resource in present.resources:
            click.echo(f"  goes with its definition: {resource}")
        click.echo("  goes with namespace podway: Secrets with the passwords of BGP peers, if there are any")
        for pod in present.pods[:SHOWN]:
            click.echo(f"  has its network of Podway: pod {pod}")
        if len(present.pods) > SHOWN:
            click.echo(f"  and {len(present.pods) - SHOWN} more pods")
        if present.pods and not with_pods:
            raise ClusterError(
                f"{len(present.pods)} pods have their network of Podway, and would lose it",
                hint="end them first (kubectl drain, kubectl scale), or say --with-pods",
            )
        if not yes and not click.confirm("Remove all of it?"):
            raise ClusterError("nothing was changed", hint="--yes removes without asking")
        await deploy.uninstall(api, present, click.echo, without=without, chosen=chosen, patience=patience)

    _run(options, work)


def _show(finding: Finding) -> None:
    mark = {"fails": "no  ", "warns": "look", "holds": "ok  "}[finding.level]
    click.echo(f"{mark}  {finding.what}")
    if finding.hint and finding.level != "holds":
        click.echo(f"      hint: {finding.hint}")


def _run(options: GlobalOptions, work: Callable[[Api], Awaitable[T]]) -> T:
    """Open the API that is meant, do the work with it, close it."""
    import asyncio

    from podway.deploy.api import Api

    async def opened() -> T:
        api = Api(options.client())
        try:
            return await work(api)
        finally:
            await api.close()

    return asyncio.run(opened())
