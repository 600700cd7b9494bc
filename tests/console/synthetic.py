"""A cluster that nobody has: as many nodes and workloads as wanted, with what their agents and flows would say.

Objects are of the real types, and what becomes of them is the console's own work; agents' answers are made up.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any

from podway.api.kinds.address_block import AddressBlock, AddressBlockSpec
from podway.api.kinds.ip_pool import IPPool, IPPoolSpec
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.node import FORMER_SEEN, RACK, Node, NodeAddress, NodeStatus
from podway.api.kinds.pod import Pod, PodAddress, PodSpec, PodStatus
from podway.api.meta import Metadata
from podway.api.resource import Resource
from podway.console.server import Console, serve
from podway.console.sources import Question
from podway.errors import AgentError
from podway.flows.heard import Heard, Summed
from podway.flows.query import Row, Sums
from podway.store.base import Everything

NOW = 1_800_000_000.0


def status(node: str, peers: Sequence[str], **parts: Any) -> dict[str, Any]:
    """What `podway status -o json` says of a node that is well, but for `parts`."""
    return {
        "node": node,
        "version": "1.0",
        "started": NOW - 3600,
        "memory": 60_000_000,
        "uplink": {"device": "eth0", "mtu": 1500, "problem": ""},
        "store": {"url": "", "problem": "", "rejected": {}},
        "routing": {
            "problem": "",
            "peers": [
                {
                    "name": f"{peer}.ipv4",
                    "node": peer,
                    "address": "172.16.0.1",
                    "asn": 64512,
                    "state": "Established",
                    "since": "2026-11-28T09:00:00Z",
                }
                for peer in peers
            ],
        },
        "pods": {"problem": ""},
        "drift": {"now": [], "repaired": [], "refused": []},
        "encapsulation": {"problems": []},
        "data_path": {"problem": "", "in_force": "ebpf"},
        "flows": {"recording": True, "recorded": 1000, "lost": 0},
        **parts,
    }


class Synthetic:
    """Sources of a cluster of so many nodes (forty in a rack), workloads and edges; some nodes are not well."""

    cluster = "synthetic"

    def __init__(self, nodes: int, workloads: int, edges: int, *, seed: int = 1) -> None:
        chosen = random.Random(seed)
        self.nodes = [f"node-{number:04}" for number in range(nodes)]
        spaces = [f"team-{number:02}" for number in range(max(1, workloads // 25))]
        found: list[Resource] = [
            IPPool(metadata=Metadata(name="default"), spec=IPPoolSpec(cidr="10.0.0.0/8")),
            *(Namespace(metadata=Metadata(name=name)) for name in spaces),
        ]
        for number, name in enumerate(self.nodes):
            address = f"172.16.{number // 250}.{number % 250 + 1}"
            found.append(
                Node(
                    metadata=Metadata(
                        name=name,
                        labels={RACK: f"rack-{number // 40:03}"},
                        annotations={FORMER_SEEN: str(int(NOW))},
                    ),
                    status=NodeStatus(addresses=(NodeAddress(type="InternalIP", address=address),)),
                )
            )
            block = f"10.{number // 250}.{number % 250}.0"
            found.append(
                AddressBlock(
                    metadata=Metadata(name=f"{block.replace('.', '-')}-24"),
                    spec=AddressBlockSpec(cidr=f"{block}/24", pool="default", node=name),
                )
            )
        pairs: list[tuple[str, str]] = []
        for number in range(workloads):
            space, app = chosen.choice(spaces), f"app-{number:04}"
            for copy in range(chosen.randint(1, 4)):
                name = f"{app}-{copy}"
                pairs.append((space, name))
                found.append(
                    Pod(
                        metadata=Metadata(name=name, namespace=space, labels={"app": app}),
                        spec=PodSpec(node_name=chosen.choice(self.nodes)),
                        status=PodStatus(
                            phase="Running", pod_ips=(PodAddress(ip=f"10.200.{number // 250}.{number % 250 + 1}"),)
                        ),
                    )
                )
        self.found = tuple(found)
        self.rows = tuple(
            Row(
                f"{'/'.join(chosen.choice(pairs))} -> {'/'.join(chosen.choice(pairs))}",
                flows=int(chosen.paretovariate(0.7)),
                denied=chosen.choice((0,) * 29 + (7,)),
                octets=int(chosen.paretovariate(0.4) * 1000),
                last=NOW,
            )
            for _ in range(edges)
        )
        self.sick = {name: chosen.choice(("trouble", "silent")) for name in chosen.sample(self.nodes, nodes // 60)}

    def objects(self) -> Everything:
        return Everything(self.found, (), {})

    def doubts(self) -> Mapping[str, str]:
        return {}

    def status(self) -> Mapping[str, Any]:
        told: dict[str, Any] = {}
        for at, name in enumerate(self.nodes):
            peers = self.nodes[:3] if at > 3 else []
            match self.sick.get(name):
                case "silent":
                    told[name] = {"node": name, "error": f"the agent of {name} cannot be reached", "hint": ""}
                case "trouble":
                    told[name] = status(name, peers, store={"problem": "cannot be reached", "rejected": {}})
                case _:
                    told[name] = status(name, peers)
        return told

    def routes(self, nodes: Collection[str]) -> Mapping[str, Any]:
        return {
            one: [
                {
                    "network": "10.0.0.0/24",
                    "node": other,
                    "protocol": "bgp",
                    "in_kernel": True,
                    "encapsulation": form,
                }
                for at, other in enumerate(self.nodes)
                if other != one
                for form in ("vxlan" if at % 40 else "none",)
            ]
            for one in nodes or self.nodes
        }

    def diagnosis(self) -> Mapping[str, Any]:
        return {"healthy": True, "nodes": self.nodes, "silent": [], "errors": 0, "warnings": 0, "findings": []}

    def question(self, filters: Mapping[str, Sequence[str]], now: float) -> Question:
        return Question({name: list(values) for name, values in filters.items()} | {"since": 0.0})

    def flows(self, question: Question, after: Mapping[str, int] | None = None, since: float = 0.0) -> Heard:
        return Heard([], {}, [], {}, {})

    def sums(self, question: Question, by: str) -> Summed:
        return Summed(Sums(self.rows), [], {})

    def trace(
        self, source: str, target: str, *, protocol: str, port: int, families: Sequence[int], dry_run: bool
    ) -> bytes:
        raise AgentError("nothing can be traced here")


@contextlib.asynccontextmanager
async def served(sources: Synthetic) -> AsyncIterator[str]:
    """Serve the console of a cluster on a port that is free; give its address."""
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    task = asyncio.create_task(serve(Console(sources), "127.0.0.1", 0, port.set_result, stop))
    try:
        yield f"http://127.0.0.1:{await port}/"
    finally:
        stop.set()
        await task
