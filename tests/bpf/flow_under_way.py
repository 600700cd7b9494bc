"""Traffic between pods that goes on while an engine comes, goes or is replaced, and what was lost of it."""

import contextlib
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bpf.flow_nodes import Lab, open_socket
from tests.patience import PATIENCE, eventually


def isolate(lab: Lab) -> None:
    """Only flows that are known pass: `c` may be asked at port 7000, `a` may not be asked at all."""
    port = {"port": 7000, "port_length": 16}
    lab.two.isolate(lab.c, port | {"protocol": 17}, port | {"protocol": 6})
    lab.one.isolate(lab.a)


class Stream:
    """A number a millisecond from `a` to `c` and back; which came back is known when it is over."""

    def __init__(self, lab: Lab, family: int) -> None:
        self.server = open_socket(lab.c, family, socket.SOCK_DGRAM)
        self.server.bind((lab.c.addresses[family], 7000))
        self.client = open_socket(lab.a, family, socket.SOCK_DGRAM)
        self.client.connect((lab.c.addresses[family], 7000))
        for sock in (self.server, self.client):
            sock.settimeout(2)  # so long the end waits for a thread
        self.sent, self.heard, self.over = 0, set[int](), False
        self.threads = [
            threading.Thread(target=work, daemon=True) for work in (self._echo, self._hear, self._send)
        ]

    def _echo(self) -> None:
        with contextlib.suppress(OSError):
            while not self.over:
                data, sender = self.server.recvfrom(100)
                self.server.sendto(data, sender)

    def _hear(self) -> None:
        with contextlib.suppress(OSError):
            while not self.over:
                self.heard.add(int(self.client.recv(100)))

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            while not self.over:
                self.client.send(str(self.sent).encode())
                self.sent += 1
                time.sleep(0.001)

    def __enter__(self) -> "Stream":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over = True
        for thread in self.threads:
            thread.join(PATIENCE)
        self.server.close()
        self.client.close()

    def lost(self) -> set[int]:
        """Wait until all that was sent so far had time to come back; return what did not."""
        sent = self.sent
        with contextlib.suppress(AssertionError):
            eventually(lambda: self.heard.issuperset(range(sent)), "all come back", within=5)
        return set(range(sent)) - self.heard


class Caller(threading.Thread):
    """Opens one connection after another from `a` to `c`; notes how long each took to be answered."""

    def __init__(self, lab: Lab, family: int) -> None:
        super().__init__(daemon=True)
        self.lab, self.family, self.over, self.took = lab, family, False, list[float]()
        self.server = open_socket(lab.c, family)
        self.server.bind((lab.c.addresses[family], 7000))
        self.server.listen(100)
        self.answers = threading.Thread(target=self._answer, daemon=True)

    def _answer(self) -> None:
        while not self.over:
            with contextlib.suppress(OSError):
                connection, _ = self.server.accept()
                with connection:
                    connection.sendall(b"hello")

    def run(self) -> None:
        while not self.over:
            begun = time.monotonic()
            with open_socket(self.lab.a, self.family) as client, contextlib.suppress(OSError):
                client.settimeout(10)
                client.connect((self.lab.c.addresses[self.family], 7000))
                if client.recv(10) == b"hello":
                    self.took.append(time.monotonic() - begun)

    def __enter__(self) -> "Caller":
        self.answers.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over = True
        self.join(PATIENCE)
        with contextlib.suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        self.answers.join(PATIENCE)
        self.server.close()


@contextlib.contextmanager
def pinging(path: Path, target: str, lost: dict[str, str]) -> Iterator[None]:
    """Ping from a namespace, a packet in 2 ms, while the block runs; what was lost is in `lost` then."""
    command = ["nsenter", f"--net={path}", "ping", "-n", "-q", "-i", "0.002", "-w", "600", target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ping:
        try:
            yield
        finally:
            ping.send_signal(signal.SIGINT)
            told = ping.communicate()[0]
    sent, got = map(int, re.findall(r"(\d+) packets transmitted, (\d+) received", told)[0])
    # The last may be under way still.
    if not got or sent - got > 1:
        lost[f"{path.name} to {target}"] = f"{sent - got} of {sent}"
