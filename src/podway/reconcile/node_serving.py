"""Services for a node's own processes and clients outside: what serves pods, in the node's nftables maps, too.

It follows who serves pods (podway.reconcile.serving), and has its place in that one's work. The table with the
rules is the plan's. Whenever it was loaded its maps may be empty, so all is compared, and what is missing written.
"""

import errno
from collections.abc import Generator, Iterable, Iterator

import structlog

from podway.api.addresses import Family
from podway.errors import KernelError
from podway.kernel.interface import ServicesDoor
from podway.plan.services import served_families
from podway.reconcile.map_keeper import SLICE
from podway.reconcile.state import NodeState
from podway.services.maps import Delta, Entries
from podway.services.node_maps import Fence, NodeDelta, NodeKey, NodeMaps, NodeValue, difference

log = structlog.get_logger(__name__)


class NodeServing:
    """Keeps the node's maps in step with those that serve pods, where NetworkConfig has the node served, too."""

    def __init__(self, door: ServicesDoor, state: NodeState) -> None:
        self._door = door
        self._state = state
        self._maps: NodeMaps | None = None
        self._loaded = 0
        """How often one of the tables was loaded: each time its maps may be empty."""
        self._maps_of = -1
        """Which loading the maps are of that were compared."""
        self._in_doubt = True
        """Whether clients may be remembered with who is no backend any more: a write did not come to its end."""

    @property
    def wanted(self) -> bool:
        """Whether the cluster's settings ask for it."""
        return self._state.view.config.services == "all"

    @property
    def in_force(self) -> bool:
        """Whether the node's processes are served."""
        return self._maps is not None and self._maps_of == self._loaded

    @property
    def is_to_begin(self) -> bool:
        """Whether the maps have to be compared, or are wanted no more: for who serves pods."""
        return self._maps_of != self._loaded if self.wanted else self._maps is not None

    def loaded(self) -> None:
        """Say that a table was loaded: its maps may be empty."""
        self._loaded += 1

    def forget(self) -> None:
        """Forget what is known; the maps stay as they are."""
        self._maps, self._maps_of, self._in_doubt = None, -1, True

    def begin(self, entries: Entries, outside: Entries, fence: Fence) -> Iterator[None]:
        """Compare the maps with all that serves pods and clients outside, and write what differs.

        Raises KernelError.
        """
        if not self.wanted:
            self.forget()
            return
        self._maps, self._maps_of, self._in_doubt = None, self._loaded, True
        families = self._families
        known = NodeMaps(families, entries, outside, fence)
        try:
            left = yield from self._read(families)
        except KernelError:
            self._maps_of = -1
            raise
        if left is None:  # it is heard of when the tables are there
            return
        wrong = difference((yield from _gathered(known)), left, all_clients=True)
        self._maps = known  # what is refused of it is found by audits
        yield from self.write(wrong)
        log.info("the node's own processes and clients outside are served")

    def change(self, delta: Delta, outside: Delta) -> Iterator[None]:
        """Write what comes of a change of what serves pods and clients outside. Raises KernelError."""
        if self._maps is not None:
            # Its memory of clients is struck out in the end, and no entry says afterwards that it was not.
            before, self._in_doubt = self._in_doubt, True
            yield from self._door.write(self._maps.change(delta, outside))
            self._in_doubt = before

    def audit(self) -> Generator[None, None, NodeDelta]:
        """Return what of the maps is not as it should be; yields now and then. Raises KernelError."""
        if self._maps is None or not self.in_force:
            return NodeDelta()
        left = yield from self._read(self._families)
        if left is None:
            return NodeDelta()
        return difference((yield from _gathered(self._maps)), left, all_clients=self._in_doubt)

    def write(self, wrong: NodeDelta) -> Iterator[None]:
        """Write what a comparison has found. Raises KernelError."""
        self._in_doubt = self._in_doubt or bool(wrong.left)
        yield from self._door.write(wrong)
        self._in_doubt = False

    @property
    def _families(self) -> tuple[Family, ...]:
        return tuple(family for family, _ in served_families(self._state.view, self._state.uplink))

    def _read(self, families: Iterable[Family]) -> Generator[None, None, dict[NodeKey, NodeValue] | None]:
        """Return what the maps of these families have; None while one of them is not there."""
        try:
            return dict((yield from self._door.read(families)))
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return None


def _gathered(known: NodeMaps) -> Generator[None, None, dict[NodeKey, NodeValue]]:
    """Return all entries that there are to be; yields now and then."""
    found = {}
    for done, (key, value) in enumerate(known.entries(), 1):
        found[key] = value
        if not done % SLICE:
            yield
    return found
