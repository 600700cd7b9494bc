"""nftables tables of our name."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from podway.errors import KernelError
from podway.kernel.nft import Nftables, loaded_form
from podway.plan.changes import Change
from podway.plan.objects import NFT_TABLE, NftTable, NodePlan


@dataclass(frozen=True)
class LoadedTable:
    """An nftables table of ours as it stands in the kernel, in the form that can be compared."""

    family: str
    name: str
    form: str
    source: NftTable | None = field(default=None, compare=False)
    """The text to load for it."""

    def __str__(self) -> str:
        return f"nft table {self.family} {self.name}"


class NftTables:
    """nftables tables of our name, in any family."""

    name = "nft table"
    mends_only = False

    def __init__(self, nftables: Callable[[], Nftables]) -> None:
        self._nftables = nftables

    def wanted(self, plan: NodePlan) -> Mapping[Hashable, LoadedTable]:
        """Return the form that each of the plan's tables has when it is loaded."""
        return {t.key: LoadedTable(t.family, t.name, loaded_form(t), t) for t in plan.tables}

    def list(self, plan: NodePlan) -> Mapping[Hashable, LoadedTable]:
        """Return our tables."""
        nftables, wanted = self._nftables(), {table.key for table in plan.tables}
        return {
            key: LoadedTable(*key, nftables.form(*key))
            for key in nftables.tables()
            if key[1] == NFT_TABLE or key in wanted
        }

    def apply(self, changes: Sequence[Change]) -> dict[int, KernelError]:
        """Load and delete tables."""
        failures = {}
        for position, change in enumerate(changes):
            try:
                if change.want is None:
                    self._nftables().delete(*change.key)
                else:
                    self._nftables().replace(change.want.source)
            except KernelError as error:
                failures[position] = error
        return failures
