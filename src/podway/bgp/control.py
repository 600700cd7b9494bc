"""Client of BIRD's control socket (BIRD User's Guide, chapter 4; reply codes in its doc/reply_codes).

A reply is lines of `<code>-<text>`, or ` <text>` for one more line of the same code, and ends with
`<code> <text>`. Codes 0xxx end a reply well, 1xxx and 2xxx carry data, 8xxx and 9xxx are errors.
"""

import asyncio
import contextlib
import re
from pathlib import Path

import msgspec

from podway.errors import RoutingError

TIMEOUT = 5.0
"""Seconds for any one command; BIRD answers within a millisecond unless it is stuck."""

FIRST_ERROR = 8000

MAX_LINE = 1 << 20
MAX_REPLY = 1 << 28
"""Bytes; the routes of a whole Internet table are some 200 MB."""


_CODE = re.compile(r"[0-9]{4}([- ]|$)")


class Line(msgspec.Struct, frozen=True):
    """One line of a reply."""

    code: int
    text: str


class BirdControl:
    """One connection to a BIRD; an async context manager. Every method may raise RoutingError."""

    def __init__(self, path: Path, *, timeout: float = TIMEOUT) -> None:
        self._path = path
        self._timeout = timeout
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> "BirdControl":
        try:
            async with asyncio.timeout(self._timeout):
                self._reader, self._writer = await asyncio.open_unix_connection(self._path, limit=MAX_LINE)
        except OSError as error:  # TimeoutError is one
            raise RoutingError(
                f"BIRD cannot be reached at {self._path}: {error.strerror or 'it does not accept connections'}",
                hint="The agent starts BIRD again when it dies; its log is bird.log beside the socket.",
            ) from error
        try:
            await self._reply("the greeting")
        except BaseException:  # cancelled, too: the caller's `async with` has not begun
            self._writer.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._close()

    async def command(self, line: str) -> tuple[Line, ...]:
        """Send a command and return the lines of its reply. Raises RoutingError with BIRD's own words."""
        self._writer.write(f"{line}\n".encode())
        reply = await self._reply(repr(line))
        if reply[-1].code >= FIRST_ERROR:
            raise RoutingError(f"BIRD refuses {line!r}: {reply[-1].text}")
        return reply

    async def check(self, configuration: Path) -> None:
        """Let BIRD parse a configuration file; raises RoutingError with file, line and column."""
        await self.command(f'configure check "{configuration.absolute()}"')

    async def configure(self) -> None:
        """Let BIRD read its configuration file again; what did not change goes on undisturbed."""
        await self.command("configure")

    async def restart_protocol(self, name: str) -> None:
        """Close a session and forget all that it told, at once; then try to open it again."""
        await self.command(f"restart '{name}'")

    async def _reply(self, what: str) -> tuple[Line, ...]:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._lines()
        except TimeoutError as error:
            raise RoutingError(
                f"BIRD at {self._path} does not answer {what} within {self._timeout:g} s",
                hint="If it stays so, kill the process named in bird.pid: the agent starts a new one.",
            ) from error
        except OSError as error:
            raise RoutingError(f"BIRD at {self._path} went away before it answered {what}") from error
        except ValueError as error:
            raise RoutingError(
                f"what answers {what} at {self._path} does not speak as BIRD does: {error}",
                hint="Kill the process named in bird.pid: the agent starts a new one.",
            ) from error

    async def _lines(self) -> tuple[Line, ...]:
        """Read a reply. Raises OSError, and ValueError if it is none."""
        lines: list[Line] = []
        size = 0
        while True:
            raw = await self._reader.readline()
            if not raw.endswith(b"\n"):
                raise ConnectionResetError
            size += len(raw)
            if size > MAX_REPLY:
                raise ValueError(f"over {MAX_REPLY} bytes, and no end")
            text = raw.decode(errors="replace")[:-1]
            if text.startswith("+"):  # a log message that BIRD shows in passing
                continue
            if text.startswith(" "):
                lines.append(Line(lines[-1].code if lines else 0, text[1:]))
                continue
            if not _CODE.match(text):
                raise ValueError(f"a line that begins with {text[:20]!r}")
            lines.append(Line(int(text[:4]), text[5:]))
            if text[4:5] != "-":
                return tuple(lines)

    async def _close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):  # whatever the connection died of, it is closed
            await self._writer.wait_closed()
