"""Names of domains in policies, on one node: learned from answers of DNS, told to the planner, kept for the next.

The maps hold what is known, so that an agent that starts knows what the last one did, and no pod has to ask again.
Whose answers are believed is for the cluster to say, not for a pod: else one that serves DNS to itself could open
any address to itself, and to all pods of the node with the same names in their policies.
"""

from collections.abc import Set

import structlog

from podway.api.addresses import Address
from podway.api.kinds.pod import Pod
from podway.api.kinds.service import Service
from podway.cluster.view import ClusterView
from podway.errors import KernelError
from podway.kernel.interface import FlowDoor
from podway.policy.maps import Prefix
from podway.policy.names import DNS_SERVICE, Answer, Bearer, LearnedNames, resolvers
from podway.policy.planner import PolicyPlanner

log = structlog.get_logger(__name__)

LISTENS = 4.0
"""Seconds for which the agent says at a time that it listens: less than what pods wait before they ask again."""

IN_USE = 10.0
"""Seconds for which a name is kept at a time while connections to its address are open."""


class Naming:
    """What is known of names, for one engine's maps."""

    def __init__(self, flow: FlowDoor) -> None:
        self._flow = flow
        self._known = LearnedNames()
        self._seen: tuple[object, ...] = ()
        self.resolvers: frozenset[Address] = frozenset()
        """Whose answers are believed."""
        self.missed = 0
        """Answers that pods had before their names were known, since nobody listened."""
        self._problem = ""
        """Why something of it is not in them; logged once."""

    def __len__(self) -> int:
        return len(self._known)

    @property
    def known(self) -> LearnedNames:
        """Which addresses bear which names."""
        return self._known

    def recall(self, planner: PolicyPlanner) -> None:
        """Begin with what the maps say, and tell it to a planner. Raises KernelError."""
        self._known, self._seen = LearnedNames(), ()
        for bearer, until in self._flow.name_maps().remembered().items():
            self._known.learn(bearer, until)
        for address in {bearer.address for bearer in self._known.items()}:
            planner.bear(address, frozenset(self._known.names_of(address)))

    def listen(self, view: ClusterView, now: float) -> None:
        """Say for a while that answers are heard, and whose. Raises KernelError."""
        seen = (*(view.tables.get(kind.KIND) for kind in (Pod, Service)), view.config)
        if len(seen) != len(self._seen) or any(
            one is not other for one, other in zip(seen, self._seen, strict=True)
        ):
            self._seen, self.resolvers = seen, self._resolvers(view)
        self._flow.name_maps().listen(self.resolvers, now + LISTENS)

    def hear(self, planner: PolicyPlanner, answer: Answer, at: float) -> bool:
        """Take an answer that was given at a time; tell whether rules match other addresses now."""
        if not planner.is_named(answer.name):
            return False
        before = {bearer for bearer in self._bearers(answer) if self._known.until(bearer)}
        changed = self._known.hear(answer, at)
        self._remember({bearer: self._known.until(bearer) for bearer in changed})
        new = [bearer for bearer in changed if bearer not in before]
        for bearer in new:
            planner.bear(bearer.address, frozenset(self._known.names_of(bearer.address)))
        return bool(new)

    def keep(self, bearers: Set[Bearer], now: float) -> None:
        """Have names last a while longer: connections to their addresses are open."""
        for bearer in bearers:
            self._known.learn(bearer, now + IN_USE)
        self._remember({bearer: self._known.until(bearer) for bearer in bearers})

    def forget(self, planner: PolicyPlanner, bearers: Set[Bearer]) -> None:
        """Have addresses not bear names any more."""
        self._known.forget(bearers)
        for address in {bearer.address for bearer in bearers}:
            planner.bear(address, frozenset(self._known.names_of(address)))
        self._remember(dict.fromkeys(bearers, 0.0))

    @staticmethod
    def _resolvers(view: ClusterView) -> frozenset[Address]:
        service = view.find((Service.KIND, *DNS_SERVICE))
        services = (service,) if isinstance(service, Service) else ()
        return resolvers(view.config.dns_servers, services, view.namespaced_table(Pod).values())

    @staticmethod
    def _bearers(answer: Answer) -> Set[Bearer]:
        return {Bearer(address, answer.name) for address in answer.addresses}

    def _remember(self, until: dict[Bearer, float]) -> None:
        """Write down what changed; what cannot be is known to this agent only."""
        try:
            self._flow.name_maps().remember(until)
        except KernelError as error:
            if error.message != self._problem:
                log.warning("names of domains would not outlive this agent", problem=error.message)
            self._problem = error.message


def addresses_of(bearers: Set[Bearer]) -> frozenset[Prefix]:
    """Return the addresses among these."""
    return frozenset(bearer.address for bearer in bearers)
