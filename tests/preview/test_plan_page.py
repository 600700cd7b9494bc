"""The page of `podway plan`, word for word. After a wanted change: PODWAY_UPDATE_GOLDEN=1 pytest, and a diff."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

GOLDEN = Path(__file__).parent / "golden"

CHANGES = {
    "mtu": "{apiVersion: podway.io/v1, kind: NetworkConfig, metadata: {name: default}, spec: {mtu: 1400}}",
    "pool": "{apiVersion: podway.io/v1, kind: IPPool, metadata: {name: more}, spec: {cidr: 10.99.0.0/23}}",
    "vxlan": "{apiVersion: podway.io/v1, kind: IPPool, metadata: {name: four}, "
    "spec: {cidr: 10.244.0.0/16, encapsulation: vxlan}}",
    "store": "{apiVersion: podway.io/v1, kind: IPPool, metadata: {name: four}, "
    "spec: {cidr: 10.244.0.0/16, distribution: store}}",
    "bgp": "{apiVersion: podway.io/v1, kind: NetworkConfig, metadata: {name: default}, "
    "spec: {bgp: {asn: 64999, bfd: false}}}",
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_page(podway: Callable[..., Result], file: Path, name: str) -> None:
    page = podway("plan", "--snapshot", file, "-f", "-", stdin=CHANGES[name]).stdout
    golden = GOLDEN / f"plan-{name}.txt"
    if "PODWAY_UPDATE_GOLDEN" in os.environ:
        golden.write_text(page)
    assert page == golden.read_text()
