"""What several nodes answered to one question about flows, joined. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from podway.errors import AgentError
from podway.flows.query import Sums
from podway.flows.record import FlowRecord


class Heard(NamedTuple):
    """Records in order of time, by node the next record's number, and what is to be said.

    `silent` are the nodes that did not answer; `lost` by node the events that its agent could not take, ever since
    its engine began.
    """

    records: list[FlowRecord]
    following: dict[str, int]
    notes: list[str]
    silent: dict[str, AgentError]
    lost: dict[str, int]


def overtaken(records: Iterable[FlowRecord], following: Mapping[str, int], limit: int) -> dict[str, int]:
    """Return by node how many of its records are missing before those of one answer, where that is full.

    `following` are the numbers of the records that were awaited, `limit` how many a node was asked for.
    """
    counts: Counter[str] = Counter()
    oldest: dict[str, int] = {}
    for record in records:
        counts[record.node] += 1
        oldest[record.node] = min(record.sequence, oldest.get(record.node, record.sequence))
    gaps = {node: oldest[node] - following[node] for node in counts if node in following and counts[node] >= limit}
    return {node: gap for node, gap in gaps.items() if gap > 0}


class Summed(NamedTuple):
    """Sums, and what is to be said."""

    sums: Sums
    notes: list[str]
    silent: dict[str, AgentError]
