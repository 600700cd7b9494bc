"""A lab for tests with real runtimes, built and asked as an operator does."""

import os
import re
import secrets
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from podway.channel.client import call
from podway.lab.names import node_netns
from podway.lab.state import node_dir
from tests.patience import ONCE, PATIENCE


@dataclass(frozen=True)
class RealLab:
    """A lab by its name."""

    name: str

    def podway(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run our command; its output is text."""
        command = [sys.executable, "-m", "podway", "--lab", self.name, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=150)
        assert not check or done.returncode == 0, f"podway {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done

    def leases(self, node: str) -> dict[str, dict[str, Any]]:
        """Return what a node's agent has leased, by container."""
        return {lease["container"]: lease for lease in self._ask(node, "leases")}

    def stop_agent(self, node: str) -> None:
        """End a node's agent; what it built stays."""
        agent = os.pidfd_open(self._ask(node, "status")["pid"])
        try:
            signal.pidfd_send_signal(agent, signal.SIGTERM)
            assert select.select([agent], [], [], PATIENCE)[0], "the agent does not end"
        finally:
            os.close(agent)

    def start_agent(self, node: str) -> None:
        """Start a node's agent again."""
        self.podway("lab", "node", "start", node)

    def spooled(self, node: str) -> list[str]:
        """Return the DELs that wait for a node's agent."""
        return sorted(path.name for path in (node_dir(self.name, node) / "cni-deletes").iterdir())

    def ping(self, pod: str, address: str) -> bool:
        """Tell whether a pod of the lab reaches an address."""
        ping = [*ONCE, f"-{ip_address(address).version}", address]
        return self.podway("lab", "exec", pod, "--", *ping, check=False).returncode == 0

    def fetch(self, node: str, address: str, port: int, page: str = "") -> str:
        """Return a page that a node gets, or curl's words."""
        host = f"[{address}]" if ":" in address else address
        netns = f"--net=/run/netns/{node_netns(self.name, node)}"
        curl = ["curl", "--silent", "--show-error", "--max-time", f"{PATIENCE:g}", "--noproxy", "*"]
        command = ["nsenter", netns, *curl, f"http://{host}:{port}/{page}"]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.stdout or done.stderr

    def addresses(self, node: str) -> list[str]:
        """Return a node's own addresses, without prefix lengths."""
        return [text.partition("/")[0] for text in self._ask(node, "status")["uplink"]["addresses"]]

    def _ask(self, node: str, method: str) -> Any:
        return call(node_dir(self.name, node) / "agent.sock", method)


@contextmanager
def new_lab(*options: str) -> Iterator[RealLab]:
    """Give a lab with a name of its own, built with these options, while the block runs."""
    lab = RealLab(f"rt{os.getpid()}x{secrets.token_hex(3)}")
    lab.podway("lab", "up", *options)
    try:
        yield lab
    finally:
        lab.podway("lab", "down")


def root_namespace() -> str:
    """Return what no test may change, as text: the machine's own links, addresses, routes and firewall."""
    commands = (
        ("ip", "link"),
        ("ip", "-brief", "address"),
        ("ip", "-4", "route", "show", "table", "all"),
        ("ip", "-6", "route", "show", "table", "all"),
        ("nft", "list", "ruleset"),
        ("tc", "qdisc"),
        ("ls", "/var/lib/cni", "/etc/cni/net.d", "/run/podway/cni-deletes"),
    )
    texts = (subprocess.run(command, capture_output=True, text=True).stdout for command in commands)
    return re.sub(r" expires \d+sec", "", "\n".join(texts))
