from ipaddress import ip_interface

import pytest

from podway.agent.uplink import Device, choose_uplink
from podway.errors import AgentError


def device(name: str, *addresses: str, up: bool = True, default: bool = False) -> Device:
    return Device(name, 1500, up, tuple(map(ip_interface, addresses)), default)


LO = device("lo", "127.0.0.1/8", "::1/128")


def test_the_only_usable_device_is_the_uplink() -> None:
    uplink = choose_uplink([LO, device("eth0", "172.30.0.2/24", "fe80::5/64", "fd30::2/64")])
    assert uplink.device == "eth0"
    assert [str(a) for a in uplink.addresses] == ["172.30.0.2/24", "fd30::2/64"]


def test_the_default_route_decides_between_several() -> None:
    both = [device("docker0", "172.17.0.1/16"), device("ens3", "192.0.2.7/24", "192.0.2.8/24", default=True)]
    uplink = choose_uplink([LO, *both])
    assert (uplink.device, str(uplink.addresses[0])) == ("ens3", "192.0.2.7/24")


def test_our_own_links_and_down_ones_are_no_candidates() -> None:
    devices = [device("pway0123456789a", "169.254.1.1/32", "10.0.0.1/32"), device("eth1", "10.1.1.1/24", up=False)]
    assert choose_uplink([*devices, device("eth0", "10.2.2.2/24")]).device == "eth0"


@pytest.mark.parametrize(
    ("devices", "wanted", "said"),
    [
        ([LO], "", "none"),
        ([device("a", "10.0.0.1/24"), device("b", "10.0.1.1/24")], "", "a, b"),
        ([device("a", "10.0.0.1/24")], "eth9", "eth9"),
    ],
)
def test_what_cannot_be_decided_is_asked(devices: list[Device], wanted: str, said: str) -> None:
    with pytest.raises(AgentError, match=said):
        choose_uplink(devices, wanted)


def test_a_wanted_device_wins() -> None:
    devices = [device("a", "10.0.0.1/24", default=True), device("b", "10.0.1.1/24")]
    assert choose_uplink(devices, "b").device == "b"
