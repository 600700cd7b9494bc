"""`podway`: the root command. A command's module is imported only when that command runs."""

import importlib
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from podway import __version__
from podway.cli.complete import complete_labs
from podway.cli.help import EXIT_CODES
from podway.cli.options import GlobalOptions
from podway.errors import PodwayError
from podway.lab.paths import DEFAULT_LAB

COMMANDS: dict[str, tuple[str, str]] = {
    "get": ("podway.cli.get:get", "Show nodes, pods, pools, blocks and other objects."),
    "apply": ("podway.cli.change:apply", "Create or change objects from manifests."),
    "delete": ("podway.cli.change:delete", "Delete objects."),
    "set": ("podway.cli.setting:set_fields", "Change fields of an object on the running cluster."),
    "plan": ("podway.cli.preview:plan", "Show what a change would do to every node, and do nothing."),
    "snapshot": ("podway.cli.preview:snapshot", "Write the whole cluster into one file."),
    "simulate": ("podway.cli.simulate:simulate", "Plan a cluster of any size, without a kernel."),
    "verify": ("podway.cli.verify:verify", "Prove the network model by packets."),
    "trace": ("podway.cli.trace:trace", "Follow a packet through the cluster, hop by hop."),
    "doctor": ("podway.cli.doctor:doctor", "Find what is wrong on the nodes, and what mends it."),
    "status": ("podway.cli.agent:status", "Show how the agents are: store, BIRD, leases, drift."),
    "install": ("podway.cli.host:install", "Install the plugin and the agent's unit on this host."),
    "uninstall": ("podway.cli.host:uninstall", "Remove Podway from this host, and set back what it changed."),
    "agent": ("podway.cli.agent:agent", "Run the agent of a node."),
    "lab": ("podway.cli.lab:lab", "Build and use a whole cluster on this machine."),
    "completion": ("podway.cli.completion:completion", "Print the script for completion in bash, zsh or fish."),
}
"""Each command's `module:attribute`, and its line in --help."""


class LazyGroup(click.Group):
    """A group of commands in modules of their own, imported late, whose PodwayErrors are told in words."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; None if there is none of this name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands and options that a word may become, without importing any command."""
        commands = [
            CompletionItem(name, help=line) for name, (_, line) in COMMANDS.items() if name.startswith(incomplete)
        ]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; a PodwayError becomes a message on stderr and exit status 1."""
        try:
            return super().invoke(ctx)
        except PodwayError as error:
            _fail(ctx, error)


def _fail(ctx: click.Context, error: PodwayError) -> NoReturn:
    click.echo(f"podway: {error}", err=True)
    ctx.exit(1)


@click.group(cls=LazyGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="podway", message="%(prog)s %(version)s")
@click.option(
    "--store",
    metavar="URL",
    envvar="PODWAY_STORE",
    show_envvar=True,
    help="The cluster's store, such as sqlite:///var/lib/podway/store.db, or snapshot:FILE to look at one. "
    "Without it: the lab's.",
)
@click.option(
    "--lab",
    metavar="NAME",
    envvar="PODWAY_LAB",
    show_envvar=True,
    default=DEFAULT_LAB,
    show_default=True,
    help="The lab that commands work on.",
    shell_complete=complete_labs,
)
@click.pass_context
def main(ctx: click.Context, store: str | None, lab: str) -> None:
    """Podway: a Kubernetes pod network."""
    ctx.obj = GlobalOptions(store, lab)
