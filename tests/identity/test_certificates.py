"""Certificates as OpenSSL's own command sees them, and handshakes between their holders."""

import asyncio
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from podway.errors import AgentError
from podway.identity import apart, tls
from podway.identity.orders import SKEW, CertificateOrder
from podway.identity.tls import Credentials
from tests.identity.authorities import HOUR, OTHER_CLUSTER, authority, node, operator


def test_openssl_accepts_a_node_for_both_uses_and_an_operator_as_a_client_only(tmp_path: Path) -> None:
    signer = authority()
    (tmp_path / "ca.pem").write_text(signer.certificate)

    def verify(credentials: Credentials, purpose: str) -> str:
        (tmp_path / "leaf.pem").write_text(credentials.certificate.certificate)
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", "ca.pem", "leaf.pem"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return (done.stdout + done.stderr).splitlines()[-1 if done.returncode else 0]

    assert verify(node(signer), "sslserver") == "leaf.pem: OK"
    assert verify(node(signer), "sslclient") == "leaf.pem: OK"
    assert verify(operator(signer), "sslclient") == "leaf.pem: OK"
    assert "failed" in verify(operator(signer), "sslserver")


def test_a_certificate_begins_early_and_ends_with_its_authority() -> None:
    now = time.time()
    signer = authority(now=now, lifetime=HOUR)
    certificate = node(signer, now=now, lifetime=24 * HOUR).certificate
    assert certificate.not_before.timestamp() == int(now) - SKEW
    assert certificate.not_after == signer.not_after


def test_a_certificate_made_apart_is_like_one_made_here() -> None:
    signer = authority()
    order = CertificateOrder(signer, "spiffe://x/node/n", time.time(), HOUR, server=True)
    made = asyncio.run(apart.fulfil(order))
    assert made.private_key != signer.private_key
    tls.server_context(Credentials("x", made, (signer.certificate,)))


def test_an_authority_that_is_none_is_an_error_in_words() -> None:
    broken = msgspec.structs.replace(authority(), certificate="no certificate")
    with pytest.raises(AgentError, match="no certificate could be made: ValueError"):
        asyncio.run(apart.fulfil(CertificateOrder(broken, "spiffe://x/operator", time.time(), HOUR)))


def _handshake(server: Credentials, client: ssl.SSLContext) -> tuple[str, str]:
    """Return what the server and what the client came to know: the other's name, or what was wrong."""
    ours, theirs = socket.socketpair()

    def one_side(context: ssl.SSLContext, sock: socket.socket, *, serving: bool) -> str:
        sock.settimeout(60)
        try:
            with context.wrap_socket(sock, server_side=serving) as secure:
                if serving:
                    secure.sendall(b"hello")
                else:
                    secure.recv(5)  # in TLS 1.3 a client hears only now what the server thinks of it
                return tls.holder(secure)
        except ssl.SSLError as error:
            return tls.explain(error)

    with ours, theirs, ThreadPoolExecutor(1) as thread:
        answer = thread.submit(one_side, tls.server_context(server), ours, serving=True)
        return one_side(client, theirs, serving=False), answer.result()


def test_members_of_one_cluster_learn_each_others_names() -> None:
    signer = authority()
    found, asker = _handshake(node(signer, "node7"), tls.client_context(operator(signer)))
    assert found.endswith("/node/node7")
    assert asker.endswith("/operator")


OURS, OTHER = authority(), authority(OTHER_CLUSTER)
EXPIRED = time.time() - 2 * HOUR


def _without_certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=OURS.certificate)
    return context


def _old_tls() -> ssl.SSLContext:
    context = tls.client_context(operator(OURS))
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    return context


@pytest.mark.parametrize(
    ("server", "client", "client_says", "server_says"),
    [
        pytest.param(
            lambda: node(OURS),
            lambda: tls.client_context(operator(OTHER, cluster=OTHER_CLUSTER, trusted=(OURS,))),
            "refused us: our certificate is of another cluster",
            "shows a certificate that is of another cluster",
            id="client of another cluster",
        ),
        pytest.param(
            lambda: node(OTHER, cluster=OTHER_CLUSTER),
            lambda: tls.client_context(operator(OURS)),
            "shows a certificate that is of another cluster",
            "refused us: our certificate is of another cluster",
            id="server of another cluster",
        ),
        pytest.param(
            lambda: node(OURS),
            lambda: tls.client_context(operator(OURS, now=EXPIRED)),
            "refused us: our certificate has expired",
            "shows a certificate that has expired",
            id="client expired",
        ),
        pytest.param(
            lambda: node(OURS, now=EXPIRED),
            lambda: tls.client_context(operator(OURS)),
            "shows a certificate that has expired",
            "refused us: our certificate has expired",
            id="server expired",
        ),
        pytest.param(
            lambda: node(OURS),
            lambda: tls.client_context(operator(OURS, now=time.time() + 2 * SKEW)),
            "refused us: our certificate is not valid; is its clock behind?",
            "shows a certificate that is not valid yet: compare the clocks",
            id="client from the future",
        ),
        pytest.param(
            lambda: operator(OURS),
            lambda: tls.client_context(operator(OURS)),
            "shows a certificate that was not made for this use",
            "refused us: our certificate was not made for this use",
            id="an operator poses as a node",
        ),
        pytest.param(
            lambda: node(OURS),
            _without_certificate,
            "refused us: it asks for a certificate, and we showed none",
            "shows no certificate",
            id="no certificate",
        ),
        pytest.param(
            lambda: node(OURS),
            _old_tls,
            "refused us: it does not speak our version of TLS",
            "does not speak TLS 1.3",
            id="TLS 1.2",
        ),
    ],
)
def test_a_refusal_is_told_on_both_sides(
    server: Callable[[], Credentials], client: Callable[[], ssl.SSLContext], client_says: str, server_says: str
) -> None:
    found = _handshake(server(), client())
    assert [text.startswith(said) for text, said in zip(found, (client_says, server_says), strict=True)] == [
        True,
        True,
    ], found


def test_both_authorities_are_believed_while_one_replaces_the_other() -> None:
    old, new = authority(), authority()
    both = (old, new)
    for server, client in ((old, new), (new, old)):
        found, _ = _handshake(node(server, trusted=both), tls.client_context(operator(client, trusted=both)))
        assert found.endswith("/node/node1")
