"""How the data path reads its maps: for proofs without a kernel, and to explain a verdict. Pure."""

from collections.abc import Iterator
from typing import NamedTuple

from podway.policy.maps import (
    ANY_PROTOCOL,
    ANYBODY,
    CLOSED,
    NO_RULES,
    Columns,
    Delta,
    EndpointRules,
    Former,
    PodName,
    Prefix,
    Rule,
    RuleKey,
    Tier,
    Verdict,
)

NO_RULE = 0
"""The number in place of a rule's where nothing was said."""


class Decision(NamedTuple):
    """Whether a connection is allowed in one direction, and by which rule."""

    allowed: bool
    rule: int = NO_RULE
    tier: Tier | None = None


class PolicyMaps:
    """The maps of one node, as they are after some deltas."""

    def __init__(self) -> None:
        self.identities: dict[Prefix, int] = {}
        self.rules: dict[RuleKey, Columns] = {}
        self.rule_sets: dict[int, int] = {}
        self.endpoints: dict[PodName, EndpointRules] = {}

    def apply(self, delta: Delta) -> None:
        """Write a delta. Raises KeyError for what is to be deleted and is not there."""
        self.rules.update(delta.rules)
        self.rule_sets.update(delta.rule_sets)
        self.identities.update(delta.identities)
        self.endpoints.update(delta.endpoints)
        for pod in delta.deleted_endpoints:
            del self.endpoints[pod]
        for prefix in delta.deleted_identities:
            del self.identities[prefix]
        for rule in delta.deleted_rules:
            del self.rules[rule]
        for number in delta.deleted_rule_sets:
            del self.rule_sets[number]

    @property
    def left(self) -> Former:
        """What a planner that starts beside these entries has to know."""
        numbers = (*self.identities.values(), *(key.identity for key in self.rules))
        sets = frozenset((*self.rule_sets, *(key.rule_set for key in self.rules)))
        return Former(self.identities, self.endpoints, max(numbers, default=0), sets - {NO_RULES, CLOSED})

    def identity(self, address: Prefix) -> int:
        """Return the number of the longest prefix that an address lies in."""
        for length in range(address.length, -1, -1):
            number = self.identities.get(address.shortened(length))
            if number is not None:
                return number
        return ANYBODY

    def decide(self, rule_set: int, peer: Prefix, protocol: int, port: int) -> Decision:
        """Return what a rule set says of a connection with a peer, to a destination port."""
        return self.decide_for(rule_set, self.identity(peer), protocol, port)

    def decide_for(self, rule_set: int, identity: int, protocol: int, port: int) -> Decision:
        """Return what a rule set says of a connection with whom an identity stands for, to a destination port."""
        if rule_set == NO_RULES:
            return Decision(allowed=True)
        heard: list[Rule | None] = [None, None, None]
        for key in self._keys(rule_set, identity, protocol, port):
            for tier, rule in enumerate(self.rules.get(key, ())):
                if rule is not None:
                    known = heard[tier]
                    heard[tier] = rule if known is None else max(rule, known, key=_weight)
        for tier in Tier:
            rule = heard[tier]
            if rule is not None and rule.verdict is not Verdict.PASS:
                return Decision(rule.verdict is Verdict.ALLOW, rule.number, tier)
        return Decision(allowed=True)

    def _keys(self, rule_set: int, identity: int, protocol: int, port: int) -> Iterator[RuleKey]:
        lengths = self.rule_sets[rule_set]
        for who in dict.fromkeys((identity, ANYBODY)):
            yield RuleKey(rule_set, who, ANY_PROTOCOL)
            for length in range(17):
                if lengths >> length & 1:
                    yield RuleKey(rule_set, who, protocol, port >> 16 - length << 16 - length, length)


def _weight(rule: Rule) -> tuple[int, int, int]:
    return (rule.precedence, rule.verdict, rule.number)
