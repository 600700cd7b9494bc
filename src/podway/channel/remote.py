"""Ask agents of other nodes, over the channel (podway.channel.server)."""

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, TypeAlias

from podway.api.addresses import Address
from podway.api.kinds.cluster_authority import KEYS, KEYS_SPACE, ClusterAuthority, ClusterAuthoritySpec
from podway.api.kinds.network_config import ChannelSettings, NetworkConfig
from podway.api.kinds.node import Node
from podway.api.resource import Resource
from podway.channel.client import TIMEOUT, exchange, result_of
from podway.errors import AgentError, InvalidInput
from podway.identity import rotation, tls
from podway.identity.orders import CertificateOrder, node_uri, operator_uri

OPERATOR_LIFETIME = 3600
"""Seconds that a command's certificate is valid: so far may an agent's clock be ahead."""

Reach: TypeAlias = Callable[[str, int, float], socket.socket]
"""Opens a TCP connection to an address and port within a time in seconds. Raises OSError."""


def direct(address: str, port: int, timeout: float) -> socket.socket:
    """Reach a node from where this process is."""
    return socket.create_connection((address, port), timeout)


class RemoteAgents:
    """The agents of a cluster.

    `resources` is a listing of the store: it tells where the nodes are, and who may ask them, by the authorities
    with their keys (podway.identity.keeper.operators). Calls may be made from several threads at once.
    """

    def __init__(self, resources: Iterable[Resource], *, reach: Reach = direct) -> None:
        found = tuple(resources)
        self.nodes = {obj.metadata.name: obj for obj in found if isinstance(obj, Node)}
        self._authority = next((obj.spec for obj in found if isinstance(obj, ClusterAuthority)), None)
        configured = (obj.spec.channel for obj in found if isinstance(obj, NetworkConfig))
        self._settings = next(configured, ChannelSettings())
        self._reach = reach

    def call(self, node: str, method: str, *, timeout: float = TIMEOUT, **params: Any) -> Any:
        """Call a method of a node's agent; return its result.

        Raises InvalidInput if there is no such node, and AgentError, naming node and address, if its agent
        does not answer in time (seconds), is none of this cluster's, or answers with an error.
        """
        if node not in self.nodes:
            raise InvalidInput(f"no node {node!r}", hint=f"there are {', '.join(sorted(self.nodes)) or 'none'}")
        addresses = self.nodes[node].internal_addresses
        if not addresses:
            raise AgentError(f"Node/{node} has no address", hint="its agent writes it: start that")
        return call_node(
            node,
            addresses,
            self._settings.port,
            method,
            credentials=self._credentials,
            reach=self._reach,
            timeout=timeout,
            **params,
        )

    @cached_property
    def _credentials(self) -> tls.Credentials:
        if self._authority is None or not self._authority.authorities:
            raise AgentError(
                "this cluster has no certificates yet", hint="its agents make them: start one, or wait a moment"
            )
        return operator_credentials(self._authority, self._settings)


def operator_credentials(spec: ClusterAuthoritySpec, settings: ChannelSettings) -> tls.Credentials:
    """Issue a certificate for a command of someone who may read the cluster's authorities.

    Raises AgentError for one who may not.
    """
    from podway.identity import certificates, keeper

    now = time.time()
    signers = keeper.signers(spec)
    if not signers.authorities:
        raise AgentError(
            "the keys of this cluster's certificate authorities are not known here",
            hint=f"whoever may read Secret {KEYS} in the namespace {KEYS_SPACE} may ask agents over the network; "
            "whoever may make tokens of ServiceAccount podway-viewer (namespace podway), through the API server",
        )
    signer = rotation.signer(signers, settings.certificate_lifetime_seconds, now)
    order = CertificateOrder(signer, operator_uri(spec.cluster), now, OPERATOR_LIFETIME)
    trusted = tuple(one.certificate for one in spec.authorities)
    return tls.Credentials(spec.cluster, certificates.fulfil(order), trusted)


def call_node(
    node: str,
    addresses: Iterable[Address],
    port: int,
    method: str,
    /,  # parameters of methods may have these names, too
    *,
    credentials: tls.Credentials,
    reach: Reach = direct,
    timeout: float = TIMEOUT,
    **params: Any,
) -> Any:
    """Call a method of the agent of `node`, at the first of its addresses that can be reached.

    Returns its result. Raises AgentError, which names the node and its address.
    """
    deadline = time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        connection, address = _connect(node, tuple(addresses), port, reach, timeout)
        stack.callback(connection.close)
        agent = f"agent of {node} at {address} port {port}"
        try:
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            # Else the request waits 40 ms for an acknowledgement of the handshake's end (Nagle's algorithm).
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secure = stack.enter_context(tls.client_context(credentials).wrap_socket(connection))
            _check_holder(secure, agent, node_uri(credentials.cluster, node))
            line = exchange(secure, method, params, deadline)
        except ssl.SSLError as error:
            raise AgentError(f"the {agent} {tls.explain(error)}", hint=_HINT) from error
        except TimeoutError as error:
            raise AgentError(
                f"the {agent} did not answer `{method}` within {timeout:g} s", hint="look at its log"
            ) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise AgentError(f"the {agent} broke off: {reason}", hint="look at its log") from error
    return result_of(line, agent, method)


_HINT = (
    "is the store that was named (--store) the one of that node's agent? Do the clocks of both machines agree? "
    "An agent renews its certificate by itself: `podway status` on its node tells if it cannot"
)


def _connect(
    node: str, addresses: tuple[Address, ...], port: int, reach: Reach, timeout: float
) -> tuple[socket.socket, Address]:
    failures = []
    deadline = time.monotonic() + timeout
    for tried, address in enumerate(addresses):
        # A silent address must leave time for the next.
        share = max(0.01, deadline - time.monotonic()) / (len(addresses) - tried)
        try:
            return reach(str(address), port, share), address
        except OSError as error:
            reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
            failures.append(f"{address} port {port}: {reason}")
    raise AgentError(
        f"the agent of {node} cannot be reached ({'; '.join(failures)})",
        hint=f"does it run, and does a firewall let TCP port {port} pass? `podway status` on {node} tells",
    )


def _check_holder(secure: ssl.SSLSocket, agent: str, expected: str) -> None:
    found = tls.holder(secure)
    if found != expected:
        raise AgentError(
            f"the {agent} is not who was meant: its certificate is that of {found or 'nobody'}",
            hint="do two nodes have one address? `podway get nodes` shows where each should be",
        )
