"""What an agent tells operators: pure."""

from datetime import UTC, datetime
from ipaddress import ip_address

from podway.agent.announcing import REPAIRS, Seen, notices
from podway.bgp.status import PeerStatus
from podway.reconcile.repairs import Repair

NOW = 1_790_000_000.0
NOTHING: frozenset[str] = frozenset()


def told(before: Seen, now: Seen, down: frozenset[str] = NOTHING) -> dict[str, tuple[str, int]]:
    return {one.reason: (one.note, one.times) for one in notices("n1", before, now, down, NOW)}


def session(name: str, node: str, peer: str = "") -> PeerStatus:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return PeerStatus(name, node, ip_address("172.30.0.9"), 64512, "Active", at, "Hold timer expired", peer=peer)


def test_nothing_is_told_of_a_quiet_node() -> None:
    assert told(Seen(refused=3, repaired=9), Seen(refused=3, repaired=9)) == {}


def test_refused_pods_are_counted_and_the_last_reason_is_told() -> None:
    found = told(Seen(refused=3), Seen(refused=7, refusal="IPPool/p is full"))
    assert found == {"PodsRefused": ("pods get no network here; the last: IPPool/p is full", 4)}


def test_one_repair_is_nothing_and_many_are_told() -> None:
    repairs = tuple(Repair(NOW - 10 * number, f"route {number}") for number in reversed(range(REPAIRS)))
    assert told(Seen(), Seen(repairs=repairs[:1], repaired=1)) == {}
    note, times = told(Seen(), Seen(repairs=repairs, repaired=REPAIRS))["RepairedAgain"]
    assert note.endswith("the last: route 0")
    assert times == REPAIRS
    old = tuple(Repair(NOW - 4000, "route") for _ in range(REPAIRS))
    assert told(Seen(), Seen(repairs=old, repaired=REPAIRS)) == {}


def test_full_pools_are_told() -> None:
    assert "no address is left here in a, b" in told(Seen(), Seen(starved=frozenset({"b", "a"})))["PoolFull"][0]


def test_a_dead_node_is_not_told_by_all_others_and_a_lonely_node_tells() -> None:
    inside = (session("s2", "n2"), session("s3", "n3"))
    assert told(Seen(), Seen(sessions=inside), frozenset({"s2"})) == {}
    note, _ = told(Seen(), Seen(sessions=inside), frozenset({"s2", "s3"}))["BGPSessionsDown"]
    assert note.startswith("2 of 2 BGP sessions are down: n2 (172.30.0.9): Hold timer expired; n3")
    outside = (*inside, session("s9", "", peer="tor"))
    note, _ = told(Seen(), Seen(sessions=outside), frozenset({"s9"}))["BGPSessionsDown"]
    assert note == "1 of 3 BGP sessions are down: tor (172.30.0.9): Hold timer expired"
