"""How pods of a lab resolve names: by a Service of the lab's own, as in any Kubernetes."""

from collections.abc import Mapping
from pathlib import Path

from podway.api.kinds.service import Service
from podway.errors import NotFound
from podway.lab import facts
from podway.lab.dns import DOMAIN
from podway.lab.paths import lab_dir

NAMESPACE, SERVICE = "kube-system", "kube-dns"
"""The Service that Kubernetes' own components take DNS for."""

RESOLV_CONF = Path("/etc/resolv.conf")


def files(lab: str, namespace: str) -> Mapping[Path, Path]:
    """Return what a command in a pod of this namespace sees in the place of which file; empty without DNS.

    The settings are those that a kubelet gives to pods (dnsPolicy ClusterFirst).
    """
    try:
        service = facts.ask(lab, lambda store: store.get(Service, SERVICE, namespace=NAMESPACE))
    except NotFound:
        return {}
    lines = [
        *(f"nameserver {address}" for address in service.cluster_addresses),
        f"search {namespace}.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}",
        "options ndots:5",
    ]
    path = lab_dir(lab) / f"resolv.{namespace}.conf"
    draft = path.with_suffix(".new")
    draft.write_text("\n".join(lines) + "\n")
    draft.rename(path)
    return {RESOLV_CONF: path}
