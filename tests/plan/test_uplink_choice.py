"""Which device and addresses a node is known by: a choice that others' devices and addresses do not move."""

import random
from collections.abc import Sequence
from ipaddress import ip_address, ip_interface
from typing import TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.api.addresses import Address, Family, Interface
from podway.errors import AgentError
from podway.plan.uplink import Uplink
from podway.plan.uplink_choice import (
    Choice,
    DefaultRoute,
    HostInterfaces,
    Link,
    LinkAddress,
    choose_uplink,
    lost,
    unsettled,
)

LO = (Link(1, "lo"), [LinkAddress(1, ip_interface("127.0.0.1/8")), LinkAddress(1, ip_interface("::1/128"))])

T = TypeVar("T")


def dev(
    index: int, name: str, *addresses: str | LinkAddress, up: bool = True, kind: str = "", master: int = 0
) -> tuple[Link, list[LinkAddress]]:
    known = [
        msgspec.structs.replace(each, index=index)
        if isinstance(each, LinkAddress)
        else LinkAddress(index, ip_interface(each), created=number)
        for number, each in enumerate(addresses)
    ]
    return Link(index, name, 1500, up, kind, master), known


def addr(text: str, **flags: bool | int) -> LinkAddress:
    return LinkAddress(0, ip_interface(text), **flags)  # type: ignore[arg-type]


def default(metric: int, *indexes: int, via: str = "172.30.0.254") -> DefaultRoute:
    gateway = ip_address(via)
    return DefaultRoute(Family.of(gateway), metric, frozenset(indexes), (gateway,))


def found(*devices: tuple[Link, list[LinkAddress]], defaults: tuple[DefaultRoute, ...] = ()) -> HostInterfaces:
    every = [LO, *devices]
    return HostInterfaces(
        tuple(link for link, _ in every), tuple(each for _, own in every for each in own), defaults
    )


def chosen(
    host_interfaces: HostInterfaces, wanted: str = "", *, known: str = "", others: str = ""
) -> tuple[str, list[str]]:
    uplink = choice(host_interfaces, wanted, known=known, others=others).uplink
    return uplink.device, [str(address) for address in uplink.addresses]


def choice(host_interfaces: HostInterfaces, wanted: str = "", *, known: str = "", others: str = "") -> Choice:
    return choose_uplink(
        host_interfaces,
        wanted,
        registered=[ip_interface(text) for text in known.split()],
        others=[ip_address(text) for text in others.split()],
    )


V4, V6 = "172.30.0.1/16", "fd30::1/64"
ETH0 = dev(2, "eth0", V4, V6, "fe80::5/64")
DOCKER0 = dev(3, "docker0", "172.17.0.1/16", kind="bridge")


def test_a_node_that_nobody_knows_takes_the_device_with_the_default_route_or_the_only_one() -> None:
    assert chosen(found(ETH0)) == ("eth0", [V4, V6])
    assert chosen(found(DOCKER0, ETH0, defaults=(default(0, 2),))) == ("eth0", [V4, V6])
    assert chosen(found(DOCKER0, ETH0), others="172.30.0.2") == ("eth0", [V4, V6])
    with pytest.raises(AgentError, match="docker0, eth0"):
        choice(found(DOCKER0, ETH0))
    with pytest.raises(AgentError, match="none"):
        choice(found(dev(2, "eth0", V4, up=False)))


def test_metrics_decide_between_default_routes() -> None:
    two = (ETH0, dev(4, "wlan0", "192.0.2.9/24"))
    assert chosen(found(*two, defaults=(default(600, 4), default(100, 2))))[0] == "eth0"
    assert chosen(found(*two, defaults=(default(50, 4), default(100, 2))))[0] == "wlan0"
    # A default route over several next hops of one device leads to one device.
    assert chosen(found(*two, defaults=(default(100, 2, 2),)))[0] == "eth0"
    # IPv4 first; IPv6 decides where IPv4 does not.
    six = default(1, 4, via="fe80::9")
    assert chosen(found(*two, defaults=(six, default(100, 2))))[0] == "eth0"
    assert chosen(found(*two, defaults=(six,)))[0] == "wlan0"
    # Over two devices at once neither is better, unless the other nodes are on one.
    both = default(100, 2, 4)
    assert chosen(found(*two, defaults=(both,)), others="192.0.2.1")[0] == "wlan0"
    with pytest.raises(AgentError, match="eth0, wlan0"):
        choice(found(*two, defaults=(both,)))


@pytest.mark.parametrize(
    "more",
    ["172.30.0.100/32", "172.30.0.7/16", "fd30::100/128", "fd30::7/64", addr("fd30::9/64", created=-1)],
)
def test_a_registered_address_stays_whatever_comes_beside_it(more: str | LinkAddress) -> None:
    beside = dev(2, "eth0", more, V4, V6)
    assert chosen(found(beside), known=f"{V4} {V6}") == ("eth0", [V4, V6])


def test_a_registered_address_stays_on_its_device_when_another_gets_the_default_route() -> None:
    vpn = dev(9, "wg0", "10.9.0.2/24")
    assert chosen(found(ETH0, vpn, defaults=(default(0, 9),)), known=V4)[0] == "eth0"
    assert chosen(found(ETH0, vpn, defaults=(default(0, 9), default(100, 2))), known=f"{V4} {V6}")[0] == "eth0"


@pytest.mark.parametrize("flag", ["tentative", "deprecated", "temporary"])
def test_what_a_node_has_may_be_any_of_these_but_what_it_takes_may_not(flag: str) -> None:
    doubtful = dev(2, "eth0", addr(V6, **{flag: True}))
    assert chosen(found(doubtful), known=V6) == ("eth0", [V6])
    with pytest.raises(AgentError):
        choice(found(doubtful))
    good = dev(2, "eth0", addr(V6, **{flag: True}), addr("fd30::2/64", created=9))
    assert chosen(found(good)) == ("eth0", ["fd30::2/64"])


def test_a_duplicate_and_anothers_address_are_never_the_nodes() -> None:
    failed = dev(2, "eth0", V4, addr(V6, duplicate=True, tentative=True))
    assert chosen(found(failed), known=f"{V4} {V6}") == ("eth0", [V4])
    assert chosen(found(ETH0), known=V4, others="fd30::1") == ("eth0", [V4])


def test_an_address_that_floats_takes_no_ones_place() -> None:
    """Main addresses are leased anew while a virtual one (VRRP) is there."""
    vip = dev(2, "eth0", "172.30.0.100/32", "fd30::100/128")
    out = (default(0, 2), default(1024, 2, via="fe80::9"))
    for defaults in ((), out):
        with pytest.raises(AgentError, match=r"172\.30\.0\.1, fd30::1"):
            choice(found(vip, defaults=defaults), known=f"{V4} {V6}")
    assert chosen(found(dev(2, "eth0", V4, "fd30::100/128"), defaults=out), known=V4) == ("eth0", [V4])
    beside = dev(2, "eth0", "fd30::100/128", "fd30::7/64")
    assert chosen(found(beside, defaults=out)) == ("eth0", ["fd30::7/64"])


def test_what_a_cloud_leases_is_the_nodes_though_it_has_no_subnet() -> None:
    out = (default(0, 2), default(1024, 2, via="fe80::9"))
    leased = dev(2, "ens4", "10.128.0.5/32", addr("2001:db8::5/128", forever=False))
    assert chosen(found(leased, defaults=out)) == ("ens4", ["10.128.0.5/32", "2001:db8::5/128"])
    assert chosen(found(leased, defaults=out), known="10.128.0.5/32")[1] == ["10.128.0.5/32", "2001:db8::5/128"]


def test_a_new_address_is_one_that_reaches_the_others() -> None:
    several = dev(2, "eth0", "198.51.100.2/24", "172.30.0.9/16", "192.0.2.2/24")
    assert chosen(found(several), others="172.30.0.2")[1] == ["172.30.0.9/16"]
    assert chosen(found(several, defaults=(default(0, 2, via="192.0.2.1"),)))[1] == ["192.0.2.2/24"]
    assert chosen(found(several))[1] == ["198.51.100.2/24"]
    # The kernel has the newest IPv6 address first, and one that stays is better than one that is leased.
    six = dev(2, "eth0", addr("fd30::9/64", created=9), addr("fd30::8/64", created=8))
    assert chosen(found(six))[1] == ["fd30::8/64"]
    leased = dev(2, "eth0", addr("fd30::9/64", created=9), addr("fd30::8/64", created=8, forever=False))
    assert chosen(found(leased))[1] == ["fd30::9/64"]


def test_the_uplink_is_followed_into_a_bridge_and_back() -> None:
    empty = dev(2, "eth0", kind="veth", master=7)
    port = dev(2, "eth0", V4, V6, master=7)
    bridge = dev(7, "br0", V4, V6, kind="bridge")
    known = f"{V4} {V6}"
    for wanted in ("", "eth0"):
        assert chosen(found(ETH0, dev(7, "br0", kind="bridge")), wanted, known=known)[0] == "eth0"
        assert chosen(found(empty, bridge), wanted, known=known) == ("br0", [V4, V6])
        # While both have it, what comes in is the bridge's.
        assert chosen(found(port, bridge), wanted, known=known)[0] == "br0"
        part = dev(7, "br0", V4, kind="bridge")
        assert chosen(found(dev(2, "eth0", V6, master=7), part), wanted, known=known) == ("br0", [V4])
        # Another address by DHCP, on a device that leads out.
        leased = dev(7, "br0", "172.30.9.9/16", kind="bridge")
        assert chosen(found(empty, leased, DOCKER0, defaults=(default(0, 7),)), wanted, known=known)[0] == "br0"
    told = choice(found(port, dev(7, "br0", kind="bridge")), known=known)
    assert (told.uplink.device, "eth0 belongs to br0" in told.note) == ("eth0", True)
    # A VRF leaves its devices what they have.
    vrf = dev(8, "blue", kind="vrf")
    assert choice(found(dev(2, "eth0", V4, master=8), vrf), known=V4) == choice(found(dev(2, "eth0", V4)))


def test_without_any_of_its_addresses_a_node_does_not_move_to_a_bridge_of_containers() -> None:
    bare = dev(2, "eth0")
    with pytest.raises(AgentError, match=r"none of the node's addresses \(172.30.0.1\) is valid"):
        choice(found(bare, DOCKER0), known=V4)
    assert chosen(found(dev(2, "eth0", "172.30.0.8/16"), DOCKER0), known=V4)[0] == "eth0"
    assert chosen(found(dev(2, "eth0", "10.1.1.1/24"), DOCKER0), known=V4, others="10.1.1.2")[0] == "eth0"


def test_a_wanted_device_wins_also_by_another_name_of_it() -> None:
    other = dev(5, "eth1", "10.0.1.1/24")
    assert chosen(found(ETH0, other, defaults=(default(0, 2),)), "eth1", known=V4)[0] == "eth1"
    renamed = (msgspec.structs.replace(other[0], name="ens9", altnames=("eth1",)), other[1])
    assert chosen(found(ETH0, renamed), "eth1")[0] == "ens9"
    told = choice(found(dev(2, "ens5", V4)), "eth0", known=V4)
    assert (told.uplink.device, told.note.startswith("eth0, which --interface names")) == ("ens5", True)
    with pytest.raises(AgentError, match="eth0 does not exist"):
        choice(found(dev(2, "ens5", V4)), "eth0")


def test_an_address_whose_detection_has_not_ended_is_worth_a_moment() -> None:
    assert unsettled(found(dev(2, "eth0", addr(V6, tentative=True))), ())
    assert not unsettled(found(dev(2, "eth0", addr(V6, tentative=True), up=False)), ())
    assert not unsettled(found(dev(2, "eth0", addr(V6, tentative=True, duplicate=True))), ())
    assert not unsettled(found(dev(2, "eth0", addr("fe80::1/64", tentative=True))), ())


# Any machine: a handful of devices, some enslaved, addresses in all states, some default routes.
TEXTS = ("172.30.0.1/16", "172.30.0.9/16", "172.30.0.9/32", "10.0.0.3/24", "169.254.9.9/16")
TEXTS6 = ("fd30::1/64", "fd30::9/64", "fd30::9/128", "2001:db8::3/64", "fe80::9/64")
flags = st.fixed_dictionaries(
    {name: st.booleans() for name in ("forever", "tentative", "duplicate", "deprecated", "temporary")}
)
links = st.builds(
    Link,
    index=st.integers(2, 6),
    name=st.just(""),
    up=st.booleans(),
    kind=st.sampled_from(["", "bridge", "bond", "vrf"]),
    master=st.integers(0, 6),
)
addresses = st.builds(
    lambda index, text, created, given: LinkAddress(index, ip_interface(text), created, **given),
    st.integers(2, 6),
    st.sampled_from(TEXTS + TEXTS6),
    st.integers(0, 3),
    flags,
)
defaults = st.builds(
    lambda family, metric, indexes: DefaultRoute(family, metric, frozenset(indexes)),
    st.sampled_from(list(Family)),
    st.integers(0, 2),
    st.sets(st.integers(2, 6), min_size=1, max_size=2),
)


@st.composite
def machines(draw: st.DrawFn) -> HostInterfaces:
    found = {link.index: msgspec.structs.replace(link, name=f"d{link.index}") for link in draw(st.lists(links))}
    # One address on two devices is told above: a bridge that takes over what its port still has.
    own = {each.address.ip: each for each in draw(st.lists(addresses)) if each.index in found}
    return HostInterfaces(tuple(found.values()), tuple(own.values()), tuple(draw(st.lists(defaults, max_size=3))))


known = st.lists(st.sampled_from(TEXTS[:2] + TEXTS6[:2]), unique=True, max_size=2)
strangers = st.lists(st.sampled_from(["172.30.0.9", "10.0.0.7", "fd30::9"]), unique=True).map(
    lambda texts: [ip_address(text) for text in texts]
)


def outcome(machine: HostInterfaces, registered: list[Interface], others: list[Address]) -> Uplink | str:
    try:
        return choose_uplink(machine, registered=registered, others=others).uplink
    except AgentError as error:
        return error.message


@given(machines(), known, strangers, st.randoms())
def test_the_order_in_which_the_kernel_tells_is_of_no_account(
    machine: HostInterfaces, texts: list[str], others: list[Address], shuffled: random.Random
) -> None:
    registered = [ip_interface(text) for text in texts]

    def mixed(things: Sequence[T]) -> tuple[T, ...]:
        return tuple(shuffled.sample(things, len(things)))

    again = HostInterfaces(mixed(machine.links), mixed(machine.addresses), mixed(machine.defaults))
    assert outcome(again, registered, others) == outcome(machine, registered, others)


@given(machines(), known, strangers)
def test_an_agent_that_is_started_anew_chooses_as_the_one_that_ran(
    machine: HostInterfaces, texts: list[str], others: list[Address]
) -> None:
    uplink = outcome(machine, [ip_interface(text) for text in texts], others)
    if isinstance(uplink, Uplink):
        assert outcome(machine, list(uplink.addresses), others) == uplink


@given(machines(), known, strangers, st.lists(addresses), st.lists(defaults))
def test_valid_addresses_stay_whatever_else_comes(
    machine: HostInterfaces,
    texts: list[str],
    others: list[Address],
    more: list[LinkAddress],
    routes: list[DefaultRoute],
) -> None:
    uplink = outcome(machine, [ip_interface(text) for text in texts], others)
    if isinstance(uplink, str):
        return
    here = {each.address.ip for each in machine.addresses}
    there = {link.index for link in machine.links}
    new = {(e.index, e.address): e for e in more if e.address.ip not in here and e.index in there}
    later = HostInterfaces(machine.links, (*new.values(), *machine.addresses), (*routes, *machine.defaults))
    after = outcome(later, list(uplink.addresses), others)
    assert isinstance(after, Uplink)
    assert not lost(after, uplink.addresses)
    assert after.device == uplink.device


@given(machines(), known, strangers)
def test_what_is_taken_is_fit_to_be_taken(
    machine: HostInterfaces, texts: list[str], others: list[Address]
) -> None:
    registered = [ip_interface(text) for text in texts]
    uplink = outcome(machine, registered, others)
    if isinstance(uplink, str):
        return
    link = next(link for link in machine.links if link.name == uplink.device)
    assert link.up
    assert len({Family.of(address) for address in uplink.addresses}) == len(uplink.addresses) > 0
    for address in uplink.addresses:
        (state,) = (e for e in machine.addresses if (e.index, e.address) == (link.index, address))
        assert not state.duplicate
        if address.ip not in {each.ip for each in registered}:
            assert not any((state.tentative, state.deprecated, state.temporary))
            assert address.ip not in others
            assert not address.ip.is_link_local
