"""From changed facts to changed objects: plans anew what something else came of, and nothing else. Pure.

Every scope (podway.plan.node) names its inputs. After a change the inputs are compared, which costs little, for
tables of the cluster are compared by identity; a scope of which one changed is dirty, and so is each key of a
keyed scope. Of the keyed scopes single keys become dirty besides, by what changed in the cluster. What is dirty is
planned in portions, in the order of the scopes.
"""

import gc
from collections.abc import Collection, Hashable, Iterable
from itertools import islice
from typing import Any

from podway.api.kinds.address_block import block_name
from podway.api.lease import Attachment
from podway.cluster.change import Change
from podway.cluster.table import Table
from podway.cluster.view import ClusterView
from podway.plan.changes import Change as Difference
from podway.plan.node import NODES, PODS, SCOPES, KeyedScope, NodeFacts, Scope, section_of
from podway.plan.objects import NodePlan, PodWiring
from podway.plan.others import altered_nodes
from podway.reconcile.wanted import Owner, Wanted

PORTION = 32
"""Keys that are planned at once: some two milliseconds."""

_NOTHING = NodePlan()

_ALONE = ""
"""The key of the one section of a scope that has no keys."""

_RANK: dict[str, int] = {scope.name: rank for rank, scope in enumerate(SCOPES)}


def _same(one: object, other: object) -> bool:
    """Tell whether an input is the same; tables are not looked into."""
    return one is other or (not isinstance(one, Table) and one == other)


class Planning:
    """What one node wants, kept in step with facts."""

    def __init__(self) -> None:
        self.wanted = Wanted()
        self._facts: NodeFacts | None = None
        self._inputs: dict[str, tuple[object, ...]] = {}
        self._silent: list[Difference] = []
        self._dirty: dict[str, dict[Hashable, None]] = {}
        """Keys to be planned, by scope; of a scope that has none, the scope itself."""

    @property
    def dirty(self) -> bool:
        """Whether there is anything to plan."""
        return bool(self._dirty)

    def heard(self, after: ClusterView, node: str, changes: Iterable[Change[Any]]) -> None:
        """Mark the sections of other nodes that changes of the cluster are about."""
        self._mark(NODES, altered_nodes(after, changes) - {node})

    def look(self, facts: NodeFacts) -> bool:
        """Mark what has other inputs than when it was planned; tell whether anything is dirty.

        What a pod that is going wanted is dropped without a word: it goes with the pod's link, in one piece.
        """
        former, self._facts = self._facts, facts
        if former is facts:
            return self.dirty
        for scope in SCOPES:
            inputs, known = scope.inputs(facts), self._inputs.get(scope.name)
            if known is None or not all(map(_same, known, inputs)):
                self._inputs[scope.name] = inputs
                self._mark(scope, [*_keys(scope, facts), *self._known(scope)])
        pods = self._known(PODS)
        for gone in [each for each in pods if each not in facts.leases]:
            self._silent += self.wanted.drop(Owner(_RANK[PODS.name], gone))
        self._mark(PODS, [each for each in facts.leases if each not in pods])
        if former is not None and former.transitional != facts.transitional:
            changed = former.transitional ^ facts.transitional
            blocks = (facts.view.blocks.get(block_name(network)) for network in changed)
            self._mark(NODES, {block.spec.node for block in blocks if block is not None} - {facts.node})
        return self.dirty

    def step(self, facts: NodeFacts) -> list[Difference] | None:
        """Plan the next portion of what is dirty; return what comes of it, None if nothing is dirty."""
        self.look(facts)
        scope = next((scope for scope in SCOPES if scope.name in self._dirty), None)
        if scope is None:
            return None
        left = self._dirty[scope.name]
        keys = list(islice(left, PORTION))
        # What fails to be planned stays dirty.
        sections = {_ALONE: scope.plan(facts)} if isinstance(scope, Scope) else scope.plan(facts, keys)
        for key in keys:
            del left[key]
        if not left:
            del self._dirty[scope.name]
        changes: list[Difference] = []
        for key, section in sections.items():
            owner = Owner(_RANK[scope.name], key)
            changes += self.wanted.drop(owner) if section == _NOTHING else self.wanted.put(owner, section)
        return changes

    def all(self, facts: NodeFacts) -> list[Difference]:
        """Plan all that is dirty at once; return what comes of it.

        The garbage collector waits: in a large cluster it would walk again and again through what stays anyway,
        which takes as long as the planning itself.
        """
        changes: list[Difference] = []
        collects = gc.isenabled()
        gc.disable()
        try:
            while (delta := self.step(facts)) is not None:
                changes += delta
        finally:
            if collects:
                gc.enable()
        return changes

    def adopt(self, attachment: Attachment, wiring: PodWiring) -> None:
        """Take what was made for a pod already for wanted."""
        self._silent += self.wanted.put(Owner(_RANK[PODS.name], attachment), section_of(wiring))
        self._mark(PODS, [attachment])  # what it was made by may be a moment older than what is known

    def silent(self) -> list[Difference]:
        """Return how the wanted objects changed since this was asked last by an ADD or DEL that did it itself."""
        found, self._silent = self._silent, []
        return found

    def _known(self, scope: Scope | KeyedScope) -> Collection[Hashable]:
        """Return the keys of a scope that have a section."""
        return self.wanted.keys(_RANK[scope.name])

    def _mark(self, scope: Scope | KeyedScope, keys: Collection[Hashable]) -> None:
        if keys:
            self._dirty.setdefault(scope.name, {}).update(dict.fromkeys(keys))


def _keys(scope: Scope | KeyedScope, facts: NodeFacts) -> Collection[Hashable]:
    return [_ALONE] if isinstance(scope, Scope) else scope.keys(facts)
