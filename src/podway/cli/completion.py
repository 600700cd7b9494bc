"""`podway completion`: the script by which a shell completes Podway's command line."""

import click
from click.shell_completion import get_completion_class

from podway.cli.help import examples

VARIABLE = "_PODWAY_COMPLETE"
"""The environment variable by which the script asks (click's own convention: _PROGRAM_COMPLETE)."""


@click.command(
    epilog=examples(
        "podway completion bash > /etc/bash_completion.d/podway",
        'podway completion zsh > "${fpath[1]}/_podway"',
        "podway completion fish > ~/.config/fish/completions/podway.fish",
        "source <(podway completion bash)            # in this shell only",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that makes a shell complete commands, options and the names of objects."""
    found = get_completion_class(shell)
    if found is None:  # the choice above names only what click has
        raise click.UsageError(f"no completion for {shell}")
    click.echo(found(ctx.find_root().command, {}, "podway", VARIABLE).source())
