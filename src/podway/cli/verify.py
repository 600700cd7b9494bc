"""`podway verify`: prove the three rules of the Kubernetes network model."""

import shutil
import sys
from collections.abc import Iterable
from typing import Any, Literal

import click

from podway.api.kinds.pod import Pod
from podway.api.resource import Resource
from podway.cli.agents import HOST_SOCKET, asker, fallbacks_here
from podway.cli.help import examples
from podway.cli.options import GlobalOptions, cluster_options, is_kubernetes_lab, read_all, read_network
from podway.prove.world import NodePlace, PodPlace, World, build_world
from podway.store.open import is_kubernetes


@click.command(
    epilog=examples(
        "podway verify",
        "podway verify --sample 200 -o json          # a large cluster: 200 pairs for each rule",
        "podway verify --remote                       # by the agents of all nodes, without root",
    )
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the report.")
@click.option(
    "--sample",
    metavar="N",
    type=click.IntRange(min=0),
    help="Try at most N pairs for each rule and family; 0: all. Without it: all, up to 2000; by agents 10.",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="How long to wait for an answer; by agents at most 4 s.",
)
@click.option("--remote", is_flag=True, help="Have the agents of all nodes send and look, over the network.")
@cluster_options
@click.pass_obj
def verify(
    options: GlobalOptions, output: Literal["text", "json"], sample: int | None, timeout: float, *, remote: bool
) -> None:
    """Prove by packets that pods and nodes reach each other, encapsulated as their pools ask.

    On this machine it looks itself, as root. With --remote, and in a Kubernetes on other machines than this one,
    agents do, and Services are left out.

    Exit status 0: all three rules are proved. 1: not all, and the report says what is wrong and where.
    """
    from podway.verify.report import to_json, to_text

    if remote or _elsewhere(options):
        from podway.verify.asked import verify_by_agents

        resources = options.run(read_network).items
        ask = asker(options, remote=remote)
        report = verify_by_agents(resources, ask, sample_size=sample, timeout=timeout)
    else:
        from podway.kernel.support import require_privileges
        from podway.verify.verify import verify as prove

        require_privileges()
        report = prove(world_of(options), sample_size=sample, timeout=timeout)
    click.echo(to_json(report) if output == "json" else to_text(report, width=page_width(), paint=paint))
    click.get_current_context().exit(0 if report.holds else 1)


def _elsewhere(options: GlobalOptions) -> bool:
    """Tell whether it is agents who can look: a Kubernetes whose pods are not this machine's or the lab's own."""
    if options.store is None:
        return is_kubernetes_lab(options.lab)
    return is_kubernetes(options.store) and not HOST_SOCKET.exists()


_COLOURS: dict[str, dict[str, Any]] = {
    "good": {"fg": "green", "bold": True},
    "bad": {"fg": "red", "bold": True},
    "cause": {"fg": "red"},
    "label": {"dim": True},
}

WIDEST = 120
"""Columns beyond which lines are hard to read."""


def paint(text: str, kind: str) -> str:
    """Colour a part of the report, as podway.verify.report.to_text asks."""
    return click.style(text, **_COLOURS[kind])


def page_width() -> int:
    """Return how wide a page may be: a terminal's width, 0 (any) where there is none."""
    return min(shutil.get_terminal_size().columns, WIDEST) if sys.stdout.isatty() else 0


def world_of(options: GlobalOptions) -> World:
    """Return the cluster of the store given, as far as it runs on this machine, or else of the lab.

    Raises LabError, StoreError, KernelError.
    """
    listing = options.run(read_all)
    fallbacks = fallbacks_here(options, listing.items)
    if options.store is None:
        return build_world(listing.items, *_places_in_lab(options.lab, listing.items), fallbacks)
    from podway.verify.host import places_here

    return build_world(listing.items, *places_here(listing.items), fallbacks)


def _places_in_lab(lab: str, resources: Iterable[Resource]) -> tuple[dict[str, NodePlace], dict[str, PodPlace]]:
    from podway.kernel import netns
    from podway.lab import names, pods, state, topology

    nodes = {
        node: NodePlace(str(netns.path_of(names.node_netns(lab, node))), topology.UPLINK)
        for node in state.load(lab).running
    }
    places = {
        f"{pod.metadata.namespace}/{pod.metadata.name}": PodPlace(
            str(netns.path_of(pods.netns_of(lab, pod))), pods.IFNAME
        )
        for pod in resources
        if isinstance(pod, Pod)
    }
    return nodes, places
