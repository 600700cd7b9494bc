"""The agents that a command may ask, here and on other nodes, and what they know of routes and sessions."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click
import msgspec

from podway.agent.options import DEFAULT_RUN_DIR
from podway.api.kinds.cluster_authority import AUTHORITY, KEYS, KEYS_SPACE, ClusterAuthority
from podway.api.kinds.network_config import NetworkConfig, NetworkConfigSpec
from podway.api.kinds.node import Node
from podway.api.resource import Resource, of_kind
from podway.channel.client import call, is_served, result_of
from podway.cli.options import GlobalOptions, read_all
from podway.errors import AgentError, LabError, NeedsRoot, NotFound, PodwayError, StoreError, StoreForbidden
from podway.lab.names import require_lab_name
from podway.lab.paths import lab_dir
from podway.store.base import Store
from podway.store.open import is_kubernetes
from podway.suggestion import did_you_mean

if TYPE_CHECKING:
    from podway.store.kubernetes.relay import Question
    from podway.store.kubernetes.store import KubernetesStore

Row = TypeVar("Row", bound=msgspec.Struct)

Ask: TypeAlias = Callable[..., Any]
"""Calls a method of one agent by its name, with its parameters; returns the result. Raises AgentError."""

HOST_SOCKET = DEFAULT_RUN_DIR / "agent.sock"
HOST = "this host"

PATIENCE = 5.0
"""Seconds to wait for the agent of another node: a person waits too."""

AT_ONCE = 16
"""How many agents are asked at the same time: one that is dead must not keep the others waiting."""


class PeerRow(msgspec.Struct, frozen=True):
    """One BGP session of one node.

    `node` is the node at the other end, empty for an outside peer, of which `peer` is the BGPPeer's name. `role`
    is what the other end is to this node: `node`, `reflector`, `client` (of this reflector) or `outside`.
    """

    on: str
    name: str
    node: str
    address: str
    asn: int
    state: str
    since: datetime
    last_error: str = ""
    bfd: str = ""
    imported: int = 0
    exported: int = 0
    peer: str = ""
    role: str = "node"


class NextHopRow(msgspec.Struct, frozen=True):
    """Where a route leads."""

    gateway: str
    device: str


class RouteRow(msgspec.Struct, frozen=True):
    """The route of one node to a block, or to a network that an outside peer advertised.

    `node` owns the block. `protocol` is `own`, `bgp`, `store`, or the rtm_protocol of somebody else's route that
    comes first; `session` the BGP session that told it. `encapsulation` is that of packets that follow it.
    """

    on: str
    network: str
    protocol: str
    in_kernel: bool
    node: str = ""
    pool: str = ""
    encapsulation: str = "none"
    next_hops: tuple[NextHopRow, ...] = ()
    session: str = ""
    since: datetime | None = None


def agents(
    options: GlobalOptions, names: Collection[str] = (), *, remote: bool = False, relayed: bool = True
) -> dict[str, Ask]:
    """Return how to ask the agents of the nodes named (none: of all nodes), by node.

    Those of this machine are asked over their unix sockets, unless `remote` is true. Where a store was named,
    the other nodes are asked over the channel: the store tells where they are, and lets us in. What the
    controller does not relay (podway.store.kubernetes.relay) is asked with `relayed` false.

    Raises NotFound for a name without node, AgentError or LabError if no agent is known at all, AgentError if
    none can be asked directly where that is needed; NeedsRoot, StoreError.
    """
    if remote:
        found = _over_channel(options, relayed=relayed)
    elif options.store is None:
        found = _over_sockets(options)
    else:
        found = _of_cluster(options, relayed=relayed)
    if not found:
        raise _nobody(options)
    names = [name.removeprefix("node/") for name in names]
    for name in names:
        if name not in found:
            hint = did_you_mean(name, found, otherwise=f"there are {', '.join(found)}")
            raise NotFound(f"there is no node {name!r} here", hint=hint)
    return {name: found[name] for name in names or found}


def _nobody(options: GlobalOptions) -> AgentError | LabError:
    """Return the error for a cluster of which no agent can be asked."""
    if options.store is not None:
        return AgentError("the store knows no node with an agent", hint="start one there: podway agent")
    if lab_dir(options.lab).exists():
        return AgentError(
            f"no agent runs in the lab {options.lab!r}", hint="start one: podway lab node start NODE"
        )
    missing = options.unknown_lab()
    return LabError(f"{missing.message}, and no agent on this host", hint=missing.hint)


def asker(options: GlobalOptions, hosts: Mapping[str, Ask] = MappingProxyType({}), *, remote: bool = False) -> Ask:
    """Return how to call an agent by its node's name, or one of the `hosts` beside the cluster; as `agents` does.

    Who does not answer within PATIENCE is not waited for.
    """
    asked = {**hosts, **agents(options, remote=remote)}
    if HOST in asked:  # the agent of this machine, whose name only itself can tell
        asked[asked[HOST]("status")["node"]] = asked[HOST]

    def ask(node: str, method: str, **params: Any) -> Any:
        if node not in asked:
            raise AgentError(f"no agent of node {node} can be asked from here", hint="see `podway status`")
        return asked[node](method, timeout=PATIENCE, **params)

    return ask


def ask_all(asked: Mapping[str, Ask], method: str, **params: Any) -> dict[str, Any]:
    """Call a method of several agents at once; return by node what each answered, or its AgentError."""
    from concurrent.futures import ThreadPoolExecutor

    def ask(one: Ask) -> Any:
        try:
            return one(method, **params)
        except AgentError as error:
            return error

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return dict(zip(asked, threads.map(ask, asked.values()), strict=True))


def fallbacks_here(options: GlobalOptions, resources: Iterable[Resource]) -> dict[str, str]:
    """Return which nodes do without the flow engine, where settings leave that to them, and why.

    Who cannot be asked is taken to have it: what it should hold is to be proved all the more.
    """
    spec = next((one.spec for one in of_kind(NetworkConfig, resources)), NetworkConfigSpec())
    if spec.data_path != "auto":
        return {}
    try:
        return fallbacks_of(ask_all(agents(options), "status"))
    except PodwayError:
        return {}


def fallbacks_of(answers: Mapping[str, Any]) -> dict[str, str]:
    """Return the same by what agents answered to `status` (`ask_all`)."""
    return {
        str(answer["node"]): reason
        for answer in answers.values()
        if not isinstance(answer, AgentError) and (reason := answer["data_path"].get("fallback", ""))
    }


WITNESSES, WITNESS_SECONDS = 3, 1.0
"""How many agents are asked whether they still have routes to the others' blocks, and how long each may take."""


def doubts(options: GlobalOptions) -> dict[str, str]:
    """Return of which nodes it shows already that they are gone, before their heartbeats are missed, in words.

    Agents of this machine are asked, no others: where BGP withdrew the routes to a node's blocks, it is dead or
    cut off; in a lab an agent whose socket nobody serves does not run.
    """
    sockets = {name: path for name, path in _sockets(options).items() if _same_cluster(options, path)}
    running = {name for name, path in sockets.items() if is_served(path)}
    found: dict[str, set[str]] = {}
    has_routes: set[str] = set()
    for name in sorted(running)[:WITNESSES]:
        with contextlib.suppress(AgentError, NeedsRoot):
            for route in call(sockets[name], "routes", timeout=WITNESS_SECONDS):
                if route.get("in_kernel"):
                    has_routes.add(route.get("node", ""))
                elif route.get("node"):
                    found.setdefault(route["node"], set()).add(name)
    told = {}
    for node in {*found, *sockets} - {HOST}:
        if node in found and node not in has_routes:
            told[node] = f"no route from {', '.join(sorted(found[node]))}"
        elif node in sockets and node not in running:
            told[node] = "does not run"
    return told


def _same_cluster(options: GlobalOptions, path: Path) -> bool:
    """Tell whether an agent works with the store that was named, if one was."""
    if options.store is None:
        return True
    try:
        return bool(call(path, "status", timeout=WITNESS_SECONDS)["store"]["url"] == options.store)
    except (AgentError, NeedsRoot):
        return False


def _sockets(options: GlobalOptions) -> dict[str, Path]:
    """Return where agents of this machine are asked: the lab's, or where no lab stands this host's."""
    nodes = lab_dir(options.lab) / "nodes"
    found = (
        {path.parent.name: path for path in sorted(nodes.glob("*/agent.sock"))} if options.store is None else {}
    )
    return found or ({HOST: HOST_SOCKET} if HOST_SOCKET.exists() else {})


def _over_sockets(options: GlobalOptions) -> dict[str, Ask]:
    """Return the agents of the lab, or of this host where no lab stands."""
    require_lab_name(options.lab)
    nodes = lab_dir(options.lab) / "nodes"
    if nodes.exists() and not os.access(nodes, os.R_OK | os.X_OK):
        raise NeedsRoot(f"looking into the lab {options.lab!r}")
    return {name: partial(call, path) for name, path in _sockets(options).items()}


async def _with_keys(store: Store) -> tuple[Resource, ...]:
    """Return all objects, with the keys of the authorities, if whoever asks may read them."""
    from podway.identity.keeper import operators

    found = (await read_all(store)).items
    try:
        return tuple(
            [
                msgspec.structs.replace(obj, spec=await operators(store, obj))
                if isinstance(obj, ClusterAuthority)
                else obj
                for obj in found
            ]
        )
    except StoreForbidden:
        return found  # what needs them says so


def _over_channel(options: GlobalOptions, *, relayed: bool) -> dict[str, Ask]:
    """Return the agents of all nodes in the store.

    Who stands on no node asks through the API server if he can, and if this is `relayed`.
    """
    kubernetes = options.store is not None and is_kubernetes(options.store)
    if kubernetes and not relayed:
        options.run(_require_keys)
    elif kubernetes and not HOST_SOCKET.exists():
        found = _relayed(options, str(options.store))
        if found is not None:
            return found
    return _directly(options)


def _directly(options: GlobalOptions) -> dict[str, Ask]:
    """Return the agents of all nodes in the store as they are asked over the channel."""
    from podway.channel.remote import RemoteAgents, direct
    from podway.lab.reach import from_a_node

    listing = options.run(_with_keys)
    reach = direct if options.store is not None else from_a_node(options.lab)
    cluster = RemoteAgents(listing, reach=reach)
    return {node: partial(cluster.call, node, timeout=PATIENCE) for node in cluster.nodes}


async def _require_keys(store: Store) -> None:
    """Raise AgentError if whoever asks may not read the keys, before he hears of lesser rights that he lacks."""
    from podway.identity.keeper import operators

    try:
        await operators(store, await store.get(ClusterAuthority, AUTHORITY))
    except NotFound:
        return  # there are none yet, which the agents' own error says
    except StoreForbidden as error:
        raise AgentError(
            "agents are asked for this directly, not through the API server, and the keys of the cluster's "
            f"certificate authorities cannot be read: {error.message}",
            hint=f"use a kubeconfig with which `kubectl -n {KEYS_SPACE} get secret {KEYS}` succeeds, where the "
            "nodes can be reached; or run the command on the pod's node, as root",
        ) from error


def _relayed(options: GlobalOptions, url: str) -> dict[str, Ask] | None:
    """Return the agents as the controller asks them for us, None if it does not, or we may not ask it to.

    Where none works at the moment, agents are asked directly, if we may ask them ourselves.
    """
    from podway.store.kubernetes.relay import get_token
    from podway.store.kubernetes.store import KubernetesStore

    async def look(store: Store) -> tuple[str, list[str]] | None:
        assert isinstance(store, KubernetesStore)
        try:
            token = await get_token(store)
        except StoreForbidden:
            return None  # he may have the right to ask agents himself
        return None if token is None else (token, [one.metadata.name for one in (await store.list(Node)).items])

    found = options.run(look)
    if found is None:
        return None
    token, nodes = found
    relayed = _Relayed(options, url, token)
    return {node: partial(relayed.call, node) for node in nodes}


class _Relayed:
    """Asks agents through the API server and the controller; directly from when no controller answers on.

    All questions of a command go over the same connections, whichever thread asks.
    """

    def __init__(self, options: GlobalOptions, url: str, token: str) -> None:
        self._options, self._url, self._token = options, url, token
        self._loop = asyncio.new_event_loop()
        self._store: KubernetesStore | None = None
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        if (ctx := click.get_current_context(silent=True)) is not None:
            ctx.call_on_close(lambda: asyncio.run_coroutine_threadsafe(self._close(), self._loop).result())
        self._failing = threading.Lock()
        self._failed = False
        self._direct: Mapping[str, Ask] = MappingProxyType({})

    def call(self, node: str, method: str, *, timeout: float = PATIENCE, **params: Any) -> Any:
        """Call a method of a node's agent. Raises AgentError."""
        from podway.store.kubernetes.relay import Question

        if node in self._direct:
            return self._direct[node](method, timeout=timeout, **params)
        question = self._ask(Question(node, method, params, timeout))
        try:
            line = asyncio.run_coroutine_threadsafe(question, self._loop).result()
        except StoreError as error:
            if node in self._found_otherwise():
                return self._direct[node](method, timeout=timeout, **params)
            raise AgentError(
                f"the agent of {node} cannot be asked through the API server: {error.message}",
                hint=error.hint or "does the controller run (`kubectl -n podway get pods`)?",
            ) from error
        return result_of(line, f"agent of {node}", method)

    async def _ask(self, question: "Question") -> bytes:
        from podway.store.kubernetes.relay import ask
        from podway.store.kubernetes.store import KubernetesStore
        from podway.store.open import open_store

        if self._store is None:
            opened = open_store(self._url)
            assert isinstance(opened, KubernetesStore)
            self._store = opened
        return await ask(self._store, self._token, question)

    async def _close(self) -> None:
        if self._store is not None:
            await self._store.close()

    def _found_otherwise(self) -> Mapping[str, Ask]:
        """Return the agents as they are asked directly: none if we have not the keys for it. Looked up once."""
        with self._failing:  # several are asked at once, and fail alike
            if not self._failed:
                self._failed = True
                with contextlib.suppress(AgentError, StoreError):
                    self._options.run(_require_keys)
                    self._direct = _directly(self._options)
        return self._direct


def _of_cluster(options: GlobalOptions, *, relayed: bool) -> dict[str, Ask]:
    """Return the agents of all nodes in the store, this host's own over its socket."""
    if not HOST_SOCKET.exists():
        return _over_channel(options, relayed=relayed)
    own = partial(call, HOST_SOCKET)
    try:
        found = _over_channel(options, relayed=relayed)
        name = own("status")["node"]
    except (StoreError, AgentError) as error:
        click.echo(f"podway: other nodes are left out: {error}", err=True)
        return {HOST: own}
    return found | {name: own}


def peers(options: GlobalOptions, names: Collection[str]) -> list[PeerRow]:
    """Return the BGP sessions of all nodes, or of those named."""
    return list(_rows(options, names, "peers", PeerRow))


def routes(options: GlobalOptions, names: Collection[str]) -> list[RouteRow]:
    """Return the routes to pods' blocks on all nodes, or on those named."""
    return list(_rows(options, names, "routes", RouteRow))


def _rows(options: GlobalOptions, names: Collection[str], method: str, row: type[Row]) -> Iterator[Row]:
    """Yield what agents answer; those that do not are told of on standard error, and raised if none does."""
    answers = ask_all(agents(options, names), method)
    failures = [answer for answer in answers.values() if isinstance(answer, AgentError)]
    if len(failures) == len(answers):
        raise failures[0]
    for failure in failures:
        click.echo(f"podway: {failure}", err=True)
    for on, answer in answers.items():
        if not isinstance(answer, AgentError):
            for entry in answer:
                yield msgspec.convert({"on": on, **entry}, row)
