"""A BIRD that answers nonsense, too much or nothing: an error in words, and nobody is stuck."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.bgp import control
from podway.bgp.control import BirdControl, Line
from podway.bgp.speaker import BgpSpeaker
from podway.bgp.status import parse_bfd, parse_peers, parse_routes, read_peers
from podway.errors import RoutingError

GREETING = b"0001 BIRD 2.0.12 ready.\n"


def talk(
    directory: Path, answer: bytes, ask: Callable[[BirdControl], Awaitable[Any]], *, greeting: bytes = GREETING
) -> Any:
    """Ask something that answers so, again and again, and return what comes of it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(greeting)
            while await reader.readline():
                writer.write(answer)
                while answer.startswith(b"1007-endless"):
                    writer.write(answer)
                    await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def main() -> Any:
        server = await asyncio.start_unix_server(serve, directory / "bird.ctl")
        try:
            async with BirdControl(directory / "bird.ctl", timeout=1.0) as connection:
                return await ask(connection)
        finally:
            server.close()

    return asyncio.run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"hello\n",
        b"\xff\xfe\xfd\n",
        b"12\n",
        b"12345 x\n",
        b"-100 x\n",
        b"\xd9\xa1\xd9\xa2\xd9\xa3\xd9\xa4 x\n",
        b"x" * (2 << 20) + b"\n",
        b"1007-endless\n" * 5000,
        b"1002-Name\n1002-a BGP\n0000 \n",
        b"1002-a BGP t up 2026-99-99 x y\n1006-  BGP state: Up\n  Neighbor address: x\n  Neighbor AS: y\n0000 \n",
    ],
    ids=lambda answer: answer[:12].decode(errors="replace"),
)
def test_nonsense_is_an_error_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.setattr(control, "MAX_REPLY", 8 << 20)
    with pytest.raises(RoutingError) as error:
        talk(tmp_path, answer, read_peers)
    assert error.value.hint


def test_a_greeting_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(RoutingError, match="does not speak as BIRD does"):
        talk(tmp_path, b"0000 \n", read_peers, greeting=b"SSH-2.0-x\n")


@given(st.lists(st.tuples(st.sampled_from([1002, 1006, 1007, 1020, 0]), st.text(max_size=80))))
def test_parsers_understand_or_say_that_they_do_not(reply: list[tuple[int, str]]) -> None:
    lines = [Line(code, text) for code, text in reply]
    for parse in (parse_bfd, parse_peers, parse_routes):
        with contextlib.suppress(RoutingError):
            parse(lines)


@pytest.mark.parametrize("text", ["99999999999999999999", "-1", "0", "x", "\xff"])
def test_a_pid_file_of_nonsense_names_nobody(tmp_path: Path, text: str) -> None:
    async def start() -> None:
        speaker = BgpSpeaker(tmp_path)
        speaker.bird.pid_file.write_bytes(text.encode("latin-1"))
        speaker.bird.conf.write_bytes(b"\xff\xfe")
        assert speaker.bird._find() is None
        assert not speaker.running.nodes

    asyncio.run(start())
