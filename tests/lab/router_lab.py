"""The wires of a lab with racks, without agents: nodes on which a test speaks BGP by hand."""

import subprocess
from ipaddress import ip_network

from podway.lab import names, processes, routers, speakers, state, topology
from podway.lab.fabric import Tor, node_asn, plan_fabric, tor_asn
from podway.lab.paths import lab_dir
from podway.lab.state import LabNode, LabState
from podway.plan.bgp import Bfd

POOLS = (ip_network("10.244.0.0/16"), ip_network("fd00::/48"))
BFD = Bfd(interval=300, multiplier=3)


class RouterLab:
    """Racks and routers of a lab that `cluster.down` removes; the nodes are node1, node2 and so on."""

    def __init__(self, name: str, *, nodes: int, racks: int = 2, tor: Tor = "none") -> None:
        self.name = name
        self.fabric = plan_fabric(POOLS, nodes=nodes, racks=racks)
        self.places = {
            f"node{index}": LabNode(index, rack=self.fabric.rack_of(index, nodes)) for index in range(1, nodes + 1)
        }
        lab_dir(name).mkdir(parents=True)
        state.save(LabState(name, tuple(map(str, self.fabric.estate)), racks, tor))
        topology.create_fabric(name, self.fabric)
        routers.create_all(name, self.fabric)
        for node, place in self.places.items():
            topology.create_node(name, node, place, self.fabric)
        topology.introduce(name, self.fabric, self.places)
        routers.introduce(name, self.fabric, self.places)
        if tor != "none":
            speakers.start_all(name, self.fabric, tor, BFD)

    def on_node(self, node: str, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command on a node."""
        return self._inside(names.node_netns(self.name, node), *command)

    def on_router(self, rack: int, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command on a rack's router."""
        return self._inside(names.tor_netns(self.name, rack), *command)

    def address(self, node: str, version: int) -> str:
        """Return a node's address of this family."""
        place = self.places[node]
        found = self.fabric.addresses(place.rack, place.index)
        return str(next(address.ip for address in found if address.version == version))

    def speak(self, node: str) -> None:
        """Start a BIRD on a node that peers with the rack's router and announces 10.244.<index>.0/24 and a /64."""
        place = self.places[node]
        lines = [
            f"log stderr all; router id 203.0.113.{place.index}; protocol device {{}}",
            f'protocol bfd {{ interface "*" {{ interval {BFD.interval} ms; multiplier {BFD.multiplier}; }}; }}',
            f"protocol static {{ ipv4; route 10.244.{place.index}.0/24 blackhole; }}",
            f"protocol static {{ ipv6; route fd00:0:0:{place.index}::/64 blackhole; }}",
        ]
        for gateway in self.fabric.gateways(place.rack):
            family = f"ipv{gateway.version}"
            lines.append(
                f"protocol kernel {{ {family} {{ import none; export where source = RTS_BGP; }}; }}\n"
                f"protocol bgp tor_{family} {{ connect delay time 1; bfd on;\n"
                f"local {self.address(node, gateway.version)} as {node_asn(place.index)};\n"
                f"neighbor {gateway.ip} as {tor_asn(place.rack)};\n"
                f"{family} {{ import all; export where source = RTS_STATIC; next hop self; }}; }}"
            )
        directory = state.node_dir(self.name, node)
        directory.mkdir(parents=True)
        (directory / "bird.conf").write_text("\n".join(lines))
        files = ["-c", "bird.conf", "-s", "bird.ctl", "-P", "bird.pid"]
        paths = [str(directory / word) if word.startswith("bird") else word for word in files]
        processes.spawn(
            ["bird", "-f", *paths],
            namespace=names.node_netns(self.name, node),
            mark=f"{self.name}/{node}",
            log=directory / "bird.log",
        )

    def _inside(self, namespace: str, *command: str) -> "subprocess.CompletedProcess[str]":
        words = ["ip", "netns", "exec", namespace, *command]
        return subprocess.run(words, capture_output=True, text=True, check=False)
