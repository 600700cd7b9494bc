"""Ask an agent: one JSON line each way over its unix socket. From other machines: podway.channel.remote."""

import socket
import time
from pathlib import Path
from typing import Any

import msgspec

from podway.errors import AgentError, NeedsRoot

TIMEOUT = 10.0
"""Seconds to wait for an answer; the agent answers from memory or in a few kernel calls."""


def is_served(path: Path) -> bool:
    """Tell whether somebody listens at a unix socket; True where this user may not know."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(TIMEOUT)
        try:
            sock.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


def call(path: Path, method: str, *, timeout: float = TIMEOUT, **params: Any) -> Any:
    """Call a method of the agent that listens at `path`; return its result.

    Raises AgentError if no agent answers in time (seconds), or if it answers with an error, and NeedsRoot if this
    user may not ask it.
    """
    deadline = time.monotonic() + timeout
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            sock.connect(str(path))
            line = exchange(sock, method, params, deadline)
    except TimeoutError as error:
        raise AgentError(
            f"the agent at {path} did not answer `{method}` within {timeout:g} s",
            hint="look at its log; `podway status` tells more once it answers",
        ) from error
    except PermissionError as error:
        raise NeedsRoot(f"asking the agent at {path}") from error
    except OSError as error:
        raise AgentError(
            f"no agent answers at {path}: {error.strerror}",
            hint="start it with `podway agent` (in a lab: `podway lab node start NODE`)",
        ) from error
    return result_of(line, f"agent at {path}", method)


def exchange(sock: socket.socket, method: str, params: dict[str, Any], deadline: float) -> bytes:
    """Send a request, return the line that answers it: without its end if the agent closed before.

    Raises TimeoutError at the deadline (time.monotonic()), and OSError.
    """
    sock.settimeout(_left(deadline))
    sock.sendall(msgspec.json.encode({"method": method, "params": params}) + b"\n")
    answer = bytearray()
    while not answer.endswith(b"\n"):
        sock.settimeout(_left(deadline))
        part = sock.recv(1 << 16)
        if not part:
            break
        answer += part
    return bytes(answer)


def result_of(line: bytes, agent: str, method: str) -> Any:
    """Return the result in an answer of the `agent` so named. Raises AgentError if it is an error, or none."""
    if not line.endswith(b"\n"):
        raise AgentError(f"the {agent} closed the connection without an answer to `{method}`")
    reply = msgspec.json.decode(line)
    if "error" in reply:
        raise AgentError(f"{agent}: {reply['error']}", hint=reply.get("hint", ""))
    return reply["result"]


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
