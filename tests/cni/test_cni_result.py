"""Results in each version of the specification, against files written by hand from its text."""

import json
from ipaddress import ip_address, ip_network
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.api.addresses import Family
from podway.api.lease import Attachment, Lease
from podway.cni.conflist import render_conflist
from podway.cni.result import Dns, Interface, IpConfig, Result, Route, read, render, result_of
from podway.cni.spec import VERSIONS
from podway.plan.wiring import wire

GOLDEN = Path(__file__).parent / "golden"
NETNS = "/run/netns/pod"
LEASE = Lease(
    Attachment("c1", "eth0"),
    "shop/web-0",
    "podway",
    NETNS,
    (ip_address("10.244.1.7"), ip_address("fd00:10:244::7")),
)
FORMS = {"0.3.0": "0.3", "0.3.1": "0.3", "0.4.0": "0.3", "1.0.0": "1.0", "1.1.0": "1.1"}


@pytest.mark.parametrize("version", VERSIONS)
def test_result_of_a_wiring(version: str) -> None:
    wiring = wire(LEASE, mtu=1450, node_addresses=(ip_address("172.30.0.2"),))
    result = result_of(wiring, sandbox=NETNS, dns=Dns(nameservers=("10.96.0.10",), search=("cluster.local",)))
    expected = json.loads((GOLDEN / f"result-{FORMS[version]}.json").read_text())
    assert json.loads(render(result, version)) == {"cniVersion": version, **expected}


def test_result_of_a_port_of_the_bridge() -> None:
    """As containernetworking's `bridge` plugin tells it: bridge, host end, and pod end with the addresses."""
    lan = (ip_network("10.244.1.0/24"), ip_network("fd00:10:244::/122"))
    lease = msgspec.structs.replace(LEASE, attach="bridge")
    result = result_of(wire(lease, mtu=1450, node_addresses=(), lan=lan), sandbox=NETNS, dns=Dns())
    names = ["cni0", lease.attachment.link, "eth0"]
    assert [(link.name, link.sandbox) for link in result.interfaces] == [*zip(names, ["", "", NETNS], strict=True)]
    assert [(ip.address, ip.gateway, ip.interface) for ip in result.ips] == [
        ("10.244.1.7/24", "10.244.1.1", 2),
        ("fd00:10:244::7/122", "fd00:10:244::1", 2),
    ]
    assert result.routes == (Route(dst="0.0.0.0/0", gw="10.244.1.1"), Route(dst="::/0", gw="fd00:10:244::1"))


addresses = st.ip_addresses().map(str)
results = st.lists(
    st.builds(
        Interface,
        name=st.text(min_size=1, max_size=15),
        mac=st.sampled_from(["", "02:00:00:00:00:01"]),
        mtu=st.integers(0, 9000),
        sandbox=st.sampled_from(["", "/run/netns/a"]),
        socket_path=st.sampled_from(["", "/run/v"]),
        pci_id=st.sampled_from(["", "0000:00:1f.6"]),
    ),
    max_size=3,
).flatmap(
    lambda links: st.builds(
        Result,
        interfaces=st.just(tuple(links)),
        ips=st.lists(
            st.builds(
                IpConfig,
                address=st.ip_addresses().map(lambda a: f"{a}/{a.max_prefixlen}"),
                gateway=st.just("") | addresses,
                interface=st.none() | st.integers(0, len(links) - 1) if links else st.none(),
            ),
            max_size=3,
        ).map(tuple),
        routes=st.lists(
            st.builds(
                Route,
                dst=st.sampled_from(["0.0.0.0/0", "::/0", "10.0.0.0/8"]),
                gw=st.just("") | addresses,
                mtu=st.integers(0, 9000),
                table=st.none() | st.integers(0, 300),
                scope=st.none() | st.integers(0, 255),
            ),
            max_size=2,
        ).map(tuple),
        dns=st.builds(Dns, domain=st.sampled_from(["", "cluster.local"])),
    )
)


@given(results)
def test_what_is_rendered_is_read_back(result: Result) -> None:
    assert read(render(result, "1.1.0")) == result


@given(results, st.sampled_from(VERSIONS))
def test_every_version_keeps_what_it_can_say(result: Result, version: str) -> None:
    again = read(render(result, version))
    assert again.ips == result.ips
    assert again.dns == result.dns
    assert [(link.name, link.mac, link.sandbox) for link in again.interfaces] == [
        (link.name, link.mac, link.sandbox) for link in result.interfaces
    ]
    assert [(route.dst, route.gw) for route in again.routes] == [(route.dst, route.gw) for route in result.routes]


@given(results, results)
def test_a_chain_keeps_both_parts_and_every_address_on_its_interface(first: Result, second: Result) -> None:
    chain = second.after(first)
    assert chain.interfaces[: len(first.interfaces)] == first.interfaces
    assert chain.ips[: len(first.ips)] == first.ips

    def owners(result: Result) -> list[tuple[str, Interface | None]]:
        return [
            (ip.address, None if ip.interface is None else result.interfaces[ip.interface]) for ip in result.ips
        ]

    assert owners(chain) == owners(first) + owners(second)


def test_addresses_of_the_pod_and_nobody_elses() -> None:
    wiring = wire(LEASE, mtu=1450, node_addresses=())
    other = Result(
        interfaces=(Interface(name="eth0"), Interface(name="net1", sandbox=NETNS)),
        ips=(IpConfig(address="192.0.2.1/24", interface=0), IpConfig(address="192.0.2.2/24", interface=1)),
    )
    assert result_of(wiring, sandbox=NETNS, dns=Dns()).after(other).addresses("eth0") == LEASE.addresses


def test_configuration_for_the_runtime() -> None:
    text = render_conflist(
        pools={Family.IPV6: ["six"]},
        chained=("tuning", "portmap", "bandwidth"),
        sysctls={"net.core.somaxconn": "500"},
    )
    assert json.loads(text) == json.loads((GOLDEN / "10-podway.conflist").read_text())
