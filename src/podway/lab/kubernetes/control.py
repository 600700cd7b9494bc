"""The control plane of a lab's Kubernetes, in a namespace of its own: etcd, API server, controllers, scheduler."""

import subprocess
import time
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path

import msgspec

from podway.api.addresses import Address, Family, Network, with_port
from podway.errors import LabError
from podway.kernel import netns
from podway.lab import processes
from podway.lab.kubernetes.pki import Authority
from podway.lab.kubernetes.programs import Programs
from podway.lab.processes import Spawned

PORT = 6443
SERVICES: dict[Family, Network] = {
    Family.IPV4: ip_network("10.96.0.0/12"),
    Family.IPV6: ip_network("fd00:10:96::/112"),
}
"""Where Services have their addresses, kubeadm's and kind's usual ones. The first address is the API's Service."""
ACCOUNTS = "https://kubernetes.default.svc"
ETCD = "http://127.0.0.1:2379"

READY_SECONDS = 120.0
LOG_LINES = 15


class ControlPlane(msgspec.Struct, frozen=True):
    """Where a control plane runs and what it is reached by: a namespace's name, addresses, files."""

    namespace: str
    mark: str
    addresses: tuple[Address, ...]
    """One of each family of the cluster, its first family before the other."""
    directory: Path
    config: Path
    """The kubeconfig of one who may do everything."""
    programs: Programs

    @property
    def url(self) -> str:
        """The API server's."""
        return f"https://{with_port(self.addresses[0], PORT)}"

    @property
    def services(self) -> tuple[Network, ...]:
        """Where Services have their addresses."""
        return tuple(SERVICES[Family.of(address)] for address in self.addresses)

    @property
    def _service_range(self) -> str:
        return f"--service-cluster-ip-range={','.join(map(str, self.services))}"

    def start(self, authority: Authority) -> None:
        """Start it, and wait until the API server is ready. Raises LabError."""
        accounts = authority.issue_account_key()
        started = {"etcd": self._start_etcd(), "kube-apiserver": self._start_api(authority, accounts)}
        authority.issue_config("admin", "admin", group="system:masters")
        self._wait(started)
        for name, options in self._followers(authority, accounts).items():
            config = authority.issue_config(name, f"system:{name}")
            started[name] = self._spawn(name, f"--kubeconfig={config}", *options)

    def _start_etcd(self) -> Spawned:
        peers = "http://127.0.0.1:2380"
        return self._spawn(
            "etcd",
            *("--name=lab", f"--data-dir={self.directory / 'etcd'}", "--log-level=warn", "--unsafe-no-fsync"),
            *(f"--listen-client-urls={ETCD}", f"--advertise-client-urls={ETCD}"),
            *(f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}"),
            f"--initial-cluster=lab={peers}",
        )

    def _start_api(self, authority: Authority, accounts: Path) -> Spawned:
        names = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
        hosts = (*map(str, (*self.addresses, self.services[0][1])), "127.0.0.1", *names)
        anywhere = "::" if any(address.version == 6 for address in self.addresses) else "0.0.0.0"
        certificate, key = authority.issue("kube-apiserver", "kube-apiserver", hosts=hosts)
        client, client_key = authority.issue("kubelet-client", "kube-apiserver", group="system:masters")
        return self._spawn(
            "kube-apiserver",
            *(f"--etcd-servers={ETCD}", f"--advertise-address={self.addresses[0]}", f"--secure-port={PORT}"),
            *(f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}", f"--bind-address={anywhere}"),
            *(f"--client-ca-file={authority.certificate}", "--authorization-mode=Node,RBAC"),
            *(f"--kubelet-client-certificate={client}", f"--kubelet-client-key={client_key}"),
            *(f"--kubelet-certificate-authority={authority.certificate}", "--allow-privileged=true"),
            *("--kubelet-preferred-address-types=InternalIP", "--enable-admission-plugins=NodeRestriction"),
            *(f"--service-account-key-file={accounts}", f"--service-account-signing-key-file={accounts}"),
            *(f"--service-account-issuer={ACCOUNTS}", self._service_range),
            *(f"--cert-dir={self.directory}", "--profiling=false"),
        )

    def _followers(self, authority: Authority, accounts: Path) -> dict[str, Sequence[str]]:
        common = ("--leader-elect=false", "--bind-address=127.0.0.1", f"--cert-dir={self.directory}")
        return {
            "kube-controller-manager": (
                *common,
                *(f"--service-account-private-key-file={accounts}", f"--root-ca-file={authority.certificate}"),
                *(
                    f"--cluster-signing-cert-file={authority.certificate}",
                    "--use-service-account-credentials=true",
                ),
                *(f"--cluster-signing-key-file={authority.key}", self._service_range),
                "--allocate-node-cidrs=false",
            ),
            "kube-scheduler": common,
        }

    def _spawn(self, name: str, *options: str) -> Spawned:
        return processes.spawn(
            [self.programs.path(name), *options],
            namespace=self.namespace,
            mark=self.mark,
            log=self.directory / f"{name}.log",
        )

    def _wait(self, started: dict[str, Spawned]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while self.kubectl("get", "--raw=/readyz", check=False).returncode:
            for name, process in started.items():
                if (code := process.ended()) is not None:
                    raise LabError(f"{name} ended with status {code}; its log ends:\n{tail(self.log(name))}")
            if time.monotonic() > deadline:
                told = tail(self.log("kube-apiserver"))
                raise LabError(f"the API server is not ready after {READY_SECONDS:g} s; its log ends:\n{told}")
            time.sleep(0.2)

    def log(self, name: str) -> Path:
        """Return where a program's output goes."""
        return self.directory / f"{name}.log"

    def kubectl(self, *arguments: str, check: bool = True, text: str = "") -> "subprocess.CompletedProcess[str]":
        """Run kubectl as an administrator with `text` as its input; its output is text.

        Raises LabError if it fails and that is to be checked.
        """
        with netns.opened(netns.path_of(self.namespace)) as fd:
            done = netns.run(
                fd,
                lambda: subprocess.run(
                    [self.programs.path("kubectl"), f"--kubeconfig={self.config}", *arguments],
                    input=text,
                    capture_output=True,
                    text=True,
                    check=False,
                ),
            )
        if check and done.returncode:
            raise LabError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done


def tail(log: Path) -> str:
    """Return the last lines of a log, indented."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(f"    {line}" for line in lines[-LOG_LINES:]) or "    (empty)"
