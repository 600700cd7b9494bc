"""A wire on which tests put frames."""

import uuid
from collections.abc import Iterator

import pytest

from tests.verify.hand_cluster import run


@pytest.fixture
def wire() -> Iterator[str]:
    name = f"pwf-{uuid.uuid4().hex[:8]}"
    run(f"ip netns add {name}")
    try:
        for device in ("one", "two"):
            run(f"ip netns exec {name} sysctl -qw net.ipv6.conf.default.disable_ipv6=1")
            if device == "one":
                run(f"ip -n {name} link add one type veth peer name two")
            run(f"ip -n {name} link set {device} up arp off")
        yield f"/run/netns/{name}"
    finally:
        run(f"ip netns del {name}")
