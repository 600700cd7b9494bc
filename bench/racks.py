"""Round trips and throughput between racks: through routers that know nothing of pods."""

from bench.labs import lab
from bench.paths import how, round_trips, stream_row, streams, trip_row
from bench.report import Section
from bench.roundtrip import BASE, across, node_path

ROUNDS = 5
STREAM_ROUNDS = 3


def measure() -> Section:
    with lab(nodes=2, options=("--racks", "2")) as cluster:
        paths = [node_path(cluster), *across(cluster, ("vxlan", "ipip"), "cross-subnet")]
        trips = round_trips(paths, ROUNDS)
        rates = streams(paths, STREAM_ROUNDS)
    return Section(
        "Round trip and throughput between racks",
        f"{how(ROUNDS, STREAM_ROUNDS)} Two racks with a node and a router each; `when: cross-subnet`, so pods' "
        "packets are encapsulated. For information.",
        (
            *(trip_row(path.name, trips, BASE) for path in paths),
            *(stream_row(path.name, rates, BASE) for path in paths),
        ),
    )
