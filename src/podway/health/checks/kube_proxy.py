"""kube-proxy's rules where Podway serves in its place."""

from collections import Counter
from collections.abc import Iterator

from podway.health.facts import NodeFacts
from podway.health.finding import Problem, Severity, node_check
from podway.health.ruleset import Chain

NFT_TABLE = "kube-proxy"
IPVS_DEVICE = "kube-ipvs0"

CHAINS = ("KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-SEP-", "KUBE-FW-")
"""What chains of its mode iptables are called, or begin with. A kubelet has others of its own."""


@node_check(
    "kube-proxy",
    looks_at="with `services: all`, kube-proxy's chains in nftables and iptables, and its ipvs device",
    why="its rules come before Podway's, so they choose endpoints for the node's processes and clients outside; "
    "where it runs no more nobody changes them, and they lead to pods that are gone",
    caused=False,
)
def kube_proxy(facts: NodeFacts) -> Iterator[Problem]:
    """One problem, which names all that is there."""
    if facts.memory.view.config.services != "all":
        return
    found = Counter(
        f"{chain.tool} {chain.family} {chain.table}" for chain in facts.firewall.rules.chains if _is_its(chain)
    )
    places = [f"{count} chains in {place}" for place, count in sorted(found.items())]
    if any(device.name == IPVS_DEVICE for device in facts.network.devices):
        places.append(f"device {IPVS_DEVICE}")
    if places:
        yield Problem(
            f"kube-proxy's rules are here, beside Podway's: {', '.join(places)}",
            "where agents reach the API by the Service kubernetes, first tell them where it is (kubectl -n "
            "podway set env daemonset/podway-agent KUBERNETES_SERVICE_HOST=ADDRESS "
            "KUBERNETES_SERVICE_PORT=PORT): else they cannot start on a node that booted. Then take it out of "
            "the cluster if it runs (kubectl -n kube-system delete daemonset kube-proxy), and have it remove its "
            "rules: kube-proxy --cleanup on the node",
            severity=Severity.WARNING,
        )


def _is_its(chain: Chain) -> bool:
    if chain.tool == "nft" and chain.table == NFT_TABLE:
        return True
    return chain.name.startswith(CHAINS)
