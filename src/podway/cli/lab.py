"""`podway lab`: a whole cluster on one machine."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from podway.api.kinds.ip_pool import DEFAULT_POOL, Attach, Distribution, Encapsulation, When
from podway.api.kinds.network_config import DEFAULT_ASN, DataPath, ServiceClients
from podway.cli.complete import complete_namespaces, complete_nodes, complete_pods
from podway.cli.help import examples
from podway.cli.mistakes import Group, Mistake, in_arguments, say
from podway.cli.options import GlobalOptions, complete_labs, lab_option
from podway.errors import AgentError, LabError
from podway.lab.fabric import Tor
from podway.lab.paths import admin_config

if TYPE_CHECKING:
    from podway.api.kinds.pod import ContainerPort

_NAMESPACE = click.option(
    "-n",
    "--namespace",
    metavar="NS",
    help="The pod's namespace.  [default: default]",
    shell_complete=complete_namespaces,
)


def _report(line: str) -> None:
    click.echo(line, err=True)


class _Command(click.Command):
    """A command that makes or enters network namespaces, for which only root has the right."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it, or say at once that it needs root."""
        from podway.kernel.support import require_privileges

        require_privileges()
        return super().invoke(ctx)


class _Group(Group):
    """`podway lab` and its groups."""

    command_class = _Command
    group_class = type


@click.group(
    cls=_Group,
    epilog=examples(
        "podway lab up --nodes 3",
        "podway lab run web --node node1 --ip 10.244.1.10 --serve 80",
        "podway lab run client",
        "podway lab exec client -- curl -s http://10.244.1.10",
        "podway lab node node1 -- ip route",
        "podway lab down",
    ),
)
@lab_option()
def lab() -> None:
    """Build and use a whole cluster on this machine. Needs root.

    Each node is a network namespace with its own agent and BIRD; `ip netns exec` works in all of them.
    Several labs stand side by side: podway lab up --lab NAME.
    """


@lab.command(
    epilog=examples(
        "podway lab up",
        "podway lab up --lab six --nodes 5 --pool 10.244.0.0/16 --pool fd10::/48",
        "podway lab up --racks 2 --nodes 4 --encapsulation vxlan --when cross-subnet",
        "podway lab up --racks 2 --nodes 4 --tor bird",
        "podway lab up --store etcd",
        "podway lab up --kubernetes --nodes 2",
        "podway lab up --kubernetes --pool 10.244.0.0/16 --pool fd10:244::/48",
    )
)
@click.option("--nodes", default=3, show_default=True, help="How many nodes.")
@click.option(
    "--pool",
    "pools",
    multiple=True,
    metavar="CIDR",
    default=[DEFAULT_POOL],
    show_default=True,
    help="Pod addresses, IPv4 or IPv6; repeat for more. Both families: dual stack.",
)
@click.option(
    "--block-size",
    "block_sizes",
    multiple=True,
    type=click.IntRange(1, 128),
    metavar="LENGTH",
    help="Prefix length of a node's range; over 32 it is for IPv6.  [default: 24, 122]",
)
@click.option("--asn", default=DEFAULT_ASN, show_default=True, help="Autonomous system number of all nodes.")
@click.option(
    "--racks",
    default=1,
    show_default=True,
    help="More than one: each is a subnet behind a top-of-rack router, filled one after the other.",
)
@click.option(
    "--tor",
    type=click.Choice(get_args(Tor)),
    default="none",
    show_default=True,
    help="Who speaks BGP with the nodes on those routers; they then know the way to pods.",
)
@click.option(
    "--node-family",
    type=click.Choice(["ipv4", "ipv6", "dual"]),
    help="Addresses of the nodes themselves.  [default: ipv4, dual with an IPv6 pool]",
)
@click.option(
    "--distribution", type=click.Choice(get_args(Distribution)), help="What distributes routes.  [default: bgp]"
)
@click.option(
    "--encapsulation",
    type=click.Choice(get_args(Encapsulation)),
    help="Encapsulation of pod packets between nodes; ipip is for the IPv4 pools only.  [default: none]",
)
@click.option(
    "--when", type=click.Choice(get_args(When)), help="Which packets are encapsulated.  [default: always]"
)
@click.option("--attach", type=click.Choice(get_args(Attach)), help="How pods are attached.  [default: routed]")
@click.option(
    "--data-path",
    type=click.Choice(get_args(DataPath)),
    help="What carries and judges pods' packets.  [default: as PODWAY_LAB_DATA_PATH says, else kernel]",
)
@click.option(
    "--services",
    type=click.Choice(get_args(ServiceClients)),
    default="off",
    show_default=True,
    help="Whom Services are served; not off: with data path ebpf, and a DNS for their names.",
)
@click.option(
    "--store",
    "kept_in",
    type=click.Choice(["sqlite", "etcd"]),
    default="sqlite",
    show_default=True,
    help="What the store is: a file, or an etcd on the nodes' segment, if it is installed.",
)
@click.option(
    "--kubernetes",
    is_flag=False,
    flag_value="",
    metavar="[VERSION]",
    help="A whole Kubernetes, of what ./dev kubernetes built, with Podway installed.",
)
@click.option(
    "--image",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="PODWAY_IMAGE",
    help="With it: Podway's image.  [default: where ./dev image leaves it]",
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With it: a manifest of Podway.  [default: what `podway cluster install` applies]",
)
@lab_option()
@click.pass_obj
def up(
    options: GlobalOptions,
    /,
    *,
    nodes: int,
    pools: Sequence[str],
    block_sizes: Sequence[int],
    asn: int,
    racks: int,
    tor: Tor,
    node_family: str | None,
    data_path: DataPath | None,
    services: ServiceClients,
    kept_in: str,
    kubernetes: str | None,
    image: Path | None,
    manifest: Path | None,
    **pool_settings: str | None,
) -> None:
    """Build a cluster."""
    import msgspec

    if kubernetes is not None:
        _refuse_with_kubernetes()
        with in_arguments():
            _up_kubernetes(options.lab, kubernetes, nodes, pools, image, manifest)
        return
    if manifest:
        raise click.UsageError("--manifest is for --kubernetes")

    from podway.api.addresses import Family
    from podway.lab import cluster, names
    from podway.lab.facts import PoolSettings

    with in_arguments():
        cluster.up(
            options.lab,
            nodes=nodes,
            pools=pools,
            block_sizes=block_sizes,
            asn=asn,
            report=_report,
            racks=racks,
            tor=tor,
            node_families=tuple(family for family in Family if node_family in {family.label.lower(), "dual"}),
            pool_settings=msgspec.convert(
                {key: value for key, value in pool_settings.items() if value}, PoolSettings
            ),
            services=services,
            data_path=data_path,
            in_etcd=kept_in == "etcd",
        )
    again = names.option(options.lab)
    _report(f"lab {options.lab} is up; try: podway lab run web --serve 80{again}; podway get nodes{again}")


def _refuse_with_kubernetes() -> None:
    """Raise UsageError for options that say what a Kubernetes decides otherwise."""
    ctx = click.get_current_context()
    usable = {"nodes", "pools", "kubernetes", "image", "manifest", "lab"}
    for param in ctx.command.params:
        name = str(param.name)
        if name not in usable and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{param.opts[0]} is for plain labs: a Kubernetes is set up by kubectl")


def _up_kubernetes(
    lab: str, version: str, nodes: int, pools: Sequence[str], image: Path | None, manifest: Path | None
) -> None:
    from podway.lab import cluster as plain
    from podway.lab import names
    from podway.lab.kubernetes import cluster
    from podway.lab.kubernetes.programs import default_image, find_programs

    settings = cluster.Settings(
        programs=find_programs(version),
        image=image or default_image(),
        manifest=manifest,
        pools=tuple(map(plain.network, pools)),
    )
    cluster.up(lab, nodes=nodes, settings=settings, report=_report)
    again = names.option(lab)
    _report(f"lab {lab} is up; try: podway lab kubectl{again} -- get pods -A -o wide; podway status{again}")


@lab.command(
    short_help="Remove a cluster and every trace of it.", epilog=examples("podway lab down", "podway lab down six")
)
@click.argument("name", required=False, shell_complete=complete_labs)
@lab_option()
@click.pass_context
def down(ctx: click.Context, name: str | None) -> None:
    """Remove a cluster and every trace of it, however far it was built: the lab NAME, or that of --lab."""
    from podway.lab import cluster

    given, options = _given_lab(ctx), ctx.find_object(GlobalOptions)
    assert options is not None
    if name and given and name != given:
        raise click.UsageError(f"{name} or --lab {given}?")
    cluster.down(name or options.lab)
    _report(f"lab {name or options.lab} is gone")


def _given_lab(ctx: click.Context) -> str:
    """Return the lab that options of the command line named; empty if none did."""
    options = ctx.find_object(GlobalOptions)
    sources = [level.get_parameter_source("lab") for level in (ctx, *_above(ctx))]
    return options.lab if options and ParameterSource.COMMANDLINE in sources else ""


def _above(ctx: click.Context) -> Iterator[click.Context]:
    while ctx.parent is not None:
        ctx = ctx.parent
        yield ctx


@lab.command("list", cls=click.Command, epilog=examples("podway lab list"))
def list_labs() -> None:
    """Show all labs of this machine."""
    from podway.cli.output import print_table
    from podway.lab import state

    rows = []
    for name in state.labs():
        try:
            nodes = state.load(name).nodes
            rows.append((name, str(len(nodes)), ",".join(nodes)))
        except LabError as error:
            rows.append((name, "?", error.message))
    print_table(("LAB", "NODES", "NAMES"), rows)


@lab.command(epilog=examples("podway lab status"))
@lab_option()
@click.pass_obj
def status(options: GlobalOptions) -> None:
    """Show a lab's nodes: rack, addresses, agent, pods."""
    from podway.api.kinds.pod import Pod
    from podway.cli.output import print_table
    from podway.lab import facts, names, state
    from podway.lab.fabric import rack_label

    current = state.load(options.lab)
    racks = current.fabric.routed
    pods = facts.ask(options.lab, lambda store: store.list(Pod)).items
    print_table(
        ("NODE", *(("RACK",) if racks else ()), "ADDRESSES", "AGENT", "PODS", "NETWORK NAMESPACE"),
        [
            (
                node,
                *((rack_label(known.rack),) if racks else ()),
                ",".join(str(address.ip) for address in current.addresses(node)),
                _agent_state(options.lab, node) if known.running else "power cut",
                str(sum(pod.spec.node_name == node for pod in pods)),
                names.node_netns(options.lab, node),
            )
            for node, known in current.nodes.items()
        ],
    )
    if current.outside:
        addresses = ",".join(str(address.ip) for address in current.outside_interfaces)
        click.echo(f"host outside: {addresses} in {names.outside_netns(options.lab)}")


def _agent_state(name: str, node: str) -> str:
    from podway.lab import agents

    try:
        return "ready" if agents.status(name, node)["ready"] else "starting"
    except AgentError:
        return "down"


class _NodeGroup(_Group):
    """`lab node add NODE` is a command of the group; `lab node NODE -- CMD…` runs CMD on that node."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in self.commands:
            return super().resolve_command(ctx, args)
        return args[0], _on_node, args

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        nodes = [CompletionItem(name) for name in complete_nodes(ctx, None, incomplete)]
        return [*super().shell_complete(ctx, incomplete), *nodes]


@lab.group(
    cls=_NodeGroup,
    subcommand_metavar="NODE -- COMMAND... | add|rm|kill|start NODE",
    epilog=examples("podway lab node node1 -- ip route", "podway lab node add node4"),
)
@lab_option()
def node() -> None:
    """Run a command on a node, or add, remove, stop and start nodes."""


class _InnerCommand(_Command):
    """A command line with another one in it: behind `--`, or behind as many words as are our own.

    So the inner command's options are not taken for ours.
    """

    own_words = 1

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `--` before the inner command where nobody wrote it."""
        if "--" not in args:
            with_values = {name for param in self.params if isinstance(param, click.Option) for name in param.opts}
            words, position = 0, 0
            while position < len(args) and words <= self.own_words:
                if args[position].startswith("-"):
                    position += 2 if args[position] in with_values else 1
                    continue
                words += 1
                position += words <= self.own_words
            args = [*args[:position], "--", *args[position:]]
        return super().parse_args(ctx, args)


class _InnerCommandAlone(_InnerCommand):
    own_words = 0


@click.command(cls=_InnerCommand)
@click.argument("node")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@lab_option()
@click.pass_obj
def _on_node(options: GlobalOptions, node: str, command: tuple[str, ...]) -> None:
    from podway.lab import cluster

    if not command:
        raise Mistake(
            f"lab node: what shall run on {node}?",
            hint=f"write podway lab node {node} -- COMMAND..., or one of podway lab node add|rm|kill|start NODE",
        )
    if admin_config(options.lab).exists():
        from podway.lab.kubernetes.cluster import execute_on_node

        _run_inside(lambda: execute_on_node(options.lab, node, command))
    _run_inside(lambda: cluster.execute_on_node(options.lab, node, command))


def _run_inside(run: Callable[[], int]) -> NoReturn:
    """End with a command's exit status, or as a shell does: with 127 if there is none, 126 if it cannot run."""
    from podway.lab.processes import CannotRun

    try:
        status = run()
    except CannotRun as error:
        say(error.message)
        status = error.status
    raise SystemExit(status)


@node.command(epilog=examples("podway lab node add node4", "podway lab node add node5 --rack 2"))
@click.argument("node")
@click.option("--rack", type=int, help="Where it stands; without it, in the rack with the fewest nodes.")
@lab_option()
@click.pass_obj
def add(options: GlobalOptions, node: str, rack: int | None) -> None:
    """Add a node while the lab runs."""
    from podway.lab import cluster

    cluster.add_node(options.lab, node, _report, rack=rack)


@node.command(epilog=examples("podway lab node rm node2"))
@click.argument("node", shell_complete=complete_nodes)
@lab_option()
@click.pass_obj
def rm(options: GlobalOptions, node: str) -> None:
    """Take a node out of service in good order, its pods included."""
    from podway.lab import cluster

    cluster.remove_node(options.lab, node)
    _report(f"node {node} is gone")


@node.command(short_help="Cut a node's power.", epilog=examples("podway lab node kill node2"))
@click.argument("node", shell_complete=complete_nodes)
@lab_option()
@click.pass_obj
def kill(options: GlobalOptions, node: str) -> None:
    """Cut a node's power: link, agent, BIRD and pods at once, without a farewell."""
    from podway.lab import cluster

    cluster.kill_node(options.lab, node)
    _report(f"node {node} is off")


@node.command(short_help="Start a node or its agent again.", epilog=examples("podway lab node start node2"))
@click.argument("node", shell_complete=complete_nodes)
@lab_option()
@click.pass_obj
def start(options: GlobalOptions, node: str) -> None:
    """Start a node that was killed, with its pods, or an agent that ended."""
    from podway.lab import cluster

    cluster.start_node(options.lab, node, _report)


@lab.command(
    short_help="Run a pod.",
    epilog=examples(
        "podway lab run web --serve 80 --label app=web",
        "podway lab run shop/client --node node2",
        "podway lab run fixed --node node1 --ip 10.244.1.77",
        "podway lab run api --serve 8080 --port http=8080",
        "podway lab run --service web --serve 80      # a Service, and a pod behind it: web-1",
    ),
)
@click.argument("name", required=False)
@click.option(
    "--node",
    default="",
    help="Where it runs; without it, on the node with the fewest pods.",
    shell_complete=complete_nodes,
)
@_NAMESPACE
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label; repeat for more.")
@click.option("--ip", "addresses", multiple=True, metavar="ADDR", help="A wanted address; one a family.")
@click.option(
    "--serve",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Answer TCP and HTTP there, telling the asker's address.",
)
@click.option(
    "--service",
    metavar="NAME",
    help="Be behind this Service, which is made if it is not there; with --serve.",
)
@click.option(
    "--port",
    "ports",
    multiple=True,
    metavar="NAME=PORT[/PROTO]",
    help="A port that policies may call by its name; repeat for more.",
)
@lab_option()
@click.pass_obj
def run(
    options: GlobalOptions,
    name: str | None,
    *,
    node: str,
    namespace: str | None,
    labels: Sequence[str],
    addresses: Sequence[str],
    serve: int | None,
    service: str | None,
    ports: Sequence[str],
) -> None:
    """Run a pod: make its network namespace and attach it by the CNI plugin.

    With --service the pod may go without a name: it gets the Service's, and a number.
    """
    from podway.lab import pods, services

    if service is None and name is None:
        raise click.UsageError("what is the pod called? podway lab run NAME")
    if service is not None and serve is None:
        raise click.UsageError("--service needs --serve PORT: behind a Service somebody answers")
    space, called = _pod(name or str(service), namespace)
    wanted = dict(_pair(label) for label in labels)
    with in_arguments():
        if service is not None and serve is not None:
            service = service.removeprefix(f"{space}/")
            wanted = services.prepare(options.lab, service, space, serve, wanted)
            called = called if name else services.free_name(options.lab, service, space)
        pod = pods.run(
            options.lab,
            called,
            namespace=space,
            node=node,
            labels=wanted,
            addresses=[_address(text) for text in addresses],
            serve=serve,
            ports=[_named_port(text) for text in ports],
        )
    click.echo(f"pod {space}/{called} on {pod.spec.node_name}: {' '.join(map(str, pod.addresses))}")
    if service is not None:
        services.wait_served(options.lab)


def _address(text: str) -> str:
    from ipaddress import ip_address

    try:
        return str(ip_address(text))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--ip") from error


def _named_port(text: str) -> "ContainerPort":
    from podway.api.fields import check_port, check_port_name
    from podway.api.kinds.pod import ContainerPort
    from podway.policy.rules import PROTOCOLS

    name, equals, rest = text.partition("=")
    number, _, protocol = rest.partition("/")
    protocol = protocol.upper() or "TCP"
    if not equals or not number.isdecimal() or protocol not in PROTOCOLS:
        raise click.BadParameter(f"{text!r} is no NAME=PORT, such as http=8080 or dns=53/udp", param_hint="--port")
    for _, problem, hint in (*check_port_name("", name), *check_port("", int(number))):
        raise click.BadParameter(f"{text!r}: {problem}: {hint}", param_hint="--port")
    return ContainerPort(name=name, container_port=int(number), protocol=protocol)


def _pair(label: str) -> tuple[str, str]:
    key, equals, value = label.partition("=")
    if not equals:
        raise click.BadParameter(f"{label!r} is no KEY=VALUE", param_hint="--label")
    return key, value


@lab.command(
    cls=_InnerCommandAlone,
    short_help="Run kubectl, in a lab that is a Kubernetes.",
    epilog=examples("podway lab kubectl get nodes", "podway lab kubectl -- apply -f pods.yaml"),
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="ARGUMENTS...")
@lab_option()
@click.pass_obj
def kubectl(options: GlobalOptions, arguments: tuple[str, ...]) -> None:
    """Run kubectl as an administrator, in a lab that was built by `podway lab up --kubernetes`."""
    from podway.lab.kubernetes import cluster

    _run_inside(lambda: cluster.kubectl(options.lab, arguments))


@lab.command(
    "exec",
    cls=_InnerCommand,
    epilog=examples(
        "podway lab exec client -- ping -c1 10.244.1.10",
        "podway lab exec shop/client -- ip route",
    ),
)
@click.argument("name", shell_complete=complete_pods)
@_NAMESPACE
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
@lab_option()
@click.pass_obj
def execute(options: GlobalOptions, name: str, namespace: str | None, command: tuple[str, ...]) -> None:
    """Run a command in a pod: podway lab exec NAME -- COMMAND...

    Exit status: the command's own; 127 if there is no such command, 126 if it cannot run.
    """
    from podway.lab import pods

    space, name = _pod(name, namespace)
    _run_inside(lambda: pods.execute(options.lab, name, space, command))


@lab.command(
    "outside",
    cls=_InnerCommandAlone,
    short_help="Put a host beside the cluster, or run a command on it.",
    epilog=examples(
        "podway lab outside",
        "podway lab exec client -- curl -s http://203.0.113.10",
        "podway lab outside -- ip route",
        "podway lab outside --remove",
    ),
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--remove", "away", is_flag=True, help="Remove it, and the routes to it.")
@lab_option()
@click.pass_obj
def outside_host(options: GlobalOptions, command: tuple[str, ...], *, away: bool) -> None:
    """Put a host beside the cluster unless it is there: podway lab outside; run a command on it: ... -- COMMAND.

    It is in none of the cluster's ranges, and knows the way to nodes, not to pods. At port 80 it answers TCP and
    HTTP, telling the asker's address. `podway trace client outside` shows the way there. It goes with the lab.
    """
    from podway.lab import outside

    if away and command:
        raise click.UsageError("--remove runs no command")
    if away:
        _report("host outside is gone" if outside.remove(options.lab) else "there was no host outside")
        return
    if command:
        _run_inside(lambda: outside.execute(options.lab, command))
    found, _ = outside.ensure(options.lab)
    click.echo(f"host outside: {' '.join(str(one.ip) for one in found.outside_interfaces)}, port {outside.PORT}")


@lab.command("rm", epilog=examples("podway lab rm web", "podway lab rm shop/web"))
@click.argument("name", shell_complete=complete_pods)
@_NAMESPACE
@lab_option()
@click.pass_obj
def remove(options: GlobalOptions, name: str, namespace: str | None) -> None:
    """Remove a pod."""
    from podway.lab import pods

    space, name = _pod(name, namespace)
    pods.remove_named(options.lab, name, space)
    _report(f"pod {space}/{name} is gone")


def _pod(text: str, namespace: str | None) -> tuple[str, str]:
    """Return the namespace and name of a pod: `web`, `shop/web`, also `pod/web` as `get -o name` prints it."""
    from podway.cli.kinds import DEFAULT_NAMESPACE, read_name

    space, name = read_name(text.removeprefix("pod/"), namespace)
    return space or DEFAULT_NAMESPACE, name


@lab.command(
    "demo",
    short_help="Build, show, prove and remove a cluster.",
    epilog=examples("podway lab demo", "podway lab demo --keep"),
)
@click.option("--keep", is_flag=True, help="Leave the cluster standing, to look around.")
@click.pass_context
def show(ctx: click.Context, *, keep: bool) -> None:
    """Build a cluster, show how a packet travels, prove the network model, remove everything."""
    from podway.cli.demo import run

    ctx.exit(run(keep=keep))
