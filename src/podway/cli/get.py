"""`podway get`: the cluster's objects, in tables or whole."""

import importlib
from typing import Any

import click

from podway.api.encode import to_builtins, to_json, to_list, to_yaml
from podway.api.meta import LabelSelector
from podway.api.resources import Resource, key, subject
from podway.cli.help import examples
from podway.cli.kinds import (
    DEFAULT_NAMESPACE,
    KindName,
    complete_names,
    key_of,
    namespace_option,
    nearest_key,
)
from podway.cli.options import GlobalOptions
from podway.cli.output import print_table
from podway.cli.selector import parse_selector
from podway.cli.views import Cluster, View
from podway.errors import NotFound
from podway.store.base import Store


@click.command(
    epilog=examples(
        "podway get nodes",
        "podway get pods -A -o wide",
        "podway get pods -l app=web,tier!=test -o json",
        "podway get routes node1                     # the way from node1 to every block",
        "podway --store snapshot:cluster.json get blocks",
    )
)
@click.argument("view", metavar="KIND", type=KindName())
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_names)
@namespace_option
@click.option("-A", "--all-namespaces", is_flag=True, help="Objects of all namespaces.")
@click.option("-l", "--selector", default="", metavar="LABELS", help="Only these: a=b, a!=b, a, !a; with commas.")
@click.option("-o", "--output", type=click.Choice(["wide", "json", "yaml"]), help="Another form than a table.")
@click.pass_obj
def get(
    options: GlobalOptions,
    *,
    view: View,
    names: tuple[str, ...],
    namespace: str | None,
    all_namespaces: bool,
    selector: str,
    output: str | None,
) -> None:
    """Show objects (nodes, pods, pools, blocks, config …), or what agents know (routes, peers)."""
    if all_namespaces and (names or namespace):
        raise click.UsageError("-A goes with neither -n nor a NAME")
    found: list[Any]
    if view.kind is None:
        cluster, found = Cluster(()), _look(view.source, options, names)
    else:
        wanted = None if all_namespaces else namespace or DEFAULT_NAMESPACE
        labels = parse_selector(selector)
        cluster = Cluster(options.run(_everything))
        found = _find(cluster, view.kind, names, wanted, labels)
    if output in ("json", "yaml"):
        shapes = [to_builtins(row) for row in found]
        shape = shapes[0] if len(names) == len(shapes) == 1 else to_list(shapes)
        click.echo(to_json(shape) if output == "json" else to_yaml(shape), nl=False)
    elif found:
        columns = [column for column in view.columns if output == "wide" or not column.wide]
        print_table(
            [column.header for column in columns],
            [[column.text(row, cluster) for column in columns] for row in found],
        )
    else:
        click.echo(f"no {view.names[0]} found", err=True)


async def _everything(store: Store) -> tuple[Resource, ...]:
    return (await store.list_all()).items


def _find(
    cluster: Cluster,
    kind: type[Resource],
    names: tuple[str, ...],
    namespace: str | None,
    selector: LabelSelector,
) -> list[Resource]:
    """Return the objects asked for, in the order of the names; raises NotFound for a name without object."""
    found = [
        obj
        for obj in cluster.objects
        if isinstance(obj, kind)
        and (namespace is None or not kind.NAMESPACED or obj.metadata.namespace == namespace)
        and selector.matches(obj.metadata.labels)
    ]
    if not names:
        return found
    by_name = {obj.metadata.name: obj for obj in found}
    for name in names:
        if name not in by_name:
            missing = key_of(kind, name, namespace)
            known = (key(obj) for obj in cluster.objects if selector.matches(obj.metadata.labels))
            raise NotFound(f"{subject(missing)} does not exist", hint=nearest_key(missing, known))
    return [by_name[name] for name in names]


def _look(source: str, options: GlobalOptions, names: tuple[str, ...]) -> list[Any]:
    """Call the function that `source` names (see View)."""
    module, _, function = source.partition(":")
    return list(getattr(importlib.import_module(module), function)(options, names))
