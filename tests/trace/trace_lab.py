"""A lab as the tests of traces use it."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from podway.api.addresses import Address, Family
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.network_config import NetworkConfig
from podway.api.resource import Resource
from podway.cli import agents as cli_agents
from podway.cli.options import GlobalOptions
from podway.errors import AgentError
from podway.kernel import netns
from podway.lab import agents, facts, names, pods
from podway.lab.outside_tracing import beside
from podway.probe.build import Protocol
from podway.store.base import list_all
from podway.trace.names import resolve
from podway.trace.report import TraceReport
from podway.trace.trace import trace

POOLS = ("10.244.0.0/16", "fd00:10:244::/56")


@dataclass
class TraceLab:
    """A lab with the pods `a` and `c` on node1 and `b` on node2; `a` and `b` serve TCP port 80."""

    name: str

    def resources(self) -> tuple[Resource, ...]:
        return facts.ask(self.name, list_all).items

    def asker(self, *, remote: bool = False) -> Callable[..., object]:
        hosts = {name: ask for name, (_, ask) in beside(self.name).items()}
        asked = {**hosts, **cli_agents.agents(GlobalOptions(None, self.name), remote=remote)}

        def ask(node: str, method: str, **params: object) -> object:
            if node not in asked:
                raise AgentError(f"no agent of {node}")
            return asked[node](method, **{"timeout": 2.0, **params})

        return ask

    def trace(
        self,
        source: str,
        target: str,
        *,
        protocol: str = "ICMP",
        port: int = 0,
        families: Sequence[Family] = (Family.IPV4,),
        ask: Callable[..., object] | None = None,
        **keywords: Any,
    ) -> TraceReport:
        found, hosts = self.resources(), {name: addresses for name, (addresses, _) in beside(self.name).items()}
        return trace(
            found,
            ask or self.asker(),
            resolve(source, found, hosts),
            resolve(target, found, hosts),
            protocol=Protocol(protocol),
            port=port,
            families=families,
            hosts=hosts,
            **{"timeout": 0.4, **keywords},
        )

    @property
    def carries(self) -> bool:
        """Whether the flow engine carries the packets of pods."""
        return bool(agents.status(self.name, "node1")["data_path"]["in_force"] == "ebpf")

    def sights(self, number: int) -> int:
        """Return how often a packet between pods is seen that the kernel's devices see so often."""
        return number - self.carries

    @contextmanager
    def on_data_path(self, path: str) -> Iterator[None]:
        """Have this data path while the block runs."""
        before = facts.ask(self.name, lambda store: store.list(NetworkConfig)).items[0].spec.data_path
        self._podway("set", "config", f"dataPath={path}", "--wait")
        try:
            yield
        finally:
            self._podway("set", "config", f"dataPath={before}", "--wait")

    def _podway(self, *words: str) -> None:
        command = [sys.executable, "-m", "podway", "--lab", self.name, *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stderr}"

    def address(self, pod: str, family: Family = Family.IPV4) -> Address:
        found = pods.find(self.name, pod, "default").addresses
        return next(address for address in found if address.version == family)

    def block(self, node: str) -> str:
        """Return a node's IPv4 block."""
        blocks = [one for one in self.resources() if isinstance(one, AddressBlock)]
        return next(one.spec.cidr for one in blocks if one.spec.node == node and one.network.version == 4)

    def namespace(self, place: str) -> str:
        """Return the namespace of a node, of the fabric, or of a pod of the namespace default."""
        if place in {"fabric", "outside"}:
            return f"{names.prefix(self.name)}{place}"
        if place.startswith("node"):
            return names.node_netns(self.name, place)
        return names.pod_netns(self.name, "default", place)

    def sh(self, place: str, command: str) -> str:
        done = subprocess.run(
            ["nsenter", f"--net={netns.path_of(self.namespace(place))}", "sh", "-euc", command],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    @contextmanager
    def changed(self, place: str, do: str, undo: str) -> Iterator[None]:
        """Change something by hand while the block runs."""
        self.sh(place, do)
        try:
            yield
        finally:
            self.sh(place, undo)

    @contextmanager
    def nft(self, place: str, rules: str) -> Iterator[None]:
        """Have somebody else's nftables rules while the block runs; the table is `inet other`."""
        self.sh(place, f"nft -f - <<'END'\ntable inet other {{\n{rules}\n}}\nEND")
        try:
            yield
        finally:
            self.sh(place, "nft delete table inet other")
