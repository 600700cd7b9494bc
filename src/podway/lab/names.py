"""What the parts of a lab are called, and what names they may have.

Every namespace of a lab is named `podway-<lab>-…`. A lab's name has no hyphen, so that prefix names one lab
and no other; a namespace of Kubernetes has no dot, so neither do two pods share a name.
"""

import re

from podway.api.lease import shorten
from podway.errors import InvalidArgument
from podway.lab.paths import DEFAULT_LAB

_LAB = re.compile(r"[a-z0-9]{1,20}")
_NODE = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")
RESERVED_NODES = ("fabric", "outside", "control", "pod", "add", "rm", "kill", "start")
"""Words of namespaces' names and of `podway lab node`."""
_ROUTER = re.compile(r"tor[0-9]+")

_NETNS_BYTES = 160
"""Room for a namespace's name: its path must fit into a link's alias beside the pod (podway.api.lease)."""


def require_lab_name(name: str) -> str:
    """Return a lab's name if it may be one. Raises InvalidArgument."""
    if _LAB.fullmatch(name):
        return name
    raise InvalidArgument(f"lab {name!r}: not a lab's name", hint="use 1 to 20 lower-case letters and digits")


def option(lab: str) -> str:
    """Return what names a lab behind a command, with a blank before it: nothing for the usual one."""
    return "" if lab == DEFAULT_LAB else f" --lab {lab}"


def require_node_name(name: str) -> str:
    """Return a node's name if it may be one. Raises InvalidArgument."""
    if not _NODE.fullmatch(name):
        raise InvalidArgument(
            f"node {name!r}: not a node's name",
            hint="use up to 40 lower-case letters, digits and hyphens, neither first nor last a hyphen",
        )
    if name in RESERVED_NODES or name.startswith("pod-") or _ROUTER.fullmatch(name):
        raise InvalidArgument(
            f"node {name!r}: this name has a meaning of its own", hint="choose one such as node4"
        )
    return name


def prefix(lab: str) -> str:
    """Return what every namespace of a lab starts with, and no other."""
    return f"podway-{lab}-"


def fabric_netns(lab: str) -> str:
    """Return the namespace of the segment that joins the nodes."""
    return f"{prefix(lab)}fabric"


def tor(rack: int) -> str:
    """Return what the router of a rack is called; no node is."""
    return f"tor{rack}"


def tor_netns(lab: str, rack: int) -> str:
    """Return the namespace of a rack's router."""
    return f"{prefix(lab)}{tor(rack)}"


def outside_netns(lab: str) -> str:
    """Return the namespace of the host beside the cluster."""
    return f"{prefix(lab)}outside"


def control_netns(lab: str) -> str:
    """Return the namespace of a cluster's own servers: a Kubernetes' control plane, or an etcd."""
    return f"{prefix(lab)}control"


def control_mark(lab: str) -> str:
    """Return the mark of those servers' processes."""
    return f"{lab}/control"


def node_netns(lab: str, node: str) -> str:
    """Return a node's namespace."""
    return f"{prefix(lab)}{node}"


def pod_netns(lab: str, namespace: str, pod: str) -> str:
    """Return a pod's namespace; a name too long for it is cut and ends in `~` and a digest."""
    return shorten(f"{prefix(lab)}pod-{namespace}.{pod}", _NETNS_BYTES)
