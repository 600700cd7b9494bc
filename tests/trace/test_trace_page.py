"""The page and the JSON of fixed results: as people and programs know them."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from podway.trace.page import to_text
from podway.trace.report import (
    Direction,
    FamilyTrace,
    Hop,
    Kernel,
    Neighbour,
    Planned,
    Seen,
    Silent,
    TraceReport,
    Verdict,
    to_json,
)

GOLDEN = Path(__file__).parent / "golden"
LINKS = {1: "pway12c93c6f74f", 2: "pwayab550e824f1"}
PODS = {1: "10.244.0.2", 2: "10.244.1.2"}
GATEWAY, GATEWAY_MAC, POD_MAC = "169.254.1.1", "02:70:77:61:79:01", "02:0e:be:ea:f1:37"


def seen(interface: str, direction: str, ends: tuple[str, str], limit: int, since: int) -> Seen:
    return Seen(interface, direction, ends[0], 40112, ends[1], 80, limit, 40, since)  # type: ignore[arg-type]


def unicast(route: str, device: str, owner: str, near: Neighbour, learned_from: str = "") -> Kernel:
    return Kernel("unicast", route, "", device, "veth", 1500, "", "main", owner, learned_from, near)


def hops(one: int, other: int) -> tuple[Hop, ...]:
    """Return the good way from the pod of one node to that of the other."""
    ends = PODS[one], PODS[other]
    block, peer = f"10.244.{other - 1}.0/24", f"172.30.0.{other}"
    default = f"default via {GATEWAY} dev eth0"
    return (
        Hop(
            1,
            f"node{one}",
            f"shop/p{one}",
            "",
            "eth0",
            Planned("forwarded", "podway", default, neighbour=f"{GATEWAY} at {GATEWAY_MAC}"),
            unicast(default, "eth0", "podway", Neighbour(GATEWAY, GATEWAY_MAC, "permanent")),
            (seen("eth0", "out", ends, 64, 0),),
        ),
        Hop(
            2,
            f"node{one}",
            "",
            LINKS[one],
            "eth0",
            Planned("forwarded", "bird", f"{block} via {peer} dev eth0", f"node{other}"),
            unicast(
                f"{block} via {peer} dev eth0",
                "eth0",
                "bird",
                Neighbour(peer, "02:70:77:6e:00:02", "learned"),
                f"node{other}",
            ),
            (seen(LINKS[one], "in", ends, 64, 4_100), seen("eth0", "out", ends, 63, 15_300)),
        ),
        Hop(
            3,
            f"node{other}",
            "",
            "eth0",
            LINKS[other],
            Planned(
                "forwarded",
                "podway",
                f"{ends[1]}/32 dev {LINKS[other]} src {peer}",
                neighbour=f"{ends[1]} at {POD_MAC}",
            ),
            unicast(
                f"{ends[1]} dev {LINKS[other]}",
                LINKS[other],
                "podway",
                Neighbour(ends[1], POD_MAC, "permanent"),
            ),
            (seen("eth0", "in", ends, 63, 10_400), seen(LINKS[other], "out", ends, 62, 6_700)),
        ),
        Hop(
            4,
            f"node{other}",
            f"shop/p{other}",
            "eth0",
            "",
            Planned("delivered", "kernel"),
            Kernel("local", f"local {ends[1]}", device="lo", table="local", owner="kernel"),
            (seen("eth0", "in", ends, 62, 900),),
        ),
    )


GOOD = Verdict("delivered", "probe", True, False, 1500, 37_400, "a server answered (SYN-ACK)")
BAD = Verdict(
    "lost",
    "probe",
    True,
    False,
    1500,
    4_100,
    hop=2,
    code="lost",
    problem="node node1 throws packets for node2's block 10.244.1.0/24 away: its route to 10.244.1.2/32 is of "
    "type blackhole",
    advice="`ip route del blackhole 10.244.1.2/32`",
    last_seen=f"entering by {LINKS[1]} of node node1",
)


def report(there: Direction, back: Direction, *silent: Silent) -> TraceReport:
    family = FamilyTrace("IPv4", PODS[1], PODS[2], 40112, 80, there, back)
    return TraceReport("pod shop/p1", "pod shop/p2", "TCP", False, (family,), silent, 0.061)


def good() -> TraceReport:
    back = msgspec.structs.replace(GOOD, basis="answer", took=9_800, answered_by="")
    return report(
        Direction("pod shop/p1", "pod shop/p2", hops(1, 2), GOOD),
        Direction("pod shop/p2", "pod shop/p1", hops(2, 1), back),
    )


def bad() -> TraceReport:
    first, second, third, fourth = hops(1, 2)
    black = Kernel("blackhole", "blackhole 10.244.1.2", table="main", owner="static")
    stopped = msgspec.structs.replace(second, exit="", kernel=black, seen=second.seen[:1], on_plan=False)
    unreached = [msgspec.structs.replace(hop, kernel=None, seen=()) for hop in (third, fourth)]
    silent = [
        msgspec.structs.replace(hop, kernel=None, seen=(), problem="the agent of node2 does not answer")
        for hop in hops(2, 1)[:2]
    ]
    back = Verdict("unknown", "none", problem="the agent of node2 does not answer")
    return report(
        Direction("pod shop/p1", "pod shop/p2", (first, stopped, *unreached), BAD),
        Direction("pod shop/p2", "pod shop/p1", (*silent, *hops(2, 1)[2:]), back),
        Silent("node2", "no agent answers at 172.30.0.2 port 4747: timed out"),
    )


@pytest.mark.parametrize("full", [False, True], ids=["brief", "full"])
@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("what", ["good", "bad"])
def test_the_page(what: str, width: int, full: bool) -> None:
    """With PODWAY_GOLDEN=write the pages are written anew, to be looked over again."""
    page = to_text({"good": good, "bad": bad}[what](), width=width, full=full) + "\n"
    golden = GOLDEN / f"{what}{'-full' if full else ''}-{width}.txt"
    if os.environ.get("PODWAY_GOLDEN") == "write":
        golden.write_text(page)
    assert max(map(len, page.splitlines())) <= width
    assert page == golden.read_text()


def test_a_hop_whose_probe_says_more_is_told_in_full() -> None:
    """Plan and kernel agree, but the address is another one behind it."""
    first, second, *rest = hops(1, 2)
    changed = msgspec.structs.replace(second.seen[1], source="172.30.0.1")
    second = msgspec.structs.replace(second, seen=(second.seen[0], changed))
    verdict = msgspec.structs.replace(GOOD, source_kept=False, hop=2, code="address-translated", problem="NAT")
    direction = Direction("pod shop/p1", "pod shop/p2", (first, second, *rest), verdict)
    page = to_text(report(direction, good().families[0].back), width=100)
    assert "out eth0: 172.30.0.1:40112 → 10.244.1.2:80" in page
    assert "4  pod shop/p2 on node2: in by eth0\n" in page


def test_only_the_colours_differ_with_colours() -> None:
    painted: list[tuple[str, str]] = []

    def paint(line: str, kind: str) -> str:
        painted.append((line, kind))
        return f"<{kind}>{line}"

    page = to_text(bad(), width=80, paint=paint)
    for line, kind in painted:
        page = page.replace(f"<{kind}>{line}", line, 1)
    assert page == to_text(bad(), width=80)
    kinds = {kind for line, kind in painted if "LOST HERE" in line or "NOT DELIVERED" in line}
    assert kinds == {"bad"}


def _names(value: Any, path: str = "") -> set[str]:
    if isinstance(value, dict):
        return {f"{path}.{name}" for name in value} | {
            deeper for name, inner in value.items() for deeper in _names(inner, f"{path}.{name}")
        }
    if isinstance(value, list):
        return {deeper for inner in value for deeper in _names(inner, f"{path}[]")}
    return set()


def test_the_json_is_as_documented() -> None:
    document = json.loads(to_json(good()))
    assert (document["apiVersion"], document["kind"]) == ("podway.io/v1", "TraceReport")
    assert document["delivered"] is True
    assert json.loads(to_json(bad()))["delivered"] is False
    text = (Path(__file__).parents[2] / "docs" / "trace.md").read_text()
    told = {name.rpartition(".")[2] for name in _names(document)}
    assert {name for name in told if f"`{name}`" not in text} == set()
