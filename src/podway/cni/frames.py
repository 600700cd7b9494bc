"""Frames between the shim and the agent: one request and one answer over a SOCK_STREAM Unix socket.

    request   u32 magic, u32 length of environment, u32 length of stdin, i32 netns; environment; stdin
    answer    u32 magic, u32 exit status, u32 length of stdout; stdout

in the machine's byte order, since both ends stand on it. The environment is the CNI_* variables as
`NAME=value`, each ended by a zero byte. `netns` is 0 if the open namespace comes along as SCM_RIGHTS
(unix(7)), -1 if the command needs none, else the errno with which the shim failed to open it. The shim's
spool holds requests in the same form.
"""

import struct

import msgspec

from podway.cni.spec import MAGIC, MAX_ENVIRONMENT, MAX_STDIN

REQUEST_HEADER = struct.Struct("=IIIi")
ANSWER_HEADER = struct.Struct("=III")


class FrameError(ValueError):
    """Bytes that no shim of ours sends."""


class RequestFrame(msgspec.Struct, frozen=True):
    """What a shim sends; `netns_errno` is positive if it could not open CNI_NETNS."""

    environment: dict[str, str]
    stdin: bytes
    netns_errno: int = 0


def request_length(start: bytes | bytearray) -> int | None:
    """Return the length of the whole frame that starts so, None if too little of it is here to tell.

    Raises FrameError.
    """
    if len(start) < REQUEST_HEADER.size:
        return None
    magic, environment, stdin, _ = REQUEST_HEADER.unpack_from(start)
    if magic != MAGIC:
        raise FrameError(f"magic {magic:#x}, not {MAGIC:#x}: the shim is of another version of Podway")
    if environment > MAX_ENVIRONMENT or stdin > MAX_STDIN:
        raise FrameError(f"{environment} and {stdin} bytes are too many")
    return REQUEST_HEADER.size + int(environment) + int(stdin)


def decode_request(frame: bytes | bytearray) -> RequestFrame:
    """Read one whole request frame. Raises FrameError."""
    if request_length(frame) != len(frame):
        raise FrameError("the frame is cut short or too long")
    _, length, _, netns = REQUEST_HEADER.unpack_from(frame)
    stdin_at = REQUEST_HEADER.size + length
    # What is no UTF-8 becomes visible ASCII: it can then be refused by name, in JSON.
    variables = frame[REQUEST_HEADER.size : stdin_at].decode("utf-8", "backslashreplace")
    environment = dict(_variable(text) for text in variables.split("\0") if text)
    return RequestFrame(environment, bytes(frame[stdin_at:]), max(0, netns))


def encode_answer(exit_status: int, stdout: bytes) -> bytes:
    """Return one answer frame."""
    return ANSWER_HEADER.pack(MAGIC, exit_status, len(stdout)) + stdout


def _variable(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value
