"""Ask an agent: one JSON line each way over its unix socket."""

import socket
from pathlib import Path
from typing import Any

import msgspec

from podway.errors import AgentError

TIMEOUT = 10.0
"""Seconds to wait for an answer; the agent answers from memory or in a few kernel calls."""


def call(path: Path, method: str, *, timeout: float = TIMEOUT, **params: Any) -> Any:
    """Call a method of the agent that listens at `path`; return its result.

    Raises AgentError if no agent answers in time (seconds), or if it answers with an error.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            sock.connect(str(path))
            sock.sendall(msgspec.json.encode({"method": method, "params": params}) + b"\n")
            with sock.makefile("rb") as answer:
                line = answer.readline()
    except TimeoutError as error:
        raise AgentError(
            f"the agent at {path} did not answer `{method}` within {timeout:g} s",
            hint="look at its log; `podway status` tells more once it answers",
        ) from error
    except OSError as error:
        raise AgentError(
            f"no agent answers at {path}: {error.strerror}",
            hint="start it with `podway agent` (in a lab: `podway lab node start NODE`)",
        ) from error
    if not line:
        raise AgentError(f"the agent at {path} closed the connection without an answer to `{method}`")
    reply = msgspec.json.decode(line)
    if "error" in reply:
        raise AgentError(f"agent at {path}: {reply['error']}", hint=reply.get("hint", ""))
    return reply["result"]
