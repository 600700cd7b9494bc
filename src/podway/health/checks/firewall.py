"""Others' firewall rules that drop what Podway needs, or translate what should keep its address."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product

import msgspec

from podway.api.addresses import Address, Family, Network
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.node import NAT_ADDRESSES
from podway.api.lease import LINK_PREFIX
from podway.cluster.view import ClusterView
from podway.health.facts import NodeFacts
from podway.health.finding import Problem, Severity, node_check
from podway.health.ruleset import Chain, Ruleset
from podway.health.traversal import Drop, Packet, drop_of, translation_of
from podway.plan.nat import translated_pools
from podway.plan.objects import BRIDGE_DEVICE, VXLAN_DEVICES
from podway.plan.remote import remote_route

BFD_CONTROL, BFD_ECHO = 3784, 3785
"""RFC 5881, section 4."""

A_POD_LINK = f"{LINK_PREFIX}0"
SAMPLE = 8
"""How many other nodes' packets are imagined: rules rarely tell nodes apart."""


FORWARDED = ("tcp", "udp", "icmp")
"""By which protocols pods' packets are imagined: a rule may drop one of them."""
TO_NODES = "packets from pods to other nodes"
FROM_NODES = "packets from other nodes to pods here"


class Imagined(msgspec.Struct, frozen=True):
    """A packet at every hook that it passes, and in words what it is.

    `protocol` is one of FORWARDED if the same is imagined by the others, too; else it is in the words.
    """

    what: str
    hooks: tuple[Packet, ...]
    protocol: str = ""


class Lost(msgspec.Struct):
    """Where packets end, which ones, and in words by which protocols."""

    drop: Drop
    packets: list[Packet] = msgspec.field(default_factory=list)
    told: dict[str, list[str]] = msgspec.field(default_factory=dict)

    def add(self, imagined: Imagined, packet: Packet) -> None:
        """Note that a packet ends here."""
        self.packets.append(packet)
        protocols = self.told.setdefault(imagined.what, [])
        if imagined.protocol and imagined.protocol not in protocols:
            protocols.append(imagined.protocol)

    @property
    def words(self) -> str:
        """All that ends here: `UDP packets from pods to other nodes' pods, BGP (TCP 179) from other nodes`."""
        return ", ".join(
            what if len(protocols) in {0, len(FORWARDED)} else f"{' and '.join(map(str.upper, protocols))} {what}"
            for what, protocols in self.told.items()
        )


@node_check(
    "firewall",
    looks_at="others' tables in nftables (so iptables-nft, firewalld, ufw, Docker) and iptables-legacy: pods' "
    "packets by TCP, UDP and ICMP, BGP, BFD and overlays' outer packets are led through their rules in thought",
    why="a drop in any table is final, whatever others accept: pods or nodes cannot reach each other",
)
def firewall(facts: NodeFacts) -> Iterator[Problem]:
    """One problem for each place where packets end, naming all that end there."""
    for lost in _ending(facts, _imagined(facts), drop_of):
        drop = lost.drop
        where = f"rule `{drop.rule}`" if drop.rule else "the policy"
        yield Problem(
            f"{where} {'drops' if drop.certain else 'may drop'} {lost.words}",
            _advice(facts, lost),
            str(drop.chain),
            Severity.ERROR if drop.certain else Severity.WARNING,
        )
    if facts.firewall.unread:
        yield Problem(
            f"not looked at: {facts.firewall.unread}",
            "install iptables, so that they can be read",
            severity=Severity.WARNING,
        )


@node_check(
    "nat",
    looks_at="others' rules that translate addresses (masquerade, SNAT, DNAT, redirect): packets of pods to pods "
    "and nodes are led through them in thought",
    why="pods and nodes see each other's own addresses: behind NAT, policies, logs and answers name the wrong one",
)
def nat(facts: NodeFacts) -> Iterator[Problem]:
    """Only what surely translates: rules for Services and host ports ask for an address, a port or a mark."""
    imagined = (*_pods_packets(facts), *_pods_to_nodes(facts), *_nodes_to_pods(facts))
    for lost in _ending(facts, imagined, translation_of):
        chain, rule = lost.drop.chain, lost.drop.rule
        among_pods = any(what != TO_NODES for what in lost.told)
        yield Problem(
            f"rule `{rule}` translates addresses of {lost.words}",
            _exempting(facts, chain),
            str(chain),
            Severity.ERROR if among_pods else Severity.WARNING,
        )


@node_check(
    "nat-address",
    looks_at="whether addresses that pods' packets shall have outside (podway.io/nat-addresses) are the node's",
    why="others answer to that address: if their answers do not come to this node, its pods reach nobody outside",
    caused=False,
)
def nat_address(facts: NodeFacts) -> Iterator[Problem]:
    """A router may lead the address here though no device has it: that cannot be seen from here."""
    memory = facts.memory
    here = memory.view.nodes.get(memory.node)
    held = {interface.ip for device in facts.network.devices for interface in device.addresses}
    for address in here.nat_addresses if here else ():
        if address not in held and translated_pools(memory.view, Family.of(address)):
            yield Problem(
                f"pods' packets leave the cluster from {address}, which no device of the node has",
                f"ip address add {address}/{address.max_prefixlen} dev lo, unless a router leads it here anyway; "
                f"`podway set node/{memory.node} nat-addresses=` takes the route's address instead",
                NAT_ADDRESSES,
                Severity.WARNING,
            )


def _ending(
    facts: NodeFacts, imagined: Iterable[Imagined], end_of: Callable[[Ruleset, Packet], Drop | None]
) -> Iterable[Lost]:
    """Return the places where imagined packets end, in the sense of `end_of`, with all that end there."""
    ends: dict[tuple[str, str], Lost] = {}
    for each in imagined:
        for packet in each.hooks:
            drop = end_of(facts.firewall.rules, packet)
            if drop is not None:
                rule = drop.rule.handle if drop.rule else ""
                ends.setdefault((str(drop.chain), rule), Lost(drop)).add(each, packet)
                break
    return ends.values()


def _imagined(facts: NodeFacts) -> Iterator[Imagined]:
    view, uplink = facts.memory.view, facts.memory.uplink
    yield from _pods_packets(facts)
    if facts.memory.enforced:  # else packets between pods stand for these, too
        yield from _pods_to_nodes(facts)
        yield from _nodes_to_pods(facts)
    for family in Family:
        address = next((address for address in uplink.node_addresses if address.version == family), None)
        for peer in _other_nodes(view, facts.memory.node, family):
            if address is not None:
                yield from _between_nodes(address, peer, uplink.device, _spoken(facts, family))


def _pods_packets(facts: NodeFacts) -> Iterator[Imagined]:
    """Yield packets between pods, but for those that the flow engine carries past all rules (docs/datapath.md)."""
    view, uplink = facts.memory.view, facts.memory.uplink
    mine = [block.network for block in view.blocks_of(facts.memory.node)]
    theirs = [block for block in view.blocks.values() if block.spec.node != facts.memory.node]
    for family in Family:
        pods = {address: _device_of_pods(view, address) for address in _addresses(mine, family)}
        own = [address for address in pods if pods[address] == BRIDGE_DEVICE or not facts.memory.enforced]
        some = [block for block in theirs if block.network.version == family][:SAMPLE]
        others = [(_addresses([block.network], family)[0], _device_to(facts, block)) for block in some]
        for here, (there, device) in product(own[:1], others):
            yield from _forwarded("packets from pods to other nodes' pods", here, there, pods[here], device)
            came = device if device in VXLAN_DEVICES else uplink.device
            yield from _forwarded("packets from other nodes' pods to pods here", there, here, came, pods[here])
        for one in own[:1]:
            yield from _forwarded("packets between pods of this node", one, one + 1, pods[one], pods[one])


def _pods_to_nodes(facts: NodeFacts) -> Iterator[Imagined]:
    view, uplink = facts.memory.view, facts.memory.uplink
    mine = [block.network for block in view.blocks_of(facts.memory.node)]
    for family in Family:
        for pod in _addresses(mine, family)[:1]:
            device = _device_of_pods(view, pod)
            for peer in _other_nodes(view, facts.memory.node, family):
                yield from _forwarded(TO_NODES, pod, peer, device, uplink.device)


def _nodes_to_pods(facts: NodeFacts) -> Iterator[Imagined]:
    view, uplink = facts.memory.view, facts.memory.uplink
    mine = [block.network for block in view.blocks_of(facts.memory.node)]
    for family in Family:
        for pod in _addresses(mine, family)[:1]:
            for peer in _other_nodes(view, facts.memory.node, family):
                yield from _forwarded(FROM_NODES, peer, pod, uplink.device, _device_of_pods(view, pod))


def _other_nodes(view: ClusterView, node: str, family: Family) -> list[Address]:
    """Return the addresses of some other nodes."""
    peers = (each.internal_address(family) for name, each in view.nodes.items() if name != node)
    return [peer for peer in peers if peer is not None][:SAMPLE]


def _forwarded(what: str, source: Address, destination: Address, iif: str, oif: str) -> Iterator[Imagined]:
    hooks = (("prerouting", iif, None), ("forward", iif, oif), ("postrouting", None, oif))
    for protocol in FORWARDED:
        name = "ipv6-icmp" if protocol == "icmp" and Family.of(source) is Family.IPV6 else protocol
        packets = tuple(Packet(hook, source, destination, i, o, name) for hook, i, o in hooks)
        yield Imagined(what, packets, protocol)


def _device_of_pods(view: ClusterView, address: Address) -> str:
    """Return the device by which packets of a pod with this address come into the node."""
    bridged = any(pool.spec.attach == "bridge" and address in pool.network for pool in view.pools.values())
    return BRIDGE_DEVICE if bridged else A_POD_LINK


def _device_to(facts: NodeFacts, block: AddressBlock) -> str:
    route = remote_route(facts.memory.view, facts.memory.node, facts.memory.uplink, block)
    return route.device if route else facts.memory.uplink.device


class Spoken(msgspec.Struct, frozen=True):
    """What nodes say to each other: by TCP or UDP, to a port."""

    name: str
    protocol: str
    port: int

    def __str__(self) -> str:
        return f"{self.name} ({self.protocol.upper()} {self.port})"


def _spoken(facts: NodeFacts, family: Family) -> Iterator[Spoken]:
    view = facts.memory.view
    yield Spoken("BGP", "tcp", view.config.bgp.port)
    yield Spoken("BFD", "udp", BFD_CONTROL)
    if any(device.vxlan and Family.of(device.vxlan.local) is family for device in facts.memory.plan.devices):
        yield Spoken("VXLAN", "udp", view.config.vxlan.port)
    # IPIP is put on behind the last rule and taken off before the first (tcx or clsact): none of them sees it.


def _between_nodes(own: Address, peer: Address, device: str, spoken: Iterable[Spoken]) -> Iterator[Imagined]:
    for each in spoken:
        yield Imagined(
            f"{each} from other nodes",
            tuple(
                Packet(hook, peer, own, device, None, each.protocol, each.port) for hook in ("prerouting", "input")
            ),
        )
        yield Imagined(
            f"{each} to other nodes",
            tuple(
                Packet(hook, own, peer, None, device, each.protocol, each.port)
                for hook in ("output", "postrouting")
            ),
        )


def _addresses(networks: Sequence[Network], family: Family) -> list[Address]:
    return [
        family.address(int(network.network_address) + min(1, network.num_addresses - 1))
        for network in networks
        if network.version == family
    ]


def _advice(facts: NodeFacts, lost: Lost) -> str:
    """Return the command that lets the packets pass, in the words of the tool that made the rules."""
    chain = lost.drop.chain
    pools = [pool.spec.cidr for pool in facts.memory.view.pools.values()]
    names = {other.name for other in facts.firewall.rules.chains if other.table == chain.table}
    if chain.table == "firewalld":
        sources = [*pools, *(str(address.network) for address in facts.memory.uplink.addresses)]
        zone = " ".join(f"--add-source={source}" for source in sources)
        return f"firewall-cmd --permanent --zone=trusted {zone} && firewall-cmd --reload"
    if any(name.startswith("ufw-") for name in names):
        return "; ".join(
            f"ufw route allow from {pool} to any; ufw route allow from any to {pool}" for pool in pools
        )
    if _of_iptables(chain):
        target = "DOCKER-USER" if "DOCKER-USER" in names and chain.name == "FORWARD" else chain.name
        return "; ".join(
            f"{_iptables(chain)} -I {target} {way} -j ACCEPT" for way in _passing(facts, lost, _IPTABLES)
        )
    place = f"{chain.family} {chain.table} {chain.name}"
    return "; ".join(f"nft insert rule {place} {way} accept" for way in _passing(facts, lost, _NFT))


def _exempting(facts: NodeFacts, chain: Chain) -> str:
    """Return the command that keeps packets to pods and nodes out of a chain that translates."""
    subnets = [address.network for address in facts.memory.uplink.addresses]
    networks = [net for net in (*_pools(facts), *subnets) if _sees(chain, net)]
    if _of_iptables(chain):
        return "; ".join(f"{_iptables(chain)} -t nat -I {chain.name} -d {net} -j ACCEPT" for net in networks)
    place = f"{chain.family} {chain.table} {chain.name}"
    return "; ".join(f"nft insert rule {place} {_NFT.to(net)} accept" for net in networks)


class _Words(msgspec.Struct, frozen=True):
    """How a tool asks for addresses and ports."""

    source: str
    target: str
    port: str

    def of(self, network: Network) -> str:
        return self.source.format(ip=_ip(network), net=network)

    def to(self, network: Network) -> str:
        return self.target.format(ip=_ip(network), net=network)


_NFT = _Words("{ip} saddr {net}", "{ip} daddr {net}", "{protocol} dport {port}")
_IPTABLES = _Words("-s {net}", "-d {net}", "-p {protocol} --dport {port}")


def _passing(facts: NodeFacts, lost: Lost, words: _Words) -> list[str]:
    """Return what a rule must ask for so that what is lost may pass, and no more than that kind."""
    hook = lost.packets[0].hook
    if hook not in {"input", "output"}:
        pools = [net for net in _pools(facts) if _sees(lost.drop.chain, net)]
        return [way(net) for net in pools for way in (words.of, words.to)]
    return list(
        dict.fromkeys(
            f"{(words.of if hook == 'input' else words.to)(address.network)} "
            f"{words.port.format(protocol=packet.protocol, port=packet.dport)}"
            for packet in lost.packets
            for address in facts.memory.uplink.addresses
            if address.version == packet.source.version
        )
    )


def _pools(facts: NodeFacts) -> list[Network]:
    return [pool.network for pool in facts.memory.view.pools.values()]


def _sees(chain: Chain, network: Network) -> bool:
    return chain.family in {"inet", _ip(network)}


def _ip(network: Network) -> str:
    return "ip" if Family.of(network) is Family.IPV4 else "ip6"


def _of_iptables(chain: Chain) -> bool:
    return chain.tool != "nft" or chain.name.isupper()


def _iptables(chain: Chain) -> str:
    if chain.tool != "nft":
        return chain.tool
    return "ip6tables" if chain.family == "ip6" else "iptables"
