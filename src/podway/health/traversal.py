"""Sends an imagined packet through others' firewall rules.

In every hook the kernel calls the base chains in the order of their priorities; a drop in any of them is
final, an accept ends only its own chain (man 8 nft, "VERDICT STATEMENT"). A rule that asks for more than is
known here may apply or not: what follows from it is told as a possibility. Chains that translate addresses are
walked alike, for the rule that does.
"""

from ipaddress import ip_address, ip_network

import msgspec

from podway.api.addresses import Address
from podway.health.ruleset import TRANSLATIONS, Chain, Condition, Rule, Ruleset

_DEPTH = 16
"""Jumps that the kernel follows (NFT_JUMP_STACK_SIZE)."""


class Packet(msgspec.Struct, frozen=True):
    """The first packet of a connection, without a mark, at one hook. What is None is not known."""

    hook: str
    source: Address
    destination: Address
    iif: str | None = None
    oif: str | None = None
    protocol: str | None = None
    dport: int | None = None


class Drop(msgspec.Struct, frozen=True):
    """Where a packet ends, or is translated. `rule` is None if the policy does it; not `certain`: it may."""

    chain: Chain
    rule: Rule | None
    certain: bool


class _Traversal(msgspec.Struct, frozen=True):
    """What a chain did: `dropped`, `accepted`, or neither; `sure` unless a doubtful accept may have come first."""

    dropped: Drop | None = None
    accepted: bool = False
    sure: bool = True


def drop_of(rules: Ruleset, packet: Packet) -> Drop | None:
    """Return where the packet ends, a certain place rather than a possible one; None if it passes."""
    possible: list[Drop] = []
    for chain in _base(rules, packet, translates=False):
        traversal = _traverse(rules, chain, packet, True, possible, 0)
        if traversal.dropped is None and not traversal.accepted and chain.policy == "drop":
            traversal = _Traversal(Drop(chain, None, traversal.sure))
        if traversal.dropped and traversal.dropped.certain:
            return traversal.dropped
        if traversal.dropped:
            possible.append(traversal.dropped)
    return possible[0] if possible else None


def translation_of(rules: Ruleset, packet: Packet) -> Drop | None:
    """Return the rule that surely translates the packet's addresses, None if none does."""
    for chain in _base(rules, packet, translates=True):
        traversal = _traverse(rules, chain, packet, True, [], 0, ends=TRANSLATIONS)
        if traversal.dropped and traversal.dropped.certain:
            return traversal.dropped
    return None


def _base(rules: Ruleset, packet: Packet, *, translates: bool) -> list[Chain]:
    """Return the chains that the kernel calls for a packet, in its order."""
    found = (
        chain
        for chain in rules.chains
        if chain.hook == packet.hook and chain.translates == translates and _sees(chain, packet)
    )
    return sorted(found, key=lambda chain: chain.priority)


_DROPS = frozenset({"drop", "reject"})


def _traverse(
    rules: Ruleset,
    chain: Chain,
    packet: Packet,
    sure: bool,
    possible: list[Drop],
    depth: int,
    *,
    ends: frozenset[str] = _DROPS,
) -> _Traversal:
    """Walk a chain; `ends` are the verdicts that are looked for."""
    for rule in chain.rules:
        applies = _applies(rule, packet)
        if applies is False:
            continue
        certainly = applies is True
        match rule.verdict:
            case verdict if verdict in ends and certainly:
                return _Traversal(Drop(chain, rule, sure))
            case verdict if verdict in ends and _means_us(rule):
                possible.append(Drop(chain, rule, False))
            case "accept" if certainly:
                return _Traversal(accepted=True, sure=sure)
            case "return" if certainly:
                return _Traversal(sure=sure)
            case "accept" | "return":
                sure = False
            case "jump" | "goto":
                target = rules.sibling(chain, rule.target)
                if target is None or depth > _DEPTH:
                    continue
                traversal = _traverse(rules, target, packet, sure and certainly, possible, depth + 1, ends=ends)
                if certainly and (traversal.dropped or traversal.accepted or rule.verdict == "goto"):
                    return traversal
                if traversal.dropped and _means_us(rule):
                    possible.append(traversal.dropped)
                sure = traversal.sure if certainly else sure and traversal.sure and not traversal.accepted
    return _Traversal(sure=sure)


def _sees(chain: Chain, packet: Packet) -> bool:
    return chain.family in {"inet", "ip" if packet.source.version == 4 else "ip6"}


def _means_us(rule: Rule) -> bool:
    """A doubtful drop is worth a word only if it names addresses: most are limits and states of others."""
    return any(condition.field in {"saddr", "daddr"} for condition in rule.conditions)


def _applies(rule: Rule, packet: Packet) -> bool | None:
    answers = [_holds(condition, packet) for condition in rule.conditions]
    if False in answers:
        return False
    return None if rule.doubtful or None in answers else True


def _holds(condition: Condition, packet: Packet) -> bool | None:
    version = packet.source.version
    match condition.field:
        case "saddr":
            found = any(_within(packet.source, value) for value in condition.values)
        case "daddr":
            found = any(_within(packet.destination, value) for value in condition.values)
        case "family":
            found = f"v{version}" in condition.values
        case "state":
            found = "new" in condition.values
        case "mark":
            found = any(int(value.partition("/")[0], 0) == 0 for value in condition.values)
        case "iif" | "oif" as field:
            device = packet.iif if field == "iif" else packet.oif
            if device is None:
                return None
            found = any(_named(device, value) for value in condition.values)
        case "protocol":
            if packet.protocol is None:
                return None
            found = packet.protocol in condition.values or "all" in condition.values
        case "dport":
            if packet.dport is None:
                return None
            found = any(_in_range(packet.dport, value) for value in condition.values)
        case _:
            return None
    return found != condition.negated


def _within(address: Address, value: str) -> bool:
    first, dash, last = value.partition("-")
    if dash:
        low, high = ip_address(first), ip_address(last)
        return low.version == address.version and int(low) <= int(address) <= int(high)
    network = ip_network(value, strict=False)
    return network.version == address.version and address in network


def _named(device: str, value: str) -> bool:
    return device.startswith(value[:-1]) if value.endswith("*") else device == value


def _in_range(port: int, value: str) -> bool:
    first, _, last = value.partition("-")
    if not first.isdecimal():
        return False
    return int(first) <= port <= int(last or first)
