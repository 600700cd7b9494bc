"""A real etcd for tests, of one member or several, in a network namespace of its own without any name.

It ends with the process that started it, however that ends (prctl(2), PR_SET_PDEATHSIG), and the namespace, too.
ETCD names another program than the one that was built: Debian's, say.
"""

import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from podway.kernel import netns
from podway.store.etcd.keys import Range, below
from tests.kubernetes import Authority, programs
from tests.patience import PATIENCE, eventually

HOST = "127.0.0.1"
ROOT, PASSWORD = "root", "secret-of-root"


class Answer(Exception):
    """What etcd answers that is no success."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")


class EtcdServer:
    """An etcd of so many members; its client ports are 2379, 2389 and so on."""

    def __init__(
        self, directory: Path, *, members: int = 1, tls: bool = False, options: Sequence[str] = ()
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self._options = options
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._members = range(members)
        self.authority = Authority(directory) if tls else None
        if self.authority is not None:
            self.authority.issue("server", "etcd", hosts=(HOST, "localhost"))
            self.client = self.authority.issue("client", "", hosts=("client",))
        self.host = HOST
        self.fd = -1
        self._holder: subprocess.Popen[bytes] | None = None
        self._token = ""

    def start(self) -> None:
        """Start all members, and wait until they answer."""
        if self._holder is None:
            self._open_namespace()
        for member in self._members:
            if member not in self._processes:
                self._spawn(member)
        for member in self._members:
            eventually(lambda member=member: self._ready(member), f"etcd's member {member} answers")

    def _open_namespace(self) -> None:
        shell = ["unshare", "--net", "--", "sh", "-euc", "ip link set lo up && exec sleep infinity"]
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *shell], env={"PATH": os.environ["PATH"]}
        )
        ours, path = os.readlink("/proc/self/ns/net"), Path(f"/proc/{self._holder.pid}/ns/net")
        eventually(lambda: os.readlink(path) != ours, "etcd has a network namespace of its own")
        self.fd = netns.open_path(path)
        eventually(self._loopback_is_up, "its loopback is up")

    def _loopback_is_up(self) -> bool:
        with contextlib.closing(self.socket()) as probe:
            return probe.connect_ex((HOST, 1)) != 101  # ENETUNREACH

    def _spawn(self, member: int) -> None:
        scheme = "https" if self.authority is not None else "http"
        peers = [f"m{one}=http://{HOST}:{2380 + 10 * one}" for one in self._members]
        url, peer = f"{scheme}://{HOST}:{self.port(member)}", peers[member].partition("=")[2]
        command = [
            *(os.environ.get("ETCD") or str(programs() / "etcd"), f"--name=m{member}", "--log-level=error"),
            *(f"--data-dir={self.directory / f'm{member}'}", f"--listen-client-urls={url}"),
            *(
                f"--advertise-client-urls={url}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
            ),
            *(f"--initial-cluster={','.join(peers)}", *self._options),
        ]
        if self.authority is not None:
            command += [f"--cert-file={self.directory}/server.crt", f"--key-file={self.directory}/server.key"]
            command += [f"--trusted-ca-file={self.authority.path}", "--client-cert-auth"]
        assert self._holder is not None
        with open(self.directory / f"m{member}.log", "ab") as log:
            self._processes[member] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/proc/{self._holder.pid}/ns/net", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    "PATH": os.environ["PATH"],
                    "ETCD_UNSUPPORTED_ARCH": os.environ.get("ETCD_UNSUPPORTED_ARCH", ""),
                },
            )

    def _ready(self, member: int) -> bool:
        assert self._processes[member].poll() is None, (self.directory / f"m{member}.log").read_text()[-3000:]
        try:
            self.ask("kv/range", {"key": _text(b"x")}, member=member)
        except (OSError, http.client.HTTPException):
            return False
        except Answer as answer:
            return "user name is empty" in str(answer) or "invalid auth token" in str(answer)
        return True

    @staticmethod
    def port(member: int = 0) -> int:
        """Return the port at which clients ask a member."""
        return 2379 + 10 * member

    def url(self, prefix: str = "podway", **more: str) -> str:
        """Return the URL of a store in it."""
        hosts = ",".join(f"{HOST}:{self.port(member)}" for member in self._members)
        if self.authority is not None:
            more = {"ca": str(self.authority.path), **more}
        query = "&".join(f"{name.replace('_', '-')}={value}" for name, value in more.items())
        return f"etcd://{hosts}/{prefix}{f'?{query}' if query else ''}"

    def _secure(self, plain: socket.socket) -> socket.socket:
        if self.authority is None:
            return plain
        context = ssl.create_default_context(cafile=str(self.authority.path))
        context.load_cert_chain(*self.client)
        return context.wrap_socket(plain, server_hostname=self.host)

    def socket(self, address: Any = (socket.AF_INET,)) -> socket.socket:
        """Make a TCP socket where the servers are."""
        return netns.run(self.fd, lambda: socket.socket(address[0], socket.SOCK_STREAM))

    def ask(self, method: str, body: Any, *, member: int = 0) -> Any:
        """Ask a member as an administrator. Raises Answer."""
        connection = http.client.HTTPConnection(self.host, self.port(member), timeout=PATIENCE)
        plain = self.socket()
        plain.settimeout(PATIENCE)
        try:
            plain.connect((self.host, self.port(member)))
            connection.sock = self._secure(plain)
            headers = {"Authorization": self._token} if self._token else {}
            connection.request("POST", f"/v3/{method}", json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
            plain.close()
        if answer.status >= 300:
            raise Answer(answer.status, text)
        return json.loads(text)

    # What others do to it.

    def put(self, key: bytes, value: bytes) -> None:
        """Write a value past Podway."""
        self.ask("kv/put", {"key": _text(key), "value": _text(value)})

    def get(self, key: bytes) -> bytes:
        """Read a value past Podway."""
        (found,) = self.ask("kv/range", {"key": _text(key)})["kvs"]
        return base64.b64decode(found["value"])

    def delete(self, where: Range) -> None:
        """Delete what is in a range past Podway."""
        self.ask("kv/deleterange", _range(where))

    def newest(self) -> int:
        """Return the newest revision."""
        return int(self.ask("kv/range", {"key": _text(b"x")})["header"]["revision"])

    def compact(self) -> int:
        """Have it forget all but the newest revision; return that."""
        newest = self.newest()
        with contextlib.suppress(Answer):  # it was done before
            self.ask("kv/compaction", {"revision": newest, "physical": True})
        return newest

    def enable_accounts(self) -> None:
        """Have only accounts be let in: at first the administrator's."""
        self.ask("auth/user/add", {"name": ROOT, "password": PASSWORD})
        self.ask("auth/user/grant", {"user": ROOT, "role": ROOT})
        self.ask("auth/enable", {})
        self.log_in()

    def log_in(self) -> None:
        """Get a token of the administrator's."""
        self._token = ""
        self._token = self.ask("auth/authenticate", {"name": ROOT, "password": PASSWORD})["token"]

    def add_account(self, name: str, reads: Sequence[Range], writes: Sequence[Range]) -> Path:
        """Make an account with a role of the same name that allows this; return the file of its password."""
        self.ask("auth/role/add", {"name": name})
        for kind, ranges in (("READ", reads), ("WRITE", writes)):
            for one in ranges:
                self.ask("auth/role/grant", {"name": name, "perm": {"permType": kind, **_range(one)}})
        self.ask("auth/user/add", {"name": name, "password": f"secret-of-{name}"})
        self.ask("auth/user/grant", {"user": name, "role": name})
        path = self.directory / f"{name}.password"
        path.write_text(f"secret-of-{name}\n")
        return path

    def signal(self, number: signal.Signals, member: int = 0) -> None:
        """Send a signal to a member: SIGSTOP has it hang."""
        self._processes[member].send_signal(number)

    def kill(self, member: int = 0) -> None:
        """End a member at once; `start` starts it again."""
        process = self._processes.pop(member)
        process.kill()
        process.wait()

    def stop(self, *, keep: bool = False) -> None:
        """End it, and remove what it wrote unless that is to be kept."""
        for member in list(self._processes):
            self.kill(member)
        if not keep:
            for member in self._members:
                shutil.rmtree(self.directory / f"m{member}", ignore_errors=True)

    def end(self) -> None:
        """End it, and its network namespace."""
        self.stop()
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()
            os.close(self.fd)


@contextlib.contextmanager
def running_etcd(directory: Path, **settings: Any) -> Iterator[EtcdServer]:
    """Have an etcd run; it is gone afterwards, whatever happens."""
    server = EtcdServer(directory, **settings)
    try:
        server.start()
        yield server
    finally:
        server.end()


def everything(prefix: str) -> Range:
    """Return where all of a store's objects are."""
    return below(f"{prefix}/".encode())


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _range(where: Range) -> dict[str, str]:
    return {"key": _text(where.key), **({"range_end": _text(where.end)} if where.end else {})}
