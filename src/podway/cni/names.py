"""What the parameters of a request may be called (CNI, "Parameters"; dev_valid_name in net/core/dev.c)."""

import re
from collections.abc import Mapping

from podway.api.lease import ALIAS_BYTES, MAX_CONTAINER_ID, Attachment
from podway.cni.spec import Code
from podway.errors import CniError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
"""A container id and a network's name. A container's name, as podman passes it, is of the same form."""

MAX_IFNAME = 15
"""IFNAMSIZ - 1, in bytes."""

MAX_NETWORK = 63
"""Longest name of a network: the lease keeps it in the link's alias, beside the pod's."""

MAX_NETNS = ALIAS_BYTES - MAX_NETWORK - 16
"""Longest path of a network namespace, in bytes: the alias holds it too, and something of the pod's name."""


def require_present(environment: Mapping[str, str], *names: str) -> None:
    """Raise CniError naming every one of these variables that is missing or empty."""
    missing = [name for name in names if not environment.get(name)]
    if missing:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"missing or empty: {', '.join(missing)}",
            hint="the container runtime must set them; see the CNI specification, Parameters",
        )


def require_attachment(environment: Mapping[str, str]) -> Attachment:
    """Return which attachment the variables name. Raises CniError."""
    container, ifname = environment["CNI_CONTAINERID"], environment["CNI_IFNAME"]
    if len(container) > MAX_CONTAINER_ID:
        raise _invalid(
            "CNI_CONTAINERID",
            f"{len(container)} characters are too many",
            f"at most {MAX_CONTAINER_ID} fit into the name of a link (ALTIFNAMSIZ)",
        )
    if not NAME.fullmatch(container):
        raise _invalid(
            "CNI_CONTAINERID",
            f"{container!r} is no container id",
            "it starts with a letter or digit and goes on with letters, digits, '_', '.' and '-'",
        )
    if len(ifname.encode()) > MAX_IFNAME:
        raise _invalid(
            "CNI_IFNAME", f"{ifname!r} is too long", f"an interface name has at most {MAX_IFNAME} bytes"
        )
    # The kernel takes a name with % for a template.
    if ifname in (".", "..") or not ifname.isprintable() or any(c in "/:%" or c.isspace() for c in ifname):
        raise _invalid("CNI_IFNAME", f"{ifname!r} is no interface name", "use one such as eth0 or net1")
    if ifname == "lo":
        raise _invalid("CNI_IFNAME", "every network namespace has its own 'lo'", "use one such as eth0 or net1")
    return Attachment(container, ifname)


def require_netns(environment: Mapping[str, str]) -> str:
    """Return the namespace's path. Raises CniError."""
    netns = environment["CNI_NETNS"]
    if not netns.startswith("/") or not netns.isprintable():
        raise _invalid("CNI_NETNS", f"{netns!r} is no absolute path", "use one such as /run/netns/pod")
    if len(netns.encode()) > MAX_NETNS:
        raise _invalid("CNI_NETNS", "the path is too long", f"it has at most {MAX_NETNS} bytes")
    return netns


def require_network(name: str) -> str:
    """Return the network's name if it is one. Raises CniError."""
    if NAME.fullmatch(name) and len(name) <= MAX_NETWORK:
        return name
    raise CniError(
        Code.INVALID_CONFIG,
        f"network configuration: name: {name!r} is no name of a network"
        if name
        else "network configuration: no name",
        hint=f"at most {MAX_NETWORK} letters, digits, '_', '.' and '-', the first a letter or digit",
    )


def _invalid(variable: str, problem: str, hint: str) -> CniError:
    return CniError(Code.INVALID_ENVIRONMENT, f"{variable}: {problem}", hint=hint)
