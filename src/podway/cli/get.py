"""`podway get`: the cluster's objects, in tables or whole."""

import contextlib
import importlib
import io
import re
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NoReturn

import click
import msgspec

from podway.api.columns import Cluster
from podway.api.encode import to_builtins, to_json, to_list, to_yaml
from podway.api.kinds.service import Service
from podway.api.meta import LabelSelector
from podway.api.resource import GROUP, Resource, key, subject
from podway.cli.help import examples
from podway.cli.kinds import (
    DEFAULT_NAMESPACE,
    Request,
    complete_words,
    key_of,
    namespace_option,
    nearest_key,
    read_requests,
)
from podway.cli.options import GlobalOptions, cluster_options, read_all
from podway.cli.output import MISSING, align, print_table, widths_of
from podway.cli.selector import parse_selector
from podway.cli.views import View
from podway.errors import InvalidArgument, NotFound
from podway.store.base import Store

LOOK = 0.5
"""Seconds between looks of --watch."""

API_VERSION = f"{GROUP}/v1"


@click.command(
    epilog=examples(
        "podway get nodes",
        "podway get pods -A -o wide",
        "podway get pod/web node/node1               # or: get pods web; get pods shop/web",
        "podway get pods -l app=web,tier!=test -o json",
        "podway get routes node1 --watch             # the way from node1 to every block, and what changes",
        "podway delete $(podway get pods -l app=web -o name)",
        "podway --store snapshot:cluster.json get blocks",
    )
)
@click.argument(
    "words", metavar="KIND [NAME]... | KIND/NAME...", nargs=-1, required=True, shell_complete=complete_words
)
@namespace_option
@click.option("-A", "--all-namespaces", is_flag=True, help="Objects of all namespaces.")
@click.option("-l", "--selector", default="", metavar="LABELS", help="Only these: a=b, a!=b, a, !a; with commas.")
@click.option(
    "-o", "--output", type=click.Choice(["wide", "name", "json", "yaml"]), help="Another form than a table."
)
@click.option("-w", "--watch", is_flag=True, help="Go on, and show what changes, until interrupted.")
@cluster_options
@click.pass_obj
def get(
    options: GlobalOptions,
    *,
    words: tuple[str, ...],
    namespace: str | None,
    all_namespaces: bool,
    selector: str,
    output: str | None,
    watch: bool,
) -> None:
    """Show objects (nodes, pods, pools, blocks, config …), or what agents know (routes, peers)."""
    requests = read_requests(words, namespace)
    if all_namespaces and (namespace or any(request.names for request in requests)):
        raise click.UsageError("-A goes with neither -n nor a NAME")
    here = None if all_namespaces else namespace or DEFAULT_NAMESPACE
    look = _Look(options, here, parse_selector(selector))
    for request in requests:
        if request.view.kind is None and (output == "name" or selector):
            given, what = ("-o name", "names") if output == "name" else ("-l", "labels")
            called = request.view.names[0]
            raise InvalidArgument(
                f"{given}: {called} have no {what}", hint=f"name nodes, if you like: podway get {called} NODE"
            )
    if watch:
        if output in ("name", "json", "yaml") or len(requests) != 1:
            raise click.UsageError(
                "--watch shows the table of one kind: it goes with neither -o name, json nor yaml"
            )
        _watch(look, requests[0], wide=output == "wide")
    cluster = look.cluster(requests)
    found = [(request, look.rows(cluster, request)) for request in requests]
    if output in ("json", "yaml"):
        shapes = [
            shape_of(request.view, row) | (explained(row, cluster) if request.names else {})
            for request, rows in found
            for row in rows
        ]
        named = sum(len(request.names) for request in requests)
        shape = shapes[0] if named == len(shapes) == 1 else to_list(shapes)
        click.echo(to_json(shape) if output == "json" else to_yaml(shape), nl=False)
        return
    for position, (request, rows) in enumerate(found):
        if output == "name":
            for row in rows:
                click.echo(_name_of(row, here))
        elif rows:
            if position:
                click.echo()
            columns = [column for column in request.view.columns if output == "wide" or not column.wide]
            print_table(
                [column.header for column in columns],
                [[column.text(row, cluster) for column in columns] for row in rows],
            )
        else:
            click.echo(f"no {request.view.names[0]} found{look.where(request.view)}", err=True)


def shape_of(view: View, row: Any) -> dict[str, Any]:
    """Return a row of a view in the shape of Kubernetes' objects, with its apiVersion and kind."""
    shape = to_builtins(row)
    return shape if view.kind else {"apiVersion": API_VERSION, "kind": view.row_kind, **shape}


def explained(obj: Any, cluster: Cluster) -> dict[str, Any]:
    """Return what is told of an object that was asked for by name, beside its fields: what a Service means."""
    if not isinstance(obj, Service):
        return {}
    from podway.services.advertising import Told
    from podway.services.explain import Explainer

    told: dict[str, Any] = msgspec.to_builtins(cluster.kept(Explainer).explain(obj))
    outside = [
        {"address": str(one.address), "pool": one.pool, "advertise": one.advertise, "nodes": list(one.nodes)}
        for one in cluster.kept(Told).of(obj)
    ]
    return {"explained": told | ({"outside": outside} if outside else {})}


def _name_of(obj: Resource, here: str | None) -> str:
    """Return `kind/name`, as other commands take it; with the namespace unless that is `here`."""
    meta = obj.metadata
    name = f"{meta.namespace}/{meta.name}" if obj.NAMESPACED and meta.namespace != here else meta.name
    return f"{obj.KIND.lower()}/{name}"


class _Look:
    """What a command line asks for: of which cluster, namespace (None: all) and labels."""

    def __init__(self, options: GlobalOptions, namespace: str | None, selector: LabelSelector) -> None:
        self._options = options
        self._namespace = namespace
        self._selector = selector

    def cluster(self, requests: Sequence[Request]) -> Cluster:
        """Return all objects, if any of them are asked for."""
        wanted = any(request.view.kind for request in requests)
        return Cluster(self._options.run(everything) if wanted else (), time.time(), self._doubts)

    def _doubts(self) -> Mapping[str, str]:
        from podway.cli.agents import doubts

        return doubts(self._options)

    def rows(self, cluster: Cluster, request: Request, *, missing_ok: bool = False) -> list[Any]:
        """Return the rows asked for, as `find` does, or as agents tell them."""
        if request.view.kind is None:
            return _call(request.view.source, self._options, tuple(name for _, name in request.names))
        return find(cluster, request, self._namespace, self._selector, missing_ok=missing_ok)

    def where(self, view: View) -> str:
        """Say where was looked."""
        return f" in namespace {self._namespace}" if view.kind and view.kind.NAMESPACED and self._namespace else ""


async def everything(store: Store) -> tuple[Resource, ...]:
    """Return all objects of a store."""
    return (await read_all(store)).items


def find(
    cluster: Cluster,
    request: Request,
    namespace: str | None,
    selector: LabelSelector,
    *,
    missing_ok: bool = False,
) -> list[Resource]:
    """Return the objects asked for, in the order of the names.

    Raises NotFound for a name without object, unless `missing_ok`.
    """
    kind = request.view.kind
    assert kind is not None
    known = {key(obj): obj for obj in cluster.objects if selector.matches(obj.metadata.labels)}
    if not request.names:
        return [
            obj
            for obj in known.values()
            if isinstance(obj, kind)
            and (namespace is None or not kind.NAMESPACED or obj.metadata.namespace == namespace)
        ]
    wanted = [key_of(kind, name, space) for space, name in request.names]
    for missing in wanted:
        if missing not in known and not missing_ok:
            raise NotFound(f"{subject(missing)} does not exist", hint=nearest_key(missing, known))
    return [known[one] for one in wanted if one in known]


def _call(source: str, options: GlobalOptions, names: tuple[str, ...]) -> list[Any]:
    """Call the function that `source` names (see View)."""
    module, _, function = source.partition(":")
    return list(getattr(importlib.import_module(module), function)(options, names))


def _watch(look: _Look, request: Request, *, wide: bool) -> NoReturn:
    """Print the table, then each row that is new or changed, and those that are gone, until interrupted."""
    view = request.view
    columns = [column for column in view.columns if wide or not column.wide]
    shown: dict[Hashable, list[str]] = {}
    told: set[str] = set()
    widths: list[int] = []
    while True:
        with contextlib.redirect_stderr(io.StringIO()) as complaints:
            cluster = look.cluster((request,))
            rows = look.rows(cluster, request, missing_ok=bool(widths))
        now = {view.identity(row): [column.text(row, cluster) or MISSING for column in columns] for row in rows}
        changed = [row for name, row in now.items() if name not in shown or _still(row) != _still(shown[name])]
        gone = [[*row[:-1], f"{row[-1]} (gone)".lstrip()] for name, row in shown.items() if name not in now]
        lines = [*changed, *gone]
        if not widths:
            lines = [[column.header for column in columns], *lines]
            widths = widths_of(lines)
        for row in lines:
            click.echo(align(row, widths))
        for complaint in complaints.getvalue().splitlines():
            if complaint not in told:
                click.echo(complaint, err=True)
        told = set(complaints.getvalue().splitlines())
        shown = now
        time.sleep(LOOK)


def _still(row: Sequence[str]) -> list[str]:
    """Return a row without the ages in it, which change by themselves."""
    return [re.sub(r"\b\d+[smhd](\d+s)?\b", "", cell) for cell in row]
