"""What an agent measures, read when somebody asks: nothing here is counted for this alone but times."""

import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime

from podway import __version__
from podway.agent.components import Components
from podway.cni.server import CniServer
from podway.errors import RoutingError
from podway.memory import resident
from podway.metrics.exposition import Metric, Values, expose

INFO = Metric("podway_agent_info", "The version of the agent.", labels=("version",))
STARTED = Metric("podway_agent_start_time_seconds", "When the agent started, in seconds since 1970.")
MEMORY = Metric("podway_agent_memory_bytes", "Resident memory of the agent.")
LOOP = Metric(
    "podway_agent_loop_step_seconds",
    "How long the agent is at work at a stretch; no ADD is served meanwhile.",
    "histogram",
)
FAILURES = Metric("podway_agent_task_failures_total", "Failures of tasks that were started again.", "counter")
REQUESTS = Metric(
    "podway_cni_request_seconds",
    "How long requests of the runtime took, by command and what became of them.",
    "histogram",
    ("command", "outcome"),
)
LEASES = Metric("podway_leases", "Attachments of pods on this node.")
BLOCKS = Metric("podway_blocks", "Blocks that this node owns, by pool.", labels=("pool",))
ADDRESSES = Metric("podway_addresses", "Addresses in this node's blocks.", labels=("pool", "state"))
REPAIRS = Metric("podway_repairs_total", "What others changed on the node, and the agent set right.", "counter")
REFUSED = Metric("podway_kernel_refusals", "Changes that the kernel refuses now.")
WRITES = Metric("podway_kernel_writes_total", "Objects written to the kernel.", "counter")
STORE = Metric("podway_store_unreachable_seconds", "For how long the store cannot be asked; 0 while it can.")
REJECTED = Metric("podway_rejected_objects", "Objects of the store that are set aside.")
ROUTING = Metric("podway_routing_in_order", "Whether BIRD runs as planned.")
SESSIONS = Metric("podway_bgp_sessions", "BGP sessions, by state.", labels=("state",))
ROUTES = Metric("podway_bgp_routes", "Routes of all BGP sessions, by direction.", labels=("direction",))
CERTIFICATE = Metric(
    "podway_certificate_expiry_timestamp_seconds", "When this node's certificate ends, since 1970; 0 without one."
)
ENFORCED = Metric("podway_policy_enforced", "Whether policies are enforced here.")
TABLES = Metric("podway_flow_table_entries", "Entries of the flow engine's tables.", labels=("table",))
ROOM = Metric("podway_flow_table_room", "How many entries the flow engine's tables take.", labels=("table",))
FLOWS = Metric("podway_flow_records_total", "Records of flows, by what they tell.", "counter", ("event",))
UNTOLD = Metric(
    "podway_flow_events_untold_total",
    "Events that could not be recorded: more came than the agent took, or than it is told of the kernel's drops.",
    "counter",
    ("why",),
)
ROUND_TRIPS = Metric(
    "podway_tcp_round_trip_seconds",
    "Round trips of TCP connections that ended, the least that was measured last.",
    "histogram",
)
RETRANSMITTED = Metric(
    "podway_tcp_retransmitted_packets_total",
    "Packets of TCP that were sent again, by either end, in connections that ended.",
    "counter",
)


# The names that dashboards made for Hubble know (podway.flows.dashboard).
PROCESSED = Metric(
    "hubble_flows_processed_total",
    "Flows that began or were judged anew, and packets that were dropped.",
    "counter",
    ("protocol", "type", "subtype", "verdict"),
)
DROPS = Metric("hubble_drop_total", "Dropped packets.", "counter", ("reason", "protocol"))
VERDICTS = Metric(
    "hubble_policy_verdicts_total", "What rules of policies said.", "counter", ("direction", "match", "action")
)
FLAGS = Metric(
    "hubble_tcp_flags_total",
    "Connections of TCP that began (SYN), were closed (FIN), were reset (RST).",
    "counter",
    ("flag", "family"),
)
PORTS = Metric("hubble_port_distribution_total", "Flows by the called port.", "counter", ("protocol", "port"))
QUERIES = Metric("hubble_dns_queries_total", "Datagrams to port 53, of flows that ended.", "counter")
LOST = Metric("hubble_lost_events_total", "Events that could not be recorded.", "counter", ("source",))

METRICS = (
    *(INFO, STARTED, MEMORY, LOOP, FAILURES, REQUESTS, LEASES, BLOCKS, ADDRESSES, REPAIRS, REFUSED, WRITES),
    *(STORE, REJECTED, ROUTING, SESSIONS, ROUTES, CERTIFICATE, ENFORCED, TABLES, ROOM),
    *(FLOWS, UNTOLD, ROUND_TRIPS, RETRANSMITTED),
    *(PROCESSED, DROPS, VERDICTS, FLAGS, PORTS, QUERIES, LOST),
)
"""All that an agent measures."""


class AgentMetrics:
    """An agent's metrics; `requests` serves the runtime."""

    def __init__(self, components: Components, requests: CniServer) -> None:
        self._components = components
        self._requests = requests
        self._started = time.time()

    async def text(self) -> str:
        """Return all metrics as text."""
        return expose(await self.collect())

    async def collect(self) -> list[tuple[Metric, Values]]:
        """Return all metrics with their values. BIRD is asked; what it does not say is left out."""
        families = list(self._families())
        try:
            peers = await self._components.speaker.peers()
        except RoutingError:
            return families
        states = Counter("established" if peer.state == "Established" else "other" for peer in peers)
        families.append((SESSIONS, {(state,): float(states[state]) for state in ("established", "other")}))
        exported, imported = sum(peer.exported for peer in peers), sum(peer.imported for peer in peers)
        families.append((ROUTES, {("imported",): float(imported), ("exported",): float(exported)}))
        return families

    def _families(self) -> Iterator[tuple[Metric, Values]]:
        parts = self._components
        state, problems = parts.state, parts.problems()
        lost_at = parts.contact.lost_at
        yield INFO, {(__version__,): 1.0}
        yield STARTED, self._started
        yield MEMORY, float(resident())
        yield LOOP, parts.steps.ever
        yield FAILURES, float(sum(failure.times for failure in parts.supervisor.failures))
        yield REQUESTS, self._requests.times
        yield LEASES, float(len(state.leases))
        uses = state.book.use(state.now())
        blocks = Counter(use.pool for use in uses)
        addresses: Counter[tuple[str, str]] = Counter()
        for use in uses:
            counts = {"leased": use.leased, "cooling": use.cooling, "free": use.free}
            addresses.update({(use.pool, word): count for word, count in counts.items()})
        yield BLOCKS, {(pool,): float(count) for pool, count in blocks.items()}
        yield ADDRESSES, {labels: float(count) for labels, count in addresses.items()}
        yield REPAIRS, float(parts.reconciler.repairs.total)
        refused = (parts.reconciler.failures, parts.learned.failures, parts.pods.unrepaired)
        yield REFUSED, float(sum(len(tuple(one)) for one in refused))
        yield WRITES, float(parts.kernel.writes)
        yield STORE, 0.0 if lost_at is None else time.monotonic() - lost_at
        yield REJECTED, float(len(state.view.rejected))
        yield ROUTING, float(not problems["routing"])
        until = parts.channel.status()["certificate"]
        yield CERTIFICATE, datetime.fromisoformat(until).timestamp() if until else 0.0
        yield ENFORCED, float(parts.reconciler.enforcement.status()["in_force"] == "ebpf")
        tables = parts.tables()
        yield TABLES, {(name,): float(table.used) for name, table in tables.items()}
        yield ROOM, {(name,): float(table.room) for name, table in tables.items()}
        tally, counted = parts.flows.tally, parts.flows.counted
        yield FLOWS, {(event,): float(count) for event, count in tally.events.items()}
        yield UNTOLD, {("lost",): float(counted.lost), ("withheld",): float(counted.withheld)}
        yield ROUND_TRIPS, tally.round_trips
        yield RETRANSMITTED, float(tally.retransmitted)
        yield from self._dashboard(float(counted.lost))

    def _dashboard(self, lost: float) -> Iterator[tuple[Metric, Values]]:
        """Yield what dashboards made for Hubble know; nothing where nothing was recorded."""
        board = self._components.flows.dashboard
        if not board.processed:
            return
        for metric, counts in (
            (PROCESSED, board.processed),
            (DROPS, board.drops),
            (VERDICTS, board.verdicts),
            (FLAGS, board.flags),
            (PORTS, board.ports),
        ):
            # A copy, as the thread that records goes on counting.
            yield metric, {labels: float(count) for labels, count in dict(counts).items()}
        yield QUERIES, float(board.queries)
        yield LOST, {("HUBBLE_RING_BUFFER",): lost}
