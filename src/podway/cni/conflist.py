"""The network configuration that a container runtime reads, usually /etc/cni/net.d/10-podway.conflist."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from podway.api.addresses import Family
from podway.cni.request import CAPABILITIES, TOLD
from podway.cni.spec import NETWORK

FILE_NAME = "10-podway.conflist"
"""Runtimes take the first file by name."""

VERSION = "1.0.0"
"""The newest that runtimes of before 2024 read too; set 1.1.0 where the runtime knows STATUS and GC."""

Chained: TypeAlias = Literal["portmap", "bandwidth", "tuning"]

_CHAINED: dict[Chained, dict[str, Any]] = {
    "portmap": {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    "bandwidth": {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    "tuning": {"type": "tuning"},
}


def render_conflist(
    *,
    name: str = NETWORK,
    version: str = VERSION,
    pools: Mapping[Family, Sequence[str]] | None = None,
    chained: Sequence[Chained] = (),
    sysctls: Mapping[str, str] | None = None,
) -> bytes:
    """Return the file's text: our plugin, then the standard ones named in `chained`, in that order.

    `pools` (names, by family) are left to the cluster's configuration unless given.
    `sysctls` are set inside each pod, by tuning (`{"net.core.somaxconn": "500"}`).
    """
    others = {name for plugin in chained for name in _CHAINED[plugin].get("capabilities", {})}
    capabilities = (*CAPABILITIES, *(name for name in TOLD if name in others))
    ours: dict[str, Any] = {"type": NETWORK, "capabilities": dict.fromkeys(capabilities, True)}
    for family, names in (pools or {}).items():
        ours[f"ipv{family.value}Pools"] = list(names)
    plugins = [ours, *(dict(_CHAINED[plugin]) for plugin in chained)]
    for plugin in plugins:
        if plugin["type"] == "tuning":
            plugin["sysctl"] = dict(sysctls or {})
    text = msgspec.json.encode({"cniVersion": version, "name": name, "plugins": plugins})
    return msgspec.json.format(text, indent=2) + b"\n"
