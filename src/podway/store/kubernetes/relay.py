"""Agents asked through the API server, by whoever can reach nothing else of the cluster: what both ends ask of it.

A command asks for a token of the ServiceAccount podway-viewer that nobody but Podway takes (its audience), and
sends its question with it through the API server's proxy of the Service podway-controller. The controller
(podway.controller.relay) has the API server say whose token it is (TokenReview) and whether that one may ask this
(SubjectAccessReview), asks the agent over the channel, and hands its answer back.

Why so: a proxied request reaches its server without the name of who asks, so it must bring a proof, and a token
for one audience, of minutes, is one that cannot be used for anything else. An APIService would bring the name, but
while its server is away Kubernetes deletes no namespace and clients complain about discovery, and Podway's
controller may be away for a day. Forwarding a port to each node's agent would need an operator's certificate.
"""

from typing import Any

import msgspec

from podway.api.kinds.node_lease import LEASES
from podway.api.resource import GROUP
from podway.errors import NotFound
from podway.store.kubernetes.store import KubernetesStore

VIEWER = "podway-viewer"
"""The ServiceAccount whose tokens are proofs."""
AUDIENCE = GROUP
LIFETIME = 600
"""Seconds that a token is good for: an API server gives none for less."""
HEADER = "Podway-Token"
SERVICE = "https:podway-controller:relay"
"""The Service behind which controllers listen, as the proxy calls its port."""
PATH = f"/api/v1/namespaces/{LEASES}/services/{SERVICE}/proxy/ask"
RESOURCE = "agents"
"""What a role allows to ask is called so: verb get, the group podway.io, the method as subresource."""


NOT_RELAYED = ("capture",)
"""What is never asked so: all whom a role allows to ask share one ServiceAccount, and packets are not for all."""


class Question(msgspec.Struct, frozen=True):
    """What a node's agent is to be asked, and how long it may take, in seconds."""

    node: str
    method: str
    params: dict[str, Any]
    timeout: float

    @property
    def subresource(self) -> str:
        """What has to be allowed: `trace` for `trace.route`."""
        return self.method.partition(".")[0]


async def get_token(store: KubernetesStore) -> str | None:
    """Return a proof of who asks, None if the cluster's Podway knows no such. Raises StoreError."""
    path = f"/api/v1/namespaces/{LEASES}/serviceaccounts/{VIEWER}/token"
    asked = {"spec": {"audiences": [AUDIENCE], "expirationSeconds": LIFETIME}}
    try:
        answer = await store.post(path, asked)
    except NotFound:
        return None
    token: str = answer["status"]["token"]
    return token


async def ask(store: KubernetesStore, token: str, question: Question) -> bytes:
    """Return the line that answers a question (podway.channel.client.result_of). Raises StoreError."""
    return await store.send(PATH, msgspec.to_builtins(question), headers={HEADER: token})


async def holder(store: KubernetesStore, token: str) -> dict[str, Any] | None:
    """Return whose a token is (authentication.k8s.io, UserInfo), None if it is nobody's. Raises StoreError."""
    asked = {"spec": {"token": token, "audiences": [AUDIENCE]}}
    status = (await store.post("/apis/authentication.k8s.io/v1/tokenreviews", asked)).get("status", {})
    if not status.get("authenticated") or AUDIENCE not in status.get("audiences", ()):
        return None
    found: dict[str, Any] = status["user"]
    return found


async def may_ask(store: KubernetesStore, user: dict[str, Any], question: Question) -> bool:
    """Tell whether one may ask this (authorization.k8s.io, SubjectAccessReview). Raises StoreError."""
    wanted = {
        **{"group": GROUP, "version": "v1", "resource": RESOURCE, "subresource": question.subresource},
        **{"verb": "get", "name": question.node},
    }
    who = {"user": user.get("username", ""), "uid": user.get("uid", ""), "groups": user.get("groups", [])}
    asked = {"spec": {**who, "extra": user.get("extra", {}), "resourceAttributes": wanted}}
    answer = await store.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", asked)
    return answer.get("status", {}).get("allowed") is True
