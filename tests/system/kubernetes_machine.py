"""A node made by hand whose agent's store is a Kubernetes API."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from podway.channel.client import call
from podway.cni.conflist import FILE_NAME, render_conflist
from podway.errors import AgentError
from podway.kernel import netns
from podway.lab.chain import Container, PluginChain
from podway.lab.pods import SHIM
from tests.kubernetes import ApiServer
from tests.namespaces import TestNamespace
from tests.patience import PATIENCE, eventually

PODWAY = [sys.executable, "-m", "podway"]


def register(server: ApiServer, name: str, address: str) -> None:
    """Register a node as its kubelet does."""
    server.ask("POST", "/api/v1/nodes", {"metadata": {"name": name}})
    addresses = [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]
    status = {"addresses": addresses, "nodeInfo": {"kubeletVersion": "v1.37.2"}}
    content = "application/merge-patch+json"
    server.ask("PATCH", f"/api/v1/nodes/{name}/status", {"status": status}, content=content)


class Machine:
    """A node made by hand, with an agent, and a way to the API server besides the nodes' own network."""

    def __init__(
        self, namespace: TestNamespace, directory: Path, number: int, server: ApiServer, *, address: str = ""
    ) -> None:
        """`address` is that of its `eth0`, which is there already; else 172.30.0.`number`."""
        self.namespace, self.directory = namespace, directory / f"n{number}"
        self.name = f"n{number}.example.org"  # a full name is as good as any
        self.directory.mkdir()
        self._agent: subprocess.Popen[bytes] | None = None
        namespace.sh(f"ip link add api0 type veth peer name api{number} netns {server.pid}")
        namespace.sh(f"ip link set api0 up; ip addr add 172.31.{number}.2/24 dev api0")
        server.inside("ip", "link", "set", f"api{number}", "up")
        server.inside("ip", "addr", "add", f"172.31.{number}.1/24", "dev", f"api{number}")
        host = f"172.31.{number}.1"
        self._admin = self.directory / "admin.config"
        self._admin.write_text(yaml.safe_dump(server.kubeconfig(host=host)))
        self._config = self.directory / "agent.config"
        register(server, self.name, address or f"172.30.0.{number}")
        self._config.write_text(yaml.safe_dump(server.kubeconfig(host=host, token=server.token(self.name))))
        (self.directory / FILE_NAME).write_bytes(render_conflist(version="1.1.0"))
        self._pods: list[Container] = []

    def start(self, *more: str, within: float = PATIENCE) -> None:
        """Start the agent, with further options; return once it answers, within so many seconds."""
        options = ["agent", "--node", self.name, "--store", f"kubernetes://{self._config}", "--interface", "eth0"]
        options += ["--metrics", ":9180"]
        command = [*PODWAY, *options, "--run-dir", str(self.directory), *more]
        with open(self.directory / "agent.log", "ab") as log:
            self._agent = netns.run(self.namespace.fd, lambda: subprocess.Popen(command, stderr=log))
        eventually(self._answers, f"the agent of {self.name} answers", within=within)

    def _answers(self) -> bool:
        assert self._agent is not None
        assert self._agent.poll() is None, (self.directory / "agent.log").read_text()[-3000:]
        try:
            return bool(self.status())
        except AgentError:
            return False

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = call(self.directory / "agent.sock", "status")
        return answer

    def stop(self) -> None:
        assert self._agent is not None
        self._agent.send_signal(signal.SIGTERM)
        self._agent.wait(PATIENCE)
        self._agent = None

    def podway(self, *arguments: str, text: str = "") -> str:
        done = self.namespace.run(
            *PODWAY, "--store", f"kubernetes://{self._admin}", *arguments, check=False, input=text
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def _chain(self) -> PluginChain:
        return PluginChain(
            self.directory / FILE_NAME,
            node=self.namespace.name,
            search=(SHIM,),
            cache=self.directory / "results",
            environment={
                "PODWAY_CNI_SOCKET": str(self.directory / "cni.sock"),
                "PODWAY_CNI_SPOOL": str(self.directory / "cni-deletes"),
                "PATH": os.environ["PATH"],
            },
        )

    def add(self, pod: TestNamespace, name: str) -> str:
        """Attach a pod; return its address."""
        told = {"K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": name}
        container = Container(id=f"{self.name}-{name}", netns=str(pod.path), args=told)
        result = self._chain.add(container)
        self._pods.append(container)
        address: str = result["ips"][0]["address"]
        return address.partition("/")[0]

    def remove(self, name: str) -> None:
        """Detach a pod."""
        (container,) = (one for one in self._pods if one.args["K8S_POD_NAME"] == name)
        self._chain.delete(container)
        self._pods.remove(container)

    def end(self) -> None:
        if self._agent is not None:
            self._agent.kill()
            self._agent.wait()
        pid = self.directory / "bird.pid"
        if pid.exists():
            os.kill(int(pid.read_text()), signal.SIGKILL)
