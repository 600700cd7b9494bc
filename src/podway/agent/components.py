"""What a running agent is made of, in one piece, for those who report on it."""

from dataclasses import dataclass
from typing import Any

from podway.agent.contact import StoreContact
from podway.agent.encapsulation import EncapsulationSwitch
from podway.agent.flow_recorder import FlowRecorder
from podway.agent.following import UplinkFollower
from podway.agent.learned import LearnedRoutes
from podway.agent.offload import OffloadTest
from podway.agent.opening import Opening
from podway.agent.options import AgentOptions
from podway.agent.pods import PodNetwork
from podway.agent.routing import Routing
from podway.agent.service_health import ServiceHealth
from podway.agent.supervisor import Supervisor
from podway.bgp.speaker import BgpSpeaker
from podway.channel.server import Channel
from podway.health.facts import Table
from podway.kernel.node import Kernel
from podway.reconcile.reconciler import Reconciler
from podway.reconcile.state import NodeState
from podway.reconcile.steps import Steps
from podway.store.base import Store


@dataclass(frozen=True)
class Components:
    """An agent's parts."""

    options: AgentOptions
    state: NodeState
    kernel: Kernel
    reconciler: Reconciler
    pods: PodNetwork
    speaker: BgpSpeaker
    learned: LearnedRoutes
    encapsulation: EncapsulationSwitch
    offloads: OffloadTest
    channel: Channel
    store: Store
    supervisor: Supervisor
    steps: Steps
    contact: StoreContact
    uplink: UplinkFollower
    routing: Routing
    flows: FlowRecorder
    opening: Opening
    service_health: ServiceHealth

    def tables(self) -> dict[str, Table]:
        """Return how full the flow engine's tables are, by their names; nothing where it does not work.

        Of flows it is told what there was at the latest survey.
        """
        maps, served = self.reconciler.enforcement.maps, self.reconciler.serving.status()
        used = {
            "flows": self.flows.entries,
            "rules": len(maps.rules),
            "rule_sets": len(maps.rule_sets),
            "identities": len(maps.identities),
            "endpoints": sum(len(lease.addresses) for lease in self.state.leases.values()),
            "pools": len(self.state.view.pools),
            "frontends": served["frontends"],
            "choices": served["backends"],
        }
        return {name: Table(used[name], room) for name, room in self.kernel.flow.room().items()}

    def services(self) -> dict[str, Any]:
        """Return what is served of Services, and what of them is told outside."""
        served = self.reconciler.serving.status()
        networks = self.routing.advertising.networks(self.state.node) or ()
        return {
            **served,
            "problem": served["problem"] or self.service_health.problem,
            "advertises": sorted(map(str, networks)),
            "answers": sorted(map(str, self.state.answered)),
            "health_checks": self.service_health.ports,
        }

    def problems(self) -> dict[str, str]:
        """Return in words what is wrong with store, uplink, routing and new pods, and what is pending.

        Empty if nothing is.
        """
        return {
            "store": self.contact.problem,
            "uplink": self.uplink.problem,
            "routing": self.routing.problem,
            "opening": self.opening.problem,
            "pending": self.routing.pending,
        }
