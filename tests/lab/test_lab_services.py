"""Services in a lab: made with their pods, served from these, and called by name."""

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import dns.message
import dns.rcode
import pytest

from podway.api.kinds.endpoint_slice import Endpoint, EndpointConditions, EndpointSlice
from podway.api.kinds.service import Service, ServiceSpec
from podway.api.meta import Metadata
from podway.lab import agents, cluster, facts, resolving
from podway.lab.dns import Names
from podway.store.base import Event, Listing
from podway.verify.services import SERVICES
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


@pytest.fixture(scope="module")
def lab() -> Iterator[str]:
    """A lab of two nodes that serves Services, with a client."""
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


def _answering(lab: str, url: str, family: str, times: int) -> set[str]:
    """Call a URL from the client so many times; return who answered."""
    ask = f"for i in $(seq {times}); do curl -s {family} --max-time 5 {url} || echo nobody; done"
    done = _podway(lab, "lab", "exec", "client", "--", "sh", "-c", ask)
    return {line.split(" on ")[0].removeprefix("I am pod ") for line in done.stdout.splitlines()}


@pytest.mark.kernel
def test_a_service_is_called_by_name_and_follows_its_pods(lab: str) -> None:
    for name in ("web-1", "web-2"):
        done = _podway(lab, "lab", "run", "--service", "web", "--serve", "80")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"pod default/{name} on" in done.stdout
    for family in ("-4", "-6"):
        assert _answering(lab, "http://web/", family, 16) == {"default/web-1", "default/web-2"}
    assert _podway(lab, "lab", "rm", "web-1").returncode == 0
    name = "http://web.default.svc.cluster.local/"
    eventually(lambda: _answering(lab, name, "-4", 8) == {"default/web-2"})


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


def _findings(lab: str) -> set[tuple[str, str]]:
    report = json.loads(_podway(lab, "doctor", "-o", "json").stdout)
    return {(one["subject"], one["found"]) for one in report["findings"] if one["check"] == "services"}


def _apply(lab: str, **manifest: Any) -> None:
    command = [sys.executable, "-m", "podway", "--lab", lab, "apply", "-f", "-"]
    done = subprocess.run(command, input=json.dumps(manifest), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.kernel
def test_doctor_names_services_at_which_nobody_answers(lab: str) -> None:
    nodes = "node1, node2: "
    lost = {"selector": {"app": "lost"}, "ports": [{"port": 80}]}
    _apply(lab, apiVersion="v1", kind="Service", metadata={"name": "lost"}, spec=lost)
    problem = "spec.ports[0]: has no IPv4 endpoints: connections are refused"
    eventually(lambda: _findings(lab) == {(f"{nodes}Service/default/lost", problem)})
    assert _podway(lab, "delete", "service/lost").returncode == 0
    policy = {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"ports": [{"port": 81}]}]}
    meta = {"name": "shut"}
    _apply(lab, apiVersion="networking.k8s.io/v1", kind="NetworkPolicy", metadata=meta, spec=policy)
    problem = "port 80/TCP: NetworkPolicy/default/shut let nobody in at any of its endpoints"
    eventually(lambda: _findings(lab) == {(f"{nodes}Service/default/web", problem)})
    assert _podway(lab, "delete", "networkpolicy/shut").returncode == 0
    eventually(lambda: not _findings(lab))


@pytest.mark.kernel
def test_a_service_is_explained(lab: str) -> None:
    told = json.loads(_podway(lab, "get", "service", "web", "-o", "json").stdout)["explained"]["frontends"]
    assert [(one["protocol"], one["port"]) for one in told] == [("TCP", 80)] * 2
    for frontend in told:
        (backend,) = frontend["backends"]
        assert (backend["pod"], backend["port"], backend["usedOn"]) == ("default/web-2", 80, ["node1", "node2"])
    table = _podway(lab, "get", "service", "web", "-o", "wide").stdout.splitlines()
    assert table[1].split()[table[0].split().index("READY") :][:3] == ["1", "of", "1"]
    assert "web-2 on node" in _podway(lab, "describe", "service", "web").stdout


@pytest.mark.kernel
def test_a_service_is_traced_to_its_backend_and_back(lab: str) -> None:
    done = _podway(lab, "trace", "client", "service/web", "-o", "json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["delivered"], report["receiver"]) == (0, True, "pod default/web-2"), done
    through = {one["family"]: one["service"] for one in report["families"]}
    assert set(through) == {"IPv4", "IPv6"}
    assert all((one["service"], one["port"], one["choices"]) == ("default/web", 80, 1) for one in through.values())
    page = _podway(lab, "trace", "client", "web", "-4").stdout
    assert "its only backend, and its answers have the Service's name" in " ".join(page.split())


def _verified(lab: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    report = json.loads(_podway(lab, "verify", "-o", "json", "--timeout", "0.5").stdout)
    (rule,) = (one for one in report["rules"] if one["rule"] == SERVICES)
    return rule, [one for one in report["findings"] if SERVICES in one["rules"]]


@pytest.mark.kernel
def test_verify_proves_services_and_finds_a_node_that_leads_nowhere(lab: str) -> None:
    """Of each family the ports of `web` and of DNS, called from both nodes."""
    rule, findings = _verified(lab)
    assert (rule["verdict"], rule["proved"], rule["tried"], findings) == ("proved", 12, 12, [])
    pid = agents.status(lab, "node1")["pid"]
    os.kill(pid, signal.SIGKILL)
    assert _podway(lab, "lab", "run", "--service", "web", "--serve", "80", "--node", "node2").returncode == 0
    rule, (finding,) = _verified(lab)
    assert (rule["verdict"], rule["proved"]) == ("failed", 10)
    assert {pair["sender"] for pair in finding["pairs"]} <= {"pod default/client", "pod kube-system/dns"}
    assert finding["problem"].startswith("no call is led to pod default/web-")
    assert _podway(lab, "lab", "node", "start", "node1").returncode == 0
    eventually(lambda: _verified(lab)[0]["verdict"] == "proved")
