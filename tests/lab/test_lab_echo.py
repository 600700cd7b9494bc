import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    read, write = os.pipe()
    command = [sys.executable, "-m", "podway.lab.echo", str(number), "I am pod a/b", str(write)]
    with subprocess.Popen(command, pass_fds=[write]) as process:
        os.close(write)
        assert os.read(read, 9) == b"ready"
        os.close(read)
        yield number
        process.kill()


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1:"), ("::1", "[::1]:")])
def test_lines_come_back_with_the_askers_own_address(port: int, host: str, shown: str) -> None:
    with socket.create_connection((host, port)) as sock, sock.makefile("rwb") as stream:
        own = sock.getsockname()[1]
        for word in (b"one\n", b"two\n"):
            stream.write(word)
            stream.flush()
            assert stream.readline() == f"I am pod a/b, you are {shown}{own}: ".encode() + word


def test_http_is_answered_in_http(port: int) -> None:
    for _ in range(20):  # a response cut off by a reset would show now and then
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/any") as response:
            assert response.status == 200
            assert response.read().startswith(b"I am pod a/b, you are 127.0.0.1:")
