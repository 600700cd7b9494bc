"""An engine begins and ends in the midst of traffic: what is allowed loses no packet, what is denied is cut."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from podway.kernel.bpf import flow_programs
from podway.kernel.bpf.flow_layout import Reason
from tests.bpf.flow_nodes import Lab, Pod, open_socket
from tests.bpf.flow_under_way import Caller, Stream, pinging
from tests.patience import PATIENCE, eventually

pytestmark = pytest.mark.kernel

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
PORTS = (7000, 7001)
DENIED = 7002


@pytest.fixture
def lab(new_netns: Callable[[], Any]) -> Iterator[Lab]:
    with contextlib.ExitStack() as stack:
        yield Lab(stack, new_netns)


def begin(lab: Lab) -> None:
    """Have both engines begin. `c` may be called at two ports, and pinged; nobody else may be called at all."""
    allowed = [
        {"port": port, "port_length": 16, "protocol": protocol} for port in PORTS for protocol in (TCP, UDP)
    ]

    def fill_one() -> None:
        lab.one.isolate(lab.a)
        lab.one.isolate(lab.b)

    lab.one.begin(fill_one)
    lab.two.begin(lambda: lab.two.isolate(lab.c, *allowed, {"protocol": ICMP}, {"protocol": ICMPV6}))


def end(lab: Lab) -> None:
    """Have both engines end, as an agent does."""
    for node in (lab.one, lab.two):
        devices = {place.device for place in node.places}
        flow_programs.stop(node.connection, devices)
        for found in flow_programs.attached(node.connection, devices):
            flow_programs.detach(node.connection, found)
        node.release()


@contextlib.contextmanager
def connected(client: Pod, server: Pod, family: int, port: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give both ends of a TCP connection."""
    with open_socket(server, family) as listening, open_socket(client, family) as made:
        listening.bind((server.addresses[family], port))
        listening.listen()
        made.connect((server.addresses[family], port))
        answering, _ = listening.accept()
        answering.settimeout(PATIENCE)
        with answering:
            yield made, answering


def dropped(lab: Lab) -> dict[Reason, int]:
    """What the engines dropped so far."""
    counted = [node.maps.counters() for node in (lab.one, lab.two)]
    sums = {reason: sum(each[reason] for each in counted) for reason in Reason if reason is not Reason.KEPT}
    return {reason: count for reason, count in sums.items() if count}


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_engines_begin_and_end_in_the_midst_of_traffic(lab: Lab, family: int) -> None:
    lost: dict[str, str] = {}
    callers = (lab.a.netns.path, lab.one.netns.path, lab.two.netns.path)
    with contextlib.ExitStack() as stack:
        # Whose caller is silent: the engine sees the answer first, and `a` and `b` may be called by nobody.
        silent, speaker = stack.enter_context(connected(lab.a, lab.c, family, PORTS[1]))
        refused, cut = stack.enter_context(connected(lab.b, lab.c, family, DENIED))
        stream = stack.enter_context(Stream(lab, family))
        caller = stack.enter_context(Caller(lab, family))
        for path in callers:
            stack.enter_context(pinging(path, lab.c.addresses[family], lost))
        stack.enter_context(pinging(lab.one.netns.path, lab.a.addresses[family], lost))  # a node may always
        eventually(lambda: len(stream.heard) > 100 and caller.took, "it works before")
        begin(lab)
        made = len(caller.took)
        speaker.sendall(b"late news")
        assert silent.recv(100) == b"late news"
        assert said_back(silent, speaker)
        eventually(lambda: len(caller.took) > made + 40, "connections are made")
        assert stream.lost() == set()
        assert dropped(lab) == {}
        cut.sendall(b"not to be heard")
        refused.settimeout(0.3)
        with pytest.raises(TimeoutError):
            refused.recv(100)
        assert dropped(lab).keys() == {Reason.DENIED_INGRESS}
        end(lab)
        made = len(caller.took)
        eventually(lambda: len(caller.took) > made + 40, "connections are made without an engine")
        assert stream.lost() == set()
        assert said_back(silent, speaker)
        refused.settimeout(PATIENCE)
        assert refused.recv(100) == b"not to be heard"
    assert lost == {}


def said_back(one: socket.socket, other: socket.socket) -> bool:
    """Tell whether both ends of a connection hear each other."""
    one.sendall(b"there")
    heard = other.recv(100)
    other.sendall(b"back")
    return (heard, one.recv(100)) == (b"there", b"back")
