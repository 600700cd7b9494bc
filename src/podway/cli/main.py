"""`podway`: the root command. A command's module is imported only when that command runs."""

import importlib
import sys
from typing import Any

import click
from click.shell_completion import CompletionItem

from podway import __version__
from podway.cli.help import EXIT_CODES
from podway.cli.mistakes import Group, tell
from podway.cli.options import lab_option, store_option
from podway.errors import PodwayError
from podway.lab.paths import DEFAULT_LAB

COMMANDS: dict[str, tuple[str, str]] = {
    "get": ("podway.cli.get:get", "Show nodes, pods, pools, blocks and other objects."),
    "describe": ("podway.cli.describe:describe", "Tell everything about an object, and what belongs to it."),
    "apply": ("podway.cli.change:apply", "Create or change objects from manifests."),
    "delete": ("podway.cli.change:delete", "Delete objects."),
    "set": ("podway.cli.setting:set_fields", "Change fields of an object on the running cluster."),
    "plan": ("podway.cli.preview:plan", "Show what a change would do to every node, and do nothing."),
    "snapshot": ("podway.cli.preview:snapshot", "Write the whole cluster into one file."),
    "simulate": ("podway.cli.simulate:simulate", "Plan a cluster of any size, without a kernel."),
    "verify": ("podway.cli.verify:verify", "Prove the network model by packets."),
    "trace": ("podway.cli.trace:trace", "Follow a packet through the cluster, hop by hop."),
    "flows": ("podway.cli.flows:flows", "Show who speaks to whom, what is dropped and why, live and past."),
    "capture": (
        "podway.cli.capture:capture",
        "Capture a pod's packets on all nodes that they cross, for Wireshark.",
    ),
    "console": ("podway.cli.console:console", "Show the cluster in a browser: map, flows, traces, findings."),
    "policy": ("podway.cli.policy:policy", "Say what network policies mean, and suggest some."),
    "doctor": ("podway.cli.doctor:doctor", "Find what is wrong on the nodes, and what to do about it."),
    "sysdump": (
        "podway.cli.sysdump:sysdump",
        "Write all that somebody needs to help into one file, without secrets.",
    ),
    "status": ("podway.cli.agent:status", "Show how the agents are: store, BIRD, leases, drift."),
    "cluster": ("podway.cli.cluster:cluster", "Install Podway in a Kubernetes cluster, upgrade or remove it."),
    "install": ("podway.cli.host:install", "Install the plugin and the agent's unit on this host."),
    "uninstall": ("podway.cli.host:uninstall", "Remove Podway from this host, and set back what it changed."),
    "agent": ("podway.cli.agent:agent", "Run the agent of a node."),
    "controller": ("podway.cli.controller:controller", "Run the controller of a cluster in Kubernetes."),
    "lab": ("podway.cli.lab:lab", "Build and use a whole cluster on this machine."),
    "completion": ("podway.cli.completion:completion", "Print the script for completion in bash, zsh or fish."),
}
"""Each command's `module:attribute`, and its line in --help."""


class LazyGroup(Group):
    """A group of commands in modules of their own, imported late."""

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

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command line; whatever is wrong is told on standard error, in one style, with an exit status."""
        run: Any = super().main  # its overloads tell calls apart that are one here
        if not extra.pop("standalone_mode", True):
            return run(*args, standalone_mode=False, **extra)
        try:
            status = run(*args, standalone_mode=False, **extra)
        except (PodwayError, PermissionError, click.ClickException, click.Abort) as error:
            status = tell(error)
        sys.exit(status if isinstance(status, int) else 0)


@click.group(cls=LazyGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="podway", message="%(prog)s %(version)s")
@store_option(envvar="PODWAY_STORE", show_envvar=True)
@lab_option(envvar="PODWAY_LAB", show_envvar=True, default=DEFAULT_LAB, show_default=True)
def main() -> None:
    """Podway: a Kubernetes pod network."""
