"""What a running agent is made of, in one piece, for those who report on it."""

from collections.abc import Callable
from dataclasses import dataclass

from podway.agent.encapsulation import EncapsulationSwitch
from podway.agent.learned import LearnedRoutes
from podway.agent.offload import OffloadTest
from podway.agent.options import AgentOptions
from podway.agent.pods import PodNetwork
from podway.agent.reconciler import Reconciler
from podway.agent.state import NodeState
from podway.agent.steps import Steps
from podway.agent.supervisor import Supervisor
from podway.bgp.speaker import BgpSpeaker
from podway.channel.server import Channel
from podway.kernel.node import Kernel
from podway.store.base import Store


@dataclass(frozen=True)
class Components:
    """An agent's parts.

    `problems` tells in words what is wrong with `store` and `routing`, and what is `pending`; empty if nothing.
    """

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
    problems: Callable[[], dict[str, str]]
