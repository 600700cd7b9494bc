"""Where to look after the kernel told of a change that was not this agent's."""

from functools import partial

from podway.agent.following import UplinkFollower
from podway.agent.learned import LearnedRoutes
from podway.agent.pods import PodNetwork
from podway.agent.supervisor import Supervisor
from podway.kernel.events import Event, Resync, Watcher
from podway.reconcile.reconciler import ECHO, Reconciler
from podway.reconcile.state import NodeState


class KernelEvents:
    """Hands the kernel's events to those whom they concern."""

    def __init__(
        self,
        watcher: Watcher,
        state: NodeState,
        reconciler: Reconciler,
        pods: PodNetwork,
        learned: LearnedRoutes,
        uplink: UplinkFollower,
        supervisor: Supervisor,
    ) -> None:
        self._watcher = watcher
        self._state = state
        self._reconciler = reconciler
        self._pods = pods
        self._learned = learned
        self._uplink = uplink
        self._supervisor = supervisor

    def read(self) -> None:
        """Take what has come."""
        self._watcher.blocks = self._state.view.block_ranges
        events = self._watcher.read()
        if any(isinstance(event, Resync) or event.learned or event.uplink for event in events):
            self._reconciler.enforcement.ways_changed()
        for event in events:
            self._supervisor.attempt("kernel events", partial(self._consider, event))

    def _consider(self, event: Event | Resync) -> None:
        if isinstance(event, Resync):
            self._pods.look_for_vanished()
            self._reconciler.trigger()
            self._learned.trigger()
            self._uplink.trigger()
            return
        if event.kind == "link" and event.removed and event.ours:
            self._pods.link_vanished(event.device)
        if event.uplink:
            self._uplink.trigger()
        if event.learned:
            self._learned.trigger()
        if event.kind == "forwarding" and self._is_echo(f"{event.device} {event.subject}"):
            return  # the one kind of change of which the kernel never names the author (vxlan_fdb_notify)
        # Settings of the uplink and of the whole namespace are ours to keep, though the devices are not.
        if event.ours or event.kind == "sysctl":
            if event.kind != "nft" and self._is_echo(event.device):
                self._reconciler.trigger(ECHO, full=False)
            else:
                self._reconciler.trigger()

    def _is_echo(self, what: str) -> bool:
        return self._state.touched(what, since=self._state.now() - ECHO)
