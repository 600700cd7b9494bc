"""From changes of the cluster to changes of what one node judges connections by. Pure, and incremental.

    planner = PolicyPlanner("node1")
    for obj in objects:
        planner.put(obj)
    delta = planner.settle()

Facts come in any order; `settle` then costs what they change, not what there is. Which policies select a pod of
this node makes its rule sets; what the rules of those ask of the other end makes the identities of all
addresses of the cluster; both together make the entries. Policies that select no pod of this node cost nothing
but their selection.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import TypeAlias

from podway.api.kinds.cluster_network_policy import ClusterNetworkPolicy
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.network_policy import NetworkPolicy
from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.resource import Key, Resource, key
from podway.policy.atoms import Atoms
from podway.policy.holders import Holders
from podway.policy.identities import Identities, Identity
from podway.policy.maps import (
    ANY_PROTOCOL,
    ANYBODY,
    ENGINES_OWN,
    NO_RULES,
    NOTHING_LEFT,
    Columns,
    Delta,
    Direction,
    EndpointRules,
    Former,
    PodName,
    Prefix,
    Rule,
    RuleKey,
    RuleName,
    Verdict,
)
from podway.policy.matching import Matcher, Namespaces, Profile, Selection, ServedPort
from podway.policy.rule_sets import Numbers, Place, Row, RuleNumbers, RuleSet, SetName, SetRule
from podway.policy.rules import (
    ISOLATED,
    NamedPort,
    PolicyRule,
    PolicyRules,
    PortPrefix,
    rules_of_cluster_policy,
    rules_of_network_policy,
)

Role: TypeAlias = tuple[Direction, bool]
"""What a pod has a rule set for: a direction, and whether by it is only told what would be denied."""


class PolicyPlanner:
    """What one node needs of the cluster's policies.

    A planner can start beside entries that another one has left, which are `former`: what means the same then gets
    the same number, so that nothing has to be written, and no number gets another meaning while it is in use.
    """

    def __init__(self, node: str, former: Former = NOTHING_LEFT) -> None:
        self.node = node
        self._former = former.endpoints
        self._had = _holders(former.endpoints)
        self._namespaces = Namespaces()
        self._subjects = Matcher(self._namespaces)
        self._peers = Matcher(self._namespaces)
        self._identities = Identities(max(former.last_identity + 1, ENGINES_OWN), former.identities)
        self._holders = Holders(node, self._peers, self._subjects, self._identities)
        self._atoms = Atoms(self._peers, self._identities)

        self._cluster_policies: dict[Key, ClusterNetworkPolicy] = {}
        self._policies: dict[Key, PolicyRules] = {}
        self._of_subject: dict[Selection, set[Key]] = {}

        self._sets: dict[SetName, RuleSet] = {}
        self._set_numbers = Numbers(NO_RULES + 1, former.rule_sets)
        self._rule_numbers = RuleNumbers()
        self._with_policy: dict[Key, set[RuleSet]] = {}
        self._using: dict[Place, set[RuleSet]] = {}
        self._of_profile: dict[Profile, dict[Role, RuleSet]] = {}

        self._rows: dict[int, dict[int, Row]] = {}
        self._endpoints: dict[PodName, EndpointRules] = {}

        self._dirty_subjects: set[Profile] = set()
        self._dirty_sets: set[RuleSet] = set()

    def put(self, obj: Resource) -> None:
        """Take an object, or its new state; kinds that policies do not depend on are passed over."""
        match obj:
            case Pod() | Node():
                self._holders.put(obj)
            case Namespace():
                self._put_namespace(obj.metadata.name, obj.metadata.labels)
            case NetworkPolicy():
                self._put_rules(key(obj), rules_of_network_policy(obj))
            case ClusterNetworkPolicy():
                self._put_cluster_policy(key(obj), obj)
            case _:
                pass

    def drop(self, wanted: Key) -> None:
        """Take an object's end; nothing happens if it is not known."""
        kind, _, name = wanted
        if kind in (Pod.KIND, Node.KIND):
            self._holders.drop(wanted)
        elif kind == Namespace.KIND:
            self._put_namespace(name, None)
        elif kind == NetworkPolicy.KIND:
            self._put_rules(wanted, None)
        elif kind == ClusterNetworkPolicy.KIND:
            self._put_cluster_policy(wanted, None)

    def bear(self, address: Prefix, names: Set[str]) -> None:
        """Say which names of DNS an address bears, all of them (podway.policy.names)."""
        self._atoms.bear(address, names)

    def is_named(self, name: str) -> bool:
        """Tell whether some rule for a pod of this node means a name of DNS."""
        return self._atoms.is_named(name)

    @property
    def naming(self) -> frozenset[int]:
        """The rule sets that name domains: of their pods has to be known what DNS tells them."""
        if not self._atoms.know_names:
            return frozenset()
        return frozenset(
            one.number for one in self._sets.values() if any(self._atoms.names(atom) for atom in one.atoms)
        )

    def settle(self) -> Delta:
        """Return what changes in the data path by all that was put and dropped since the last time."""
        self._set_numbers.turn()
        new, dead = self._choose_sets()
        dirty: dict[RuleSet, set[Identity | None]] = {}
        places: dict[RuleSet, set[Place]] = {}
        for rule_set in self._dirty_sets | new:
            if rule_set.holders:
                places[rule_set] = self._compose(rule_set)
                dirty[rule_set] = set(self._having(places[rule_set]))
        for rule_set in dead:
            self._discard(rule_set)
        self._dirty_sets.clear()

        self._atoms.touch(self._holders.new)
        self._holders.new.clear()
        self._atoms.settle(self._holders.serving)
        changed, identities, deleted_identities = self._identities.settle()
        for rule_set, touched in places.items():
            dirty[rule_set].update(self._having(touched))
        for identity, atoms in changed.items():
            for place in {self._atoms.place(atom) for atom in atoms}:
                for rule_set in self._using.get(place, ()):
                    dirty.setdefault(rule_set, set()).add(identity)
        self._atoms.forget()

        rules: dict[RuleKey, Columns] = {}
        deleted: list[RuleKey] = []
        for rule_set, concerned in dirty.items():
            self._write(rule_set, concerned, rules, deleted)
        for rule_set in dead:
            for number, row in self._rows.pop(rule_set.number, {}).items():
                deleted += [RuleKey(rule_set.number, number, *port) for port in row]
        endpoints, deleted_endpoints = self._settle_endpoints()
        return Delta(
            rules=rules,
            rule_sets={rule_set.number: rule_set.port_lengths for rule_set in dirty},
            identities=identities,
            endpoints=endpoints,
            deleted_endpoints=deleted_endpoints,
            deleted_identities=deleted_identities,
            deleted_rules=tuple(deleted),
            deleted_rule_sets=tuple(rule_set.number for rule_set in dead),
        )

    def rule_name(self, number: int) -> RuleName | None:
        """Return whose rule a number is; None if it is none of a policy's, or its policy is gone."""
        return self._rule_numbers.names.get(number)

    def policies_of(self, pod: PodName) -> tuple[PolicyRules, ...]:
        """Return the policies that select a pod of this node, in the order of their keys."""
        profile = self._holders.profile_of((Pod.KIND, *pod))
        return self._selecting(profile) if profile is not None and pod in profile.local else ()

    def _put_namespace(self, name: str, labels: dict[str, str] | None) -> None:
        if self._namespaces.put(name, labels):
            self._atoms.touch(self._peers.of_namespace(name))
            self._dirty_subjects |= self._subjects.of_namespace(name)

    def _put_cluster_policy(self, wanted: Key, policy: ClusterNetworkPolicy | None) -> None:
        old = self._cluster_policies.pop(wanted, None)
        if policy is not None:
            self._cluster_policies[wanted] = policy
        else:
            self._put_rules(wanted, None)
        for place in {(one.spec.tier, one.spec.priority) for one in (old, policy) if one is not None}:
            equals = sorted(
                known
                for known, one in self._cluster_policies.items()
                if (one.spec.tier, one.spec.priority) == place
            )
            for rank, known in enumerate(equals):
                self._put_rules(known, rules_of_cluster_policy(self._cluster_policies[known], rank))

    def _put_rules(self, wanted: Key, new: PolicyRules | None) -> None:
        old = self._policies.get(wanted)
        if old == new:
            return
        if new is not None:
            self._policies[wanted] = new
            self._dirty_sets |= self._with_policy.get(wanted, set())
        else:
            del self._policies[wanted]
        if old is not None and new is not None and _selects_alike(old, new):
            return
        for rules, comes in ((old, False), (new, True)):
            if rules is None or rules.subject is None:
                continue
            if comes:
                self._subjects.hold(rules.subject)
                self._of_subject.setdefault(rules.subject, set()).add(wanted)
            self._dirty_subjects |= self._subjects.select(rules.subject)
            if not comes:
                self._subjects.release(rules.subject)
                self._of_subject[rules.subject].discard(wanted)
                if not self._of_subject[rules.subject]:
                    del self._of_subject[rules.subject]

    def _selecting(self, profile: Profile) -> tuple[PolicyRules, ...]:
        found: set[Key] = set()
        for selection in self._subjects.matching(profile):
            found |= self._of_subject[selection]
        return tuple(self._policies[wanted] for wanted in sorted(found))

    def _choose_sets(self) -> tuple[set[RuleSet], set[RuleSet]]:
        """Give the profiles that changed their rule sets; returns which sets are new, and which dead."""
        new: dict[RuleSet, None] = {}
        left: set[RuleSet] = set()
        for profile in self._dirty_subjects | self._holders.local:
            had = self._of_profile.get(profile, {})
            has: dict[Role, RuleSet] = {}
            for role, name in _set_names(self._selecting(profile) if profile.local else (), profile):
                rule_set = self._sets.get(name)
                if rule_set is None:
                    rule_set = self._sets[name] = RuleSet(NO_RULES, name)
                    new[rule_set] = None
                has[role] = rule_set
                rule_set.holders.add(profile)
            if had != has:
                self._holders.pods |= profile.local
            for rule_set in had.values():
                if rule_set not in has.values():
                    rule_set.holders.discard(profile)
                    left.add(rule_set)
            if has:
                self._of_profile[profile] = has
            else:
                self._of_profile.pop(profile, None)
        self._dirty_subjects.clear()
        self._holders.local.clear()
        dead = {rule_set for rule_set in left if not rule_set.holders}
        for rule_set in dead:
            del self._sets[rule_set.name]
        self._number(new)
        return set(new), dead

    def _number(self, new: Iterable[RuleSet]) -> None:
        """Give new sets their numbers: those that all their pods had, and no other pod, where there are such."""
        unnumbered = []
        for rule_set in new:
            pods = {pod for profile in rule_set.holders for pod in profile.local}
            known = {
                self._former[pod].of(direction, audit=audit)
                for profile in rule_set.holders
                for (direction, audit), one in self._of_profile[profile].items()
                if one is rule_set
                for pod in profile.local & self._former.keys()
            }
            for number in sorted(known):
                others = {pod for pod in self._had[number] - pods if self._is_local(pod)}
                if not others and self._set_numbers.claim(number):
                    rule_set.number = number
                    break
            else:
                unnumbered.append(rule_set)
        for rule_set in unnumbered:
            rule_set.number = self._set_numbers.take()
        self._set_numbers.leave()
        self._former = {}

    def _is_local(self, pod: PodName) -> bool:
        profile = self._holders.profile_of((Pod.KIND, *pod))
        return profile is not None and pod in profile.local

    def _compose(self, rule_set: RuleSet) -> set[Place]:
        """Fill a set with the rules of its policies; returns the places at which they are others than before."""
        held = (rule_set.atoms, rule_set.ports, rule_set.rule_names)
        rule_set.atoms, rule_set.ports, rule_set.rule_names = [], [], []
        was, isolation = rule_set.rules, rule_set.isolation
        found: dict[Place, list[SetRule]] = {}
        direction, served = rule_set.name.direction, dict(rule_set.name.served)
        for wanted in rule_set.name.policies:
            for index, rule in enumerate(self._policies[wanted].of(direction) or ()):
                ports, named = rule.ports, rule.named
                if direction is Direction.INGRESS:
                    resolved = [PortPrefix(*port, 16) for name in named for port in served.get(name, ())]
                    ports, named = (*ports, *resolved), ()
                rule_set.rule_names.append(rule.name)
                number = self._rule_numbers.hold(rule.name)
                said = Rule(rule.verdict, rule.precedence, number)
                one = SetRule((wanted, index), rule.tier, said, ports, named)
                for place in self._places(rule_set, rule, one):
                    found.setdefault(place, []).append(one)
        rule_set.rules = {place: tuple(rules) for place, rules in found.items()}
        rule_set.rows.clear()
        rule_set.isolation = self._isolation(rule_set)
        self._release(*held)
        for place in was.keys() - rule_set.rules.keys():
            self._using[place].discard(rule_set)
            if not self._using[place]:
                del self._using[place]
        for place in rule_set.rules.keys() - was.keys():
            self._using.setdefault(place, set()).add(rule_set)
        for wanted in rule_set.name.policies:
            self._with_policy.setdefault(wanted, set()).add(rule_set)
        differing = {
            place for place in was.keys() | rule_set.rules.keys() if was.get(place) != rule_set.rules.get(place)
        }
        return differing | ({None} if isolation != rule_set.isolation else set())

    def _places(self, rule_set: RuleSet, rule: PolicyRule, one: SetRule) -> Iterator[Place]:
        """Yield where a rule stands in its set, and hold for the set what it needs."""
        if not one.ports and not one.named:
            return
        for name in dict.fromkeys(named.name for named in one.named):
            rule_set.ports.append(name)
            self._atoms.hold_name(name)
            if rule.peers is None:
                yield name
        if rule.peers is None:
            if one.ports:
                yield None
        elif rule.peers:
            atom = self._atoms.hold(rule.peers)
            rule_set.atoms.append(atom)
            yield atom

    def _isolation(self, rule_set: RuleSet) -> Rule | None:
        """Return the rule by which what no NetworkPolicy allows is denied; it names all that isolate."""
        isolating = tuple(wanted for wanted in rule_set.name.policies if self._policies[wanted].isolates)
        if not isolating:
            return None
        name = RuleName(isolating[0], rule_set.name.direction, policies=isolating)
        rule_set.rule_names.append(name)
        return Rule(Verdict.DENY, ISOLATED, self._rule_numbers.hold(name))

    def _release(self, atoms: Iterable[int], ports: Iterable[str], rule_names: Iterable[RuleName]) -> None:
        for atom in atoms:
            self._atoms.release(atom)
        for port in ports:
            self._atoms.release_name(port)
        for name in rule_names:
            self._rule_numbers.release(name)

    def _discard(self, rule_set: RuleSet) -> None:
        self._release(rule_set.atoms, rule_set.ports, rule_set.rule_names)
        for place in rule_set.rules:
            self._using[place].discard(rule_set)
            if not self._using[place]:
                del self._using[place]
        for wanted in rule_set.name.policies:
            self._with_policy.get(wanted, set()).discard(rule_set)
            if not self._with_policy.get(wanted):
                self._with_policy.pop(wanted, None)
        self._set_numbers.give_back(rule_set.number)

    def _having(self, places: Iterable[Place]) -> Iterator[Identity | None]:
        """Yield the identities that places are about; None is everybody."""
        for place in places:
            if place is None:
                yield None
            elif isinstance(place, str):
                for atom in self._atoms.of_name(place):
                    yield from self._identities.having(atom)
            else:
                yield from self._identities.having(place)

    def _write(
        self,
        rule_set: RuleSet,
        concerned: Iterable[Identity | None],
        rules: dict[RuleKey, Columns],
        deleted: list[RuleKey],
    ) -> None:
        """Add to a delta what changes in a set for some identities."""
        rows = self._rows.setdefault(rule_set.number, {})
        for identity in concerned:
            if identity is None:
                number, row = ANYBODY, rule_set.row_of_everybody()
            else:
                number = identity.number
                row = rule_set.row(identity.atoms, self._atoms.served(identity.atoms))
            old = rows.get(number, {})
            if row == old:
                continue
            rule_set.count(old, row)
            if not old:
                rules.update({RuleKey(rule_set.number, number, *port): columns for port, columns in row.items()})
                rows[number] = row
                continue
            for port, columns in row.items():
                if old.get(port) != columns:
                    rules[RuleKey(rule_set.number, number, *port)] = columns
            deleted += [RuleKey(rule_set.number, number, *port) for port in old if port not in row]
            if row:
                rows[number] = row
            else:
                del rows[number]

    def _settle_endpoints(self) -> tuple[dict[PodName, EndpointRules], tuple[PodName, ...]]:
        put, deleted = {}, []
        for pod in self._holders.pods:
            profile = self._holders.profile_of((Pod.KIND, *pod))
            if profile is None or pod not in profile.local:
                if self._endpoints.pop(pod, None) is not None:
                    deleted.append(pod)
                continue
            numbers = {role: one.number for role, one in self._of_profile.get(profile, {}).items()}
            roles = ((direction, audit) for audit in (False, True) for direction in Direction)
            rules = EndpointRules(*(numbers.get(role, NO_RULES) for role in roles))
            if self._endpoints.get(pod) != rules:
                put[pod] = self._endpoints[pod] = rules
        self._holders.pods.clear()
        return put, tuple(deleted)


def _holders(endpoints: Mapping[PodName, EndpointRules]) -> dict[int, set[PodName]]:
    """Return the pods that have a rule set, by its number."""
    found: dict[int, set[PodName]] = {}
    for pod, rules in endpoints.items():
        for number in rules:
            found.setdefault(number, set()).add(pod)
    return found


def _selects_alike(one: PolicyRules, other: PolicyRules) -> bool:
    """Tell whether two states of a policy give the same rule sets to the same pods."""
    return (one.subject, one.audited) == (other.subject, other.audited) and all(
        (one.of(direction) is None) == (other.of(direction) is None) and _named(one) == _named(other)
        for direction in Direction
    )


def _named(policy: PolicyRules) -> frozenset[NamedPort]:
    """Return the named ports of a policy's ingress rules: their numbers are a part of a set's name."""
    return frozenset(name for rule in policy.ingress or () for name in rule.named)


def _set_names(selecting: Iterable[PolicyRules], profile: Profile) -> Iterator[tuple[Role, SetName]]:
    """Yield the sets that a profile has. One that is enforced is of the policies that are; with policies that are
    audited another one is of all, and tells what they would deny."""
    for direction in Direction:
        affecting = [policy for policy in selecting if policy.of(direction) is not None]
        enforced = [policy for policy in affecting if not policy.audited]
        if enforced:
            yield (direction, False), _set_name(direction, enforced, profile)
        if len(enforced) < len(affecting):
            yield (direction, True), _set_name(direction, affecting, profile)


def _set_name(direction: Direction, affecting: Iterable[PolicyRules], profile: Profile) -> SetName:
    names = sorted(frozenset().union(*map(_named, affecting))) if direction is Direction.INGRESS else ()
    served = ((name, _serving(name, profile.ports)) for name in names)
    return SetName(direction, tuple(policy.key for policy in affecting), tuple(one for one in served if one[1]))


def _serving(name: NamedPort, ports: Iterable[ServedPort]) -> tuple[tuple[int, int], ...]:
    """Return protocol and number of the ports that are meant by a name."""
    return tuple(
        sorted(
            (port.protocol, port.number)
            for port in ports
            if port.name == name.name and name.protocol in (ANY_PROTOCOL, port.protocol)
        )
    )
