"""Others' firewall rules that drop what Podway needs."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product

import msgspec

from podway.api.addresses import Address, Family, Network
from podway.api.lease import LINK_PREFIX
from podway.api.resources import AddressBlock
from podway.health.facts import NodeFacts
from podway.health.finding import Problem, Severity, node_check
from podway.health.ruleset import Chain
from podway.health.walk import Drop, Packet, drop_of
from podway.plan.objects import BRIDGE_DEVICE, VXLAN_DEVICE
from podway.plan.remote import remote_route
from podway.plan.view import ClusterView

BFD_CONTROL, BFD_ECHO = 3784, 3785
"""RFC 5881, section 4."""

A_POD_LINK = f"{LINK_PREFIX}0"
SAMPLE = 8
"""How many other nodes' packets are imagined: rules rarely tell nodes apart."""


class Imagined(msgspec.Struct, frozen=True):
    """A packet at every hook that it passes, and in words what it is."""

    what: str
    hooks: tuple[Packet, ...]


@node_check(
    "firewall",
    looks_at="others' tables in nftables (so iptables-nft, firewalld, ufw, Docker) and iptables-legacy: pods' "
    "packets, BGP, BFD and the outer packets of overlays are led through their rules in thought",
    why="a drop in any table is final, whatever others accept: pods or nodes cannot reach each other",
)
def firewall(facts: NodeFacts) -> Iterator[Problem]:
    """One problem for each place where packets end, naming all that end there."""
    ends: dict[tuple[str, str], tuple[Drop, list[str]]] = {}
    for imagined in _imagined(facts):
        for packet in imagined.hooks:
            drop = drop_of(facts.firewall.rules, packet)
            if drop is not None:
                rule = drop.rule.handle if drop.rule else ""
                _, lost = ends.setdefault((str(drop.chain), rule), (drop, []))
                if imagined.what not in lost:
                    lost.append(imagined.what)
                break
    for drop, lost in ends.values():
        where = f"rule `{drop.rule}`" if drop.rule else "the policy"
        yield Problem(
            f"{where} {'drops' if drop.certain else 'may drop'} {', '.join(lost)}",
            _mend(facts, drop),
            str(drop.chain),
            Severity.ERROR if drop.certain else Severity.WARNING,
        )
    if facts.firewall.unread:
        yield Problem(
            f"not looked at: {facts.firewall.unread}",
            "install iptables, so that they can be read",
            severity=Severity.WARNING,
        )


def _imagined(facts: NodeFacts) -> Iterator[Imagined]:
    view, uplink = facts.memory.view, facts.memory.uplink
    mine = [block.network for block in view.blocks_of(facts.memory.node)]
    theirs = [block for block in view.blocks.values() if block.spec.node != facts.memory.node]
    for family in Family:
        own = _addresses(mine, family)
        pods = {address: _device_of_pods(view, address) for address in own}
        some = [block for block in theirs if block.network.version == family][:SAMPLE]
        others = [(_addresses([block.network], family)[0], _device_to(facts, block)) for block in some]
        for here, (there, device) in product(own[:1], others):
            yield _forwarded("packets from pods to other nodes' pods", here, there, pods[here], device)
            came = device if device == VXLAN_DEVICE else uplink.device
            yield _forwarded("packets from other nodes' pods to pods here", there, here, came, pods[here])
        for one in own[:1]:
            yield _forwarded("packets between pods of this node", one, one + 1, pods[one], pods[one])
        address = next((address for address in uplink.node_addresses if address.version == family), None)
        peers = [node.internal_address(family) for name, node in view.nodes.items() if name != facts.memory.node]
        for peer in [peer for peer in peers if peer is not None][:SAMPLE]:
            if address is not None:
                yield from _between_nodes(address, peer, uplink.device, _spoken(facts, family))


def _forwarded(what: str, source: Address, destination: Address, iif: str, oif: str) -> Imagined:
    hooks = (("prerouting", iif, None), ("forward", iif, oif), ("postrouting", None, oif))
    return Imagined(what, tuple(Packet(hook, source, destination, i, o) for hook, i, o in hooks))


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
    view, underlay = facts.memory.view, facts.memory.uplink.underlay
    yield Spoken("BGP", "tcp", view.config.bgp.port)
    yield Spoken("BFD", "udp", BFD_CONTROL)
    forms = {device.kind for device in facts.memory.plan.devices} if family is underlay else set[str]()
    if "vxlan" in forms:
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


def _mend(facts: NodeFacts, drop: Drop) -> str:
    """Return the command that lets the packets pass, in the words of the tool that made the rules."""
    chain = drop.chain
    pools = [pool.spec.cidr for pool in facts.memory.view.pools.values()]
    names = {other.name for other in facts.firewall.rules.chains if other.table == chain.table}
    here = chain.hook or chain.name.lower()
    if chain.table == "firewalld":
        sources = [*pools, *(str(address.network) for address in facts.memory.uplink.addresses)]
        zone = " ".join(f"--add-source={source}" for source in sources)
        return f"firewall-cmd --permanent --zone=trusted {zone} && firewall-cmd --reload"
    if any(name.startswith("ufw-") for name in names):
        return "; ".join(
            f"ufw route allow from {pool} to any; ufw route allow from any to {pool}" for pool in pools
        )
    if chain.tool != "nft" or chain.name.isupper():
        program = chain.tool if chain.tool != "nft" else "ip6tables" if chain.family == "ip6" else "iptables"
        return _iptables(chain, program, "DOCKER-USER" in names, pools, facts, here)
    if drop.rule:
        return f"nft delete rule {chain.family} {chain.table} {chain.name} handle {drop.rule.handle}"
    return (
        f"let them pass in this chain: nft insert rule {chain.family} {chain.table} {chain.name} "
        f"{_accepted(chain, pools, facts)}"
    )


def _iptables(chain: Chain, program: str, docker: bool, pools: Sequence[str], facts: NodeFacts, hook: str) -> str:
    version = 6 if chain.family == "ip6" else 4
    if hook in {"input", "output"}:
        side = "-s" if hook == "input" else "-d"
        subnets = [address.network for address in facts.memory.uplink.addresses if address.version == version]
        return "; ".join(f"{program} -I {chain.name} {side} {subnet} -j ACCEPT" for subnet in subnets)
    target = "DOCKER-USER" if docker else "FORWARD"
    ours = [pool for pool in pools if (":" in pool) == (version == 6)]
    return "; ".join(f"{program} -I {target} {side} {pool} -j ACCEPT" for pool in ours for side in ("-s", "-d"))


def _accepted(chain: Chain, pools: Sequence[str], facts: NodeFacts) -> str:
    if chain.hook in {"input", "output"}:
        side = "saddr" if chain.hook == "input" else "daddr"
        subnet = facts.memory.uplink.addresses[0].network
        return f"{'ip' if subnet.version == 4 else 'ip6'} {side} {subnet} accept"
    pool = pools[0] if pools else "POOL"
    word = "ip6" if ":" in pool else "ip"
    return f"{word} saddr {pool} accept, and the same with daddr"
