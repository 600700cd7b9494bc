"""Who holds which address: pods and nodes, their profiles, and claims to the same address. Pure.

An address that is given again has two claimants for a while, in whatever order the news comes: the pod that
ends is still told of when the next one has its address. The one that began last has it, and one that is being
deleted yields.
"""

from typing import NamedTuple

from podway.api.kinds.node import Node
from podway.api.kinds.pod import Pod
from podway.api.resource import Key, key
from podway.policy.identities import Identities
from podway.policy.maps import PodName, Prefix
from podway.policy.matching import NODES, Matcher, Profile, ServedPort
from podway.policy.rules import PROTOCOLS

FINISHED = frozenset({"Succeeded", "Failed"})
"""Phases of pods that run no more: their addresses may be another's already."""


class _Claim(NamedTuple):
    """Who says that an address is his; the greatest rank has it."""

    rank: tuple[bool, bool, str, str, Key]
    profile: Profile


class _Holder(NamedTuple):
    """A pod or node, as far as policies see it."""

    claim: _Claim
    addresses: tuple[Prefix, ...]
    local: bool


class Holders:
    """Pods and nodes. What changes for policies is noted in `new`, `local`, `pods`: who reads one, empties it."""

    def __init__(self, node: str, peers: Matcher, subjects: Matcher, identities: Identities) -> None:
        self._node = node
        self._peers = peers
        self._subjects = subjects
        self._identities = identities
        self._profiles: dict[tuple[str, frozenset[tuple[str, str]], frozenset[ServedPort]], Profile] = {}
        self._holders: dict[Key, _Holder] = {}
        self._claims: dict[Prefix, tuple[_Claim, ...]] = {}
        self.serving: dict[str, set[Profile]] = {}
        """Profiles by the names of the ports that they serve."""
        self.new: set[Profile] = set()
        """Profiles that were not known before."""
        self.local: set[Profile] = set()
        """Profiles that pods of this node got or lost."""
        self.pods: set[PodName] = set()
        """Pods of this node that came, went or changed."""

    def put(self, obj: Pod | Node) -> None:
        """Add a pod or node, or give it another state. A pod of the host's network is its node."""
        if isinstance(obj, Pod) and (obj.spec.host_network or obj.status.phase in FINISHED):
            self.drop(key(obj))
        else:
            self._replace(key(obj), self._node_of(obj) if isinstance(obj, Node) else self._pod(obj))

    def drop(self, wanted: Key) -> None:
        """Remove a pod or node; nothing happens if it is not there."""
        self._replace(wanted, None)

    def profile_of(self, wanted: Key) -> Profile | None:
        """Return the profile of a pod or node, None if policies do not see it."""
        holder = self._holders.get(wanted)
        return holder.claim.profile if holder else None

    def _pod(self, pod: Pod) -> _Holder:
        meta = pod.metadata
        ports = frozenset(
            ServedPort(port.name, PROTOCOLS[port.protocol], port.container_port)
            for port in pod.spec.ports
            if port.name and port.protocol in PROTOCOLS
        )
        profile = self._profile(meta.namespace, meta.labels, ports)
        rank = (True, not meta.deletion_timestamp, meta.creation_timestamp, meta.uid, key(pod))
        addresses = tuple(Prefix.host(entry.ip) for entry in pod.status.pod_ips)
        return _Holder(_Claim(rank, profile), addresses, pod.spec.node_name == self._node)

    def _node_of(self, node: Node) -> _Holder:
        meta = node.metadata
        profile = self._profile(NODES, meta.labels, frozenset())
        rank = (False, not meta.deletion_timestamp, meta.creation_timestamp, meta.uid, key(node))
        return _Holder(_Claim(rank, profile), tuple(_addresses(node)), local=False)

    def _profile(self, namespace: str, labels: dict[str, str], ports: frozenset[ServedPort]) -> Profile:
        name = (namespace, frozenset(labels.items()), ports)
        profile = self._profiles.get(name)
        if profile is None:
            profile = self._profiles[name] = Profile(namespace, labels, ports)
            self._peers.add(profile)
            self.new.add(profile)
            for port in ports:
                self.serving.setdefault(port.name, set()).add(profile)
        profile.holders += 1
        return profile

    def _release(self, profile: Profile) -> None:
        profile.holders -= 1
        if not profile.holders:
            del self._profiles[profile.namespace, frozenset(profile.labels.items()), profile.ports]
            self._peers.remove(profile)
            self.new.discard(profile)
            for name in {port.name for port in profile.ports}:
                self.serving[name].discard(profile)
                if not self.serving[name]:
                    del self.serving[name]

    def _replace(self, wanted: Key, new: _Holder | None) -> None:
        old = self._holders.pop(wanted, None)
        if new is not None:
            self._holders[wanted] = new
        if old == new:
            if new is not None:
                self._release(new.claim.profile)  # it was held twice
            return
        if old is None or new is None or (old.local, old.claim.profile) != (new.local, new.claim.profile):
            self._move_local(wanted[1:], old, new)
        was, now = (frozenset(one.addresses) if one else frozenset[Prefix]() for one in (old, new))
        for address in was | now:
            others = self._claims.get(address, ())
            if old is not None and address in was:
                others = tuple(claim for claim in others if claim.rank[-1] != wanted)
            claims = (*others, new.claim) if new is not None and address in now else others
            if claims:
                self._claims[address] = claims
            else:
                del self._claims[address]
            owner = max(claims, key=lambda claim: claim.rank) if claims else None
            self._identities.assign(address, owner.profile if owner else None)
        if old is not None:
            self._release(old.claim.profile)

    def _move_local(self, name: PodName, old: _Holder | None, new: _Holder | None) -> None:
        for holder, comes in ((old, False), (new, True)):
            if holder is None or not holder.local:
                continue
            profile = holder.claim.profile
            if comes:
                if not profile.local:
                    self._subjects.add(profile)
                profile.local.add(name)
            else:
                profile.local.discard(name)
                if not profile.local:
                    self._subjects.remove(profile)
            self.local.add(profile)
            self.pods.add(name)


def _addresses(node: Node) -> list[Prefix]:
    found = []
    for entry in node.status.addresses:
        try:
            found.append(Prefix.host(entry.address))
        except OSError:  # a host name
            continue
    return found
