"""What `natOutgoing` costs packets between pods, which are not translated: the kernel tracks them from then on."""

import contextlib
import time

import msgspec

from bench.labs import Lab, lab
from bench.paths import SECONDS, Path, in_turn, ping_pong, ponger, trip_row
from bench.report import Section
from bench.roundtrip import ENCAPSULATIONS, across
from podway.api.kinds.ip_pool import IPPool
from podway.kernel import firewall
from podway.lab import facts
from podway.plan.objects import NFT_NAT_TABLE

ROUNDS = 9
LOOK = 0.05
PATIENCE = 15.0
"""Seconds that a switch may take."""
ON = ", with natOutgoing"


def measure() -> Section:
    with lab(nodes=2) as cluster, contextlib.ExitStack() as servers:
        without = across(cluster, ENCAPSULATIONS)
        pairs = [(path, Path(path.name + ON, path.source, path.target, path.address)) for path in without]
        for path in without:
            servers.enter_context(ponger(path))

        def trip(path: Path) -> float:
            _switch(cluster, on=path.name.endswith(ON))
            return ping_pong(path)

        trips = in_turn([path for pair in pairs for path in pair], ROUNDS, trip, warm_up=1)
    return Section(
        "Connection tracking by natOutgoing",
        f"sockperf ping-pong over TCP between the same two pods on two nodes, {ROUNDS} interleaved rounds of "
        f"{SECONDS} s after one to warm up, natOutgoing of all pools off and on in turn: median of the rounds' "
        "medians.",
        tuple(trip_row(each.name, trips, off.name) for off, on in pairs for each in (off, on)),
    )


def _switch(cluster: Lab, *, on: bool) -> None:
    pools = facts.ask(cluster.name, lambda store: store.list(IPPool)).items
    changed = [
        msgspec.structs.replace(pool, spec=msgspec.structs.replace(pool.spec, nat_outgoing=on))
        for pool in pools
        if pool.spec.nat_outgoing is not on
    ]
    if changed:
        cluster.apply(*changed)
    begun = time.monotonic()
    while any(cluster.inside(node, _translates) is not on for node in cluster.nodes):
        if time.monotonic() > begun + PATIENCE:
            raise TimeoutError(f"natOutgoing does not become {on}")
        time.sleep(LOOK)


def _translates() -> bool:
    chains = [entry["chain"] for entry in firewall.ruleset() if "chain" in entry]
    return any(chain["table"] == NFT_NAT_TABLE and chain.get("type") == "nat" for chain in chains)
