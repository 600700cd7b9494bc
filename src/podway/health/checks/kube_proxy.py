"""kube-proxy's rules where Podway serves in its place."""

from collections import Counter
from collections.abc import Iterable, Iterator

from podway.health.facts import NodeFacts
from podway.health.finding import Problem, Severity, node_check
from podway.health.ruleset import Chain, Ruleset

NFT_TABLE = "kube-proxy"
IPVS_DEVICE = "kube-ipvs0"

CHAINS = ("KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-SEP-", "KUBE-FW-")
"""What chains of its mode iptables are called, or begin with. A kubelet has others of its own."""
SERVING = ("KUBE-SVC-", "service-")
"""What those chains begin with by which it serves Services, in its modes iptables and nftables."""


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
    places = rules_of_kube_proxy(facts.firewall.rules, (device.name for device in facts.network.devices))
    if places:
        yield Problem(
            f"kube-proxy's rules are here, beside Podway's: {', '.join(places)}",
            "where it is the DaemonSet kube-system/kube-proxy, have it stopped and its rules removed: podway "
            "cluster install --kube-proxy replace. Else tell agents where the API is (kubectl -n podway set env "
            "daemonset/podway-agent KUBERNETES_SERVICE_HOST=ADDRESS KUBERNETES_SERVICE_PORT=PORT), or they cannot "
            "start on a node that booted; stop it, and have it remove its rules: kube-proxy --cleanup on the node",
            severity=Severity.WARNING,
        )


def rules_of_kube_proxy(rules: Ruleset, devices: Iterable[str]) -> list[str]:
    """Return in words where kube-proxy has rules among a node's, and its device among those of these names."""
    found = Counter(f"{chain.tool} {chain.family} {chain.table}" for chain in rules.chains if _is_its(chain))
    places = [f"{count} chains in {place}" for place, count in sorted(found.items())]
    return [*places, *(f"device {name}" for name in devices if name == IPVS_DEVICE)]


def kube_proxy_serves(rules: Ruleset, devices: Iterable[str]) -> bool:
    """Tell whether kube-proxy has written rules for a Service; there is always one, the API's."""
    by_chains = any(_is_its(chain) and chain.name.startswith(SERVING) for chain in rules.chains)
    return by_chains or IPVS_DEVICE in devices


def _is_its(chain: Chain) -> bool:
    if chain.tool == "nft" and chain.table == NFT_TABLE:
        return True
    return chain.name.startswith(CHAINS)
