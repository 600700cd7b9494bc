"""What the flow engine makes of packets to Services, one by one: led, answered in their name, refused."""

import struct
from collections import Counter as Counts
from ipaddress import ip_address
from typing import Any

import pytest

from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_layout import Counter, EventKind, FlowFlag, FlowState, Hook, Reason
from podway.kernel.bpf.service_maps import ServiceMaps
from podway.policy.maps import Rule, RuleKey, Tier, Verdict
from podway.probe.packet import IcmpError, parse_ethernet
from podway.services.maps import Backend, Delta, Frontend, FrontendFlag, FrontendKey, packed
from tests.bpf.flow_bench import OUTSIDE, PODS, REDIRECT, REMOTE, SHOT, UNSPEC, Bench
from tests.bpf.flow_packets import (
    ACK,
    FIN,
    HARDWARE,
    ICMP,
    ICMPV6,
    RST,
    SCTP,
    SYN,
    TCP,
    UDP,
    checksum,
    frame,
    ip,
    sctp,
    tcp,
    udp,
)

pytestmark = pytest.mark.kernel

A, B = PODS["pa"], PODS["pb"]
VIP, VIP_PORT = ("172.20.0.10", "fd96::10"), 80
OTHER = ("172.20.0.11", "fd96::11")
families = pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])


class Services:
    """The bench, with its maps of Services."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        for name in ("frontends", "choices", "backends", "calls", "tcp_calls", "affinities"):
            for key in bpf.items(bench.engine.maps[name]):
                bpf.delete(bench.engine.maps[name], key)
        self.maps = ServiceMaps(bench.engine.maps)

    def write(self, **delta: Any) -> None:
        for _ in self.maps.write(Delta(**delta)):
            pass

    def serve(
        self,
        vip: str,
        *ends: tuple[str, int],
        number: int = 1,
        protocol: int = TCP,
        affinity: int = 0,
        flags: int = 0,
    ) -> None:
        """Have backends behind an address; theirs are the numbers from 100 times the set's on."""
        places = range(1, len(ends) + 1)
        address = packed(ip_address(vip))
        self.write(
            frontends={
                FrontendKey(address, protocol, VIP_PORT): Frontend(number, affinity, FrontendFlag(flags)),
                FrontendKey(address): Frontend(0),
            },
            choices={(number, 0): len(ends), **{(number, place): number * 100 + place for place in places}},
            backends={
                number * 100 + place: Backend(number, packed(ip_address(where)), port)
                for place, (where, port) in zip(places, ends, strict=True)
            },
        )

    def replace(self, end: tuple[str, int]) -> None:
        """Have this backend in the place of the first set's only one."""
        self.write(
            choices={(1, 1): 102},
            backends={102: Backend(1, packed(ip_address(end[0])), end[1])},
            gone_backends=(101,),
        )


@pytest.fixture
def services(bench: Bench) -> Services:
    return Services(bench)


def summed(packet: bytes) -> bytes:
    """A packet of TCP or UDP with the checksum that is right for it."""
    protocol, at, pseudo = head(packet)
    where = at + {TCP: 16, UDP: 6}[protocol]
    bare = packet[:where] + bytes(2) + packet[where + 2 :]
    upper = bare[at:]
    even = upper + bytes(len(upper) % 2)
    found = checksum(pseudo + struct.pack("!II", len(upper), protocol) + even)
    return bare[:where] + struct.pack("!H", found) + bare[where + 2 :]


def head(packet: bytes) -> tuple[int, int, bytes]:
    if packet[0] >> 4 == 4:
        return packet[9], 20, packet[12:20]
    return packet[6], 40, packet[8:40]


def ends(packet: bytes) -> tuple[str, int, str, int]:
    """Source and destination of a packet, with their ports."""
    _, at, addresses = head(packet)
    half = len(addresses) // 2
    source, destination = (str(ip_address(part)) for part in (addresses[:half], addresses[half:]))
    return (source, *struct.unpack_from("!H", packet, at), destination, *struct.unpack_from("!H", packet, at + 2))


def sound(packet: bytes) -> bool:
    """Whether all checksums of a packet are right."""
    return packet == summed(packet) and (packet[0] >> 4 == 6 or not checksum(packet[:20]))


def sent(source: str, destination: str, *, protocol: int = TCP, port: int = 1000, flags: int = SYN) -> bytes:
    upper = tcp(port, VIP_PORT, flags, b"odd") if protocol == TCP else udp(port, VIP_PORT, b"odd")
    return frame(summed(ip(source, destination, protocol, upper)))


def answered(source: str, destination: str, *, protocol: int = TCP, port: int = 1000) -> bytes:
    upper = tcp(8080, port, SYN | ACK) if protocol == TCP else udp(8080, port, b"four")
    return frame(summed(ip(source, destination, protocol, upper)))


@families
@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("where", ["own", "remote", "outside"])
def test_led_to_a_backend_and_answered_in_the_services_name(
    services: Services, family: int, protocol: int, where: str
) -> None:
    bench = services.bench
    backend = {"own": B, "remote": REMOTE, "outside": OUTSIDE}[where][family]
    services.serve(VIP[family], (backend, 8080), protocol=protocol)
    for _ in range(2):  # a known flow is led as a new one
        done = bench.run(Hook.FROM_POD, "pa", sent(A[family], VIP[family], protocol=protocol))
        assert done.action == (UNSPEC if where == "outside" else REDIRECT)
        assert ends(done.frame[14:]) == (A[family], 1000, backend, 8080)
        assert sound(done.frame[14:])
    assert bench.counted()[Counter.FLOWS_MADE] == 1
    flow = bench.flow(A[family], backend, protocol, (1000, 8080))
    assert (FlowFlag.SERVICE in flow.flags, flow.service, flow.service_port) == (True, ip_address(VIP[family]), 80)
    [told] = bench.events()
    assert (told.kind, told.service, told.service_port) == (EventKind.FLOW_NEW, ip_address(VIP[family]), 80)
    assert told.key.destination == ip_address(backend)

    back = answered(backend, A[family], protocol=protocol)
    if where == "own":
        done = bench.run(Hook.FROM_POD, "pb", back)
    elif where == "remote":
        done = bench.run(Hook.FROM_WIRE, "wire", back)
    else:  # what the stack carries, and perhaps has translated, on its way into the pod
        assert bench.run(Hook.FROM_WIRE, "wire", back).frame == back
        done = bench.run(Hook.TO_POD, "pa", back)
    assert done.action == (UNSPEC if where == "outside" else REDIRECT)
    assert ends(done.frame[14:]) == (VIP[family], 80, A[family], 1000)
    assert sound(done.frame[14:])
    assert bench.counted()[Counter.FLOWS_MADE] == 1


@families
def test_sctp_is_led_with_its_checksum_untouched(services: Services, family: int) -> None:
    services.serve(VIP[family], (REMOTE[family], VIP_PORT), protocol=SCTP)
    message = sctp(1000, VIP_PORT)
    done = services.bench.run(Hook.FROM_POD, "pa", frame(ip(A[family], VIP[family], SCTP, message)))
    assert done.action == REDIRECT
    assert ends(done.frame[14:]) == (A[family], 1000, REMOTE[family], VIP_PORT)
    assert done.frame.endswith(message)


@families
def test_udp_without_a_checksum_stays_without(services: Services, family: int) -> None:
    services.serve(VIP[family], (REMOTE[family], 8080), protocol=UDP)
    done = services.bench.run(Hook.FROM_POD, "pa", frame(ip(A[family], VIP[family], UDP, udp(1000, VIP_PORT))))
    at = 14 + head(done.frame[14:])[1]
    assert done.frame[at + 6 : at + 8] == bytes(2)


@families
def test_later_fragments_follow_the_first(services: Services, family: int) -> None:
    services.serve(VIP[family], (REMOTE[family], 8080), protocol=UDP)
    first = ip(A[family], VIP[family], UDP, udp(1000, VIP_PORT, bytes(8)), fragment=(0, True))
    rest = ip(A[family], VIP[family], UDP, b"12345678", fragment=(16, False))
    for part in (first, rest):
        done = services.bench.run(Hook.FROM_POD, "pa", frame(part))
        assert done.action == UNSPEC
        assert ip_address(REMOTE[family]).packed in done.frame
    assert done.frame.endswith(b"12345678")


@families
def test_new_connections_are_spread_evenly(services: Services, family: int) -> None:
    services.serve(VIP[family], (REMOTE[family], 1), (REMOTE[family], 2), (REMOTE[family], 3))
    chosen = Counts(
        ends(services.bench.run(Hook.FROM_POD, "pa", sent(A[family], VIP[family], port=port)).frame[14:])[3]
        for port in range(2000, 2900)
    )
    assert chosen.keys() == {1, 2, 3}
    assert all(200 < times < 400 for times in chosen.values())  # six standard deviations and more


@families
def test_policy_judges_the_backend_and_its_port(services: Services, family: int) -> None:
    bench = services.bench
    services.serve(VIP[family], (B[family], 8080))
    allow, deny = Rule(Verdict.ALLOW, 1, 20), Rule(Verdict.DENY, 0, 21)
    bench.rules(
        3, (RuleKey(3), {Tier.NETWORK_POLICY: deny}), (RuleKey(3, 0, TCP, 80, 16), {Tier.NETWORK_POLICY: allow})
    )
    bench.endpoint("pb", ingress=3)
    assert bench.from_pod("pa", sent(A[family], VIP[family])) == SHOT
    assert bench.counted()[Reason.DENIED_INGRESS] == 1
    bench.rules(3, (RuleKey(3, 0, TCP, 8080, 16), {Tier.NETWORK_POLICY: allow}))
    assert bench.from_pod("pa", sent(A[family], VIP[family])) == REDIRECT


@families
def test_a_pod_reaches_itself_by_a_service(services: Services, family: int) -> None:
    """As its gateway: a packet from its own address it would not take. Policy hears of the pod itself."""
    bench, gateway = services.bench, ("169.254.1.1", "fe80::1")[family]
    services.serve(VIP[family], (A[family], 8080))
    for _ in range(2):
        done = bench.run(Hook.FROM_POD, "pa", sent(A[family], VIP[family]))
        assert done.action == REDIRECT
        assert ends(done.frame[14:]) == (gateway, 1000, A[family], 8080)
        assert done.frame[:12] == HARDWARE[6:] + HARDWARE[:6]
        assert sound(done.frame[14:])
        done = bench.run(Hook.FROM_POD, "pa", answered(A[family], gateway))
        assert done.action == REDIRECT
        assert ends(done.frame[14:]) == (VIP[family], 80, A[family], 1000)
        assert sound(done.frame[14:])
        bench.maps.changed()  # looked at again, as after any change
    assert bench.counted()[Counter.FLOWS_MADE] == 1
    bench.rules(3, (RuleKey(3), {Tier.NETWORK_POLICY: Rule(Verdict.DENY, 0, 21)}))
    bench.endpoint("pa", ingress=3)
    assert bench.from_pod("pa", sent(A[family], VIP[family], port=1001)) == SHOT
    assert bench.counted()[Reason.DENIED_INGRESS] == 1


@families
def test_without_backends_tcp_is_refused_at_once(services: Services, family: int) -> None:
    bench = services.bench
    services.serve(VIP[family])
    done = bench.run(Hook.FROM_POD, "pa", sent(A[family], VIP[family]))
    assert done.action == REDIRECT
    assert ends(done.frame[14:]) == (VIP[family], 80, A[family], 1000)
    assert done.frame[14 + head(done.frame[14:])[1] + 13] & RST
    assert bench.counted()[Reason.SERVICE_NO_ENDPOINT] == 1
    services.serve(VIP[family], (REMOTE[family], 8080))
    assert bench.from_pod("pa", sent(A[family], VIP[family])) == REDIRECT


@families
@pytest.mark.parametrize("protocol", [UDP, SCTP], ids=["UDP", "SCTP"])
def test_without_backends_what_is_no_tcp_is_answered_with_icmp(
    services: Services, family: int, protocol: int
) -> None:
    bench = services.bench
    services.serve(VIP[family], protocol=protocol)
    upper = udp(1000, VIP_PORT, bytes(100)) if protocol == UDP else sctp(1000, VIP_PORT)
    packet = ip(A[family], VIP[family], protocol, upper)
    done = bench.run(Hook.FROM_POD, "pa", frame(packet))
    assert done.action == REDIRECT
    made = parse_ethernet(done.frame)
    assert made is not None
    assert (str(made.source), str(made.destination)) == (VIP[family], A[family])
    assert isinstance(made.transport, IcmpError)
    assert made.transport.meaning == "port unreachable"
    answer, quoted = done.frame[14:], head(packet)[1] + 8
    assert answer[-quoted:] == packet[:quoted]
    kind, at, pseudo = head(answer)
    covered = pseudo + struct.pack("!II", len(answer) - at, kind) if family else b""
    assert not checksum(covered + answer[at:])
    assert family or not checksum(answer[:20])
    assert bench.counted()[Counter.UNREACHABLES_SENT] == 1
    assert bench.from_pod("pa", frame(ip(A[family], VIP[family], protocol, upper, fragment=(0, True)))) == SHOT


@families
def test_without_backends_it_is_dropped_where_another_node_has_some(services: Services, family: int) -> None:
    services.serve(VIP[family], flags=FrontendFlag.DROP)
    assert services.bench.from_pod("pa", sent(A[family], VIP[family])) == SHOT


@families
def test_another_port_of_the_address_is_refused(services: Services, family: int) -> None:
    bench = services.bench
    services.serve(VIP[family], (REMOTE[family], 8080))
    packet = ip(A[family], VIP[family], TCP, tcp(1000, 81))
    assert bench.from_pod("pa", frame(packet)) == REDIRECT  # the RST
    assert bench.from_pod("pa", sent(A[family], VIP[family], protocol=UDP)) == REDIRECT  # an ICMP error
    assert bench.counted()[Reason.SERVICE_NO_PORT] == 2


@families
def test_one_way_udp_moves_when_its_backend_goes_and_open_tcp_does_not(services: Services, family: int) -> None:
    bench, (gone, there) = services.bench, ((REMOTE[family], 1), (REMOTE[family], 2))
    services.serve(VIP[family], gone, protocol=UDP)
    services.serve(VIP[family], gone, number=2)

    def send(protocol: int, **more: Any) -> int:
        done = bench.run(Hook.FROM_POD, "pa", sent(A[family], VIP[family], protocol=protocol, **more))
        led = done.action == REDIRECT and head(done.frame[14:])[0] == protocol
        return ends(done.frame[14:])[3] if led else 0

    assert (send(UDP), send(TCP)) == (1, 1)
    back = frame(summed(ip(gone[0], A[family], TCP, tcp(1, 1000, SYN | ACK))))
    assert bench.from_wire(back) == REDIRECT
    for number in (1, 2):
        services.write(
            choices={(number, 1): number * 100 + 2},
            backends={number * 100 + 2: Backend(number, packed(ip_address(there[0])), there[1])},
            gone_backends=(number * 100 + 1,),
        )
    assert (send(UDP), send(TCP, flags=ACK)) == (2, 1)
    services.write(choices={(1, 0): 0}, gone_choices=((1, 1),), gone_backends=(102,))
    assert send(UDP) == 0
    assert bench.counted()[Reason.SERVICE_NO_ENDPOINT] == 1


@families
def test_half_open_tcp_goes_to_another_backend_when_its_one_goes(services: Services, family: int) -> None:
    bench = services.bench
    services.serve(VIP[family], (REMOTE[family], 1))
    bench.from_pod("pa", sent(A[family], VIP[family]))
    services.replace((REMOTE[family], 2))
    assert ends(bench.run(Hook.FROM_POD, "pa", sent(A[family], VIP[family])).frame[14:])[3] == 2


@families
def test_a_retransmission_goes_to_the_same_backend(services: Services, family: int) -> None:
    services.serve(VIP[family], *((REMOTE[family], port) for port in range(1, 50)))
    packet = sent(A[family], VIP[family])
    assert len({services.bench.run(Hook.FROM_POD, "pa", packet).frame for _ in range(10)}) == 1


@families
def test_a_client_stays_with_its_backend_as_long_as_affinity_lasts(services: Services, family: int) -> None:
    bench = services.bench
    services.serve(VIP[family], *((REMOTE[family], port) for port in range(1, 30)), affinity=60)

    def chosen(name: str, port: int) -> int:
        return ends(bench.run(Hook.FROM_POD, name, sent(PODS[name][family], VIP[family], port=port)).frame[14:])[3]

    (first,) = {chosen("pa", port) for port in range(2000, 2020)}
    affinities = bench.engine.maps["affinities"]
    ((key, value),) = bpf.items(affinities).items()
    (seen,) = struct.unpack_from("=Q", value)
    bpf.insert(affinities, key, struct.pack("=Q", seen - 61 * 10**9) + value[8:])
    later = {chosen("pa", port) for port in range(3000, 3003)}
    assert len(later) == 1  # another, most likely, but one
    (number,) = later
    services.write(
        choices={(1, 0): 1, (1, 1): 999},
        backends={999: Backend(1, packed(ip_address(B[family])), 999)},
        gone_backends=(100 + number,),
    )
    assert chosen("pa", 4000) == 999
    assert first


@families
def test_two_services_with_one_backend_do_not_mix_one_ports_connections(services: Services, family: int) -> None:
    """From one port to one backend there is one connection: the second one takes another backend, or none."""
    bench = services.bench
    services.serve(VIP[family], (REMOTE[family], 8080))
    services.serve(OTHER[family], (REMOTE[family], 8080), number=2)
    assert bench.from_pod("pa", sent(A[family], VIP[family])) == REDIRECT
    assert bench.from_pod("pa", sent(A[family], OTHER[family])) == SHOT
    assert bench.counted()[Reason.SERVICE_PORTS_TAKEN] == 1
    services.serve(OTHER[family], (REMOTE[family], 8080), (B[family], 8080), number=2)
    done = {bench.run(Hook.FROM_POD, "pa", sent(A[family], OTHER[family], port=1000)).frame[14:] for _ in range(3)}
    assert {ends(one)[2] for one in done} <= {B[family], OTHER[family]}


@families
def test_a_service_that_comes_takes_what_was_sent_there_before(services: Services, family: int) -> None:
    bench = services.bench
    assert bench.from_pod("pa", sent(A[family], VIP[family], protocol=UDP)) == UNSPEC
    services.serve(VIP[family], (REMOTE[family], 8080), protocol=UDP)
    assert bench.from_pod("pa", sent(A[family], VIP[family], protocol=UDP)) == REDIRECT


@families
def test_pods_addresses_are_no_services(services: Services, family: int) -> None:
    """CVE-2020-8554: nobody takes a pod's traffic by an external address."""
    services.serve(REMOTE[family], (B[family], 8080))
    done = services.bench.run(Hook.FROM_POD, "pa", sent(A[family], REMOTE[family]))
    assert ends(done.frame[14:])[2] == REMOTE[family]


@families
def test_forged_sources_are_led_nowhere(services: Services, family: int) -> None:
    bench = services.bench
    services.serve(VIP[family], (REMOTE[family], 8080))
    assert bench.from_pod("pa", sent(A[family], VIP[family])) == REDIRECT
    assert bench.from_pod("pb", sent(A[family], VIP[family])) == SHOT
    assert bench.counted()[Reason.NOT_OWN_SOURCE] == 1


@families
def test_a_port_that_is_used_again_may_have_another_backend(services: Services, family: int) -> None:
    bench = services.bench
    services.serve(VIP[family], (REMOTE[family], 1))
    assert bench.from_pod("pa", sent(A[family], VIP[family])) == REDIRECT
    for flags in (ACK, FIN | ACK):
        bench.from_wire(frame(summed(ip(REMOTE[family], A[family], TCP, tcp(1, 1000, flags)))))
        bench.from_pod("pa", sent(A[family], VIP[family], flags=flags))
    flow = bench.flow(A[family], REMOTE[family], TCP, (1000, 1))
    assert flow.state is FlowState.CLOSED
    services.replace((REMOTE[family], 2))
    assert ends(bench.run(Hook.FROM_POD, "pa", sent(A[family], VIP[family])).frame[14:])[3] == 2


@families
def test_errors_quote_what_the_pod_sent(services: Services, family: int) -> None:
    """Else its kernel finds no connection that they are about, and goes on with packets that are too long."""
    bench, router = services.bench, OUTSIDE[family]
    services.serve(VIP[family], (REMOTE[family], 8080))
    led = bench.run(Hook.FROM_POD, "pa", sent(A[family], VIP[family])).frame[14:]
    kind, number = ((3, ICMP), (2, ICMPV6))[family]
    said = struct.pack("!BBHI", kind, 4 * (1 - family), 0, 1400) + led[: 28 + 20 * family]

    def right(packet: bytes) -> int:
        """The checksum over the error, 0 if it is right."""
        at = head(packet)[1]
        upper = packet[at:]
        pseudo = packet[8:40] + struct.pack("!II", len(upper), ICMPV6) if family else b""
        return checksum(pseudo + upper)

    wrong = ip(router, A[family], number, said)
    at = len(wrong) - len(said)
    error = wrong[: at + 2] + struct.pack("!H", right(wrong)) + wrong[at + 4 :]
    assert not right(error)
    assert bench.run(Hook.FROM_WIRE, "wire", frame(error)).frame == frame(error)
    done = bench.run(Hook.TO_POD, "pa", frame(error))
    assert done.action == UNSPEC
    quoted = done.frame[14 + at + 8 :]
    assert ends(quoted) == (A[family], 1000, VIP[family], 80)
    assert not right(done.frame[14:])
    assert family or not checksum(quoted[:20])


@families
def test_what_is_not_let_in_takes_no_place_from_open_connections(services: Services, family: int) -> None:
    """Calls are in tables that all pods share: who is denied, or over its quota, must not turn them over."""
    bench = services.bench
    services.serve(VIP[family], *((REMOTE[family], port) for port in range(1, 9)), affinity=60)
    bench.rules(3, (RuleKey(3), {Tier.NETWORK_POLICY: Rule(Verdict.DENY, 0, 21)}))
    bench.endpoint("pb", egress=3)
    for port in range(2000, 2010):
        assert bench.from_pod("pb", sent(B[family], VIP[family], port=port)) == SHOT
    assert bench.counted()[Reason.DENIED_EGRESS] == 10
    bench.endpoint("pb")
    bench.maps.set_state(half_open=1)
    assert bench.from_pod("pb", sent(B[family], VIP[family])) == REDIRECT
    for port in range(3000, 3010):
        assert bench.from_pod("pb", sent(B[family], VIP[family], port=port)) == SHOT
    assert bench.counted()[Reason.QUOTA_HALF_OPEN] == 10
    assert [len(bpf.items(bench.engine.maps[name])) for name in ("tcp_calls", "affinities")] == [1, 1]


@families
def test_a_call_that_the_table_gave_up_is_remembered_again(services: Services, family: int) -> None:
    """Its flow is known still: the packet that finds its backend once more keeps it."""
    bench = services.bench
    services.serve(VIP[family], (REMOTE[family], 8080))
    assert bench.from_pod("pa", sent(A[family], VIP[family])) == REDIRECT
    calls = bench.engine.maps["tcp_calls"]
    (key,) = bpf.items(calls)
    bpf.delete(calls, key)
    assert bench.from_pod("pa", sent(A[family], VIP[family], flags=ACK)) == REDIRECT
    assert list(bpf.items(calls)) == [key]


@families
def test_a_service_that_comes_leaves_open_connections_to_who_carries_them(services: Services, family: int) -> None:
    """Another proxy has led them to a backend: led to one of ours they would be reset."""
    bench = services.bench

    def send(flags: int, port: int = 1000) -> tuple[int, str]:
        done = bench.run(Hook.FROM_POD, "pa", sent(A[family], VIP[family], flags=flags, port=port))
        return done.action, ends(done.frame[14:])[2]

    def answer(flags: int) -> int:
        return bench.to_pod("pa", frame(summed(ip(VIP[family], A[family], TCP, tcp(VIP_PORT, 1000, flags)))))

    by_the_stack, by_us = (UNSPEC, VIP[family]), (REDIRECT, REMOTE[family])
    assert send(SYN) == by_the_stack
    assert answer(SYN | ACK) == UNSPEC
    services.serve(VIP[family], (REMOTE[family], 8080))
    assert send(ACK) == by_the_stack
    bench.maps.changed()
    assert send(ACK) == by_the_stack
    assert send(SYN, port=1001) == by_us
    assert send(FIN | ACK) == by_the_stack
    assert answer(FIN | ACK) == UNSPEC
    assert bench.flow(A[family], VIP[family], TCP, (1000, VIP_PORT)).state is FlowState.CLOSED
    for flags in (SYN, ACK, ACK):
        assert send(flags) == by_us


@families
def test_a_new_connection_from_the_port_of_a_silent_one_is_led(services: Services, family: int) -> None:
    bench = services.bench
    bench.from_pod("pa", sent(A[family], VIP[family]))
    bench.to_pod("pa", frame(summed(ip(VIP[family], A[family], TCP, tcp(VIP_PORT, 1000, SYN | ACK)))))
    services.serve(VIP[family], (REMOTE[family], 8080))
    assert bench.from_pod("pa", sent(A[family], VIP[family], flags=ACK)) == UNSPEC
    for flags in (SYN, ACK, ACK):
        assert bench.from_pod("pa", sent(A[family], VIP[family], flags=flags)) == REDIRECT
        bench.maps.changed()
    ended = [one for one in bench.events() if one.kind is EventKind.FLOW_END]
    assert [one.key.destination for one in ended] == [ip_address(VIP[family])]


@families
@pytest.mark.parametrize("backend", [B, A], ids=["another", "itself"])
def test_who_is_cut_hears_of_it_from_the_service(
    services: Services, family: int, backend: tuple[str, str]
) -> None:
    bench = services.bench
    services.serve(VIP[family], (backend[family], 8080))
    assert bench.from_pod("pa", sent(A[family], VIP[family])) == REDIRECT
    bench.rules(3, (RuleKey(3), {Tier.NETWORK_POLICY: Rule(Verdict.DENY, 0, 21)}))
    bench.endpoint("pa", egress=3)
    done = bench.run(Hook.FROM_POD, "pa", sent(A[family], VIP[family], flags=ACK))
    assert done.action == REDIRECT
    assert ends(done.frame[14:]) == (VIP[family], 80, A[family], 1000)
    assert done.frame[14 + head(done.frame[14:])[1] + 13] & RST
    assert sound(done.frame[14:])
    assert bench.counted()[Reason.DENIED_EGRESS] == 1


@families
@pytest.mark.parametrize("backend", [REMOTE, A], ids=["another", "itself"])
def test_a_pod_that_is_gone_is_led_nowhere(services: Services, family: int, backend: tuple[str, str]) -> None:
    """Its policy is gone with it: a call that is known must not be let through without one."""
    bench = services.bench
    services.serve(VIP[family], (backend[family], 8080))
    assert bench.from_pod("pa", sent(A[family], VIP[family])) == REDIRECT
    bench.maps.remove_endpoint(ip_address(A[family]))
    bench.maps.changed()
    assert bench.from_pod("pa", sent(A[family], VIP[family], flags=ACK)) == SHOT
    assert bench.counted()[Reason.NOT_OWN_SOURCE] == 1


@families
def test_a_call_does_not_go_on_in_a_flow_that_is_not_its_own(services: Services, family: int) -> None:
    """Its own was over; meanwhile the pod calls the backend itself, from the same port."""
    bench = services.bench
    services.serve(VIP[family], (REMOTE[family], 8080), protocol=UDP)
    assert bench.from_pod("pa", sent(A[family], VIP[family], protocol=UDP)) == REDIRECT
    bench.age(A[family], REMOTE[family], UDP, (1000, 8080), 1000)
    direct = frame(summed(ip(A[family], REMOTE[family], UDP, udp(1000, 8080))))
    assert bench.from_pod("pa", direct) == REDIRECT
    assert FlowFlag.SERVICE not in bench.flow(A[family], REMOTE[family], UDP, (1000, 8080)).flags
    assert bench.from_pod("pa", sent(A[family], VIP[family], protocol=UDP)) == SHOT
    assert bench.counted()[Reason.SERVICE_PORTS_TAKEN] == 1


@families
def test_affinity_holds_for_what_another_processor_saw_later(services: Services, family: int) -> None:
    """A packet's time is taken before what is remembered is read, which another processor may write meanwhile."""
    bench = services.bench
    services.serve(VIP[family], *((REMOTE[family], port) for port in range(1, 30)), affinity=60)
    chosen = set()
    for port in range(2000, 2005):
        done = bench.run(Hook.FROM_POD, "pa", sent(A[family], VIP[family], port=port))
        chosen.add(ends(done.frame[14:])[3])
        affinities = bench.engine.maps["affinities"]
        ((key, value),) = bpf.items(affinities).items()
        (seen,) = struct.unpack_from("=Q", value)
        bpf.insert(affinities, key, struct.pack("=Q", seen + 10 * 10**9) + value[8:])
    assert len(chosen) == 1
