"""`podway install` and `podway uninstall`: a plain host's files, and the way back."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from podway.agent.options import DEFAULT_RUN_DIR
from podway.cli.help import examples
from podway.host.files import HostPaths, Outcome

F = TypeVar("F", bound=Callable[..., None])

_DIRECTORY = click.Path(path_type=Path, file_okay=False)


def _paths(command: F) -> F:
    for option, default, text in (
        ("--unit-dir", HostPaths().units, "Where systemd looks for units."),
        ("--conf-dir", HostPaths().configuration, "Where the container runtime looks for networks."),
        ("--plugin-dir", HostPaths().plugins, "Where the container runtime looks for CNI plugins."),
    ):
        command = click.option(option, type=_DIRECTORY, default=default, show_default=True, help=text)(command)
    return command


@click.command(epilog=examples("podway install", "podway install --conf-dir /etc/kubernetes/cni/net.d"))
@_paths
@click.option("--overwrite", is_flag=True, help="Replace files that somebody changed.")
@click.option("--plugin-only", is_flag=True, help="The plugin alone: for an agent that writes its configuration.")
def install(*, plugin_dir: Path, conf_dir: Path, unit_dir: Path, overwrite: bool, plugin_only: bool) -> None:
    """Install the CNI plugin, its configuration and the agent's systemd unit. Starts nothing. Needs root.

    The standard plugins portmap and bandwidth are chained behind Podway's where they are installed.
    """
    from podway.cni import files as cni
    from podway.host import files

    if plugin_only:
        _tell(files.install_plugin(plugin_dir))
        return
    paths = HostPaths(plugin_dir, conf_dir, unit_dir)
    _tell(files.install(paths, overwrite=overwrite))
    chained = cni.chained(plugin_dir)
    for plugin, without in cni.CHAINED.items():
        if plugin not in chained:
            click.echo(f"{plugin}: left out, it is not in {plugin_dir}; {without}")
    if len(chained) < len(cni.CHAINED):
        click.echo("To have them, install the standard CNI plugins there, then: podway install --overwrite")
    click.echo(f"Start the agent when you are ready: systemctl enable --now {files.UNIT_NAME}")


@click.command(
    epilog=examples(
        "systemctl disable --now podway-agent        # first",
        "podway uninstall",
        "podway uninstall --with-pods                # also where pods are attached",
    )
)
@_paths
@click.option(
    "--run-dir",
    type=_DIRECTORY,
    default=DEFAULT_RUN_DIR,
    show_default=True,
    help="Where the agent's sockets and BIRD's files are.",
)
@click.option("--with-pods", is_flag=True, help="Even if pods are attached, which lose their network.")
def uninstall(*, plugin_dir: Path, conf_dir: Path, unit_dir: Path, run_dir: Path, with_pods: bool) -> None:
    """Remove Podway from this host: links, routes, firewall table, BIRD, files; settings are set back. Needs root.

    Stop the agent first. What is not Podway's is never touched.
    """
    from podway.host import files
    from podway.host.reset import reset
    from podway.kernel.support import require_privileges

    require_privileges()
    removed = reset(run_dir, with_pods=with_pods)
    for pod in removed.pods:
        click.echo(f"pod {pod}: detached")
    for thing in removed.objects:
        click.echo(f"{thing}: removed")
    for setting in removed.settings:
        click.echo(f"{setting}: set back")
    if removed.bird:
        click.echo("BIRD: stopped")
    _tell(files.remove(HostPaths(plugin_dir, conf_dir, unit_dir)))
    click.echo("Delete the Node object to return its address blocks: podway --store URL delete node NAME")


def _tell(outcomes: dict[Path, Outcome]) -> None:
    for path, outcome in outcomes.items():
        click.echo(f"{path}: {outcome}")
