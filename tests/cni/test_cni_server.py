"""The agent's end: descriptors, many requests at once, clients and networks that misbehave."""

import asyncio
import errno
import logging
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from podway.cni import spec
from podway.cni.answers import cni_error
from podway.cni.frames import REQUEST_HEADER
from podway.cni.server import CniServer
from podway.errors import (
    AddressUnavailable,
    AgentError,
    CniError,
    KernelError,
    LabError,
    PodwayError,
    PoolExhausted,
    StoreTooNew,
    StoreUnavailable,
)
from tests.cni.cni_runtime import MemoryNetwork, Runtime, serving
from tests.patience import PATIENCE

pytestmark = pytest.mark.kernel


def descriptors() -> set[str]:
    """What this process holds open, network namespaces and sockets above all."""
    held = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            held.add(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue  # the listing's own
    return held


def settles(condition: object) -> bool:
    assert callable(condition)
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_the_socket_is_its_owners_and_goes_with_the_server(runtime: Runtime) -> None:
    with serving(runtime, MemoryNetwork()):
        assert runtime.socket.stat().st_mode & 0o777 == 0o600
        assert runtime.spool.stat().st_mode & 0o777 == 0o700
    assert not runtime.socket.exists()


def test_a_stale_socket_file_is_replaced(runtime: Runtime) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(runtime.socket))
    with serving(runtime, MemoryNetwork()):
        assert runtime.run("STATUS").status == 0


def test_a_second_agent_is_refused_and_the_first_unharmed(runtime: Runtime, agent: CniServer) -> None:
    with pytest.raises(AgentError, match="another agent"), serving(runtime, MemoryNetwork()):
        pass
    assert runtime.run("STATUS").status == 0


def test_no_descriptor_is_left_behind(
    runtime: Runtime, agent: CniServer, network: MemoryNetwork, netns: str
) -> None:
    async def fail() -> None:
        raise RuntimeError("broken")

    others = descriptors()  # of what other tests share
    runtime.run("ADD", CNI_NETNS=netns)
    assert settles(lambda: not any("net:" in d for d in descriptors() - others))
    before = descriptors()
    for command in ("ADD", "CHECK", "DEL", "STATUS"):
        runtime.run(command, CNI_NETNS=netns)
    runtime.run("ADD", b"{", CNI_NETNS=netns)
    network.before_add = fail
    assert runtime.run("ADD", CNI_NETNS=netns).status == 1
    assert settles(lambda: descriptors() <= before)


def test_requests_do_not_wait_for_each_other(
    runtime: Runtime, agent: CniServer, network: MemoryNetwork, netns: str
) -> None:
    everybody = 20
    arrived = 0
    complete = asyncio.Event()

    async def wait_for_all() -> None:
        nonlocal arrived
        arrived += 1
        if arrived == everybody:
            complete.set()
        await complete.wait()

    network.before_add = wait_for_all
    with ThreadPoolExecutor(everybody) as pool:
        answers = list(
            pool.map(lambda n: runtime.run("ADD", CNI_NETNS=netns, CNI_CONTAINERID=f"c{n}"), range(everybody))
        )
    assert len({answer.output["ips"][0]["address"] for answer in answers}) == everybody


def test_a_mistake_of_ours_is_an_answer_and_a_traceback(
    runtime: Runtime, agent: CniServer, network: MemoryNetwork, netns: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise ZeroDivisionError("one by nothing")

    network.before_add = fail
    answer = runtime.run("ADD", CNI_NETNS=netns)
    assert (answer.status, answer.output["code"]) == (1, spec.Code.INTERNAL)
    assert "one by nothing" in answer.output["msg"]
    assert any(record.exc_info for record in caplog.records)
    assert runtime.run("STATUS").status == 0


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        REQUEST_HEADER.pack(spec.MAGIC, 1 << 30, 0, -1),
        REQUEST_HEADER.pack(spec.MAGIC, 0, 1, -1),
    ],
)
def test_a_client_that_is_no_shim_is_dropped(
    runtime: Runtime, agent: CniServer, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(runtime.socket))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        client.settimeout(PATIENCE)
        assert client.recv(1) == b""
    assert "CNI request refused" in caplog.text
    assert runtime.run("STATUS").status == 0


def test_a_client_that_leaves_before_its_answer_harms_nobody(runtime: Runtime, agent: CniServer) -> None:
    environment = b"CNI_COMMAND=STATUS\0"
    config = b'{"cniVersion":"1.1.0","name":"podway"}'
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(runtime.socket))
        client.sendall(REQUEST_HEADER.pack(spec.MAGIC, len(environment), len(config), -1) + environment + config)
    assert runtime.run("STATUS").status == 0


def test_a_request_in_pieces_is_put_together(runtime: Runtime, agent: CniServer) -> None:
    environment = b"CNI_COMMAND=STATUS\0"
    config = b'{"cniVersion":"1.1.0","name":"podway"}'
    frame = REQUEST_HEADER.pack(spec.MAGIC, len(environment), len(config), -1) + environment + config
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(runtime.socket))
        client.settimeout(PATIENCE)
        for n in range(len(frame)):
            client.sendall(frame[n : n + 1])
        assert client.recv(100)[4:8] == b"\0\0\0\0"


def test_closing_finishes_what_is_under_way(runtime: Runtime, network: MemoryNetwork, netns: str) -> None:
    async def linger() -> None:
        await asyncio.sleep(0.2)

    network.before_add = linger
    with ThreadPoolExecutor(1) as pool:
        with serving(runtime, network):
            adding = pool.submit(runtime.run, "ADD", CNI_NETNS=netns)
            assert settles(lambda: network.requests)
        assert adding.result().status == 0


def test_a_spooled_delete_that_fails_is_kept_for_the_next_time(runtime: Runtime, network: MemoryNetwork) -> None:
    class Failing(MemoryNetwork):
        async def delete(self, request: object) -> None:
            raise StoreUnavailable("no store")

    runtime.run("DEL")
    with serving(runtime, Failing()):
        assert runtime.spooled == ["c1:eth0"]
    with serving(runtime, network):
        assert runtime.spooled == []
    assert len(network.requests) == 1


def test_what_is_no_spooled_delete_is_removed_and_reported(
    runtime: Runtime, network: MemoryNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.spool.mkdir()
    Path(runtime.spool, "garbage").write_bytes(b"\xff" * 40)
    Path(runtime.spool, ".123").write_bytes(b"half")
    with serving(runtime, network):
        assert runtime.spooled == [".123"]
    assert "garbage" in caplog.text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PoolExhausted("x"), 100),
        (AddressUnavailable("x"), 101),
        (KernelError("new link", errno.EEXIST), 102),
        (StoreUnavailable("x"), 11),
        (StoreTooNew("x"), 104),
        (KernelError("new link", errno.EPERM), 105),
        (CniError(51, "x"), 51),
        (LabError("x"), 999),
    ],
)
def test_each_kind_of_failure_has_its_code(error: PodwayError, code: int) -> None:
    assert cni_error(error).code == code
