"""`podway simulate`: what a cluster of any size costs to plan, seen without a kernel."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import click
import msgspec

from podway.api.fields import parse_cidr
from podway.api.kinds.ip_pool import Distribution, Encapsulation, IPPool, IPPoolSpec
from podway.api.meta import Metadata
from podway.cli.help import examples
from podway.cli.output import print_table
from podway.preview.measure import Measured, measure
from podway.preview.simulate import build

VERSION = 1
"""Of the JSON form (docs/simulate.md)."""

POOL = "10.0.0.0/8"
STEPS = (0.1, 0.2, 0.4, 1.0)
"""The sizes shown, as parts of the one asked for."""


@click.command(
    epilog=examples(
        "podway simulate --nodes 5000 --pods 100000",
        "podway simulate --nodes 200 --pods 8000 --pool 10.0.0.0/16 --pool fd10::/48 --only",
        "podway simulate --nodes 1000 --pods 20000 --block-size 26 -o json",
        "podway simulate --nodes 200 --pods 4000 --encapsulation vxlan --distribution store --only",
    )
)
@click.option("--nodes", type=click.IntRange(2, 100_000), default=5000, show_default=True, help="How many nodes.")
@click.option(
    "--pods", type=click.IntRange(0, 10_000_000), default=100_000, show_default=True, help="How many pods."
)
@click.option(
    "--pool",
    "cidrs",
    multiple=True,
    metavar="CIDR",
    default=[POOL],
    show_default=True,
    help="Pod addresses; repeat.",
)
@click.option(
    "--block-size",
    "lengths",
    multiple=True,
    type=click.IntRange(1, 128),
    metavar="LENGTH",
    help="Prefix length of a block; over 32 it is for IPv6.  [default: 24, 122]",
)
@click.option(
    "--encapsulation",
    type=click.Choice(get_args(Encapsulation)),
    default="none",
    show_default=True,
    help="Encapsulation between nodes; IPIP is for IPv4 pools.",
)
@click.option(
    "--distribution",
    type=click.Choice(get_args(Distribution)),
    default="bgp",
    show_default=True,
    help="Who tells the routes.",
)
@click.option("--seed", default=0, show_default=True, help="The same seed places the pods alike.")
@click.option("--only", is_flag=True, help="This size alone; else also 1/10, 1/5 and 2/5 of it, to compare.")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the answer.")
def simulate(
    *,
    nodes: int,
    pods: int,
    cidrs: Sequence[str],
    lengths: Sequence[int],
    encapsulation: Encapsulation,
    distribution: Distribution,
    seed: int,
    only: bool,
    output: str,
) -> None:
    """Plan a whole cluster without a kernel: blocks, routes, time, memory, and what a node's death changes.

    Blocks, leases, kernel objects and BIRD's configuration are made by the code that real nodes run. Needs no
    privileges and touches nothing.
    """
    form = {"encapsulation": encapsulation, "distribution": distribution}
    pools = [_pool(number, cidr, lengths, form) for number, cidr in enumerate(cidrs)]
    parts = (1.0,) if only else STEPS
    sizes = sorted({(max(2, int(nodes * part)), int(pods * part)) for part in parts})
    found = []
    for some_nodes, some_pods in sizes:
        if output == "text":
            click.echo(f"{some_nodes} nodes, {some_pods} pods ...", err=True)
        began = time.perf_counter()
        world = build(some_nodes, some_pods, pools, seed=seed)
        found.append(measure(world, build_seconds=time.perf_counter() - began, seed=seed))
    if output == "json":
        head = {"apiVersion": "podway.io/v1", "kind": "SimulationReport", "version": VERSION}
        document = {**head, "seed": seed, "pools": list(cidrs), **form, "sizes": found}
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
    else:
        print_table(["", *(str(one.nodes) for one in found)], [(name, *map(text, found)) for name, text in _ROWS])
        if len(found) > 1:
            click.echo(f"\n{_growth(found[0], found[-1])}")


def _pool(number: int, cidr: str, lengths: Sequence[int], form: Mapping[str, Any]) -> IPPool:
    try:
        network = parse_cidr(cidr)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--pool") from error
    size = next((length for length in lengths if (length > 32) == (network.version == 6)), None)
    if network.version == 6 and form["encapsulation"] == "ipip":
        form = {**form, "encapsulation": "none"}
    return IPPool(
        metadata=Metadata(name=f"pool-{number}"), spec=IPPoolSpec(cidr=str(network), block_size=size, **form)
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


_ROWS: tuple[tuple[str, Callable[[Measured], str]], ...] = (
    ("pods", lambda one: str(one.pods)),
    ("blocks", lambda one: str(one.blocks)),
    ("claim and lease everything", lambda one: f"{one.build:.2f} s"),
    ("one node: first plan, from the store's listing", lambda one: _ms(one.plan_first)),
    ("  memory at most", lambda one: f"{one.memory / (1 << 20):.1f} MiB"),
    ("one node: planned again", lambda one: _ms(one.plan)),
    ("a change that alters no plan", lambda one: _ms(one.unrelated)),
    ("a change: another node claims a block", lambda one: _ms(one.claim)),
    ("a change: another node leaves", lambda one: _ms(one.leave)),
    ("routes of a node: own blocks", lambda one: f"{one.routes_own:g}"),
    ("  to its pods", lambda one: f"{one.routes_pods:g}"),
    ("  from the store", lambda one: f"{one.routes_store:g}"),
    ("  learned by BGP", lambda one: f"{one.routes_learned:g}"),
    ("a node dies: its pods", lambda one: str(one.death.pods)),
    ("  its blocks, which return", lambda one: str(one.death.blocks)),
    ("  on each other node: routes withdrawn", lambda one: str(one.death.routes)),
    ("  BGP sessions ended", lambda one: str(one.death.sessions)),
    ("  kernel objects of the agent's", lambda one: str(one.death.kernel)),
)


def _growth(small: Measured, large: Measured) -> str:
    times = large.nodes / small.nodes
    rows = (
        ("first plan", large.plan_first / small.plan_first),
        ("planned again", large.plan / small.plan),
        ("memory", large.memory / small.memory),
    )
    told = ", ".join(f"{name} {factor:.1f} times" for name, factor in rows)
    return f"{times:g} times the nodes: {told}."
