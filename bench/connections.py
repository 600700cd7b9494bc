"""TCP connections between pods that are busy all the time, so that none breaks or stalls unseen."""

import asyncio
import itertools
import socket
import struct
import threading
import time
from collections.abc import Sequence

import msgspec

from bench.labs import RunningPod, inside

INTERVAL = 0.2
"""Seconds between an answer and the next question of a connection."""
STALLED = 10.0
"""Seconds without an answer after which a connection counts as broken."""
_PORT = 9100
_NUMBER = struct.Struct("!Q")


class Talk(msgspec.Struct, frozen=True):
    """What became of connections since the last report; `longest` is the longest wait for an answer in seconds."""

    broken: int
    answers: int
    longest: float


class Connections:
    """`count` connections, spread over pairs of pods, while the block runs; one thread carries them all.

    On each, numbers go one way and come back, one after the other.
    """

    def __init__(self, pairs: Sequence[tuple[RunningPod, RunningPod]], count: int) -> None:
        targets = {target.netns: target for _, target in pairs}.values()
        self._listeners = [_listen(target) for target in targets]
        chosen = itertools.islice(itertools.cycle(pairs), count)
        self._clients = [_Client(_connect(source, target)) for source, target in chosen]
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._carry(),), daemon=True)

    def __enter__(self) -> "Connections":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def report(self) -> Talk:
        """Return what became of the connections since the last report."""
        return asyncio.run_coroutine_threadsafe(self._report(), self._loop).result()

    async def _report(self) -> Talk:
        talks = [client.report() for client in self._clients]
        return Talk(
            sum(talk.broken for talk in talks),
            sum(talk.answers for talk in talks),
            max(talk.longest for talk in talks),
        )

    async def _carry(self) -> None:
        for listener in self._listeners:
            await asyncio.start_server(_answer, sock=listener)
        talks = [
            asyncio.create_task(client.talk(INTERVAL * number / len(self._clients)))
            for number, client in enumerate(self._clients)
        ]
        await self._stop.wait()
        tasks = {*talks, *asyncio.all_tasks()} - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Client:
    """One connection."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._broken = False
        self._answers = 0
        self._longest = 0.0
        self._asked: float | None = None
        self._reported = 0.0

    async def talk(self, delay: float) -> None:
        """Ask and take answers until the connection breaks; `delay` seconds keep all from asking at once."""
        reader, writer = await asyncio.open_connection(sock=self._socket)
        await asyncio.sleep(delay)
        try:
            for number in itertools.count():
                self._asked = time.monotonic()
                writer.write(_NUMBER.pack(number))
                answer = await reader.readexactly(_NUMBER.size)
                if answer != _NUMBER.pack(number):
                    raise ConnectionError("another answer than the question's")
                self._longest = max(self._longest, self._waited())
                self._answers += 1
                self._asked = None
                await asyncio.sleep(INTERVAL)
        except (OSError, EOFError):
            self._broken = True
        finally:
            writer.close()

    def report(self) -> Talk:
        """Return what became of it since the last report."""
        stalled = self._asked is not None and time.monotonic() - self._asked > STALLED
        talk = Talk(int(self._broken or stalled), self._answers, max(self._longest, self._waited()))
        self._answers, self._longest, self._reported = 0, 0.0, time.monotonic()
        return talk

    def _waited(self) -> float:
        """Return for how many seconds of the time since the last report an answer has been awaited."""
        if self._asked is None or self._broken:
            return 0.0
        return time.monotonic() - max(self._asked, self._reported)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes; what goes wrong shows at the other end."""
    try:
        while data := await reader.read(4096):
            writer.write(data)
    finally:
        writer.close()


def _listen(pod: RunningPod) -> socket.socket:
    return inside(pod.netns, lambda: socket.create_server((pod.address, _PORT), backlog=1024))


def _connect(source: RunningPod, target: RunningPod) -> socket.socket:
    return inside(source.netns, lambda: socket.create_connection((target.address, _PORT), timeout=STALLED))
