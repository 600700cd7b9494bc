"""What is captured bears the time at which the kernel saw it, however late it is read."""

import socket
import struct
import time

import pytest

from podway.kernel import netns
from podway.probe.capture import Capture, await_stamps
from tests.verify.hand_cluster import run

pytestmark = pytest.mark.kernel

EVERYTHING = struct.pack("=HBBI", 0x06, 0, 0, 0xFFFF)
"""BPF_RET | BPF_K (linux/bpf_common.h)."""


def test_the_first_packet_of_a_capture_bears_its_own_time(wire: str) -> None:
    name = wire.rpartition("/")[2]
    run(f"ip -n {name} link set lo up")
    for _ in range(5):
        with netns.opened(wire) as fd:
            assert netns.run(fd, _delay) < 0.05
        time.sleep(0.05)  # the kernel stamps nothing again


def _delay() -> float:
    """Return how many seconds after a packet was sent it was captured, by its stamp; it is read much later."""
    capture = Capture(EVERYTHING, buffer=1 << 16)
    await_stamps()
    list(capture.frames(1))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sent = time.time()
        sock.sendto(b"", ("127.0.0.1", 9))
        time.sleep(0.1)
    (first, *_) = capture.frames(100)
    capture.close()
    return first.time / 1e9 - sent
