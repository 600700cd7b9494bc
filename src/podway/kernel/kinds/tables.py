"""nftables tables of our name, and the elements of their sets that change with the cluster."""

import contextlib
import errno
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from podway.errors import KernelError
from podway.kernel.nft.libnftables import Nftables, loaded_form
from podway.plan.changes import Change
from podway.plan.objects import NftElement, NftTable, NodePlan, is_our_table


@dataclass(frozen=True)
class LoadedTable:
    """An nftables table of ours as it stands in the kernel, in the form that can be compared."""

    family: str
    name: str
    form: str
    source: NftTable | None = field(default=None, compare=False)
    """The text to load for it."""
    elements: tuple[NftElement, ...] = field(default=(), compare=False)
    """What to load with it: a set that lacks its elements would have packets dropped, or let through."""

    def __str__(self) -> str:
        return f"nft table {self.family} {self.name}"


class NftTables:
    """nftables tables of our name, in any family."""

    name = "nft table"
    repairs_only = False
    compared = True

    def __init__(self, nftables: Callable[[], Nftables]) -> None:
        self._nftables = nftables

    def wanted(self, plan: NodePlan) -> Mapping[Hashable, LoadedTable]:
        """Return the form that each of the plan's tables has when it is loaded."""
        elements: dict[Hashable, list[NftElement]] = {}
        for element in plan.elements:
            elements.setdefault((element.family, element.table), []).append(element)
        return {
            table.key: LoadedTable(
                table.family, table.name, loaded_form(table), table, tuple(elements.get(table.key, ()))
            )
            for table in plan.tables
        }

    def list(self, plan: NodePlan) -> Mapping[Hashable, LoadedTable]:
        """Return our tables."""
        nftables, wanted = self._nftables(), {table.key: table.sets for table in plan.tables}
        return {
            key: LoadedTable(*key, nftables.form(*key, wanted.get(key, ())))
            for key in nftables.tables()
            if is_our_table(key[1]) or key in wanted
        }

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Load and delete tables."""
        failures = {}
        for position, change in enumerate(changes):
            try:
                if change.want is None:
                    self._nftables().delete(*change.key)
                else:
                    self._nftables().replace(change.want.source, change.want.elements)
            except KernelError as error:
                failures[position] = error
        return failures


class NftElements:
    """The elements of the sets that the plan's tables leave to it."""

    name = "nft element"
    repairs_only = False
    compared = False

    def __init__(self, nftables: Callable[[], Nftables]) -> None:
        self._nftables = nftables

    def wanted(self, plan: NodePlan) -> Mapping[NftElement, NftElement]:
        """Return the plan's elements."""
        return {element.key: element for element in plan.elements}

    def list(self, plan: NodePlan) -> Mapping[NftElement, NftElement]:
        """Return the elements of the planned tables' sets, and of those of which the plan wants any."""
        sets = {(table.family, table.name, name) for table in plan.tables for name in table.sets}
        sets |= {(element.family, element.table, element.set) for element in plan.elements}
        nftables = self._nftables()
        return {element: element for place in sorted(sets) for element in nftables.elements(*place)}

    def scan(self, plan: NodePlan) -> Iterable[tuple[NftElement, NftElement]]:
        """Return the same as pairs: of nodes there may be thousands."""
        return self.list(plan).items()

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Add and delete elements: all at once or, if one is refused, each by itself."""
        return {
            **self._carry_out("add", [(n, change.want) for n, change in enumerate(changes) if change.want]),
            **self._carry_out("delete", [(n, change.have) for n, change in enumerate(changes) if not change.want]),
        }

    def _carry_out(
        self, action: Literal["add", "delete"], numbered: Sequence[tuple[int, NftElement]]
    ) -> dict[int, KernelError]:
        with contextlib.suppress(KernelError):  # whose fault it was is found below
            self._nftables().change_elements(action, [element for _, element in numbered])
            return {}
        failures = {}
        for position, element in numbered:
            try:
                self._nftables().change_elements(action, [element])
            except KernelError as error:
                if action == "add" or error.errno != errno.ENOENT:
                    failures[position] = error
        return failures
