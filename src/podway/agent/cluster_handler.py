"""What an agent does when the cluster changes: the handler of what its informers tell."""

from collections.abc import Iterable
from typing import Any, Protocol

import structlog

from podway.agent.blocks import BlockKeeper
from podway.agent.encapsulation import EncapsulationSwitch
from podway.agent.membership import Membership
from podway.agent.registration import Registration
from podway.api.kinds.cluster_authority import ClusterAuthority
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.service import Service
from podway.cluster.change import Change
from podway.cluster.relevance import alters_plans, alters_routing, to_be_kept
from podway.cluster.view import ClusterView
from podway.reconcile.reconciler import Reconciler
from podway.reconcile.state import NodeState

log = structlog.get_logger(__name__)


class Triggered(Protocol):
    """Somebody who looks for himself when asked."""

    def trigger(self) -> None:
        """Ask for a look."""
        ...


class ChangesRouting(Protocol):
    """Who keeps a routing daemon at its plan (podway.agent.routing)."""

    def trigger(self, *, changed: bool = False) -> None:
        """Ask for a plan; `changed` says that something came of it for sure."""
        ...

    def follow(self, changes: Iterable[Change[Any]]) -> None:
        """Hear of the changes that led to the node's view as it is now."""
        ...


class ClusterHandler:
    """Takes over each newer view of the cluster.

    `channel` and `last_known` look at the view whenever it alters anything, `service_health` when Services change.
    """

    def __init__(
        self,
        state: NodeState,
        membership: Membership,
        registration: Registration,
        reconciler: Reconciler,
        encapsulation: EncapsulationSwitch,
        blocks: BlockKeeper,
        routing: ChangesRouting,
        channel: Triggered,
        last_known: Triggered,
        service_health: Triggered,
    ) -> None:
        self._state = state
        self._membership = membership
        self._registration = registration
        self._reconciler = reconciler
        self._encapsulation = encapsulation
        self._blocks = blocks
        self._routing = routing
        self._channel = channel
        self._last_known = last_known
        self._service_health = service_health

    def all_listed(self) -> None:
        """The store has told of everything since this agent started, which knew it only from a file until then."""
        log.info("the store has told of everything: what the last agent wrote down counts no more")
        self._reconciler.all_listed()
        self._routing.trigger()

    async def take(self, view: ClusterView, changes: tuple[Change[Any], ...]) -> None:
        """Take over a view, and have everybody act to whom the changes that led to it matter."""
        state, node = self._state, self._state.node
        before = state.view
        view = self._encapsulation.as_advertised(self._membership.present(view, state.uplink.addresses))
        if any(change.kind == ClusterAuthority.KIND for change in changes):
            self._channel.trigger()
        if any(change.kind in (Service.KIND, NetworkConfig.KIND) for change in changes):
            self._service_health.trigger()
        if view.unjudged != before.unjudged or any(to_be_kept(change, node) for change in changes):
            self._last_known.trigger()
        if not any(map(alters_plans, changes)):
            state.view = view
            self._reconciler.heard_of_policies(changes)
            self._routing.follow(changes)
            if (view.followed, view.unsettled) != (before.followed, before.unsettled):
                self._reconciler.wake()  # settings that nobody could read are gone, say
            return
        removed = node in before.nodes and node not in view.nodes
        if removed:
            log.warning("this node was removed from the cluster while its agent runs: registering it again")
            view = view.after(Change.of(None, before.nodes[node]))  # until then it goes on as it was
        state.follow(view)
        self._reconciler.heard(changes)
        self._last_known.trigger()
        self._channel.trigger()
        routing = tuple(filter(alters_routing, changes))
        if routing:
            self._encapsulation.follow(before, routing)
        self._blocks.trigger()
        self._routing.follow(changes)
        if routing:
            self._routing.trigger(changed=True)
        if removed:
            await self._registration.renew()
