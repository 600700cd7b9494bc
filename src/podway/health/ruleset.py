"""Firewall rules as data, from nftables' JSON (man 5 libnftables-json) or from iptables-legacy's `-S` form.

Only conditions that decide about a pod's or a peer's first packet are read: addresses, devices, protocol,
ports, connection state, mark. Whatever else a rule asks makes it `doubtful`: it may apply or not. Rules that
translate addresses stand in chains of their own, which `translates` tells from those that filter.
"""

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import msgspec


class Condition(msgspec.Struct, frozen=True):
    """One condition: `field` has one of `values` (networks, `a-b` ranges, names with `*` at the end)."""

    field: str
    values: tuple[str, ...]
    negated: bool = False

    def __str__(self) -> str:
        return f"{self.field} {'not ' if self.negated else ''}{', '.join(self.values)}"


class Rule(msgspec.Struct, frozen=True):
    """A rule: what it asks and what it does.

    That is accept, drop, reject, return, jump, goto, a translation (masquerade, snat, dnat, redirect), or nothing.
    """

    conditions: tuple[Condition, ...]
    verdict: str
    target: str = ""
    doubtful: bool = False
    handle: str = ""
    """What names the rule to the tool that made it."""

    def __str__(self) -> str:
        asked = [*map(str, self.conditions), *(["(and more)"] if self.doubtful else [])]
        return " ".join((*asked, self.verdict))


class Chain(msgspec.Struct, frozen=True):
    """A chain; one that the kernel calls has a `hook`, a priority and a policy."""

    tool: str
    """`nft` or `iptables-legacy`, `ip6tables-legacy`."""
    family: str
    table: str
    name: str
    rules: tuple[Rule, ...] = ()
    hook: str = ""
    priority: int = 0
    policy: str = "accept"
    translates: bool = False
    """Whether it is one of those that may translate addresses (type nat)."""

    def __str__(self) -> str:
        return f"{self.tool} {self.family} {self.table} {self.name}"


class Ruleset(msgspec.Struct, frozen=True, dict=True):
    """All chains that could drop a packet or translate its addresses."""

    chains: tuple[Chain, ...] = ()

    def sibling(self, chain: Chain, name: str) -> Chain | None:
        """Return a chain of the same table."""
        return self._by_place.get((chain.tool, chain.family, chain.table, name))

    @cached_property
    def _by_place(self) -> dict[tuple[str, str, str, str], Chain]:
        return {(chain.tool, chain.family, chain.table, chain.name): chain for chain in self.chains}


def from_nft(entries: Iterable[Mapping[str, Any]], *, without: Callable[[str], bool]) -> Ruleset:
    """Read `nft -j list ruleset`, leaving out the tables of some names."""
    chains: dict[tuple[str, str, str], Chain] = {}
    rules: dict[tuple[str, str, str], list[Rule]] = {}
    for entry in entries:
        if chain := entry.get("chain"):
            place = (chain["family"], chain["table"], chain["name"])
            if without(place[1]) or place[0] not in {"ip", "ip6", "inet"}:
                continue
            chains[place] = Chain(
                "nft",
                *place,
                hook=chain.get("hook", ""),
                priority=chain.get("prio", 0),
                policy=chain.get("policy", "accept"),
                translates=chain.get("type") == "nat",
            )
        elif rule := entry.get("rule"):
            place = (rule["family"], rule["table"], rule["chain"])
            rules.setdefault(place, []).extend(_nft_rules(rule["expr"], str(rule["handle"])))
    return Ruleset(
        tuple(msgspec.structs.replace(chain, rules=tuple(rules.get(place, ()))) for place, chain in chains.items())
    )


_VERDICTS = frozenset({"accept", "drop", "reject", "return", "jump", "goto"})
TRANSLATIONS = frozenset({"masquerade", "snat", "dnat", "redirect", "netmap"})
"""Verdicts that give a connection other addresses."""
_HARMLESS = frozenset({"counter", "log", "mangle", "notrack"})
_META = {"iifname": "iif", "iif": "iif", "oifname": "oif", "oif": "oif", "l4proto": "protocol", "mark": "mark"}
_PROTOCOLS = {"6": "tcp", "17": "udp", "1": "icmp", "58": "ipv6-icmp", "icmpv6": "ipv6-icmp"}


def _nft_rules(expressions: Iterable[Mapping[str, Any]], handle: str) -> Iterator[Rule]:
    conditions: list[Condition] = []
    doubtful = False
    for expression in expressions:
        kind, value = next(iter(expression.items()))
        if kind == "xt" and str(value.get("name", "")).lower() in TRANSLATIONS:
            kind = value["name"].lower()  # of iptables-nft
        if kind == "match":
            read = _nft_match(value)
            conditions += read
            doubtful = doubtful or not read
        elif kind in _VERDICTS:
            target = value["target"] if kind in {"jump", "goto"} else ""
            yield Rule(tuple(conditions), kind, target, doubtful, handle)
            return
        elif kind in TRANSLATIONS:
            yield Rule(tuple(conditions), kind, "", doubtful, handle)
            return
        elif kind == "vmap":
            yield from _nft_choices(value, tuple(conditions), doubtful, handle)
        elif kind == "xt":
            doubtful = doubtful or value.get("name") != "comment"
        elif kind not in _HARMLESS:
            doubtful = True


def _nft_choices(
    vmap: Mapping[str, Any], conditions: tuple[Condition, ...], doubtful: bool, handle: str
) -> Iterator[Rule]:
    """A verdict map is one rule for each of its elements."""
    data = vmap["data"]
    elements = data.get("set", ()) if isinstance(data, dict) else ()
    for key, verdict in elements:
        chosen = _nft_match({"op": "==", "left": vmap["key"], "right": key})
        kind, value = next(iter(verdict.items()))
        if kind in _VERDICTS:
            target = value["target"] if kind in {"jump", "goto"} else ""
            yield Rule((*conditions, *chosen), kind, target, doubtful or not chosen, handle)


def _nft_match(match: Mapping[str, Any]) -> list[Condition]:
    """Read one match; an empty list if it asks for something else than we know."""
    left, values = match["left"], _nft_values(match["right"])
    negated = match["op"] == "!="
    if not isinstance(left, dict) or not values or match["op"] not in {"==", "!=", "in"}:
        return []
    kind, what = next(iter(left.items()))
    if kind == "&" and what[0] == {"meta": {"key": "mark"}}:
        return [Condition("mark", values, negated)]  # our packets bear no mark, whatever the mask
    if kind == "meta" and what["key"] == "nfproto":
        return [Condition("family", tuple(value.removeprefix("ip") or "v4" for value in values), negated)]
    if kind == "meta" and what["key"] in _META:
        values = tuple(_PROTOCOLS.get(value, value) for value in values)
        return [Condition(_META[what["key"]], values, negated)]
    if kind == "ct" and what.get("key") == "state":
        return [Condition("state", values, negated)]
    return _nft_payload(what, values, negated) if kind == "payload" else []


def _nft_payload(payload: Mapping[str, Any], values: tuple[str, ...], negated: bool) -> list[Condition]:
    match payload.get("protocol"), payload.get("field"):
        case ("ip" | "ip6") as protocol, ("saddr" | "daddr") as field:
            return [_of_family(protocol), Condition(field, values, negated)]
        case ("ip" | "ip6") as protocol, "protocol" | "nexthdr":
            named = tuple(_PROTOCOLS.get(value, value) for value in values)
            return [_of_family(protocol), Condition("protocol", named, negated)]
        case ("tcp" | "udp" | "sctp" | "dccp") as protocol, "dport":
            return [Condition("protocol", (protocol,)), Condition("dport", values, negated)]
        case "th", "dport":
            return [Condition("dport", values, negated)]
    return []


def _of_family(protocol: str) -> Condition:
    return Condition("family", ("v4" if protocol == "ip" else "v6",))


def _nft_values(right: Any) -> tuple[str, ...]:
    """Return what a match compares with; empty if that is a named set or the like."""
    match right:
        case str():
            return () if right.startswith("@") else (right,)
        case bool():
            return ()
        case int():
            return (str(right),)
        case {"prefix": {"addr": address, "len": length}}:
            return (f"{address}/{length}",)
        case {"range": [first, last]}:
            return (f"{first}-{last}",)
        case {"elem": {"val": value}}:
            return _nft_values(value)
        case {"set": list() as members}:
            return _nft_values(members)
        case list():
            read = [_nft_values(member) for member in right]
            return tuple(value for values in read for value in values) if all(read) else ()
    return ()


_HOOKS = {
    "PREROUTING": "prerouting",
    "INPUT": "input",
    "FORWARD": "forward",
    "OUTPUT": "output",
    "POSTROUTING": "postrouting",
}
_NAT = "nat"
_PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0, _NAT: 0}
"""include/uapi/linux/netfilter_ipv4.h, enum nf_ip_hook_priorities."""
_UNDERSTOOD = frozenset({"tcp", "udp", "multiport", "conntrack", "state", "comment"})
"""Matches whose options we read; the options that we do not read make a rule doubtful by themselves."""
_WITHOUT_VERDICT = frozenset({"LOG", "MARK", "CONNMARK", "NOTRACK", "CT", "TCPMSS", "NFLOG"})
_FIELDS = {
    "-s": "saddr",
    "-d": "daddr",
    "-i": "iif",
    "-o": "oif",
    "-p": "protocol",
    "--dport": "dport",
    "--dports": "dport",
    "--ctstate": "state",
    "--state": "state",
}


def from_iptables(saved: str, *, tool: str) -> Ruleset:
    """Read the output of `iptables-legacy-save` (or `ip6tables-legacy-save`, by `tool`)."""
    family = "ip6" if tool.startswith("ip6") else "ip"
    chains: dict[tuple[str, str], Chain] = {}
    rules: dict[tuple[str, str], list[Rule]] = {}
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":") and table in _PRIORITIES:
            name, policy = line[1:].split()[:2]
            hook = _HOOKS.get(name, "")
            chains[table, name] = Chain(
                tool,
                family,
                table,
                name,
                (),
                hook,
                _PRIORITIES[table],
                policy.lower() if hook else "accept",
                table == _NAT,
            )
        elif line.startswith("-A ") and table in _PRIORITIES:
            words = shlex.split(line)
            rules.setdefault((table, words[1]), []).append(_iptables_rule(words[2:], family, line[3:]))
    return Ruleset(
        tuple(msgspec.structs.replace(chain, rules=tuple(rules.get(key, ()))) for key, chain in chains.items())
    )


def _iptables_rule(words: list[str], family: str, line: str) -> Rule:
    """Read the words of a rule after its chain; `line` is the rule as the tool takes it again."""
    conditions = [_of_family(family)]
    doubtful, negated = False, False
    while words:
        word = words.pop(0)
        if word == "!":
            negated = True
            continue
        takes_value = bool(words) and not words[0].startswith("-") and words[0] != "!"
        value = words.pop(0) if takes_value else ""
        if word in {"-j", "-g"}:  # what follows are the target's own options
            verdict, target = _iptables_target(word, value)
            return Rule(tuple(conditions), verdict, target, doubtful, line)
        if word in _FIELDS:
            conditions.append(Condition(_FIELDS[word], _iptables_values(word, value), negated))
        elif word != "--comment" and (word != "-m" or value not in _UNDERSTOOD):
            doubtful = True
        negated = False
    return Rule(tuple(conditions), "", "", doubtful, line)


def _iptables_target(word: str, value: str) -> tuple[str, str]:
    if value.lower() in _VERDICTS | TRANSLATIONS:
        return value.lower(), ""
    if value in _WITHOUT_VERDICT:
        return "", ""
    return ("goto" if word == "-g" else "jump"), value


def _iptables_values(word: str, value: str) -> tuple[str, ...]:
    if word in {"-s", "-d"}:
        return (value,)
    values = value.replace("+", "*").replace(":", "-").split(",")
    if _FIELDS[word] == "protocol":
        return tuple(_PROTOCOLS.get(item, item) for item in values)
    return tuple(item.lower() if _FIELDS[word] == "state" else item for item in values)
