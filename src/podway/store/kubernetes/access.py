"""Where a Kubernetes API is, and as whom it is asked: kubeconfig files, and the service account of a pod.

What is in files is read when it is needed, and again when they change: tokens of service accounts last an hour,
and authorities are replaced one day.
"""

import asyncio
import base64
import binascii
import os
import ssl
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from podway.api.documents import parse
from podway.errors import InvalidArgument, InvalidInput, StoreUnavailable
from podway.store.material import Material, client_context
from podway.subprocesses import running

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SERVICE_NAME = "kubernetes.default.svc"
"""A name that the certificate of every API server has, whatever address it is asked at."""

READ_AGAIN = 60.0
"""Seconds after which files are looked at again. A kubelet renews tokens when a fifth of their life is left."""

PLUGIN_TIMEOUT = 30.0
"""Seconds that a plugin may take to say who we are."""

HINT = "a store's URL is kubernetes: (this pod's service account, else KUBECONFIG or ~/.kube/config), or \
kubernetes:///path/of/a/kubeconfig"

T = TypeVar("T")


class Plugin(msgspec.Struct, frozen=True):
    """A program that says who we are (client.authentication.k8s.io)."""

    api_version: str
    command: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    cluster: Mapping[str, Any] | None


class Access(msgspec.Struct, frozen=True):
    """Where the API is and as whom it is asked. `authorities` None: those that the system trusts."""

    servers: tuple[str, ...]
    server_name: str = ""
    authorities: Material | None = None
    verify: bool = True
    certificate: Material | None = None
    key: Material | None = None
    token: Material | None = None
    basic: str = ""
    plugin: Plugin | None = None
    in_cluster: bool = False
    source: str = ""


class Identity:
    """Who asks: the header and the TLS settings for it, kept up to date."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._token = ""
        self._context: ssl.SSLContext | None = None
        self._marks: object = None
        self._looked = -READ_AGAIN
        self._said: _Said | None = None
        self._saying = asyncio.Lock()

    async def present(self) -> tuple[dict[str, str], ssl.SSLContext]:
        """Return the headers to ask with, and the context for new connections. Raises StoreUnavailable."""
        said = await self._ask_plugin() if self._access.plugin is not None else None
        now = time.monotonic()
        if self._context is None or now - self._looked >= READ_AGAIN:
            self._look(said)
            self._looked = now
        assert self._context is not None
        token = said.token if said is not None else self._token
        if token:
            return {"Authorization": f"Bearer {token}"}, self._context
        if self._access.basic:
            return {"Authorization": f"Basic {self._access.basic}"}, self._context
        return {}, self._context

    def refused(self) -> None:
        """Forget who we are: the server does not believe it (any more)."""
        self._looked = -READ_AGAIN
        self._marks = None
        self._said = None

    def _look(self, said: "_Said | None") -> None:
        access = self._access
        if access.token is not None:
            self._token = access.token.read().decode(errors="replace").strip()
        files = (access.authorities, access.certificate, access.key)
        marks = (*(one.mark if one is not None else None for one in files), said.certificate if said else "")
        if self._context is None or marks != self._marks:
            self._context = _context(access, said)
            self._marks = marks

    async def _ask_plugin(self) -> "_Said":
        async with self._saying:
            if self._said is None or self._said.ended:
                assert self._access.plugin is not None
                self._said = await _ask(self._access.plugin)
                self._looked = -READ_AGAIN
            return self._said


def _context(access: Access, said: "_Said | None") -> ssl.SSLContext:
    certificate = key = None
    if said is not None and said.certificate:
        certificate, key = Material(data=said.certificate.encode()), Material(data=said.key.encode())
    elif access.certificate is not None and access.key is not None:
        certificate, key = access.certificate, access.key
    try:
        return client_context(access.authorities, certificate, key, verify=access.verify)
    except (ssl.SSLError, ValueError) as error:
        raise StoreUnavailable(
            f"{access.source}: the certificates for the API server cannot be used: {error}"
        ) from error


class _Said(msgspec.Struct, frozen=True):
    """What a plugin said."""

    token: str
    certificate: str
    key: str
    until: float
    """When it ends, in seconds since 1970."""

    @property
    def ended(self) -> bool:
        return time.time() >= self.until


class _CredentialStatus(msgspec.Struct, rename="camel", frozen=True):
    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""
    expiration_timestamp: str = ""


class _Credential(msgspec.Struct, frozen=True):
    status: _CredentialStatus = _CredentialStatus()


async def _ask(plugin: Plugin) -> _Said:
    spec: dict[str, Any] = {"interactive": False}
    if plugin.cluster is not None:
        spec["cluster"] = plugin.cluster
    info = {"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": spec}
    environment = {
        **os.environ,
        **plugin.environment,
        "KUBERNETES_EXEC_INFO": msgspec.json.encode(info).decode(),
    }
    try:
        async with (
            asyncio.timeout(PLUGIN_TIMEOUT),
            running(
                plugin.command,
                *plugin.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=environment,
            ) as process,
        ):
            output, errors = await process.communicate()
    except TimeoutError as error:  # an OSError, too
        raise StoreUnavailable(
            f"the kubeconfig's plugin {plugin.command} said nothing for {PLUGIN_TIMEOUT:g} s"
        ) from error
    except OSError as error:
        raise StoreUnavailable(
            f"the kubeconfig's plugin {plugin.command} cannot be run: {error.strerror}"
        ) from error
    if process.returncode:
        words = errors.decode(errors="replace").strip().splitlines()
        raise StoreUnavailable(
            f"the kubeconfig's plugin {plugin.command} failed (status {process.returncode}): "
            f"{words[-1] if words else 'it said nothing'}"
        )
    try:
        status = msgspec.json.decode(output, type=_Credential).status
        ends = status.expiration_timestamp
        until = datetime.fromisoformat(ends).timestamp() if ends else float("inf")
    except (msgspec.MsgspecError, ValueError) as error:
        raise StoreUnavailable(
            f"the kubeconfig's plugin {plugin.command} gave no ExecCredential: {error}"
        ) from error
    return _Said(status.token, status.client_certificate_data, status.client_key_data, until)


def find_access(path: Path | None, context: str = "") -> Access:
    """Return the access that a kubeconfig gives; without one the pod's, else that of KUBECONFIG or ~/.kube/config.

    Raises InvalidArgument, InvalidInput and StoreUnavailable.
    """
    if path is not None:
        return read_kubeconfig(path, context)
    if "KUBERNETES_SERVICE_HOST" in os.environ and (SERVICE_ACCOUNT / "token").exists():
        return in_cluster(os.environ, SERVICE_ACCOUNT)
    named = [part for part in os.environ.get("KUBECONFIG", "").split(":") if part]
    return read_kubeconfig(Path(named[0]) if named else Path.home() / ".kube/config", context)


def in_cluster(environment: Mapping[str, str], directory: Path) -> Access:
    """Return the access of a pod: its service account's token and the cluster's authorities."""
    host, port = environment["KUBERNETES_SERVICE_HOST"], environment.get("KUBERNETES_SERVICE_PORT", "443")
    return Access(
        servers=(f"https://{f'[{host}]' if ':' in host else host}:{port}",),
        server_name=SERVICE_NAME,
        authorities=Material(path=directory / "ca.crt"),
        token=Material(path=directory / "token"),
        in_cluster=True,
        source="this pod's service account",
    )


class _Variable(msgspec.Struct, frozen=True):
    name: str
    value: str = ""


class _Exec(msgspec.Struct, rename="camel", frozen=True):
    command: str
    api_version: str = "client.authentication.k8s.io/v1"
    args: tuple[str, ...] = ()
    env: tuple[_Variable, ...] = ()
    provide_cluster_info: bool = False


class _User(msgspec.Struct, rename="kebab", frozen=True):
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    token: str = ""
    token_file: str = msgspec.field(default="", name="tokenFile")
    username: str = ""
    password: str = ""
    exec: _Exec | None = None


class _Cluster(msgspec.Struct, rename="kebab", frozen=True):
    server: str = ""
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    tls_server_name: str = ""
    insecure_skip_tls_verify: bool = False


class _Context(msgspec.Struct, frozen=True):
    cluster: str = ""
    user: str = ""


class _Named(msgspec.Struct, frozen=True):
    name: str
    cluster: _Cluster = _Cluster()
    user: _User = _User()
    context: _Context = _Context()


class _Kubeconfig(msgspec.Struct, rename="kebab", frozen=True):
    clusters: tuple[_Named, ...] = ()
    users: tuple[_Named, ...] = ()
    contexts: tuple[_Named, ...] = ()
    current_context: str = ""


def read_kubeconfig(path: Path, context: str = "") -> Access:
    """Return the access that a kubeconfig's context gives, its current one unless another is named.

    Raises InvalidInput and StoreUnavailable, which name the file.
    """
    try:
        documents = list(parse(path.read_text(), source=str(path)))
    except FileNotFoundError as error:
        raise StoreUnavailable(f"there is no kubeconfig {path}", hint=HINT) from error
    except (OSError, UnicodeDecodeError) as error:
        raise StoreUnavailable(f"the kubeconfig {path} cannot be read: {error}") from error
    if len(documents) != 1:
        raise InvalidInput(f"{path} is no kubeconfig: it has {len(documents)} documents")
    try:
        config = msgspec.convert(documents[0].value, _Kubeconfig)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{path} is no kubeconfig: {error}") from error
    wanted = context or config.current_context
    if not wanted:
        raise InvalidInput(f"kubeconfig {path} has no current-context", hint="name one: ?context=NAME")
    chosen = _named(config.contexts, wanted, f"{path}: context").context
    cluster = _named(config.clusters, chosen.cluster, f"{path}: cluster").cluster
    user = _named(config.users, chosen.user, f"{path}: user").user if chosen.user else _User()
    if not cluster.server.startswith("https://"):
        raise InvalidInput(f"{path}: cluster {chosen.cluster} has no server https://…, but {cluster.server!r}")
    return _access(path, cluster, user)


def _access(path: Path, cluster: _Cluster, user: _User) -> Access:
    def material(data: str, file: str, what: str) -> Material | None:
        if data:
            try:
                return Material(data=base64.b64decode(data, validate=True))
            except (binascii.Error, ValueError) as error:
                raise InvalidInput(f"{path}: {what}-data is not base64") from error
        return Material(path=path.parent / file) if file else None

    token = Material(path=path.parent / user.token_file) if user.token_file else None
    if user.token:
        token = Material(data=user.token.encode())
    basic = base64.b64encode(f"{user.username}:{user.password}".encode()).decode() if user.username else ""
    authorities = material(
        cluster.certificate_authority_data, cluster.certificate_authority, "certificate-authority"
    )
    return Access(
        servers=(cluster.server.rstrip("/"),),
        server_name=cluster.tls_server_name,
        authorities=authorities,
        verify=not cluster.insecure_skip_tls_verify,
        certificate=material(user.client_certificate_data, user.client_certificate, "client-certificate"),
        key=material(user.client_key_data, user.client_key, "client-key"),
        token=token,
        basic=basic,
        plugin=_plugin(path, user.exec, cluster, authorities) if user.exec is not None else None,
        source=str(path),
    )


def _plugin(path: Path, stated: _Exec, cluster: _Cluster, authorities: Material | None) -> Plugin:
    told: dict[str, Any] | None = None
    if stated.provide_cluster_info:
        told = {"server": cluster.server}
        if authorities is not None:
            told["certificate-authority-data"] = base64.b64encode(authorities.read()).decode()
    # A command with a slash is relative to the kubeconfig's directory (client-go, tools/clientcmd).
    command = str(path.parent / stated.command) if "/" in stated.command else stated.command
    return Plugin(stated.api_version, command, stated.args, {one.name: one.value for one in stated.env}, told)


def _named(items: tuple[_Named, ...], name: str, what: str) -> _Named:
    for item in items:
        if item.name == name:
            return item
    there = ", ".join(item.name for item in items) or "none"
    raise InvalidArgument(f"{what} {name!r} does not exist", hint=f"there is: {there}")
