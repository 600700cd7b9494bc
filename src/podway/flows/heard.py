"""What several nodes answered to one question about flows, joined. Pure."""

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


class Summed(NamedTuple):
    """Sums, and what is to be said."""

    sums: Sums
    notes: list[str]
    silent: dict[str, AgentError]
