"""A lab's host `outside` as traces ask it: what an agent answers for its node, this answers for the host.

The host has no agent; whoever traces is on its machine, and looks by itself.
"""

from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any

from podway.agent.identity import kernel_instance
from podway.api.addresses import Address
from podway.errors import AgentError, LabError
from podway.kernel import netns
from podway.lab import names, outside, state, topology
from podway.lab.state import LabState
from podway.probe.build import Protocol
from podway.probe.facts import ask_path_mtu, ask_rejecting, ask_route, ask_setting, connection, dump_kernel_state
from podway.probe.plain import plain, plain_kernel_state, plain_lookup
from podway.probe.session import Session


def beside(lab: str) -> dict[str, tuple[Sequence[Address], Callable[..., Any]]]:
    """Return the addresses of a lab's host by its name, and how it is asked; nothing if there is none."""
    try:
        current = state.load(lab)
    except LabError:
        return {}  # whoever asks about the lab itself is told
    if not current.outside:
        return {}
    return {outside.NAME: ([one.ip for one in current.outside_interfaces], _Host(current))}


class _Host:
    """Answers the `trace.` methods that an agent has (podway.agent.tracing), for the host's namespace."""

    def __init__(self, current: LabState) -> None:
        self._addresses = [str(one) for one in current.outside_interfaces]
        self._path = str(netns.path_of(names.outside_netns(current.name)))
        self._sessions: dict[str, Session] = {}

    def __call__(self, method: str, *, timeout: float = 0, **params: Any) -> Any:
        """Answer one question. Raises AgentError for one that the host does not know."""
        answer = getattr(self, f"_{method.removeprefix('trace.')}", None)
        if not method.startswith("trace.") or answer is None:
            raise AgentError(f"host {outside.NAME}: nobody answers {method}")
        return answer(**params)

    def _site(self, **_: Any) -> dict[str, Any]:
        with connection(self._path) as there:
            mtu = dump_kernel_state(there).links[topology.UPLINK].mtu
        uplink = {"device": topology.UPLINK, "mtu": mtu, "addresses": self._addresses}
        kernel = kernel_instance().partition("/")[0]
        return {"node": outside.NAME, "kernel": kernel, "uplink": uplink, "leases": []}

    def _ground(self, link: str = "") -> dict[str, Any]:
        with connection(self._path) as there:
            return plain_kernel_state(dump_kernel_state(there))

    def _way(self, destination: str, source: str = "", iif: str = "", link: str = "") -> dict[str, Any]:
        origin = ip_address(source) if source else None
        with connection(self._path) as there:
            return {"way": plain_lookup(ask_route(there, ip_address(destination), origin, iif)), "session": ""}

    def _rejecting(self, destination: str, link: str = "") -> dict[str, Any] | None:
        with connection(self._path) as there:
            route = ask_rejecting(there, ip_address(destination))
        return plain(route) if route else None

    def _setting(self, name: str, link: str = "") -> str | None:
        return ask_setting(self._path, name)

    def _path_mtu(self, address: str, largest: int, link: str = "") -> dict[str, Any] | None:
        found = ask_path_mtu(self._path, ip_address(address), largest)
        return plain(found) if found else None

    def _prepare(
        self, trace: str, mark: str, protocol: str, destination: str, port: int = 0, link: str = ""
    ) -> dict[str, Any]:
        try:
            found = self._session(trace, mark)
            return plain(found.prepare(self._path, Protocol(protocol), ip_address(destination), port))
        except OSError as error:
            return {"errno": error.errno}

    def _capture(self, trace: str, mark: str, port: int, links: Sequence[str]) -> None:
        for link in links:
            self._session(trace, mark).capture(self._path, link, port, whole=True)

    def _send(self, trace: str, size: int) -> dict[str, Any]:
        try:
            self._sessions[trace].send(size)
        except OSError as error:
            return {"errno": error.errno}
        return {"errno": 0}

    def _collect(self, trace: str) -> dict[str, Any]:
        found = self._sessions[trace].collect()
        return {link: [plain(frame) for frame in frames] for link, frames in found.items()}

    def _end(self, trace: str) -> None:
        if (session := self._sessions.pop(trace, None)) is not None:
            session.close()

    def _session(self, trace: str, mark: str) -> Session:
        return self._sessions.setdefault(trace, Session(bytes.fromhex(mark)))
