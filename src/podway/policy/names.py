"""Names of domains in policies: which addresses bear them, as DNS told pods of this node, and until when. Pure.

A name is learned from an answer that a pod gets: the name that it asked for, and the addresses to which that
leads, by aliases (CNAME), too. An answer's other records are not believed: nobody asked for them.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Set
from ipaddress import ip_address
from typing import NamedTuple

from podway.api.addresses import Address
from podway.api.kinds.pod import Pod
from podway.api.kinds.service import Service
from podway.policy.maps import Prefix

FLOOR = 60
"""Seconds that a name is known at least: pods go on with an address for a while, whatever its lifetime was."""

CEILING = 24 * 3600
"""Seconds that it is known at most; a resolver would have asked anew."""

MOST_ADDRESSES = 10_000
"""Names of addresses that are remembered; those that would be over first go when there are more."""

LONGEST_NAME = 253
"""Characters of a name, as it is written (RFC 1035 section 2.3.4)."""

DNS_SERVICE = ("kube-system", "kube-dns")
"""The Service that Kubernetes' own components take DNS for."""
DNS_LABEL = ("k8s-app", "kube-dns")
"""The label that its pods have, in its namespace, whatever server it is."""


class Answer(NamedTuple):
    """What DNS said: the name that was asked for, in lower case and without a dot at its end; its addresses; for
    how many seconds that holds."""

    name: str
    addresses: frozenset[Prefix]
    lifetime: int


class Bearer(NamedTuple):
    """An address that bears a name."""

    address: Prefix
    name: str


def plain(name: str) -> str:
    """Return a name, or a pattern, as names are compared: in lower case, without a dot at its end (RFC 4343)."""
    return name.lower().removesuffix(".")


def patterns(name: str) -> Iterator[str]:
    """Yield all that a policy may write to mean a name: itself, and `*.` with what is above it, nearest first."""
    yield name
    rest = name
    while "." in rest:
        _, _, rest = rest.partition(".")
        if rest:
            yield f"*.{rest}"


def resolvers(servers: Iterable[str], services: Iterable[Service], pods: Iterable[Pod]) -> frozenset[Address]:
    """Return whose answers are believed: of the servers that the NetworkConfig names, and of the cluster's DNS.

    That is its Service, as far as that is known, and its pods.
    """
    found = {ip_address(text) for text in servers}
    for service in services:
        if (service.metadata.namespace, service.metadata.name) == DNS_SERVICE:
            found.update(service.cluster_addresses)
    label, value = DNS_LABEL
    for pod in pods:
        meta = pod.metadata
        if meta.labels.get(label) == value and meta.namespace == DNS_SERVICE[0] and not pod.spec.host_network:
            found.update(pod.addresses)
    return frozenset(found)


class LearnedNames:
    """Which addresses bear which names, each until a time (seconds of any clock that does not stop)."""

    def __init__(self) -> None:
        self._until: dict[Bearer, float] = {}
        self._names: dict[Prefix, set[str]] = {}
        self._ends: list[tuple[float, Bearer]] = []
        """One entry for each bearer, ordered; it may tell of an end that was put off since."""
        self._queued: set[Bearer] = set()

    def __len__(self) -> int:
        return len(self._until)

    def names_of(self, address: Prefix) -> Set[str]:
        """Return the names that an address bears."""
        return self._names.get(address, frozenset())

    def until(self, bearer: Bearer) -> float:
        """Return until when an address bears a name; 0 if it does not."""
        return self._until.get(bearer, 0.0)

    def items(self) -> Mapping[Bearer, float]:
        """Return all that is known."""
        return self._until

    def learn(self, bearer: Bearer, until: float) -> None:
        """An address bears a name until a time, or until a later one that is known already."""
        if until <= self.until(bearer):
            return
        self._until[bearer] = until
        self._names.setdefault(bearer.address, set()).add(bearer.name)
        self._queue(bearer, until)

    def _queue(self, bearer: Bearer, until: float) -> None:
        if bearer not in self._queued:
            self._queued.add(bearer)
            heapq.heappush(self._ends, (until, bearer))

    def hear(self, answer: Answer, at: float) -> tuple[Bearer, ...]:
        """Take an answer that was given at a time; returns what was not known until then, or not for so long."""
        until = at + min(max(answer.lifetime, FLOOR), CEILING)
        bearers = (Bearer(address, answer.name) for address in sorted(answer.addresses))
        changed = tuple(bearer for bearer in bearers if self.until(bearer) < until)
        for bearer in changed:
            self.learn(bearer, until)
        return changed

    def due(self, now: float) -> Mapping[Bearer, float]:
        """Return what is over, and what is too much, with the times until which it was to last."""
        found: dict[Bearer, float] = {}
        while self._ends and (self._ends[0][0] <= now or len(self._until) - len(found) > MOST_ADDRESSES):
            noted, bearer = heapq.heappop(self._ends)
            self._queued.discard(bearer)
            until = self._until.get(bearer)
            if until is not None and until > noted:
                self._queue(bearer, until)
            elif until is not None:
                found[bearer] = until
        for bearer, until in found.items():  # whoever asks decides, and asks again of what is not forgotten
            self._queue(bearer, until)
        return found

    def forget(self, bearers: Iterable[Bearer]) -> None:
        """These addresses do not bear these names any more."""
        for bearer in bearers:
            if self._until.pop(bearer, None) is not None:
                names = self._names[bearer.address]
                names.discard(bearer.name)
                if not names:
                    del self._names[bearer.address]
