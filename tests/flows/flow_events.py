"""Events as an engine tells them, for tests that need no kernel."""

from ipaddress import ip_address
from typing import Any

from podway.flows.block import Names
from podway.flows.record import Who
from podway.kernel.bpf.flow_layout import (
    EVENT,
    EventKind,
    FlowFlag,
    FlowKey,
    FlowState,
    Hook,
    Reason,
    Way,
    pack_address,
)

CLIENT, WEB, OUTSIDE = "10.244.2.2", "10.244.1.2", "192.0.2.9"
SECOND = 10**9
PODS = {
    CLIENT: Who("pod", "client", "shop", "node2"),
    WEB: Who("pod", "web", "shop", "node1"),
}


def event(
    kind: EventKind = EventKind.FLOW_NEW,
    *,
    time: int = SECOND,
    source: str = CLIENT,
    destination: str = WEB,
    protocol: int = 6,
    ports: tuple[int, int] = (40000, 80),
    reason: Reason = Reason.KEPT,
    hook: Hook = Hook.FROM_WIRE,
    flags: FlowFlag | None = None,
    state: FlowState = FlowState.HALF_OPEN,
    counts: tuple[int, int, int, int] = (1, 60, 0, 0),
    made: int | None = None,
    rules: tuple[int, int] = (0, 0),
    service: tuple[str, int] | None = None,
    **more: Any,
) -> bytes:
    """One event as its bytes."""
    key = FlowKey(ip_address(source), ip_address(destination), protocol, *ports)
    return EVENT.pack(
        time,
        key.pack(),
        *counts,
        time if made is None else made,
        *rules,
        *(0, 0),
        more.get("ifindex", 0),
        more.get("out", 0),
        more.get("lost", 0),
        more.get("processor", 0),
        kind,
        reason,
        hook,
        (flags or 0) | (FlowFlag.SERVICE if service else 0),
        state,
        more.get("way", Way.STACK),
        more.get("detail", 0),
        *more.get("rtt", (0, 0)),
        *more.get("retransmitted", (0, 0)),
        pack_address(ip_address(service[0])) if service else bytes(16),
        (service[1] if service else 0).to_bytes(2, "big"),
    )


def names(offset: int = 0) -> Names:
    """What the two pods' addresses mean from the first record on."""
    return Names(clock=[(0, offset)], addresses=[(0, text, who) for text, who in PODS.items()])
