"""Commands that Debian's runtimes never give, in the very form in which libcni gives them (libcni/api.go)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.runtime.node_host import NodeHost

CACHE = "/var/lib/cni/results"
"""Where libcni keeps the result of each ADD."""


class Libcni:
    """Executes the plugins of a network configuration list on a host."""

    def __init__(self, host: NodeHost, configuration: Path, plugins: Path) -> None:
        self._host = host
        self._list = json.loads(configuration.read_text())
        self._plugins = plugins

    def cached(self, container: str, ifname: str = "eth0") -> dict[str, Any] | None:
        """Return what libcni remembers of an attachment."""
        file = self._host.path(f"{CACHE}/{self._list['name']}-{container}-{ifname}")
        return json.loads(file.read_text()) if file.exists() else None

    def check(self, container: str, netns: str) -> dict[str, dict[str, Any]]:
        """CheckNetworkList: return the errors, by plugin."""
        cached = self.cached(container)
        assert cached is not None
        arguments = ";".join("=".join(pair) for pair in cached.get("cniArgs") or ())
        variables = {"CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": "eth0", "CNI_ARGS": arguments}
        errors = {}
        for plugin in self._list["plugins"]:
            declared = plugin.get("capabilities", {})
            given = {name: value for name, value in cached.get("capabilityArgs", {}).items() if declared.get(name)}
            injected = {"prevResult": cached["result"], **({"runtimeConfig": given} if given else {})}
            if error := self._execute("CHECK", plugin, variables, injected):
                errors[plugin["type"]] = error
        return errors

    def garbage_collect(self, valid: Sequence[str]) -> dict[str, Any]:
        """The second half of GCNetworkList, for our plugin: return its error."""
        attachments = [{"containerID": container, "ifname": "eth0"} for container in valid]
        return self._execute(
            "GC", self._list["plugins"][0], {}, {"cni.dev/valid-attachments": attachments or None}
        )

    def status(self) -> dict[str, Any]:
        """GetStatusNetworkList, for our plugin: return its error."""
        return self._execute("STATUS", self._list["plugins"][0], {}, {})

    def _execute(
        self, command: str, plugin: dict[str, Any], variables: dict[str, str], injected: dict[str, Any]
    ) -> dict[str, Any]:
        # libcni sets all of them, whether the command has them or not (pkg/invoke/args.go).
        unset = dict.fromkeys(("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"), "")
        environment = {**unset, **variables, "CNI_COMMAND": command, "CNI_PATH": str(self._plugins)}
        # 1.1.0 brought GC and STATUS; a runtime's list states the version its plugins have in common.
        version = self._list["cniVersion"] if command == "CHECK" else "1.1.0"
        config = {**plugin, "name": self._list["name"], "cniVersion": version, **injected}
        done = self._host.run(
            self._plugins / plugin["type"], environment=environment, text=json.dumps(config), check=False
        )
        assert done.returncode == bool(done.stdout), done
        return json.loads(done.stdout) if done.stdout else {}
