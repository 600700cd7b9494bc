"""The nftables maps by which a node's own processes are led to Services, read and written.

The table with the rules that ask them is the plan's (podway.plan.services); its maps are kept here, as the flow
engine's are (podway.kernel.bpf.service_maps): there may be hundreds of thousands of entries, of which one event
changes a few.
"""

import errno
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import islice

from podway.api.addresses import Family
from podway.errors import KernelError
from podway.kernel.conntrack import forget_udp
from podway.kernel.netlink import Connection
from podway.kernel.nft import affinity, maps
from podway.plan.guard import NFT_FAMILY
from podway.plan.objects import NFT_SERVICES_TABLE
from podway.plan.services import AFFINITY, KEEPING, KEPT
from podway.services.node_maps import ALLOWED, BACKENDS, KEEP, STAYING, NodeDelta, NodeKey, NodeValue

PORTION = 200
"""Entries of one transaction, after which whoever writes may pause: some milliseconds."""

_BEHIND = (BACKENDS, KEEP)
"""What others lead to."""


class NodeServices:
    """The maps in one namespace, by a connection to nfnetlink. Every method raises KernelError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.forgotten = 0
        """How many tracked connections were forgotten, since others are behind a Service."""

    def read(self, families: Iterable[Family]) -> Generator[None, None, dict[NodeKey, NodeValue]]:
        """Return all entries of the tables of these families; yields now and then, where a caller may pause.

        Raises KernelError with ENOENT while one of the tables is not there.
        """
        found: dict[NodeKey, NodeValue] = {}
        for family in families:
            found.update(dict.fromkeys(self._keeping(family), b""))
            for name in KEPT:
                place = (NFT_FAMILY[family], NFT_SERVICES_TABLE, name)
                for done, one in enumerate(maps.read(self._connection, place), 1):
                    found[NodeKey(family, name, one.key)] = one.value
                    if not done % PORTION:
                        yield
        return found

    def write(self, delta: NodeDelta) -> Generator[None, None, None]:
        """Write changes; yields now and then, where a caller may pause.

        Nobody is led to what is not there: what is new comes from behind to the front, what goes the other way
        round. In the end the kernel forgets connections to who is not there any more. Raises the first KernelError
        once the rest was tried.
        """
        failures: list[KernelError] = []
        former: dict[NodeKey, list[NodeKey]] = {}
        for key in delta.gone:
            if key.map == ALLOWED:
                former.setdefault(_fenced(key), []).append(key)
        for behind, putting in ((True, True), (False, True), (False, False), (True, False)):
            entries = delta.put if putting else delta.gone
            steps = (one for one in entries.items() if (one[0].map in _BEHIND) is behind)
            while portion := dict(islice(steps, PORTION)):
                stale = [key for key in portion if key in delta.stale] if putting else [*portion]
                if putting:  # a range takes the place of those which it lies in, or they in it
                    stale += [key for each in portion for key in former.pop(_fenced(each), ())]
                try:
                    self._change(stale, portion if putting else {})
                except KernelError as error:
                    # What is to go has gone with its table.
                    if putting or error.errno != errno.ENOENT:
                        failures.append(error)
                yield
        for where, keep in delta.moved.items():
            try:
                self.forgotten += forget_udp(self._connection, *where, keep)
            except KernelError as error:
                failures.append(error)
            yield
        for version in {key.version for key in delta.left}:
            try:
                yield from self._forget_clients(version, delta.left)
            except KernelError as error:
                failures.append(error)
        for failure in failures:
            raise failure

    def _change(self, gone: Iterable[NodeKey], put: Mapping[NodeKey, NodeValue]) -> None:
        """Have entries go, and put others. Raises KernelError."""
        for version in {key.version for key in (*gone, *put) if key.map == KEEP}:
            family = Family(version)
            place = (NFT_FAMILY[family], NFT_SERVICES_TABLE, AFFINITY)
            seconds = ([_seconds(key) for key in keys if key[:2] == (version, KEEP)] for keys in (gone, put))
            affinity.change(self._connection, place, family, KEEPING, *seconds)
        maps.change(
            self._connection,
            [_element(key, b"") for key in gone if key.map != KEEP],
            [_element(key, value) for key, value in put.items() if key.map != KEEP],
        )

    def _keeping(self, family: Family) -> Iterator[NodeKey]:
        for seconds in affinity.read(self._connection, family, NFT_SERVICES_TABLE, KEEPING):
            yield NodeKey(family, KEEP, seconds.to_bytes(4))

    def _forget_clients(self, version: int, left: Mapping[NodeKey, frozenset[bytes]]) -> Iterator[None]:
        """Forget which clients stay with backends that are none any more. Raises KernelError."""
        place = (NFT_FAMILY[Family(version)], NFT_SERVICES_TABLE, AFFINITY)
        gone = []
        for done, one in enumerate(maps.read(self._connection, place), 1):
            stay = left.get(NodeKey(version, STAYING, one.key[: -Family(version).bits // 8]))
            if stay is not None and one.value not in stay:
                gone.append(one)
            if not done % PORTION:
                yield
        for start in range(0, len(gone), PORTION):
            maps.change(self._connection, gone[start : start + PORTION], [])
            yield


def _seconds(key: NodeKey) -> int:
    return int.from_bytes(key.key)


def _fenced(key: NodeKey) -> NodeKey:
    """Return of what a range is, any of its ranges standing for it; other keys as they are."""
    if key.map != ALLOWED:
        return key
    begins = key.key[: len(key.key) // 2]
    return NodeKey(key.version, ALLOWED, begins[: -Family(key.version).bits // 8])


def _element(key: NodeKey, value: NodeValue) -> maps.Element:
    return maps.Element(
        (NFT_FAMILY[Family(key.version)], NFT_SERVICES_TABLE, key.map), key.key, value, key.map == ALLOWED
    )
