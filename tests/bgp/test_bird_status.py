"""Parsing of what BIRD 2.0.12 really answers (captured), where the live tests do not come by."""

from datetime import UTC, datetime
from ipaddress import ip_address, ip_network

from podway.bgp.control import Line
from podway.bgp.status import NextHop, parse_bfd, parse_peers, parse_routes


def lines(text: str) -> tuple[Line, ...]:
    """Read a captured reply: as on the wire, a line that starts with a blank continues its code."""
    found: list[Line] = []
    for raw in text.strip("\n").split("\n"):
        found.append(Line(found[-1].code, raw[1:]) if raw[0] == " " else Line(int(raw[:4]), raw[5:]))
    return tuple(found)


def test_a_session_that_is_down_tells_why() -> None:
    (peer,) = parse_peers(
        lines("""\
2002-Name       Proto      Table      State  Since         Info
1002-bfd1       BFD        ---        up     2026-11-23T02:14:55.116+0000
 node-3.ipv4 BGP        ---        start  2026-11-23T02:14:55.116+0000  Active        Socket: No route to host
1006-  Description:    node-3
   BGP state:          Active
     Neighbor address: 192.0.2.3
     Neighbor AS:      64512
     Local AS:         64512
     Connect delay:    0.5/5
     Last error:       Socket: No route to host
   Channel ipv4
     State:          DOWN
     Table:          master4
     Preference:     100
0000
""")
    )
    assert (peer.name, peer.node, peer.address) == ("node-3.ipv4", "node-3", ip_address("192.0.2.3"))
    assert (peer.state, peer.established, peer.imported) == ("Active", False, 0)
    assert peer.last_error == "Socket: No route to host"
    assert peer.since == datetime(2026, 11, 23, 2, 14, 55, 116000, tzinfo=UTC)


def test_the_same_network_from_two_sessions() -> None:
    first, second = parse_routes(
        lines("""\
1007-Table master4:
 10.244.2.0/24        unicast [node-2.ipv4 2026-11-23T02:14:58.187+0000] * (100) [i]
 \tvia 192.0.2.2 on eth0
                      unicast [node-3.ipv4 2026-11-23T02:14:58.190+0000 from 192.0.2.9] (100) [i]
 \tvia 192.0.2.3 on eth0
0000
""")
    )
    assert first.network == second.network == ip_network("10.244.2.0/24")
    assert (first.best, second.best) == (True, False)
    assert second.protocol == "node-3.ipv4"
    assert second.next_hops == (NextHop(ip_address("192.0.2.3"), "eth0"),)


def test_no_session_no_record() -> None:
    assert parse_bfd(lines("1020-bfd1:\n IP address  Interface  State  Since  Interval  Timeout\n0000 ")) == ()
    assert parse_routes(lines("0000 ")) == ()
