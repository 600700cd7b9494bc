"""What an agent does for `podway doctor`: it tells the doctor what it knows, and answers with what was found."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from podway import __version__
from podway.agent.components import Components
from podway.agent.options import DEFAULT_RUN_DIR, AgentOptions
from podway.channel.admin import Method
from podway.health.doctor import Doctor
from podway.health.facts import Memory, Repair, TaskFailure
from podway.health.sources.files import Places
from podway.plan.mtu import pod_mtu
from podway.store.open import SQLITE


class Checkup:
    """Answers `doctor`."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self._doctor = Doctor(
            self._memory,
            components.kernel,
            components.speaker,
            components.store,
            _places(components.options),
            tells_pods=components.options.run_dir != DEFAULT_RUN_DIR,
        )

    @property
    def methods(self) -> Mapping[str, Method]:
        """The methods by name."""
        return {"doctor": Method(self.doctor, remote=True)}

    async def doctor(self) -> dict[str, Any]:
        """Examine the node; return a podway.health.doctor.NodeReport as plain JSON values."""
        answer: dict[str, Any] = msgspec.to_builtins(await self._doctor.examine(), enc_hook=str)
        return answer

    def _memory(self) -> Memory:
        state, problems, channel = (
            self._components.state,
            self._components.problems(),
            self._components.channel.status(),
        )
        enforcement = self._components.reconciler.enforcement
        return Memory(
            node=state.node,
            version=__version__,
            view=state.view,
            uplink=state.uplink,
            plan=self._components.reconciler.plan(),
            pod_mtu=pod_mtu(state.view, state.uplink),
            blocks=state.book.use(state.now()),
            pools=tuple(pool.metadata.name for pool in state.node_pools()),
            repairs=tuple(Repair(repair.at, repair.what) for repair in self._components.reconciler.repairs),
            refused=(
                *self._components.reconciler.failures,
                *self._components.learned.failures,
                *self._components.pods.unrepaired,
            ),
            failures=tuple(
                TaskFailure(failure.task, failure.error, failure.at, failure.times)
                for failure in self._components.supervisor.failures
            ),
            store_problem=problems["store"],
            routing_problem=problems["routing"],
            uplink_problem=problems["uplink"],
            channel_problem=channel["problem"],
            pending=msgspec.convert(self._components.encapsulation.status()["pending"], tuple[str, ...]),
            leases=tuple(state.leases.values()),
            enforced=enforcement.in_force,
            policy_problem=enforcement.shortfall,
            fallback=enforcement.fallback,
            cut_off=() if enforcement.as_left else enforcement.shut,  # they need nothing but the store
            services_problem=self._components.services()["problem"],
            tables=self._components.tables(),
            certificate_expires=(
                datetime.fromisoformat(channel["certificate"]).timestamp() if channel["certificate"] else None
            ),
        )


def _places(options: AgentOptions) -> Places:
    """Return where to look: on a host where runtimes do; in a lab, which has no runtime, in the run directory."""
    host = options.run_dir == DEFAULT_RUN_DIR
    store = options.store.removeprefix(SQLITE)
    return Places(
        configuration=Path("/etc/cni/net.d") if host else options.run_dir / "net.d",
        plugins=Path("/opt/cni/bin") if host else options.run_dir / "bin",
        spool=options.cni_spool,
        disks=(options.run_dir, *([Path(store)] if store != options.store else [])),
    )
