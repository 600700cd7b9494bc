"""How an agent is asked: one JSON line each way (podway.channel.client), here over its own unix socket.

The channel for other machines (podway.channel.server) answers by the same methods.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog

from podway.errors import PodwayError, explain

log = structlog.get_logger(__name__)


class Method(NamedTuple):
    """What may be asked; `remote` says that other machines may ask it too, those of this cluster.

    With `operators` only commands of people may (podway.identity.orders), and no other node's agent.
    """

    answer: Callable[..., Awaitable[Any]]
    remote: bool = False
    operators: bool = False


async def serve(path: Path, methods: Mapping[str, Method]) -> asyncio.Server:
    """Listen at `path` (readable by root alone) and answer calls by `methods` until closed.

    A PodwayError becomes an error answer; so do unknown methods and parameters.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(await reply(line, methods))
                await writer.drain()
        except ConnectionError:
            pass  # the asker went away before its answer: nobody is left to tell
        except ValueError:
            log.warning("asked in a line that is too long")  # asyncio's LimitOverrunError
        finally:
            writer.close()

    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(answer, path)
    path.chmod(0o600)
    return server


async def reply(
    line: bytes, methods: Mapping[str, Method], *, remote: bool = False, operator: bool = False
) -> bytes:
    """Return the answer to one line, as a line; `remote` if another machine asks, `operator` if for a person."""
    return msgspec.json.encode(await _reply(line, methods, remote, operator)) + b"\n"


async def _reply(line: bytes, methods: Mapping[str, Method], remote: bool, operator: bool) -> dict[str, Any]:
    try:
        request = msgspec.json.decode(line, type=_Request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return {"error": f"not a request: {error}"}
    method = methods.get(request.method)
    if method is None:
        return {"error": f"no method {request.method!r}", "hint": f"there are {', '.join(sorted(methods))}"}
    if remote and not method.remote:
        return {"error": f"{request.method} is answered on the node itself only", "hint": "run the command there"}
    if remote and method.operators and not operator:
        return {
            "error": f"{request.method} is answered to people only",
            "hint": "run the command where the store is",
        }
    try:
        return {"result": await method.answer(**request.params)}
    except PodwayError as error:
        return {"error": error.message, "hint": error.hint}
    except Exception as error:  # the asker is told, and what failed in the log: others can still be answered
        log.exception("a question could not be answered", method=request.method)
        return {"error": f"{request.method}: {explain(error)}", "hint": "see the agent's log"}


class _Request(msgspec.Struct):
    method: str
    params: dict[str, Any] = {}
