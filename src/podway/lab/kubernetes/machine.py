"""A node of a lab's Kubernetes: a machine of namespaces, on which containerd, a kubelet and kube-proxy run."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from podway.api.addresses import Address, with_port
from podway.errors import LabError
from podway.kernel import netns
from podway.lab import processes
from podway.lab.kubernetes.control import tail
from podway.lab.kubernetes.images import PAUSE, pause_program
from podway.lab.kubernetes.pki import Authority
from podway.lab.kubernetes.programs import CHAINABLE, Programs
from podway.lab.kubernetes.traces import cgroup_of, make_cgroup

BEGIN_SECONDS = 30.0

AGENT_TAINT = "podway.io/agent-not-ready"

SHOWN_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""Settings of the whole machine that a kubelet would write (setupKernelTunables in container_manager_linux.go)."""

CONTAINERD = """
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
address = "{socket}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
disable_apparmor = true
stream_server_address = "127.0.0.1"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""
"""containerd's configuration, version 2: of 1.6 and 1.7, and still read by 2.x."""

SOCKET = "/run/containerd/containerd.sock"


class Machine(msgspec.Struct, frozen=True):
    """A node's name, namespace, mark and addresses, and where its files are: what it writes, and its agent's."""

    name: str
    namespace: str
    mark: str
    addresses: tuple[Address, ...]
    """One of each family of the cluster, its first family before the other."""
    directory: Path
    run_dir: Path

    @property
    def cgroup(self) -> str:
        """The node's cgroup, below which its pods' are, as a path from the root of cgroups."""
        return cgroup_of(*self.mark.split("/"))

    def boot(self, programs: Programs) -> None:
        """Make the machine: its namespaces, its directories, and the standard CNI plugins. Raises LabError."""
        for directory in (self.directory, self.run_dir):
            directory.mkdir(parents=True, exist_ok=True)
        plugins = self.directory / "opt/cni/bin"
        plugins.mkdir(parents=True, exist_ok=True)
        for plugin in CHAINABLE:
            with contextlib.suppress(FileNotFoundError):  # what is missing is not chained
                shutil.copy(programs.plugins / plugin, plugins / plugin)
        make_cgroup(self.cgroup)
        ready = self.directory / "ready"
        ready.unlink(missing_ok=True)
        settings = (f"{path}={value}" for path, value in SHOWN_SETTINGS.items())
        apart = ("unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child")
        script = Path(__file__).with_name("node.sh")
        holder = processes.spawn(
            [
                *apart,
                "sh",
                str(script),
                self.name,
                str(self.directory),
                str(self.run_dir),
                pause_program(),
                *settings,
            ],
            namespace=self.namespace,
            mark=self.mark,
            log=self.log("machine"),
        )
        deadline = time.monotonic() + BEGIN_SECONDS
        while not ready.exists():
            if (code := holder.ended()) is not None or time.monotonic() > deadline:
                what = f"ended with status {code}" if code is not None else f"took over {BEGIN_SECONDS:g} s"
                raise LabError(
                    f"node {self.name}: its first process {what}; its log ends:\n{tail(self.log('machine'))}"
                )
            time.sleep(0.02)
        (self.directory / "holder").write_text(str(holder.pid))

    def start_runtime(self) -> None:
        """Start containerd."""
        config = self.directory / "containerd.toml"
        config.write_text(CONTAINERD.format(pause=PAUSE, socket=SOCKET))
        self._spawn("containerd", "--config", str(config))

    def import_images(self, archives: Sequence[Path]) -> None:
        """Put images into containerd, once it answers. Raises LabError."""
        deadline = time.monotonic() + BEGIN_SECONDS
        while self.run("ctr", "version").returncode:
            if time.monotonic() > deadline:
                raise LabError(
                    f"node {self.name}: containerd does not answer; its log ends:\n{tail(self.log('containerd'))}"
                )
            time.sleep(0.1)
        for archive in archives:
            done = self.run("ctr", "--namespace", "k8s.io", "images", "import", str(archive))
            if done.returncode:
                raise LabError(f"node {self.name}: {archive} cannot be imported: {done.stderr.strip()}")

    def start_kubelet(self, programs: Programs, authority: Authority, *, dns: Sequence[str] = ()) -> None:
        """Start the kubelet, which registers the node."""
        name = f"system:node:{self.name}"
        kubeconfig = authority.issue_config(f"kubelet-{self.name}", name, group="system:nodes")
        certificate, key = authority.issue(
            f"kubelet-{self.name}-server", name, hosts=(*map(str, self.addresses), self.name)
        )
        resolver = self.directory / "resolv.conf"
        resolver.touch()
        document = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": str(self.addresses[0]),
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": False},
                "x509": {"clientCAFile": str(authority.certificate)},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.cgroup,
            "failCgroupV1": False,
            "enforceNodeAllocatable": ["pods"],
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "maxOpenFiles": 20000,
            "clusterDomain": "cluster.local",
            "clusterDNS": list(dns),
            "resolvConf": str(resolver),
            "readOnlyPort": 0,
            "healthzBindAddress": "127.0.0.1",
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            # The images came by hand, and could not be fetched again.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "registerWithTaints": [{"key": AGENT_TAINT, "effect": "NoSchedule"}],
            "volumePluginDir": "/var/lib/kubelet/volumeplugins",
        }
        config = self.directory / "kubelet.json"
        config.write_bytes(msgspec.json.encode(document))
        self._spawn(
            programs.path("kubelet"),
            *(f"--config={config}", f"--kubeconfig={kubeconfig}", f"--hostname-override={self.name}"),
            *(
                f"--node-ip={','.join(map(str, self.addresses))}",
                "--root-dir=/var/lib/kubelet",
                "--cert-dir=/var/lib/kubelet/pki",
            ),
        )

    def start_proxy(self, programs: Programs, kubeconfig: Path, mode: str, pods: str) -> None:
        """Start kube-proxy; `pods` are their addresses (CIDRs, comma-separated)."""
        document = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": mode,
            "hostnameOverride": self.name,
            "clusterCIDR": pods,
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            # Zero: these are the whole machine's.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "healthzBindAddress": with_port(self.addresses[0], 10256),
            "metricsBindAddress": "127.0.0.1:10249",
            "oomScoreAdj": 0,
        }
        config = self.directory / "kube-proxy.json"
        config.write_bytes(msgspec.json.encode(document))
        self._spawn(programs.path("kube-proxy"), f"--config={config}")

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command on the machine; its output is text."""
        return subprocess.run([*self._enter, *command], capture_output=True, text=True, check=False)

    def enter(self, command: Sequence[str]) -> int:
        """Run a command on the machine, on our own terminal; return its exit status."""
        return processes.run([*self._enter, *command], namespace=self.namespace)

    def log(self, name: str) -> Path:
        """Return where a daemon's output goes."""
        return self.directory / f"{name}.log"

    @property
    def _enter(self) -> list[str]:
        """What enters the machine: all namespaces of its first process. Raises LabError if that is gone."""
        holder = int((self.directory / "holder").read_text())
        try:
            first = int(Path(f"/proc/{holder}/task/{holder}/children").read_text().split()[0])
            here = os.stat(f"/proc/{first}/ns/net")
        except (OSError, IndexError) as error:
            raise LabError(f"node {self.name} does not run any more") from error
        if not os.path.samestat(here, os.stat(netns.path_of(self.namespace))):
            raise LabError(f"node {self.name} does not run any more")
        return ["nsenter", f"--target={first}", "--mount", "--uts", "--ipc", "--net", "--pid", "--"]

    def _spawn(self, program: str, *options: str) -> None:
        processes.spawn(
            [*self._enter, program, *options],
            namespace=self.namespace,
            mark=self.mark,
            log=self.log(Path(program).name),
        )
