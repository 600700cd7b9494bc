"""A real etcd and a real kube-apiserver for tests, in a network namespace of their own without any name.

Both end with the process that started them, however it ends (prctl(2), PR_SET_PDEATHSIG), and the namespace with
them. They are started without the mark of tests.leftovers, since several files of tests share one.
"""

import base64
import contextlib
import http
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from podway.kernel import netns
from tests.patience import PATIENCE, eventually

ROOT = Path(__file__).parent.parent
PORT = 6443
HOST = "127.0.0.1"
CLIENT_PORT = 2379

_HOUR = timedelta(hours=1)

ADMIN = "secret-of-admin"
NOBODY = "secret-of-nobody"
"""Tokens of one who may do everything, and of one who may do nothing."""


def programs() -> Path:
    """Return where ./dev kubernetes put the programs."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "podway/kubernetes"
    found = sorted(cache.glob("v*"))
    named = os.environ.get("KUBERNETES_PROGRAMS")
    where = Path(named) if named else found[-1] if found else cache
    assert (where / "kube-apiserver").exists(), f"no kube-apiserver in {where}: run ./dev kubernetes"
    return where


class Authority:
    """A certificate authority in a directory, and what it signs."""

    def __init__(self, directory: Path, name: str = "test-ca") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.directory = directory
        builder = self._builder(self._name, self._key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.pem = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
        self.path = directory / f"{name}.crt"
        self.path.write_text(self.pem)

    def issue(
        self, file: str, name: str, *, group: str = "", hosts: tuple[str, ...] = (), early: timedelta = _HOUR
    ) -> tuple[Path, Path]:
        """Write a certificate and its key; return their paths. Without a name it has no common name.

        It is good from so much `early` on, that is, before now.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
        if group:
            attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
        builder = self._builder(x509.Name(attributes), key.public_key(), early)
        if hosts:
            names: list[x509.GeneralName] = [
                x509.IPAddress(ip_address(host)) if host[0].isdecimal() else x509.DNSName(host) for host in hosts
            ]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        paths = self.directory / f"{file}.crt", self.directory / f"{file}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(_pem(key))
        return paths

    def _builder(self, subject: x509.Name, key: Any, early: timedelta = _HOUR) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - early)
            .not_valid_after(now + timedelta(days=2))
        )


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _pem(key: Any) -> bytes:
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem


class Answer(Exception):
    """What an API server answers that is no success."""

    def __init__(self, status: int, document: Any) -> None:
        super().__init__(f"{status}: {document}")
        self.status = status
        self.document = document


class ApiServer:
    """An API server with its database.

    Nodes are served without a watch cache, so that their history is as long as etcd's, and pods with one.
    """

    def __init__(self, directory: Path, hosts: tuple[str, ...] = ()) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self._programs = programs()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.authority = Authority(directory)
        self.authority.issue(
            "server", "kube-apiserver", hosts=(HOST, *hosts, "10.96.0.1", "kubernetes.default.svc", "localhost")
        )
        self.admin = self.authority.issue("admin", "admin", group="system:masters")
        (directory / "sa.key").write_bytes(_pem(rsa.generate_private_key(65537, 2048)))
        self.tokens = directory / "tokens.csv"
        self.tokens.write_text(f'{ADMIN},admin,1,"system:masters"\n{NOBODY},nobody,2,""\n')
        self.fd = -1

    def start(self) -> None:
        """Start both, and wait until the API is ready."""
        self._start_etcd()
        self.start_api()

    def _start_etcd(self) -> None:
        peers = f"http://{HOST}:2380"
        command = [
            *(str(self._programs / "etcd"), "--name=test", f"--data-dir={self.directory / 'etcd'}"),
            *(f"--listen-client-urls={self.etcd}", f"--advertise-client-urls={self.etcd}", "--unsafe-no-fsync"),
            *(f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}"),
            *(f"--initial-cluster=test={peers}", "--log-level=warn"),
        ]
        shell = ["unshare", "--net", "--", "sh", "-euc", 'ip link set lo up && exec "$@"', "sh"]
        process = self._run("etcd", [*shell, *command])
        ours = os.readlink("/proc/self/ns/net")
        path = Path(f"/proc/{process.pid}/ns/net")
        eventually(lambda: os.readlink(path) != ours, "etcd has a network namespace of its own")
        self.fd = netns.open_path(path)

    @property
    def pid(self) -> int:
        """A process in the network namespace."""
        return self._processes["etcd"].pid

    def inside(self, *command: str) -> None:
        """Run a command in the network namespace."""
        subprocess.run([*self._inside, *command], check=True)

    @property
    def _inside(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--"]

    @property
    def etcd(self) -> str:
        """The URL of the database."""
        return f"http://{HOST}:{CLIENT_PORT}"

    def start_api(self) -> None:
        """Start the API server alone."""
        here = self.directory
        command = [
            *(str(self._programs / "kube-apiserver"), f"--etcd-servers={self.etcd}", "--bind-address=0.0.0.0"),
            *(f"--secure-port={PORT}", f"--advertise-address={HOST}", f"--client-ca-file={self.authority.path}"),
            *(f"--tls-cert-file={here / 'server.crt'}", f"--tls-private-key-file={here / 'server.key'}"),
            *(f"--service-account-key-file={here / 'sa.key'}", "--service-cluster-ip-range=10.96.0.0/12"),
            *(f"--service-account-signing-key-file={here / 'sa.key'}", f"--token-auth-file={self.tokens}"),
            *("--service-account-issuer=https://kubernetes.default.svc", "--authorization-mode=RBAC"),
            *("--disable-admission-plugins=ServiceAccount", "--watch-cache-sizes=nodes#0"),
            *(f"--cert-dir={here}", "--profiling=false", "--endpoint-reconciler-type=none"),
        ]
        self._run("kube-apiserver", [*self._inside, *command])
        eventually(self._ready, "the API server is ready", within=3 * PATIENCE, every=0.1)

    def _ready(self) -> bool:
        process = self._processes["kube-apiserver"]
        assert process.poll() is None, (self.directory / "kube-apiserver.log").read_text()[-3000:]
        try:
            self.ask("GET", "/readyz")
        except (OSError, Answer, http.client.HTTPException):
            return False
        return True

    def _run(self, name: str, command: list[str]) -> "subprocess.Popen[bytes]":
        with open(self.directory / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "HOME": str(self.directory)},
            )
        self._processes[name] = process
        return process

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the API server: SIGSTOP has it hang."""
        self._processes["kube-apiserver"].send_signal(number)

    def stop_api(self) -> None:
        """End the API server at once."""
        process = self._processes.pop("kube-apiserver")
        process.kill()
        process.wait()

    @property
    def data(self) -> Path:
        """What the database wrote."""
        return self.directory / "etcd"

    def stop(self) -> None:
        """End both, and remove what they wrote."""
        self.end()
        shutil.rmtree(self.data, ignore_errors=True)

    def end(self) -> None:
        """End both."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def socket(self, family: int = socket.AF_INET) -> socket.socket:
        """Make a TCP socket where the API server is."""
        return netns.run(self.fd, lambda: socket.socket(family, socket.SOCK_STREAM))

    def ask(
        self, method: str, path: str, body: Any = None, *, content: str = "application/json", token: str = ""
    ) -> Any:
        """Ask as an administrator, or with a token; return the answer's document, or its text. Raises Answer."""
        context = ssl.create_default_context(cafile=str(self.authority.path))
        if not token:
            context.load_cert_chain(*self.admin)
        connection = _Connection(self, HOST, PORT, context=context, timeout=PATIENCE)
        try:
            data = None if body is None else json.dumps(body) if not isinstance(body, str) else body
            who = {"Authorization": f"Bearer {token}"} if token else {}
            connection.request(method, path, data, {"Content-Type": content, **who})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        is_json = answer.getheader("Content-Type", "").startswith("application/json")
        found: Any = json.loads(text) if is_json else text
        if answer.status == http.HTTPStatus.TOO_MANY_REQUESTS and "(re)initializing" in text:  # a new CRD's
            time.sleep(1)
            return self.ask(method, path, body, content=content, token=token)
        if answer.status >= 300:
            raise Answer(answer.status, found)
        return found

    def compact(self, revision: int) -> None:
        """Have the database forget what was before a revision (etcd's KV.Compact)."""
        self._ask_etcd("kv/compaction", {"revision": revision, "physical": True})

    def put(self, documents: Mapping[str, Any]) -> None:
        """Write objects past the API server, by their keys below /registry: thousands in seconds (KV.Txn)."""
        puts = [
            {"requestPut": {"key": _encoded(f"/registry/{key}"), "value": _encoded(json.dumps(document))}}
            for key, document in documents.items()
        ]
        for first in range(0, len(puts), 100):  # etcd takes 128 at once, and 1.5 MiB
            self._ask_etcd("kv/txn", {"success": puts[first : first + 100]})

    def fill(self, *, full: bool) -> None:
        """Have the database be as it is when it has reached its quota, or no more (etcd's Maintenance.Alarm)."""
        self._ask_etcd("maintenance/alarm", {"action": "ACTIVATE" if full else "DEACTIVATE", "alarm": "NOSPACE"})

    def _ask_etcd(self, what: str, body: Any) -> None:
        """Ask the database by its JSON gateway."""
        connection = http.client.HTTPConnection(HOST, CLIENT_PORT, timeout=PATIENCE)
        connection.sock = self.socket()
        connection.sock.connect((HOST, CLIENT_PORT))
        try:
            connection.request("POST", f"/v3/{what}", json.dumps(body))
            answer = connection.getresponse()
            text = answer.read().decode()
            assert answer.status == 200, text
        finally:
            connection.close()

    def kubectl(self, *arguments: str) -> str:
        """Run kubectl as an administrator; return what it prints."""
        config = self.directory / "kubectl.config"
        config.write_text(yaml.safe_dump(self.kubeconfig()))
        process = subprocess.run(
            [
                *self._inside,
                *(str(self._programs / "kubectl"), "--kubeconfig", str(config), *arguments),
            ],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": os.environ["PATH"], "HOME": str(self.directory)},
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    def kubeconfig(self, host: str = HOST, **user: Any) -> dict[str, Any]:
        """Return the kubeconfig of an administrator, or of the user that is given."""
        who = user or {"client-certificate": str(self.admin[0]), "client-key": str(self.admin[1])}
        cluster = {"server": f"https://{host}:{PORT}", "certificate-authority": str(self.authority.path)}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "who", "user": who}],
            "contexts": [{"name": "here", "context": {"cluster": "test", "user": "who"}}],
            "current-context": "here",
        }

    def token(self, node: str, of: str = "agent") -> str:
        """Return the token that a pod of the agent on a node has (authentication.k8s.io, TokenRequest), or of the
        controller there."""
        pods = "/api/v1/namespaces/podway/pods"
        container = {"name": of, "image": "none"}
        spec = {"serviceAccountName": f"podway-{of}", "nodeName": node, "containers": [container]}
        pod = {"metadata": {"name": f"{of}-{node}", "namespace": "podway"}, "spec": spec}
        uid = self.ask("POST", pods, pod)["metadata"]["uid"]
        bound = {"kind": "Pod", "apiVersion": "v1", "name": f"{of}-{node}", "uid": uid}
        path = f"/api/v1/namespaces/podway/serviceaccounts/podway-{of}/token"
        asked = {"spec": {"expirationSeconds": 3600, "boundObjectRef": bound}}
        token: str = self.ask("POST", path, asked)["status"]["token"]
        return token

    def define(self, *manifests: Path) -> None:
        """Apply the custom resource definitions of files, and wait until they are served."""
        for manifest in manifests:
            for document in yaml.safe_load_all(manifest.read_text()):
                path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
                name = document["metadata"]["name"]
                self.ask(
                    "PATCH",
                    f"{path}/{name}?fieldManager=tests&force=true",
                    document,
                    content="application/apply-patch+yaml",
                )
                spec = document["spec"]
                served = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
                eventually(lambda at=f"{path}/{name}": self._established(at), f"{name} is established")
                eventually(lambda at=served: self.answers(at), f"{name} is served")

    def answers(self, path: str) -> bool:
        try:
            self.ask("GET", path)
        except Answer as answer:
            if answer.status not in (404, 429):  # its storage is being made
                raise
            return False
        return True

    def _established(self, path: str) -> bool:
        conditions = self.ask("GET", path).get("status", {}).get("conditions") or []
        broken = [one for one in conditions if one["type"] == "NonStructuralSchema"]
        assert not broken, broken
        return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)


class _Connection(http.client.HTTPSConnection):
    def __init__(self, server: ApiServer, host: str, port: int, **options: Any) -> None:
        super().__init__(host, port, **options)
        self._server = server
        self._options = options

    def connect(self) -> None:
        plain = self._server.socket()
        plain.settimeout(self.timeout)
        try:
            plain.connect((self.host, self.port))
            self.sock = self._options["context"].wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise


@contextlib.contextmanager
def running_api_server(directory: Path, *, hosts: tuple[str, ...] = ()) -> Iterator[ApiServer]:
    """Have an API server run that knows Podway's kinds; it is gone afterwards, whatever happens."""
    server = ApiServer(directory, hosts=hosts)
    try:
        server.start()
        server.define(ROOT / "deploy/crds.yaml")
        yield server
    finally:
        server.stop()
