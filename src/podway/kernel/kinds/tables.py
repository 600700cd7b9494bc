"""nftables tables of our name, and the elements of their sets that change with the cluster."""

import contextlib
import errno
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from podway.errors import KernelError
from podway.kernel.engine import Compared, Scannable, one_by_one
from podway.kernel.netlink import Connection
from podway.kernel.nft.forms import Form, form, loaded_form, names, tables
from podway.kernel.nft.libnftables import Nftables
from podway.kernel.nft.sets import NftSets
from podway.plan.changes import Change
from podway.plan.objects import NftElement, NftFamily, NftTable, NodePlan, is_our_table

_REFUSED: Form = (("refused",),)

_AT_ONCE = 1000
"""Elements of one transaction: it has to fit the socket's buffer."""


@dataclass(frozen=True)
class LoadedTable:
    """An nftables table of ours as it stands in the kernel, in the form that can be compared."""

    family: NftFamily
    name: str
    form: Form
    source: NftTable | None = field(default=None, compare=False)
    """The text to load for it."""
    plan: NodePlan | None = field(default=None, compare=False)
    """What says which elements to load with it: without them a set would have packets dropped, or let through."""

    def __str__(self) -> str:
        return f"nft table {self.family} {self.name}"

    @property
    def elements(self) -> Iterator[NftElement]:
        """The elements of its sets."""
        everything = self.plan.elements if self.plan else ()
        return (each for each in everything if (each.family, each.table) == (self.family, self.name))


class NftTables:
    """nftables tables of our name, in any family."""

    name = "nft table"
    repairs_only = False
    compared: Compared = "by key"

    def __init__(self, connection: Connection, nftables: Callable[[], Nftables]) -> None:
        self._connection = connection
        self._nftables = nftables

    def wanted(self, plan: NodePlan) -> Mapping[Hashable, LoadedTable]:
        """Return the form that each of the plan's tables has when it is loaded."""
        return {
            table.key: LoadedTable(table.family, table.name, _form_of(table), table, plan) for table in plan.tables
        }

    def list(self, plan: NodePlan) -> Mapping[Hashable, LoadedTable]:
        """Return our tables."""
        wanted = {
            table.key: ([*(each.name for each in table.sets), *table.kept], table.others) for table in plan.tables
        }
        return {
            key: LoadedTable(*key, form(self._connection, *key, *wanted.get(key, ())))
            for key in tables(self._connection)
            if is_our_table(key[1]) or key in wanted
        }

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Load and delete tables."""
        return one_by_one(changes, self._carry_out)

    def _carry_out(self, change: Change) -> None:
        if change.want is None:
            self._nftables().delete(*change.key)
        else:
            table = change.want.source
            if not (table.kept and self._renewed(table, change.want.form)):
                self._nftables().replace(table, change.want.elements)

    def _renewed(self, table: NftTable, want: Form) -> bool:
        """Have a table's rules become others, and tell whether that can be: what is kept in its maps stays.

        Otherwise nobody would be led by these until whoever fills them knows again with what.
        """
        with contextlib.suppress(KernelError):  # one of them is that there is no such table
            there = self._form(table)
            gone = [sorted(names(there, kind) - names(want, kind)) for kind in ("chain", "set")]
            self._nftables().renew(table, sorted(names(there, "chain")), *gone)
            return self._form(table) == want
        return False

    def _form(self, table: NftTable) -> Form:
        return form(self._connection, table.family, table.name, table.kept, table.others)


def _form_of(table: NftTable) -> Form:
    """Return the form that a table has once loaded; one that no table has if the kernel does not take it.

    Which of the things that it asks for the kernel lacks is told when it is to be loaded: the other tables stand.
    """
    try:
        return loaded_form(table)
    except KernelError:
        return _REFUSED


class NftElements(Scannable):
    """The elements of the sets that the plan's tables leave to it."""

    name = "nft element"
    repairs_only = False
    compared: Compared = False

    def __init__(self, sets: NftSets) -> None:
        self._sets = sets

    def pairs(self, plan: NodePlan) -> Iterator[tuple[NftElement, NftElement]]:
        """Yield the plan's elements."""
        return ((element.key, element) for element in plan.elements)

    def scan(self, plan: NodePlan, wanted: Mapping[Any, Any]) -> Iterator[tuple[NftElement, NftElement]]:
        """Yield the elements of the planned tables' sets."""
        del wanted
        for table in plan.tables:
            for each in table.sets:
                try:
                    listed = self._sets.read((table.family, table.name, each.name), each.fields)
                except KernelError as error:
                    if error.errno != errno.ENOENT:  # no such table or set yet
                        raise
                    continue
                for element in listed:
                    yield element, element

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Add and delete elements: many at once or, if one is refused, each by itself."""
        return {
            **self._carry_out("add", [(n, change.want) for n, change in enumerate(changes) if change.want]),
            **self._carry_out("delete", [(n, change.have) for n, change in enumerate(changes) if not change.want]),
        }

    def _carry_out(
        self, action: Literal["add", "delete"], numbered: Sequence[tuple[int, NftElement]]
    ) -> dict[int, KernelError]:
        failures = {}
        for start in range(0, len(numbered), _AT_ONCE):
            some = numbered[start : start + _AT_ONCE]
            with contextlib.suppress(KernelError):  # whose fault it was is found below
                self._sets.change(action, [element for _, element in some])
                continue
            for position, element in some:
                try:
                    self._sets.change(action, [element])
                except KernelError as error:
                    if action == "add" or error.errno != errno.ENOENT:
                        failures[position] = error
        return failures
