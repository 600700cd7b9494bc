"""Packets of several nodes in one stream, where clocks do not agree."""

import base64
import itertools
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from podway.capture import collect
from podway.capture.collect import Ask, Collection, Limits

HOUR = 3600.0
PACKET = 6
"""The type of an Enhanced Packet Block (draft-ietf-opsawg-pcapng)."""


def agent(name: str, ahead: float) -> Ask:
    """Return a node's agent, which sees a packet when it is asked, by a clock that is so many seconds ahead."""

    def ask(method: str, **_: Any) -> Any:
        match method:
            case "capture.begin":
                return {"node": name, "links": {}}
            case "capture.take":
                data = base64.b64encode(bytes.fromhex("45000014") + bytes(16)).decode()
                seen = time.time_ns() + int(ahead * 1e9)
                return {"frames": [["", "eth0", 65534, True, seen, 20, data]], "lost": 0, "more": False}
            case "flows.find":
                return {"records": [], "next": 0, "more": False}
        return None

    return ask


def packets(pieces: Iterator[bytes]) -> Iterator[float]:
    """Yield the time of each packet as it is written, seconds since 1970."""
    for piece in pieces:
        at = 0
        while at < len(piece):
            kind, length = struct.unpack_from("<II", piece, at)
            if kind == PACKET:
                high, low = struct.unpack_from("<II", piece, at + 12)
                yield (high << 32 | low) / 1e9
            at += length


@pytest.mark.parametrize("ahead", [HOUR, 0.0, -HOUR])
def test_packets_of_a_node_whose_clock_is_off_wait_no_longer_than_others(
    ahead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "PAUSE", 0.02)
    monkeypatch.setattr(collect, "HELD", 0.2)
    asked = {"a": agent("a", 0.0), "b": agent("b", ahead)}
    told: list[str] = []
    capture = Collection(asked, "tcp", pod="shop/web", addresses=["10.1.0.1"], snap=96, tell=told.append)
    pieces = capture.run(Limits(60, 0, 0))
    began = time.time()
    found = list(itertools.islice(packets(pieces), 20))
    assert time.time() - began < 30, "while both go on"
    assert len(capture._waiting) < 60
    pieces.close()
    assert not told
    off = [seen for seen in found if abs(seen - began - ahead) < HOUR / 2]
    assert len(off) >= 5, "its own time is written"
    assert off == sorted(off)
