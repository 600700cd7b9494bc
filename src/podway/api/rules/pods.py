"""Where pods are: they do not move, and what they need stays. Pure."""

from collections.abc import Sequence

from podway.api.kinds.namespace import Namespace
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.resource import Resource, invalid, key, of_kind, subject


def check_change(new: Resource, others: Sequence[Resource], old: Resource | None) -> None:
    """Check that a pod stays on its node. Raises InvalidObject."""
    if isinstance(new, Pod) and isinstance(old, Pod) and old.spec.node_name not in ("", new.spec.node_name):
        raise invalid(
            new,
            "spec.nodeName",
            f"a pod cannot move: it runs on Node/{old.spec.node_name}",
            "delete the pod and run it anew",
        )


def check_deletion(obj: Resource, others: Sequence[Resource]) -> None:
    """Check that no pod is on a node, or in a namespace. Raises InvalidObject."""
    name, hint = obj.metadata.name, "delete its pods first"
    match obj:
        case Node():
            pods = [pod for pod in of_kind(Pod, others) if pod.spec.node_name == name]
            if pods:
                raise invalid(obj, "", f"{some(pods)} on this node", hint)
        case Namespace():
            pods = [pod for pod in of_kind(Pod, others) if pod.metadata.namespace == name]
            if pods:
                raise invalid(obj, "", f"{some(pods)} in it", hint)


def some(pods: Sequence[Pod]) -> str:
    """Return the subject of a sentence about pods: `Pod/default/web and 2 more are`."""
    more = f" and {len(pods) - 1} more" if len(pods) > 1 else ""
    return f"{subject(key(pods[0]))}{more} {'are' if more else 'is'}"
