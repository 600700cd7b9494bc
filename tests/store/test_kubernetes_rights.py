"""deploy/rbac.yaml before a real API server: what an agent may do, and what a stolen token of one may not."""

from collections.abc import Iterator
from typing import Any

import pytest

from podway.api.resource import Resource
from podway.cluster.view import VIEWED
from podway.store.kubernetes.translation import TRANSLATIONS
from tests.kubernetes import ROOT, Answer, ApiServer, running_api_server
from tests.patience import eventually

pytestmark = pytest.mark.kernel

BLOCKS = "/apis/podway.io/v1/addressblocks"
CERTIFICATES = "/apis/podway.io/v1/nodecertificates"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/podway/leases"
MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server with two nodes, and agents on them."""
    with running_api_server(tmp_path_factory.mktemp("rights")) as made:
        made.kubectl("apply", "-f", str(ROOT / "deploy/rbac.yaml"))
        for name in ("n1", "n2"):
            made.ask("POST", "/api/v1/nodes", {"metadata": {"name": name, "annotations": {"theirs": "x"}}})
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
        ("PATCH", "/api/v1/nodes/n1", annotation("theirs"), "but annotations of podway.io"),
        ("PATCH", "/api/v1/nodes/n1", annotation("new"), "but annotations of podway.io"),
        ("PATCH", "/api/v1/nodes/n1", {"metadata": {"annotations": None}}, "but annotations of podway.io"),
        ("PATCH", "/api/v1/nodes/n1", {"metadata": {"labels": {"a": "b"}}}, "but annotations of podway.io"),
        ("PATCH", "/api/v1/nodes/n1", {"spec": {"unschedulable": True}}, "but annotations of podway.io"),
        ("PATCH", "/api/v1/nodes/n1/status", {"status": {"phase": "x"}}, "cannot patch resource"),
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
        ("POST", "/apis/podway.io/v1/ippools", {}, "cannot create resource"),
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
