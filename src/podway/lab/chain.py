"""Executing a chain of CNI plugins as a container runtime does.

What libcni does (CNI specification 1.1.0, sections 2 to 4; containernetworking/cni/libcni/api.go), as far
as a runtime of one network needs it: every plugin of the list in turn, each with the result of the one
before it, and the last result kept for CHECK and DEL.
"""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from podway.errors import LabError
from podway.kernel import netns

TIMEOUT = 120.0
"""Seconds that a plugin may take; a kubelet gives a runtime as long (`--runtime-request-timeout`)."""


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """What a runtime tells the plugins of a container. `netns` may be empty in a DEL."""

    id: str
    netns: str
    ifname: str = "eth0"
    args: dict[str, str] = {}
    capabilities: dict[str, Any] = {}
    """Values for `runtimeConfig`, by capability; only plugins that declare one are given it."""


class PluginChain:
    """A network configuration list and where to find its plugins.

    Plugins run in the named namespace `node`, the host's as they see it. `environment` is what each gets
    besides the CNI_* variables. `cache` is the directory that keeps results between ADD and DEL.
    """

    def __init__(
        self,
        configuration: Path,
        *,
        node: str,
        search: Sequence[Path],
        cache: Path,
        environment: Mapping[str, str],
    ) -> None:
        try:
            self._list = msgspec.json.decode(configuration.read_bytes(), type=_NetworkList)
        except (OSError, msgspec.MsgspecError) as error:
            raise LabError(f"{configuration}: no network configuration list: {error}") from error
        self._node = node
        self._search = search
        self._cache = cache
        self._environment = environment

    def add(self, container: Container) -> dict[str, Any]:
        """Attach a container; return the chain's result as decoded JSON.

        If a plugin fails, the whole chain is deleted again and LabError carries the plugin's words.
        """
        result: dict[str, Any] | None = None
        try:
            for plugin in self._list.plugins:
                result = self._execute("ADD", plugin, container, result)
        except LabError as error:
            try:
                self.delete(container)
            except LabError as undo:
                message = f"{error.message}; undoing it failed too: {undo.message}"
                raise LabError(message, hint=error.hint) from error
            raise
        self._cache.mkdir(parents=True, exist_ok=True)
        self._cached(container).write_bytes(msgspec.json.encode(result))
        return result or {}

    def check(self, container: Container) -> None:
        """Have every plugin check the attachment. Raises LabError with a plugin's words."""
        for plugin in self._list.plugins:
            self._execute("CHECK", plugin, container, self._last_result(container))

    def delete(self, container: Container) -> None:
        """Detach a container, plugins in reverse order; what is already gone is no error."""
        for plugin in reversed(self._list.plugins):
            self._execute("DEL", plugin, container, self._last_result(container))
        self._cached(container).unlink(missing_ok=True)

    def _cached(self, container: Container) -> Path:
        return self._cache / f"{self._list.name}-{container.id}-{container.ifname}"

    def _last_result(self, container: Container) -> dict[str, Any] | None:
        try:
            return msgspec.json.decode(self._cached(container).read_bytes(), type=dict[str, Any])
        except FileNotFoundError:
            return None

    def _execute(
        self, command: str, plugin: dict[str, Any], container: Container, previous: dict[str, Any] | None
    ) -> dict[str, Any]:
        declared = plugin.get("capabilities", {})
        runtime = {name: value for name, value in container.capabilities.items() if declared.get(name)}
        configuration = {
            **plugin,
            "name": self._list.name,
            "cniVersion": self._list.cni_version,
            **({"prevResult": previous} if previous is not None else {}),
            **({"runtimeConfig": runtime} if runtime else {}),
        }
        environment = {
            **self._environment,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container.id,
            "CNI_NETNS": container.netns,
            "CNI_IFNAME": container.ifname,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in container.args.items()),
            "CNI_PATH": ":".join(map(str, self._search)),
        }
        executable = self._find(plugin["type"])

        def execute() -> "subprocess.CompletedProcess[bytes]":
            text = msgspec.json.encode(configuration)
            return subprocess.run(
                [executable], env=environment, input=text, capture_output=True, timeout=TIMEOUT, check=False
            )

        try:
            with netns.opened(netns.path_of(self._node)) as fd:
                done = netns.run(fd, execute)
        except subprocess.TimeoutExpired as error:
            raise LabError(f"CNI plugin {executable}: no answer to {command} in {TIMEOUT:g} s") from error
        if done.returncode != 0:
            raise _failure(f"CNI plugin {plugin['type']}: {command}", done)
        return msgspec.json.decode(done.stdout, type=dict[str, Any]) if done.stdout.strip() else {}

    def _find(self, kind: str) -> Path:
        for directory in self._search:
            if (path := directory / kind).is_file():
                return path
        raise LabError(
            f"CNI plugin {kind!r} is in none of {', '.join(map(str, self._search))}",
            hint="install it there, or correct the plugin's `type` in the network configuration list",
        )


class _NetworkList(msgspec.Struct, frozen=True, rename="camel"):
    cni_version: str
    name: str
    plugins: tuple[dict[str, Any], ...]


class _Error(msgspec.Struct, frozen=True):
    code: int
    msg: str
    details: str = ""


def _failure(what: str, done: "subprocess.CompletedProcess[bytes]") -> LabError:
    try:
        error = msgspec.json.decode(done.stdout, type=_Error)
    except msgspec.MsgspecError:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()
        return LabError(f"{what} ended with status {done.returncode}: {words or 'without a word'}")
    return LabError(f"{what}: {error.msg} (CNI error {error.code})", hint=error.details)
