"""Random and hostile packets by the hundred thousand: nothing crashes, and nothing passes that must not."""

import os
import random
from ipaddress import IPv4Address, IPv6Address

import pytest

from podway.kernel.bpf.flow_layout import Counter, Hook, Reason
from podway.policy.maps import Rule, RuleKey, Tier, Verdict
from tests.bpf.flow_bench import NODE, OUTSIDE, PODS, REDIRECT, REMOTE, SHOT, UNSPEC, Bench
from tests.bpf.flow_packets import ETH_IPV4, ETH_IPV6, ICMP, ICMPV6, TCP, UDP, frame, icmp, ip, sctp, tcp, udp

pytestmark = pytest.mark.kernel

PACKETS = int(os.environ.get("PODWAY_HOSTILE_PACKETS", "100000"))
"""For each of the tests; with 250000 it is a million in all."""
OPEN_PORT = 80
BROADCAST = IPv4Address("255.255.255.255")


def seeds() -> list[bytes]:
    """Packets of every kind, between everybody."""
    made = []
    for family in (0, 1):
        everybody = [*(pod[family] for pod in PODS.values()), REMOTE[family], OUTSIDE[family], NODE[family]]
        protocol = (ICMP, ICMPV6)[family]
        for here in everybody:
            for there in everybody:
                quoted = ip(there, here, TCP, tcp(OPEN_PORT, 7))
                error = icmp((3, 1)[family], 4, 0, b"")[:4] + bytes(4) + quoted
                made += [
                    ip(here, there, TCP, tcp(7, OPEN_PORT)),
                    ip(here, there, TCP, tcp(OPEN_PORT, 7, 0x12)),
                    ip(here, there, UDP, udp(7, 53)),
                    ip(here, there, UDP, udp(7, 53, bytes(32)), fragment=(0, True)),
                    ip(here, there, UDP, bytes(32), fragment=(32, False)),
                    ip(here, there, 132, sctp(7, OPEN_PORT)),
                    ip(here, there, protocol, icmp((8, 128)[family])),
                    ip(here, there, protocol, error),
                    ip(here, there, 47, bytes(12)),
                ]
                if family:
                    made += [ip(here, there, ICMPV6, icmp(kind), hops=255) for kind in (135, 136)]
                    made.append(ip(here, "ff02::2", ICMPV6, icmp(133), hops=255))
                    chain = bytes([0]) + b"\x3c\0" + bytes(6) + b"\x2b\0" + bytes(6) + b"\x06\0" + bytes(6)
                    made.append(ip(here, there, TCP, tcp(7, OPEN_PORT), options=chain))
                else:
                    made.append(ip(here, there, TCP, tcp(7, OPEN_PORT), options=b"\x07\x07\x04\0\0\0\0\0"))
    return [frame(packet) for packet in made]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut, added behind the Ethernet header."""
    changed = bytearray(data)
    for _ in range(chance.choice((0, 1, 1, 2, 3, 8))):
        at = chance.randrange(14, len(changed))
        changed[at] = chance.choice((0, 1, 4, 5, 6, 17, 44, 58, 60, 255, chance.randrange(256)))
    kind = chance.randrange(8)
    if kind == 0:
        del changed[chance.randrange(14, len(changed)) :]
    elif kind == 1:
        changed += chance.randbytes(chance.randrange(1, 200))
    elif kind == 2:
        changed[14:] = chance.randbytes(chance.randrange(0, 120))
    # The kernel runs no program for less than an IP header.
    least = 34 if data[12:14] == ETH_IPV4.to_bytes(2, "big") else 54
    return bytes(changed.ljust(least, b"\0"))


def destination(data: bytes) -> IPv4Address | IPv6Address | None:
    """Where a frame goes, None if it is no IP packet."""
    kind = int.from_bytes(data[12:14], "big")
    if kind == ETH_IPV4 and len(data) >= 34:
        return IPv4Address(data[30:34])
    if kind == ETH_IPV6 and len(data) >= 54:
        return IPv6Address(data[38:54])
    return None


OWN = {IPv4Address(addresses[0]) for addresses in PODS.values()} | {
    IPv6Address(addresses[1]) for addresses in PODS.values()
}
LINK_MESSAGES = {*range(130, 134), 135, 136, 143}


def stays_on_the_link(data: bytes) -> bool:
    """Whether a packet may be a neighbour's message: it goes to a group or to a link-local address."""
    there = destination(data)
    return (
        isinstance(there, IPv6Address)
        and (there.is_multicast or there.is_link_local)
        and data[21] in {1, 255}
        and any(byte in LINK_MESSAGES for byte in data[54:])
    )


@pytest.mark.parametrize("hook", list(Hook), ids=lambda hook: hook.name)
def test_nothing_passes_an_isolated_pod(bench: Bench, hook: Hook) -> None:
    """With every pod isolated in both directions: dropped, or not for a pod at all, or a neighbour's message."""
    chance = random.Random(2613 + hook)
    everything = seeds()
    denied = Rule(Verdict.DENY, 0, 16)
    for number in (1, 2):
        bench.rules(number, (RuleKey(number), {Tier.NETWORK_POLICY: denied}))
    for name in PODS:
        bench.endpoint(name, egress=1, ingress=2)
    device = "wire" if hook is Hook.FROM_WIRE else "pa"

    def attack() -> dict[int, int]:
        actions = {SHOT: 0, UNSPEC: 0}
        for _ in range(PACKETS):
            data = mutated(chance.choice(everything), chance)
            action = bench.bare(hook, device, data).action
            actions[action] = actions.get(action, 0) + 1
            if action == SHOT:
                continue
            assert action == UNSPEC, data.hex()
            there = destination(data)
            if hook is Hook.FROM_WIRE:
                assert there not in OWN, data.hex()
            elif hook is Hook.TO_POD:
                assert there is None or there.is_multicast or there == BROADCAST or there.is_link_local, data.hex()
            else:
                assert stays_on_the_link(data), data.hex()
        return actions

    actions = bench.inside(attack)
    assert actions[SHOT] > PACKETS // 10
    assert not list(bench.maps.flows())
    counted = bench.counted()
    assert sum(counted.get(reason, 0) for reason in Reason) == actions[SHOT]
    assert Counter.FLOWS_MADE not in counted


def test_only_the_open_port_is_reached(bench: Bench) -> None:
    """One TCP port is open to all: what is carried is for it, an answer of it, or an ICMP error about it."""
    chance = random.Random(77)
    everything = seeds()
    denied, allowed = Rule(Verdict.DENY, 0, 16), Rule(Verdict.ALLOW, 1, 17)
    port = RuleKey(1, 0, TCP, OPEN_PORT, 16)
    bench.rules(1, (RuleKey(1), {Tier.NETWORK_POLICY: denied}), (port, {Tier.NETWORK_POLICY: allowed}))
    for name in PODS:
        bench.endpoint(name, egress=1, ingress=1)

    def attack() -> int:
        carried = 0
        for _ in range(PACKETS):
            hook, device = chance.choice([(Hook.FROM_POD, "pa"), (Hook.FROM_POD, "pb"), (Hook.FROM_WIRE, "wire")])
            action = bench.bare(hook, device, mutated(chance.choice(everything), chance)).action
            assert action in {SHOT, UNSPEC, REDIRECT}
            carried += action == REDIRECT
        return carried

    assert bench.inside(attack) > 100
    flows = list(bench.maps.flows())
    assert flows
    for key, flow in flows:
        call = key if not flow.flags & 1 else key.reversed()
        assert (call.protocol, call.destination_port) == (TCP, OPEN_PORT)
        assert bench.maps.flow(key.reversed()) is not None
