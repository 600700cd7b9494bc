"""deploy/podway.yaml before a real API server: what an agent may do, and what a stolen token of one may not."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from podway.agent.first_pools import FIRST_POOL
from podway.agent.opening import TAINT, available, untainted
from podway.api.resource import Resource
from podway.cluster.view import VIEWED
from podway.errors import StoreError
from podway.store.announcements import Announcement, Notice
from podway.store.kubernetes.access import read_kubeconfig
from podway.store.kubernetes.events import EVENTS
from podway.store.kubernetes.store import KubernetesStore
from podway.store.kubernetes.translation import TRANSLATIONS
from tests.kubernetes import ROOT, Answer, ApiServer, running_api_server
from tests.patience import eventually

pytestmark = pytest.mark.kernel

BLOCKS = "/apis/podway.io/v1/addressblocks"
CERTIFICATES = "/apis/podway.io/v1/nodecertificates"
POOLS = "/apis/podway.io/v1/ippools"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/podway/leases"
MERGE = "application/merge-patch+json"


STATUS: dict[str, Any] = {
    "addresses": [{"type": "InternalIP", "address": "172.30.0.1"}],
    "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
    "nodeInfo": {"kubeletVersion": "v1.37.2"},
}


def condition(type_: str) -> dict[str, Any]:
    return {"status": {"conditions": [{"type": type_, "status": "False", "reason": "x"}]}}


def pool(name: str, cidr: str, *, labelled: bool = True) -> dict[str, Any]:
    metadata = {"name": name, "labels": {FIRST_POOL: ""} if labelled else {}}
    return {"apiVersion": "podway.io/v1", "kind": "IPPool", "metadata": metadata, "spec": {"cidr": cidr}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server with two nodes, and agents on them."""
    with running_api_server(tmp_path_factory.mktemp("rights")) as made:
        made.kubectl("apply", "-f", str(ROOT / "deploy/podway.yaml"))
        for name in ("n1", "n2"):
            taints = [{"key": TAINT, "effect": "NoSchedule"}, {"key": "theirs", "effect": "NoSchedule"}]
            metadata = {"name": name, "annotations": {"theirs": "x"}}
            made.ask("POST", "/api/v1/nodes", {"metadata": metadata, "spec": {"taints": taints}})
            made.ask("PATCH", f"/api/v1/nodes/{name}/status", {"status": STATUS}, content=MERGE)
        yield made


@pytest.fixture(scope="module")
def token(server: ApiServer) -> str:
    """The token of the agent on n1."""
    token = server.token("n1")

    def policy_holds() -> bool:
        try:
            server.ask("POST", f"{LEASES}?dryRun=All", lease("n2"), token=token)
        except Answer:
            return True
        return False

    eventually(policy_holds, "the admission policy holds", every=0.2)
    return token


def block(node: str, number: int) -> dict[str, Any]:
    return {
        "apiVersion": "podway.io/v1",
        "kind": "AddressBlock",
        "metadata": {"name": f"10-244-{number}-0-24"},
        "spec": {"cidr": f"10.244.{number}.0/24", "pool": "p", "node": node},
    }


def lease(node: str) -> dict[str, Any]:
    return {"metadata": {"name": node}, "spec": {"holderIdentity": "x", "leaseDurationSeconds": 30}}


def request(node: str) -> dict[str, Any]:
    head = {"apiVersion": "podway.io/v1", "kind": "NodeCertificate", "metadata": {"name": node}}
    return {**head, "spec": {"request": "-----BEGIN CERTIFICATE REQUEST-----"}}


def annotation(name: str) -> dict[str, Any]:
    return {"metadata": {"annotations": {name: "y"}}}


def test_an_agent_writes_what_is_its_own_nodes(server: ApiServer, token: str) -> None:
    server.ask("POST", BLOCKS, block("n1", 1), token=token)
    server.ask("POST", LEASES, lease("n1"), token=token)
    server.ask("PATCH", f"{LEASES}/n1", {"spec": {"holderIdentity": "y"}}, content=MERGE, token=token)
    server.ask("PATCH", "/api/v1/nodes/n1", annotation("podway.io/accepts"), content=MERGE, token=token)
    server.ask("DELETE", f"{BLOCKS}/10-244-1-0-24", token=token)
    server.ask("POST", CERTIFICATES, request("n1"), token=token)
    read = ("/apis/podway.io/v1/ippools", "/api/v1/nodes", "/api/v1/namespaces/podway/secrets", "/api/v1/pods")
    for path in (BLOCKS, *read, "/apis/networking.k8s.io/v1/networkpolicies"):
        server.ask("GET", path, token=token)


def test_an_agent_opens_its_node(server: ApiServer, token: str) -> None:
    """As podway.agent.opening does; what others wrote stays."""

    def read() -> dict[str, Any]:
        node: dict[str, Any] = server.ask("GET", "/api/v1/nodes/n1", token=token)
        return node

    said = available(read(), "2026-01-01T00:00:00Z")
    server.ask("PATCH", "/api/v1/nodes/n1/status", said, content=MERGE, token=token)
    server.ask("PATCH", "/api/v1/nodes/n1", untainted(read()), content=MERGE, token=token)
    node = read()
    assert {one["type"]: one["status"] for one in node["status"]["conditions"]} == {
        "Ready": "True",
        "NetworkUnavailable": "False",
    }
    assert node["status"]["addresses"] == STATUS["addresses"]
    kept = {taint["key"] for taint in node["spec"]["taints"]}
    assert kept >= {"theirs"}
    assert TAINT not in kept
    assert available(node, "") is None
    assert untainted(node) is None


def test_an_agent_makes_the_pool_that_the_administrator_told(server: ApiServer, token: str) -> None:
    server.ask("POST", POOLS, pool("default-ipv4", "10.244.0.0/16"), token=token)
    with pytest.raises(Answer, match="no pools but those that the ConfigMap"):
        server.ask("POST", POOLS, pool("default-ipv6", "fd00::/64"), token=token)
    with pytest.raises(Answer, match="cannot delete resource"):
        server.ask("DELETE", f"{POOLS}/default-ipv4", token=token)


def test_an_administrator_makes_pools_also_where_the_settings_are_gone(server: ApiServer, token: str) -> None:
    """No agent does then; and what holds for agents holds for nobody else."""
    settings = "/api/v1/namespaces/podway/configmaps/podway"
    kept = server.ask("GET", settings)
    server.ask("DELETE", settings)

    def refused() -> bool:
        try:
            server.ask("POST", f"{POOLS}?dryRun=All", pool("default-ipv6", "fd00::/64"), token=token)
        except Answer as answer:
            return "no params found" in str(answer)
        return False

    try:
        eventually(refused, "no agent makes a pool")
        server.ask("POST", f"{POOLS}?dryRun=All", pool("mine", "10.0.0.0/16", labelled=False))
    finally:
        metadata = {"name": "podway", "namespace": "podway"}
        server.ask("POST", "/api/v1/namespaces/podway/configmaps", {"metadata": metadata, "data": kept["data"]})


@pytest.mark.parametrize("kind", VIEWED, ids=lambda kind: kind.KIND)
def test_an_agent_reads_what_plans_depend_on(server: ApiServer, token: str, kind: type[Resource]) -> None:
    how = TRANSLATIONS[kind.KIND]
    review = {"spec": {"resourceAttributes": {"resource": how.kind.NAMES.plural, "namespace": how.space}}}
    review["spec"]["resourceAttributes"]["group"] = how.versions[0].rpartition("/")[0]
    for verb in ("get", "list", "watch"):
        review["spec"]["resourceAttributes"]["verb"] = verb
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        answer = server.ask("POST", path, review, token=token)
        assert answer["status"]["allowed"], f"deploy/rbac.yaml does not let agents {verb} {how.kind.KIND}"


@pytest.mark.parametrize(
    ("method", "path", "body", "why"),
    [
        ("POST", BLOCKS, block("n2", 2), "blocks of its own node only"),
        ("DELETE", f"{BLOCKS}/10-244-9-0-24", None, "blocks of its own node only"),
        ("POST", LEASES, lease("n2"), "not of node n1"),
        ("POST", LEASES, lease("podway-controller"), "the controller's"),
        ("PATCH", "/api/v1/nodes/n2", annotation("podway.io/accepts"), "not of node n1"),
        ("PATCH", "/api/v1/nodes/n1", annotation("theirs"), "metadata but annotations of podway.io"),
        ("PATCH", "/api/v1/nodes/n1", annotation("new"), "metadata but annotations of podway.io"),
        (
            "PATCH",
            "/api/v1/nodes/n1",
            {"metadata": {"annotations": None}},
            "metadata but annotations of podway.io",
        ),
        (
            "PATCH",
            "/api/v1/nodes/n1",
            {"metadata": {"labels": {"a": "b"}}},
            "metadata but annotations of podway.io",
        ),
        ("PATCH", "/api/v1/nodes/n1", {"spec": {"unschedulable": True}}, "but takes away the taint"),
        ("PATCH", "/api/v1/nodes/n1", {"spec": {"taints": []}}, "but takes away the taint"),
        ("PATCH", "/api/v1/nodes/n1", {"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}}, "takes away"),
        ("PATCH", "/api/v1/nodes/n2", {"spec": {"taints": []}}, "not of node n1"),
        ("PATCH", "/api/v1/nodes/n1/status", {"status": {"phase": "Running"}}, "but the condition Network"),
        ("PATCH", "/api/v1/nodes/n1/status", condition("Ready"), "but the condition NetworkUnavailable"),
        (
            "PATCH",
            "/api/v1/nodes/n1/status",
            {"status": {"addresses": []}},
            "but the condition NetworkUnavailable",
        ),
        ("PATCH", "/api/v1/nodes/n2/status", condition("NetworkUnavailable"), "not of node n1"),
        ("DELETE", "/api/v1/nodes/n1", None, "cannot delete resource"),
        ("GET", "/api/v1/secrets", None, "cannot list resource"),
        ("GET", "/api/v1/namespaces/default/secrets", None, "cannot list resource"),
        ("GET", "/api/v1/configmaps", None, "cannot list resource"),
        ("DELETE", "/api/v1/namespaces/default/pods/web", None, "cannot delete resource"),
        ("DELETE", "/api/v1/namespaces/podway/pods/agent-n1", None, "cannot delete resource"),
        ("POST", CERTIFICATES, request("n2"), "not of node n1"),
        ("PATCH", f"{CERTIFICATES}/n1/status", {"status": {"certificate": "x"}}, "cannot patch resource"),
        ("GET", CERTIFICATES, None, "cannot list resource"),
        ("PATCH", "/apis/podway.io/v1/clusterauthorities/default", {"spec": {}}, "cannot patch resource"),
        ("POST", "/apis/podway.io/v1/clusterauthorities", {}, "cannot create resource"),
        ("GET", "/api/v1/namespaces/podway-authority/secrets/keys", None, "cannot get resource"),
        ("POST", POOLS, pool("mine", "10.244.0.0/16"), "no pools but those that the ConfigMap"),
        ("POST", POOLS, pool("default-ipv4", "10.0.0.0/8"), "no pools but those that the ConfigMap"),
        ("POST", POOLS, pool("default-ipv4", "10.244.0.0/16", labelled=False), "but a cluster's first"),
        ("DELETE", "/apis/podway.io/v1/clusterauthorities/default", None, "cannot delete resource"),
    ],
)
def test_a_stolen_token_writes_nothing_else(
    server: ApiServer, token: str, method: str, path: str, body: Any, why: str
) -> None:
    if method == "DELETE" and path.startswith(BLOCKS):
        server.ask("POST", BLOCKS, block("n2", 9))
    content = MERGE if method == "PATCH" else "application/json"
    with pytest.raises(Answer, match=why) as refused:
        server.ask(method, path, body, content=content, token=token)
    assert refused.value.status in (403, 422)


def test_a_token_that_is_no_pods_writes_nothing(server: ApiServer, token: str) -> None:
    path = "/api/v1/namespaces/podway/serviceaccounts/podway-agent/token"
    other = server.ask("POST", path, {"spec": {"expirationSeconds": 3600}})["status"]["token"]
    with pytest.raises(Answer, match="names no node"):
        server.ask("POST", LEASES, lease("n1-again"), token=other)


def test_agents_have_a_priority_level_of_their_own(server: ApiServer, token: str) -> None:
    """What the API server counts (API Priority and Fairness) says by which schema it judged a request."""

    def dispatched() -> float:
        lines = server.ask("GET", "/metrics").splitlines()
        counted = [one for one in lines if one.startswith("apiserver_flowcontrol_dispatched_requests_total{")]
        ours = 'flow_schema="podway",priority_level="podway"'
        return sum(float(one.rpartition(" ")[2]) for one in counted if ours in one)

    before = dispatched()
    server.ask("GET", "/api/v1/nodes/n1", token=token)
    eventually(lambda: dispatched() > before, "the request was counted for the level")


def announced(node: str, count: int = 1, *, written: bool = False) -> Announcement:
    notice = Notice("Node", node, "PodsRefused", "AttachPod", "the pool is full", uid=node)
    return Announcement(notice, 1_790_000_000.0, 1_790_000_100.0, count, written)


def test_an_agent_tells_events_of_its_own_node_alone(server: ApiServer, token: str, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(yaml.safe_dump(server.kubeconfig(token=token)))

    async def tell(*what: tuple[Announcement, str, str]) -> None:
        store = KubernetesStore(lambda: read_kubeconfig(config), sockets=lambda address: server.socket(address[0]))
        try:
            for one in what:
                await store.announce(*one)
        finally:
            await store.close()

    agent = "podway.io/agent"
    asyncio.run(tell((announced("n1"), agent, "n1"), (announced("n1", 7, written=True), agent, "n1")))
    (found,) = server.ask("GET", EVENTS)["items"]
    assert (found["reason"], found["note"], found["series"]["count"]) == ("PodsRefused", "the pool is full", 7)
    assert "PodsRefused" in server.kubectl("events", "--for", "node/n1")
    server.ask("DELETE", f"{EVENTS}/{found['metadata']['name']}")
    asyncio.run(tell((announced("n1", 8, written=True), agent, "n1")))
    assert server.ask("GET", EVENTS)["items"][0]["series"]["count"] == 8, "it was forgotten, and is told anew"
    for one, by, instance in (("n2", agent, "n1"), ("n1", agent, "n2"), ("n1", "kubelet", "n1")):
        with pytest.raises(StoreError, match="an agent tells Events of its own Node only"):
            asyncio.run(tell((announced(one), by, instance)))
    with pytest.raises(Answer):
        server.ask("DELETE", f"{EVENTS}/{found['metadata']['name']}", token=token)
