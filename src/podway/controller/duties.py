"""What the controller has to do: from the cluster's objects to what is to be written. Pure."""

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from podway.api.judgement import JUDGED_BY, Verdict, judge
from podway.api.kinds import KINDS
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.namespace import Namespace
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.node import Node
from podway.api.kinds.node_certificate import NodeCertificate
from podway.api.kinds.service import Service
from podway.api.resource import Key, Resource, key
from podway.api.status import ACCEPTED, Condition, JudgedStatus
from podway.controller.following import Facts


class Duty(msgspec.Struct, frozen=True):
    """What a controller does, in words, and the kinds of objects that it has to know for that."""

    name: str
    needs: tuple[type[Resource], ...]


JUDGING = Duty("judging objects", JUDGED_BY)
ADDRESSING = Duty("giving Services addresses", (*JUDGED_BY, Namespace, Service))
SIGNING = Duty("signing certificates", (NetworkConfig, Node, NodeCertificate))
CLEARING = Duty("clearing away removed nodes", (Node, AddressBlock, NodeCertificate))
DUTIES = (JUDGING, ADDRESSING, SIGNING, CLEARING)


def waiting(facts: Facts, problems: Mapping[str, str]) -> dict[Duty, str]:
    """Return which duties cannot be done, and why in words; empty where kinds are just being listed.

    `problems` says why the store cannot be asked, by kind.
    """
    lacking = {duty: facts.lacking(duty.needs) for duty in DUTIES}
    return {
        duty: "; ".join(f"{kind}: {problems[kind]}" for kind in kinds if kind in problems)
        for duty, kinds in lacking.items()
        if kinds
    }


class Telling(msgspec.Struct, frozen=True):
    """An object's status that is to be written, if the object still has the version that it was judged in."""

    key: Key
    version: str
    conditions: tuple[Condition, ...]
    verdict: Verdict


def tellings(facts: Facts, now: str) -> Iterator[Telling]:
    """Yield the statuses that do not say what is so; `now` is RFC 3339.

    What nothing can be read of has no status that could be kept.
    """
    verdicts = judge(facts.objects, facts.rejected)
    readable = {one.key: one.found for one in facts.rejected if one.found is not None}
    for obj in (*facts.objects, *readable.values()):
        verdict = verdicts.get(key(obj)) if KINDS[obj.KIND].JUDGED else None
        if verdict is not None:
            telling = _telling(obj, verdict, now)
            if telling is not None:
                yield telling


def _telling(obj: Resource, verdict: Verdict, now: str) -> Telling | None:
    status = getattr(obj, "status", JudgedStatus())
    told = status.condition(ACCEPTED)
    word = "True" if verdict.accepted else "False"
    wanted = Condition(
        type=ACCEPTED,
        status=word,
        observed_generation=obj.metadata.generation,
        last_transition_time=told.last_transition_time if told and told.status == word else now,
        reason=verdict.reason,
        message=verdict.message,
    )
    if told == wanted:
        return None
    others = (one for one in status.conditions if one.type != ACCEPTED)
    return Telling(key(obj), obj.metadata.resource_version, (wanted, *others), verdict)


def requests(facts: Facts) -> tuple[NodeCertificate, ...]:
    """Return the requests for certificates that were not answered, of nodes that are registered."""
    registered = facts.registered
    return tuple(
        one
        for one in facts.of(NodeCertificate)
        if one.status.request_digest != one.digest and one.metadata.name in registered
    )


class Departures:
    """Which nodes are gone: those that own something and are not registered for a while."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        """Seconds for which a node is not taken for gone: an agent that lives registers it again."""
        self._since: dict[str, float] = {}

    def due(self, facts: Facts, owners: Iterable[str], now: float) -> tuple[str, ...]:
        """Return the names of those that are gone for long enough, of these owners and all that own blocks
        or requested certificates.

        `now` is in seconds, by any clock that goes forward.
        """
        owning = {block.spec.node for block in facts.of(AddressBlock)} | set(owners)
        owning |= {one.metadata.name for one in facts.of(NodeCertificate)}
        gone = set() if facts.lacking(CLEARING.needs) else owning - facts.registered
        self._since = {name: self._since.get(name, now) for name in gone}
        return tuple(sorted(name for name, since in self._since.items() if now - since >= self._grace))
