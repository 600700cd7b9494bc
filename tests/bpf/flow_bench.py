"""The flow engine on a bench: its programs run for one packet at a time (BPF_PROG_TEST_RUN, man 2 bpf)."""

import ctypes
import socket
import struct
import time
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple, TypeVar

from podway.kernel import netns
from podway.kernel.bpf import flow_programs
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_events import Events
from podway.kernel.bpf.flow_layout import (
    BEGINNING,
    FLOW,
    Beginning,
    Counter,
    Endpoint,
    Event,
    FlowKey,
    Hook,
    Reason,
)
from podway.kernel.bpf.flow_maps import FlowMaps
from podway.policy.maps import RuleKey
from podway.probe.packet import TCP_RST, Tcp, parse_ethernet

UNSPEC, SHOT, REDIRECT = 0xFFFFFFFF, 2, 7
"""TC_ACT_UNSPEC: the next program, or the stack; TC_ACT_SHOT; TC_ACT_REDIRECT (linux/pkt_cls.h)."""
SK_BUFF = 192
INGRESS_IFINDEX, IFINDEX, GSO_SIZE = 36, 40, 176
"""Where these stand in struct __sk_buff, and how long it is (linux/bpf.h)."""

PODS = {"pa": ("10.1.0.1", "fd00:1::1"), "pb": ("10.1.0.2", "fd00:1::2")}
REMOTE = ("10.2.0.1", "fd00:2::1")
OUTSIDE = ("192.0.2.9", "2001:db8::9")
NODE = ("172.31.0.1", "fd31::1")
T = TypeVar("T")


class _Options(ctypes.Structure):
    """struct bpf_test_run_opts (bpf/bpf.h)."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_char_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


class Outcome(NamedTuple):
    """What a program returned, the frame afterwards, and how long it took (ns)."""

    action: int
    frame: bytes
    duration: int


def is_reset(sent: bytes, outcome: Outcome) -> bool:
    """Tell whether a frame of TCP was made into a RST for its sender."""
    was, made = parse_ethernet(sent), parse_ethernet(outcome.frame)
    if outcome.action != REDIRECT or was is None or made is None:
        return False
    back = (made.source, made.destination) == (was.destination, was.source)
    return back and isinstance(made.transport, Tcp) and bool(made.transport.flags & TCP_RST)


class Bench:
    """A node with two pods, by their links `pa` and `pb`, a wire, and a route to another node's pods.

    Nobody is at the other ends.
    """

    def __init__(self, node: Any, pods: Any) -> None:
        self.node, self.pods = node, pods
        node.sh(f"""
            echo 1 > /proc/sys/net/ipv4/ip_forward
            echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
            for link in pa pb wire; do
                ip link add $link type veth peer name $link netns {pods.name}
                ip link set $link address 02:00:00:00:01:01 up
                ip -n {pods.name} link set $link up
                echo 0 > /proc/sys/net/ipv6/conf/$link/accept_dad
            done
            ip address add {NODE[0]}/24 dev wire
            ip -6 address add {NODE[1]}/64 dev wire nodad
            ip route add 10.2.0.0/16 via 172.31.0.2
            ip -6 route add fd00:2::/32 via fd31::2
            ip neighbour add 172.31.0.2 lladdr 02:00:00:00:02:02 dev wire nud permanent
            ip neighbour add fd31::2 lladdr 02:00:00:00:02:02 dev wire nud permanent
        """)
        for name, addresses in PODS.items():
            for address in addresses:
                node.sh(f"""
                    ip route add {address} dev {name}
                    ip neighbour add {address} lladdr 02:00:00:00:0{name[1]}:0{name[1]} dev {name} nud permanent
                """)
        self.devices = dict(netns.run(node.fd, lambda: [(name, index) for index, name in socket.if_nameindex()]))
        self._loaded = flow_programs.loaded(flow_programs.compiled(), {}, {"flows": 4096})
        self.engine = self._loaded.__enter__()
        self.maps = FlowMaps(self.engine.maps)
        self._events = Events(self.engine.maps["events"])

    def close(self) -> None:
        self._events.close()
        self._loaded.__exit__(None, None, None)

    def reset(self, **state: int) -> None:
        """Begin anew: no flow, no rule, two pods without policy, everything counted from 0."""
        maps = self.engine.maps
        for name in ("flows", "endpoints", "identities", "pools", "rules", "fragments", "quotas", "callers"):
            for key in bpf.items(maps[name]):
                bpf.delete(maps[name], key)
        for number in range(32):
            bpf.insert(maps["rule_sets"], struct.pack("=I", number), bytes(8))
        bpf.insert(maps["beginning"], bytes(4), BEGINNING.pack(0, 0))
        bpf.insert(maps["active"], bytes(4), self.engine.build.to_bytes(8, "little"))
        first = flow_programs.FIRST_STATE._asdict() | state
        self.maps.set_state(**first)
        for pool in ("10.0.0.0/8", "fd00::/16"):
            self.maps.set_pool(ip_network(pool))
        for name in PODS:
            self.endpoint(name)
        self._base = self.maps.counters()
        self.events()

    def began(self, ago: float) -> None:
        """Have the engine have begun so many seconds ago, where none was before, with all links of now."""
        settled = time.monotonic_ns() + int((flow_programs.SETTLED - ago) * 1e9)
        began = Beginning(settled, max(self.devices.values()))
        bpf.insert(self.engine.maps["beginning"], bytes(4), BEGINNING.pack(*began))

    def endpoint(self, name: str, egress: int = 0, ingress: int = 0, *, audit: tuple[int, int] = (0, 0)) -> None:
        """`audit` are sets that only report, egress and ingress."""
        for address in PODS[name]:
            self.maps.set_endpoint(ip_address(address), Endpoint(self.devices[name], egress, ingress, 0, *audit))
        self.maps.changed()

    def rules(self, number: int, *entries: tuple[RuleKey, Any]) -> None:
        self.maps.set_rules(number, dict(entries))
        self.maps.changed()

    def counted(self) -> dict[Reason | Counter, int]:
        """What was counted since `reset`: only what is not 0."""
        now = self.maps.counters()
        return {name: now[name] - self._base[name] for name in now if now[name] != self._base[name]}

    @property
    def woken(self) -> int:
        """A descriptor that is readable when whoever reads events is woken."""
        return self._events.fd

    def events(self) -> list[Event]:
        """What was told since the last call."""
        return self._events.read()

    def run(
        self, hook: Hook, device: str, frame: bytes, *, forwarded: bool = True, gso: int = 0, repeat: int = 1
    ) -> Outcome:
        """Run a hook's program for a frame. `forwarded`: it came in by a device, the node did not make it."""
        return self.inside(lambda: self.bare(hook, device, frame, forwarded=forwarded, gso=gso, repeat=repeat))

    def bare(
        self, hook: Hook, device: str, frame: bytes, *, forwarded: bool = True, gso: int = 0, repeat: int = 1
    ) -> Outcome:
        """`run`, for who is inside the node already."""
        context = bytearray(SK_BUFF)
        struct.pack_into("=I", context, INGRESS_IFINDEX, self.devices["wire"] if forwarded else 0)
        struct.pack_into("=I", context, IFINDEX, self.devices[device])
        struct.pack_into("=I", context, GSO_SIZE, gso)
        out = ctypes.create_string_buffer(len(frame) + 256)
        options = _Options(
            size=ctypes.sizeof(_Options),
            data_in=frame,
            data_size_in=len(frame),
            data_out=ctypes.addressof(out),
            data_size_out=len(out),
            ctx_in=bytes(context),
            ctx_size_in=len(context),
            repeat=repeat,
        )
        program = self.engine.programs[hook]
        said = bpf.library().bpf_prog_test_run_opts(program, ctypes.byref(options))
        bpf.checked("run a program", said)
        return Outcome(options.retval, out.raw[: options.data_size_out], options.duration)

    def resets(self, hook: Hook, device: str, frame: bytes) -> bool:
        """Run a hook's program for a frame, and tell whether its sender gets a RST for an answer."""
        return is_reset(frame, self.run(hook, device, frame))

    def inside(self, function: Callable[[], T]) -> T:
        return netns.run(self.node.fd, function)

    def from_pod(self, name: str, frame: bytes, **more: Any) -> int:
        return self.run(Hook.FROM_POD, name, frame, **more).action

    def from_wire(self, frame: bytes, **more: Any) -> int:
        return self.run(Hook.FROM_WIRE, "wire", frame, **more).action

    def to_pod(self, name: str, frame: bytes, **more: Any) -> int:
        return self.run(Hook.TO_POD, name, frame, **more).action

    def age(self, source: str, destination: str, protocol: int, ports: tuple[int, int], seconds: float) -> None:
        """Have both directions of a connection begin, and be seen last, so much earlier."""
        key = FlowKey(ip_address(source), ip_address(destination), protocol, *ports)
        for one in (key, key.reversed()):
            held = bpf.lookup(self.engine.maps["flows"], one.pack())
            assert held is not None
            value = bytearray(held)
            for at in (FLOW.offsets["seen"], FLOW.offsets["made"]):
                (time,) = struct.unpack_from("=Q", value, at)
                struct.pack_into("=Q", value, at, time - int(seconds * 1e9))
            bpf.insert(self.engine.maps["flows"], one.pack(), bytes(value))

    def flow(self, source: str, destination: str, protocol: int, ports: tuple[int, int] = (0, 0)) -> Any:
        return self.maps.flow(FlowKey(ip_address(source), ip_address(destination), protocol, *ports))
