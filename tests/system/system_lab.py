"""A lab as tests use it: real nodes, agents and BIRDs, and pods made through the real plugin as a runtime does."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, TypeVar

from podway.api.addresses import Address, Network
from podway.api.kinds.address_block import AddressBlock
from podway.api.lease import Attachment
from podway.channel.client import call
from podway.cni.conflist import render_conflist
from podway.errors import AgentError
from podway.kernel import netns
from podway.lab import agents, cluster, facts, names, pods, processes, topology
from podway.lab.facts import PoolSettings
from podway.lab.paths import lab_store
from podway.lab.state import node_dir
from podway.store.base import Store
from tests.patience import PATIENCE, eventually

T = TypeVar("T")

PLUGIN = json.loads(render_conflist(version="1.1.0"))["plugins"][0]
SHIM = pods.SHIM / "podway"
AGENT = Path(__file__).parent / "agent_process.py"


def sh(namespace: str, script: str, *, check: bool = True, stdin: str = "") -> str:
    """Run a shell script in a named network namespace; return what it printed."""
    done = subprocess.run(
        ["nsenter", f"--net={netns.path_of(namespace)}", "sh", "-euc", script],
        capture_output=True,
        text=True,
        input=stdin,
    )
    if check:
        assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
    return done.stdout + ("" if check else f"{done.stderr}status {done.returncode}")


@dataclass(frozen=True)
class Answer:
    """What a runtime gets from the plugin: exit status, and stdout as JSON."""

    status: int
    output: dict[str, Any]

    @property
    def ok(self) -> bool:
        return self.status == 0

    @property
    def code(self) -> int:
        return int(self.output.get("code", 0))

    @property
    def words(self) -> str:
        return f"{self.output.get('msg', '')} {self.output.get('details', '')}"

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(ip_interface(entry["address"]).ip for entry in self.output.get("ips", ()))


@dataclass
class PodUnderTest:
    """A network namespace and the container id and interface that the plugin is told."""

    lab: "SystemLab"
    node: str
    netns: str
    container: str
    ifname: str = "eth0"
    added: Answer | None = None

    @property
    def attachment(self) -> Attachment:
        return Attachment(self.container, self.ifname)

    @property
    def link(self) -> str:
        return self.attachment.link

    @property
    def path(self) -> str:
        return str(netns.path_of(self.netns))

    @property
    def addresses(self) -> tuple[Address, ...]:
        assert self.added is not None
        return self.added.addresses

    def cni(self, command: str, **keywords: Any) -> Answer:
        return self.lab.cni(self, command, **keywords)

    def add(self, **keywords: Any) -> "PodUnderTest":
        self.added = self.cni("ADD", **keywords)
        assert self.added.ok, self.added.output
        return self

    def check(self, **keywords: Any) -> Answer:
        assert self.added is not None
        return self.cni("CHECK", config={"prevResult": self.added.output}, **keywords)

    def sh(self, script: str, *, check: bool = True) -> str:
        return sh(self.netns, script, check=check)

    def reaches(self, address: Address | str, *, within: float = PATIENCE) -> bool:
        """Tell whether one ping is answered within so many seconds.

        Whoever asks again and again gives few; many where none may be lost.
        """
        return "status 0" in self.sh(f"ping -n -q -c 1 -W {within:g} {address}", check=False)

    def vanish(self) -> None:
        """Remove the namespace as a crash does: no DEL."""
        netns.delete(self.netns)


@dataclass
class SystemLab:
    """One lab. Its name is unique; everything in it, pods too, goes with `down`."""

    name: str = field(default_factory=lambda: f"s{os.getpid()}x{secrets.token_hex(2)}")
    pods: list[PodUnderTest] = field(default_factory=list)
    nodes: tuple[str, ...] = ()
    again: Callable[[], object] = lambda: None
    """Builds it once more, as it was first."""

    def up(
        self,
        nodes: int,
        pools: Sequence[str] = ("10.244.0.0/16", "fd00:244::/56"),
        sizes: Sequence[int] = (),
        pool_settings: PoolSettings = cluster.DEFAULT_POOL_SETTINGS,
    ) -> "SystemLab":
        cluster.up(
            self.name,
            nodes=nodes,
            pools=pools,
            block_sizes=sizes,
            asn=64512,
            report=lambda _: None,
            pool_settings=pool_settings,
        )
        self.nodes = tuple(f"node{number}" for number in range(1, nodes + 1))
        self.again = partial(self.up, nodes, pools, sizes, pool_settings)
        return self

    def down(self) -> None:
        cluster.down(self.name)

    def restore(self, *steps: Callable[[], object]) -> None:
        """Have all agents run, all sessions stand and no pod, for the next test; then take these steps.

        What cannot be brought there is built anew, so that a failure fails one test.
        """
        try:
            for node in self.nodes:
                if not self.ready(node):
                    self.start_agent(node)
            self.remove_pods()
            self.settle()
            for step in steps:
                step()
        except Exception:
            self.down()
            self.pods.clear()
            self.again()
            raise

    def settle(self) -> None:
        """Wait until all sessions stand, and nobody waits any more for routes of a BIRD that was started anew.

        Should that one die before, others have to forget its former routes (RFC 4724, section 4.2).
        """
        for node in self.nodes:
            eventually(lambda node=node: self._has_settled(node))

    def _has_settled(self, node: str) -> bool:
        peers = self.status(node)["routing"]["peers"]
        told = self.birdc(node, "show status") + self.birdc(node, "show protocols all")
        restarting = "recovery in progress" in told or "graceful restart active" in told
        return not restarting and all(peer["state"] == "Established" for peer in peers)

    def birdc(self, node: str, command: str) -> str:
        """Return what a node's BIRD answers to a question."""
        socket = self.run_dir(node) / "bird.ctl"
        return subprocess.run(["birdc", "-r", "-s", str(socket), command], capture_output=True, text=True).stdout

    # Nodes.

    def sh(self, node: str, script: str, *, check: bool = True, stdin: str = "") -> str:
        return sh(names.node_netns(self.name, node), script, check=check, stdin=stdin)

    def run_dir(self, node: str) -> Path:
        return node_dir(self.name, node)

    def log(self, node: str) -> str:
        return (self.run_dir(node) / agents.LOG).read_text()

    def ask(self, node: str, method: str) -> Any:
        return call(self.run_dir(node) / "agent.sock", method)

    def status(self, node: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.ask(node, "status")
        return answer

    def repaired(self, node: str) -> list[str]:
        return [repair["what"] for repair in self.status(node)["drift"]["repaired"]]

    def leases(self, node: str) -> dict[Attachment, tuple[Address, ...]]:
        return {
            Attachment(lease["container"], lease["ifname"]): tuple(map(ip_address, lease["addresses"]))
            for lease in self.ask(node, "leases")
        }

    def ready(self, node: str) -> bool:
        try:
            return bool(self.status(node)["ready"])
        except AgentError:
            return False

    def kill_agent(self, node: str) -> None:
        """SIGKILL; return when the process is gone."""
        self.kill(int(self.status(node)["pid"]))

    def kill(self, pid: int) -> None:
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # not our child
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            eventually(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(pid))
        finally:
            os.close(pidfd)

    def start_agent(self, node: str) -> None:
        """Start a node's agent as the lab does, and wait until it is ready."""
        process = agents.start(self.name, node)
        agents.wait_ready(self.name, {node: process}, lambda _: None)

    def start_agent_with(self, node: str, *, wrapper: Sequence[str] = (), **settings: Any) -> processes.Spawned:
        """Start a node's agent with settings that the command line has not (see agent_process.py)."""
        settings = {"node": node, "store": lab_store(self.name), "run_dir": str(self.run_dir(node)), **settings}
        process = processes.spawn(
            [*wrapper, sys.executable, str(AGENT), json.dumps(settings)],
            namespace=names.node_netns(self.name, node),
            mark=f"{self.name}/{node}",
            log=self.run_dir(node) / agents.LOG,
        )
        agents.wait_ready(self.name, {node: process}, lambda _: None)
        return process

    def refused_agent(
        self,
        node: str,
        *,
        wrapper: Sequence[str] = (),
        name: str = "",
        store: str = "",
        run_dir: Path | None = None,
    ) -> str:
        """Run an agent on a node that cannot start; return what it says."""
        arguments = ["--node", name or node, "--store", store or lab_store(self.name)]
        arguments += ["--run-dir", str(run_dir or self.run_dir(node))]
        path = netns.path_of(names.node_netns(self.name, node))
        done = subprocess.run(
            ["nsenter", f"--net={path}", *wrapper, sys.executable, "-m", "podway", "agent", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 1, done
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr

    # The store.

    def store(self, question: Callable[[Store], Any]) -> Any:
        return facts.ask(self.name, question)

    def podway(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        """Run the command line on this lab; return what it printed, with its errors unless `check`."""
        done = subprocess.run(
            [sys.executable, "-m", "podway", "--lab", self.name, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=150,
        )
        if check:
            assert done.returncode == 0, done.stderr
            return done.stdout
        return done.stdout + done.stderr

    def blocks(self) -> dict[Network, str]:
        """Return the claimed blocks and their nodes."""
        return {
            block.network: block.spec.node for block in self.store(lambda store: store.list(AddressBlock)).items
        }

    def block_of(self, address: Address) -> Network:
        return next(network for network in self.blocks() if address in network)

    # Pods.

    def new_pod(self, node: str = "node1", ifname: str = "eth0") -> PodUnderTest:
        """Make a pod's namespace; nothing is attached yet."""
        name = f"{names.prefix(self.name)}pod-{secrets.token_hex(4)}"
        topology.create_pod(name)
        self.pods.append(PodUnderTest(self, node, name, secrets.token_hex(32), ifname))
        return self.pods[-1]

    def add(self, node: str = "node1", **keywords: Any) -> PodUnderTest:
        return self.new_pod(node).add(**keywords)

    def remove_pods(self) -> None:
        """DEL all pods of this lab, and remove their namespaces."""
        for pod in self.pods:
            pod.cni("DEL")
            netns.delete(pod.netns)
        self.pods.clear()

    def cni(
        self,
        pod: PodUnderTest,
        command: str,
        *,
        config: Mapping[str, Any] | None = None,
        args: str = "",
        namespace: str = "default",
        path: str | None = None,
    ) -> Answer:
        """Execute the plugin in the node's namespace; `config` is added to the network configuration."""
        stdin = {**PLUGIN, "name": "podway", "cniVersion": "1.1.0", **(config or {})}
        pod_args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod.container[:8]}"
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod.container,
            "CNI_NETNS": pod.path if path is None else path,
            "CNI_IFNAME": pod.ifname,
            "CNI_ARGS": ";".join(filter(None, (pod_args, args))),
            "CNI_PATH": str(SHIM.parent),
            "PODWAY_CNI_SOCKET": str(self.run_dir(pod.node) / "cni.sock"),
            "PODWAY_CNI_SPOOL": str(self.run_dir(pod.node) / "cni-deletes"),
        }
        done = subprocess.run(
            ["nsenter", f"--net={netns.path_of(names.node_netns(self.name, pod.node))}", str(SHIM)],
            env=environment,
            input=json.dumps(stdin).encode(),
            capture_output=True,
            timeout=150,
        )
        return Answer(done.returncode, json.loads(done.stdout) if done.stdout.strip() else {})


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextlib.contextmanager
def running_lab(
    nodes: int, pools: Sequence[str] = ("10.244.0.0/16", "fd00:244::/56"), sizes: Sequence[int] = ()
) -> Iterator[SystemLab]:
    """Give a lab while the block runs."""
    lab = SystemLab()
    lab.up(nodes, pools, sizes)
    try:
        yield lab
    finally:
        lab.down()
