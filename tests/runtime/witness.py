"""A chained CNI plugin that writes down what a runtime asks of a chain, and changes nothing.

Run as a script, it is the plugin; `log` in its configuration says where to write.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TYPE = "witness"
VERSIONS = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]


@dataclass(frozen=True)
class Call:
    """One execution: the command, the CNI_* variables, the configuration."""

    command: str
    variables: dict[str, str]
    config: dict[str, Any]

    @property
    def arguments(self) -> dict[str, str]:
        """CNI_ARGS."""
        return dict(pair.split("=", 1) for pair in self.variables["CNI_ARGS"].split(";") if pair)


@dataclass(frozen=True)
class Witness:
    """The plugin's configuration, and what it saw."""

    log: Path

    @property
    def config(self) -> dict[str, Any]:
        """The plugin's part of a network configuration list: it takes every capability."""
        return {"type": TYPE, "log": str(self.log), "capabilities": {"ips": True, "portMappings": True}}

    def calls(self, container: str) -> list[Call]:
        """Return what was asked about a container, in order."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        every = [Call(**json.loads(line)) for line in lines]
        return [call for call in every if call.variables["CNI_CONTAINERID"] == container]

    def install(self, directory: Path) -> None:
        """Put the plugin among others."""
        plugin = directory / TYPE
        plugin.write_text(f"#!/bin/sh\nexec {sys.executable} -I {__file__}\n")
        plugin.chmod(0o755)


def main() -> None:
    command, config = os.environ["CNI_COMMAND"], json.load(sys.stdin)
    if command == "VERSION":
        json.dump({"cniVersion": config["cniVersion"], "supportedVersions": VERSIONS}, sys.stdout)
        return
    variables = {name: value for name, value in os.environ.items() if name.startswith("CNI_")}
    with open(config["log"], "a") as log:
        log.write(json.dumps({"command": command, "variables": variables, "config": config}) + "\n")
    if command == "ADD":
        json.dump(config["prevResult"], sys.stdout)


if __name__ == "__main__":
    main()
