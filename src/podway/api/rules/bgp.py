"""BGP: outside peers, their passwords, and which nodes reflect routes. Pure."""

from collections.abc import Iterator, Sequence
from itertools import combinations

from podway.api.addresses import Network, is_within
from podway.api.kinds.bgp_peer import BGPPeer, PrefixRule, password_problem
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.node import Node
from podway.api.kinds.secret import Secret
from podway.api.meta import REDACTED
from podway.api.resource import Resource, invalid, key, of_kind, subject


def check_change(new: Resource, others: Sequence[Resource], old: Resource | None) -> None:
    """Check what BGP takes from an object. Raises InvalidObject."""
    match new:
        case BGPPeer():
            _check_peer(new, others)
        case Secret():
            _check_secret(new, others)
        case NetworkConfig():
            _check_topology(new, others, blamed=new)
        case Node():
            for peer in of_kind(BGPPeer, others):
                _check_apart(peer, new, blamed=new)
            if isinstance(old, Node) and old.metadata.labels != new.metadata.labels:
                _check_labels(new, old, tuple(of_kind(BGPPeer, others)))
            # An agent that registers its node does not know the labels that it will have.
            for config in of_kind(NetworkConfig, others) if old else ():
                _check_topology(config, (*others, new), blamed=new)


def check_deletion(obj: Resource, others: Sequence[Resource]) -> None:
    """Check that no BGP setting needs an object that is to be deleted. Raises InvalidObject."""
    match obj:
        case Node():
            for config in of_kind(NetworkConfig, others):
                _check_topology(config, others, blamed=obj)
        case Secret():
            for peer, _ in _taking_from(obj, others):
                problem, hint = (
                    f"{subject(key(peer))} takes its password from it",
                    "change or delete the peer first",
                )
                raise invalid(obj, "", problem, hint)


def _check_peer(peer: BGPPeer, others: Sequence[Resource]) -> None:
    nodes = list(of_kind(Node, others))
    if peer.spec.node and all(node.metadata.name != peer.spec.node for node in nodes):
        names = ", ".join(sorted(node.metadata.name for node in nodes)[:5])
        raise invalid(
            peer, "spec.node", f"Node/{peer.spec.node} is not in the cluster", f"there are: {names or 'none'}"
        )
    for node in nodes:
        _check_apart(peer, node, blamed=peer)
    for other in of_kind(BGPPeer, others):
        _check_once(peer, other, nodes)
    _check_password(peer, others)
    pools = [pool for pool in of_kind(IPPool, others) if pool.family == peer.family]
    if pools:
        _check_exports(peer, pools)
        _check_imports(peer, pools, nodes)


def _check_topology(config: NetworkConfig, others: Sequence[Resource], *, blamed: Resource) -> None:
    bgp = config.spec.bgp
    nodes = list(of_kind(Node, others))
    selector = bgp.reflectors.node_selector
    chosen = bgp.topology in {"auto", "reflectors"} and selector is not None and bool(nodes)
    if chosen and selector and not any(selector.matches(node.metadata.labels) for node in nodes):
        raise invalid(
            blamed,
            "spec.bgp.reflectors.nodeSelector" if blamed is config else "metadata.labels",
            f"no node has the labels that make it a route reflector by {subject(key(config))}",
            "label nodes first, two at least; or leave nodeSelector out, and Podway chooses",
        )
    numbers = {node.metadata.name: bgp.asn if node.asn is None else node.asn for node in nodes}
    if bgp.topology == "reflectors" and len(set(numbers.values())) > 1:
        told = ", ".join(f"{name} has {asn}" for name, asn in sorted(numbers.items())[:3])
        raise invalid(
            blamed,
            "spec.bgp.topology" if blamed is config else "metadata.annotations[podway.io/asn]",
            f"route reflectors serve one AS (RFC 4456), and the nodes have several: {told}",
            "give all nodes one AS, or set spec.bgp.topology of NetworkConfig/default to mesh or none",
        )


def _check_secret(secret: Secret, others: Sequence[Resource]) -> None:
    for peer, name in _taking_from(secret, others):
        problem = _value_problem(secret, name)
        if problem:
            hint = f"{subject(key(peer))} takes its password from there: change that first"
            raise invalid(secret, f"data[{name}]", problem, hint)


def _taking_from(secret: Secret, others: Sequence[Resource]) -> Iterator[tuple[BGPPeer, str]]:
    """Yield the peers whose password is in a Secret, with its key."""
    for peer in of_kind(BGPPeer, others):
        source = peer.spec.password.secret if peer.spec.password else None
        if source and (source.namespace, source.name) == (secret.metadata.namespace, secret.metadata.name):
            yield peer, source.key


def _check_apart(peer: BGPPeer, node: Node, *, blamed: Resource) -> None:
    own = {*node.internal_addresses, *(interface.ip for interface in node.interface_addresses)}
    if peer.address in own:
        other = node if blamed is peer else peer
        raise invalid(
            blamed,
            "spec.address" if blamed is peer else "status.addresses",
            f"{peer.address} is {subject(key(other))} itself",
            "a BGPPeer is outside the cluster: nodes have sessions with each other without one",
        )


def _check_once(peer: BGPPeer, other: BGPPeer, nodes: Sequence[Node]) -> None:
    if peer.address != other.address:
        return
    on = [node.metadata.name for node in nodes if _on(peer, node) and _on(other, node)]
    everywhere = not any((peer.spec.node, peer.spec.node_selector, other.spec.node, other.spec.node_selector))
    if on or everywhere:
        where = f"Node/{on[0]}" if on else "every node"
        raise invalid(
            peer,
            "spec.address",
            f"{peer.address} is the address of {subject(key(other))} too, on {where}",
            "keep one of them; or give them nodes apart from each other: BGP knows a peer by its address",
        )


def _check_labels(node: Node, old: Node, peers: Sequence[BGPPeer]) -> None:
    """Check that new labels give a node no second peer at an address where it has one."""
    for one, other in combinations(sorted(peers, key=lambda peer: peer.metadata.name), 2):
        both = one.address == other.address and _on(one, node) and _on(other, node)
        if both and not (_on(one, old) and _on(other, old)):
            raise invalid(
                node,
                "metadata.labels",
                f"give the node both {subject(key(one))} and {subject(key(other))}, which are at {one.address}",
                "label the node for one of them: BGP knows a peer by its address",
            )


def _on(peer: BGPPeer, node: Node) -> bool:
    return peer.speaks_with(node.metadata.name, node.metadata.labels)


def _check_password(peer: BGPPeer, others: Sequence[Resource]) -> None:
    source = peer.spec.password.secret if peer.spec.password else None
    if source is None:
        return
    name = f"Secret/{source.namespace}/{source.name}"
    found = next((one for one in of_kind(Secret, others) if subject(key(one)) == name), None)
    if found is None:
        raise invalid(peer, "spec.password.secret", f"{name} does not exist", "make the Secret first")
    problem = _value_problem(found, source.key)
    if problem:
        raise invalid(peer, "spec.password.secret.key", f"{source.key} of {name} {problem}", "correct the Secret")


def _value_problem(secret: Secret, name: str) -> str | None:
    if REDACTED in {secret.data.get(name), secret.string_data.get(name)}:
        return None  # a cluster that is looked at from elsewhere: nobody can tell
    try:
        return password_problem(secret.value(name))
    except KeyError:
        return "is not there"
    except ValueError:
        return "is not UTF-8 text"


def _check_exports(peer: BGPPeer, pools: Sequence[IPPool]) -> None:
    """Only blocks, whole pools and Services' addresses are ever told: a rule that names none does nothing."""
    blocks = peer.spec.advertise == "blocks"
    told = [(pool.network, _told_length(pool, blocks=blocks)) for pool in pools if _is_told(pool)]
    for index, rule in enumerate(peer.spec.exports):
        if not any(_matches(rule, network, length) for network, length in told):
            what = ", ".join(f"/{length} of {network}" for network, length in told[:3])
            raise invalid(
                peer,
                f"spec.export[{index}]",
                f"cannot match: all that {peer.spec.address} is told is {what}",
                "name a part of a pool, with lengths that take in what is told, or remove the rule",
            )


def _check_imports(peer: BGPPeer, pools: Sequence[IPPool], nodes: Sequence[Node]) -> None:
    """Parts of pools other than blocks, and the nodes' networks, are never taken: a rule cannot take them."""
    subnets = {interface.network for node in nodes for interface in node.interface_addresses}
    for index, rule in enumerate(peer.spec.imports):
        if rule.action == "reject":
            continue
        for pool in pools:
            if pool.for_services and is_within(rule.network, pool.network):
                raise invalid(
                    peer,
                    f"spec.import[{index}]",
                    f"cannot match: addresses of {subject(key(pool))} are Services', of which nodes tell",
                    "remove the rule",
                )
            if is_within(rule.network, pool.network) and not _matches(rule, pool.network, pool.block_prefix):
                raise invalid(
                    peer,
                    f"spec.import[{index}]",
                    f"cannot match: of {subject(key(pool))} only blocks (/{pool.block_prefix}) are ever taken",
                    f"write lengths that take in {pool.block_prefix}, or remove the rule",
                )
        subnet = next((subnet for subnet in subnets if is_within(rule.network, subnet)), None)
        if subnet is not None:
            raise invalid(
                peer,
                f"spec.import[{index}]",
                f"cannot match: {subnet} is a network of the nodes, to which no outside peer may tell the way",
                "remove the rule",
            )


def _is_told(pool: IPPool) -> bool:
    return not (pool.for_services and pool.spec.advertise == "layer2")


def _told_length(pool: IPPool, *, blocks: bool) -> int:
    """Return the prefix length by which a peer that is told blocks, or else whole pools, hears of a pool."""
    if pool.for_services and pool.spec.advertise == "addresses":
        return pool.network.max_prefixlen
    return pool.network.prefixlen if pool.for_services or not blocks else pool.block_prefix


def _matches(rule: PrefixRule, network: Network, length: int) -> bool:
    """Tell whether a rule can match parts of a network of this prefix length."""
    if not rule.lengths[0] <= length <= rule.lengths[1]:
        return False
    return is_within(rule.network, network) or is_within(network, rule.network)
