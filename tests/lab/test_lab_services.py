"""Services in a lab: made with their pods, served from these, and called by name."""

import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_network

import dns.message
import dns.rcode
import pytest

from podway.api.kinds.endpoint_slice import Endpoint, EndpointConditions, EndpointSlice
from podway.api.kinds.service import Service, ServiceSpec
from podway.api.meta import Metadata
from podway.errors import LabError
from podway.lab import cluster, facts, resolving
from podway.lab.dns import Names
from podway.lab.services import free_address
from podway.store.base import Event, Listing
from tests.patience import eventually

DUAL = ("10.244.0.0/16", "fd00:10:244::/56")


def _names(*services: Service, slices: tuple[EndpointSlice, ...] = ()) -> Names:
    names = Names()
    names.hear(Service, Listing(services, "1"))
    names.hear(EndpointSlice, Listing(slices, "1"))
    return names


def _service(name: str, **spec: object) -> Service:
    return Service(metadata=Metadata(name=name, namespace="shop"), spec=ServiceSpec(**spec))  # type: ignore[arg-type]


def _ask(names: Names, name: str, kind: str = "A") -> tuple[str, list[str]]:
    answer = names.answer(dns.message.make_query(name, kind))
    return dns.rcode.to_text(answer.rcode()), [str(one) for found in answer.answer for one in found]


def test_names_are_answered_as_kubernetes_specifies() -> None:
    slices = EndpointSlice(
        metadata=Metadata(name="a", namespace="shop", labels={"kubernetes.io/service-name": "each"}),
        address_type="IPv4",
        endpoints=(
            Endpoint(addresses=("10.0.0.1",)),
            Endpoint(addresses=("10.0.0.2",), conditions=EndpointConditions(ready=False)),
        ),
    )
    names = _names(
        _service("web", cluster_ip="10.96.0.9", cluster_ips=("10.96.0.9", "fd00::9")),
        _service("each", cluster_ip="None"),
        _service("away", type="ExternalName", external_name="example.org"),
        slices=(slices,),
    )
    assert _ask(names, "web.shop.svc.cluster.local.") == ("NOERROR", ["10.96.0.9"])
    assert _ask(names, "WEB.shop.svc.cluster.local.", "AAAA") == ("NOERROR", ["fd00::9"])
    assert _ask(names, "web.shop.svc.cluster.local.", "TXT") == ("NOERROR", [])
    assert _ask(names, "each.shop.svc.cluster.local.") == ("NOERROR", ["10.0.0.1"])
    assert _ask(names, "away.shop.svc.cluster.local.") == ("NOERROR", ["example.org."])
    assert _ask(names, "web.default.svc.cluster.local.") == ("NXDOMAIN", [])
    assert _ask(names, "example.org.") == ("REFUSED", [])


def test_names_go_with_their_services() -> None:
    web = _service("web", cluster_ip="10.96.0.9")
    names = _names(web)
    names.hear(Service, Event("deleted", web, "2"))
    assert _ask(names, "web.shop.svc.cluster.local.") == ("NXDOMAIN", [])
    names.hear(Service, Event("added", web, "3"))
    assert _ask(names, "web.shop.svc.cluster.local.")[1] == ["10.96.0.9"]
    names.hear(Service, Listing((), "4"))
    assert _ask(names, "web.shop.svc.cluster.local.") == ("NXDOMAIN", [])


def test_addresses_by_hand_are_left_free() -> None:
    small = ip_network("10.96.0.0/27")
    assert str(free_address(ip_network("10.96.0.0/16"), set())) == "10.96.1.1"
    assert str(free_address(small, {small[17]})) == "10.96.0.18"
    with pytest.raises(LabError, match=r"no address of 10\.96\.0\.0/27 is free"):
        free_address(small, set(small))


@pytest.fixture(scope="module")
def lab() -> Iterator[str]:
    """A lab of two nodes that serves Services, with a client."""
    import os
    import secrets

    name = f"s{os.getpid()}x{secrets.token_hex(2)}"
    cluster.up(name, nodes=2, pools=DUAL, block_sizes=(), asn=64512, report=lambda _: None, services="pods")
    try:
        assert _podway(name, "lab", "run", "client", "--node", "node1").returncode == 0
        yield name
    finally:
        cluster.down(name)


def _podway(lab: str, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "podway", "--lab", lab, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _curl(lab: str, url: str, *options: str) -> str:
    words = ("curl", "-s", "--max-time", "5", *options, url)
    return _podway(lab, "lab", "exec", "client", "--", *words).stdout


@pytest.mark.kernel
def test_a_service_is_called_by_name_and_follows_its_pods(lab: str) -> None:
    for name in ("web-1", "web-2"):
        done = _podway(lab, "lab", "run", "--service", "web", "--serve", "80")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"pod default/{name} on" in done.stdout
    for family in ("-4", "-6"):
        answers = {_curl(lab, "http://web/", family).split(" on ")[0] for _ in range(12)}
        assert answers == {"I am pod default/web-1", "I am pod default/web-2"}
    assert _podway(lab, "lab", "rm", "web-1").returncode == 0
    eventually(lambda: all("web-2" in _curl(lab, "http://web.default.svc.cluster.local/") for _ in range(4)))


@pytest.mark.kernel
def test_only_the_command_sees_the_names_settings(lab: str) -> None:
    shown = _podway(lab, "lab", "exec", "client", "--", "cat", str(resolving.RESOLV_CONF)).stdout
    service = facts.ask(lab, lambda store: store.get(Service, resolving.SERVICE, namespace=resolving.NAMESPACE))
    assert [f"nameserver {one}" for one in service.cluster_addresses] == shown.splitlines()[:2]
    assert "cluster.local" not in resolving.RESOLV_CONF.read_text()


@pytest.mark.kernel
def test_mistakes_are_refused_and_leave_nothing(lab: str) -> None:
    done = _podway(lab, "lab", "run", "odd", "--service", "web", "--serve", "81")
    assert done.returncode != 0
    assert "Service default/web leads to port 80 of its pods, not to 81" in done.stderr
    done = _podway(lab, "lab", "run", "odd", "--service", "web", "--serve", "80", "--label", "app=other")
    assert "Service default/web selects app=web" in done.stderr
    assert "--service needs --serve" in _podway(lab, "lab", "run", "odd", "--service", "web").stderr
    assert "odd" not in _podway(lab, "get", "pods").stdout
