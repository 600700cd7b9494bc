"""What `podway get` can show: objects of each kind (podway.api.kinds), and what agents know."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from podway.api.columns import Cluster, Column, age
from podway.api.kinds import KINDS
from podway.api.resource import Resource, key


@dataclass(frozen=True)
class View:
    """Rows of one kind: objects of the store, or what the function named by `source` finds out.

    `source` is `module:function`, imported when it is needed; the function takes the GlobalOptions and the
    NAMEs of the command line and returns Structs. `row_kind` is their kind in JSON and YAML.
    """

    names: tuple[str, ...]
    """What people may call it; the first is the usual name."""
    columns: tuple[Column, ...]
    kind: type[Resource] | None = None
    source: str = ""
    row_kind: str = ""
    identity: Callable[[Any], Hashable] = key
    """What makes two rows the same one at two times."""

    @classmethod
    def of(cls, kind: type[Resource]) -> "View":
        """Return the view of a kind's objects."""
        names = (*kind.NAMES.usual, kind.NAMES.plural, kind.KIND.lower(), *kind.NAMES.short)
        more, before = _MORE.get(kind.KIND, ()), len(kind.COLUMNS) - 2  # age and labels stay the last
        return cls(names, (*kind.COLUMNS[:before], *more, *kind.COLUMNS[before:]), kind)


def _next_hops(route: Any, _: Cluster) -> str:
    hops = ", ".join(f"{hop.gateway} dev {hop.device}".strip() for hop in route.next_hops)
    return hops or ("blackhole" if route.protocol == "own" else "-")


def _protocol(route: Any, _: Cluster) -> str:
    if route.protocol.isdecimal():
        return f"other (proto {route.protocol})"
    return f"{route.protocol} {route.session}".strip() if route.protocol == "bgp" else str(route.protocol)


def _since(row: Any, cluster: Cluster) -> str:
    return age(cluster.now - row.since.timestamp()) if row.since else "-"


def _ready(service: Any, cluster: Cluster) -> str:
    from podway.services.explain import Explainer, summary

    return summary(cluster.kept(Explainer).explain(service))


def _told_by(service: Any, cluster: Cluster) -> str:
    from podway.services.advertising import Told, summary

    return summary(cluster.kept(Told).of(service))


_MORE = {"Service": (Column("READY", _ready, wide=True), Column("ADVERTISED-BY", _told_by, wide=True))}
"""Columns of a kind that say more than its objects do."""

_OF_AGENTS = (
    View(
        ("peers", "peer"),
        (
            Column("ON", lambda row, _: row.on),
            Column("PEER", lambda row, _: row.node or row.peer),
            Column("ROLE", lambda row, _: row.role),
            Column("ADDRESS", lambda row, _: row.address),
            Column("AS", lambda row, _: str(row.asn)),
            Column("STATE", lambda row, _: row.state),
            Column("BFD", lambda row, _: row.bfd or "off"),
            Column("SINCE", _since),
            Column("ROUTES", lambda row, _: f"{row.imported} in, {row.exported} out"),
            Column("SESSION", lambda row, _: row.name, wide=True),
            Column("LAST ERROR", lambda row, _: row.last_error),
        ),
        source="podway.cli.agents:peers",
        row_kind="BGPSession",
        identity=lambda row: (row.on, row.name),
    ),
    View(
        ("routes", "route"),
        (
            Column("ON", lambda row, _: row.on),
            Column("BLOCK", lambda row, _: row.network),
            Column("NODE", lambda row, _: row.node or "-"),
            Column("PROTOCOL", _protocol),
            Column("ENCAPSULATION", lambda row, _: row.encapsulation if row.protocol != "own" else "-"),
            Column("NEXT HOP", _next_hops),
            Column("KERNEL", lambda row, _: "yes" if row.in_kernel else "no"),
            Column("SINCE", _since, wide=True),
            Column("POOL", lambda row, _: row.pool or "-", wide=True),
        ),
        source="podway.cli.agents:routes",
        row_kind="Route",
        identity=lambda row: (row.on, row.network),
    ),
)

VIEWS: tuple[View, ...] = tuple(
    sorted((*map(View.of, KINDS.values()), *_OF_AGENTS), key=lambda view: view.names[0])
)

VIEW_BY_NAME = {name: view for view in VIEWS for name in view.names}
