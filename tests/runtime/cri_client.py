"""The Container Runtime Interface, as far as a pod's network needs it.

Debian has no crictl, so gRPC is spoken through curl: a call is one HTTP/2 POST of one length-prefixed message
(grpc/doc/PROTOCOL-HTTP2.md). Numbers of fields are those of k8s.io/cri-api/pkg/apis/runtime/v1/api.proto.
"""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

Fields = dict[int, list[bytes]]


class CriError(Exception):
    """A call that the runtime refused, in its words."""


@dataclass(frozen=True)
class Cri:
    """Calls the runtime that listens on a Unix socket."""

    socket: Path

    def run_pod(
        self, name: str, *, namespace: str, host_ports: Mapping[int, int], annotations: Mapping[str, str]
    ) -> str:
        """Run a pod's sandbox; return its id. `host_ports` are ports of the pod by port of the node."""
        config = message(
            (1, message((1, name), (2, f"uid-of-{name}"), (3, namespace))),
            *((5, message((2, pod), (3, host))) for host, pod in host_ports.items()),
            *((7, message(*enumerate(pair, start=1))) for pair in annotations.items()),
            (8, b""),
        )
        return self._call("RunPodSandbox", message((1, config)))[1][0].decode()

    def addresses(self, pod: str) -> list[str]:
        """Return a pod's addresses as a kubelet is told them."""
        status = fields(self._call("PodSandboxStatus", message((1, pod)))[1][0])
        network = fields(status[5][0])
        return [ip.decode() for ip in (*network[1], *(fields(one)[1][0] for one in network.get(2, ())))]

    def network_ready(self) -> bool:
        """Tell whether the runtime would run pods, as far as the network goes."""
        conditions = [fields(one) for one in fields(self._call("Status")[1][0])[1]]
        return any(one[1] == [b"NetworkReady"] and 2 in one for one in conditions)

    def stop(self, pod: str) -> None:
        """Stop a pod's sandbox: its network goes."""
        self._call("StopPodSandbox", message((1, pod)))

    def remove(self, pod: str) -> None:
        """Remove a pod's sandbox."""
        self._call("RemovePodSandbox", message((1, pod)))

    def pods(self) -> list[str]:
        """Return the ids of all pods."""
        return [fields(one)[1][0].decode() for one in self._call("ListPodSandbox").get(1, ())]

    def _call(self, method: str, request: bytes = b"") -> Fields:
        command = ["curl", "--silent", "--show-error", "--http2-prior-knowledge", "--max-time", "60"]
        headers = ["--header", "content-type: application/grpc", "--header", "te: trailers"]
        body = ["--data-binary", "@-", "--dump-header", "/dev/stderr"]
        done = subprocess.run(
            [
                *command,
                *headers,
                *body,
                "--unix-socket",
                self.socket,
                f"http://cri/runtime.v1.RuntimeService/{method}",
            ],
            input=b"\0" + len(request).to_bytes(4, "big") + request,
            capture_output=True,
        )
        trailers = done.stderr.decode()
        status = re.search(r"^grpc-status: (\d+)", trailers, re.MULTILINE)
        words = re.search(r"^grpc-message: ([^\r\n]*)", trailers, re.MULTILINE)
        if status is None or status[1] != "0":
            raise CriError(unquote(words[1]) if words else trailers)
        return fields(done.stdout[5:])


def message(*values: tuple[int, int | str | bytes]) -> bytes:
    """Encode a protobuf message of these numbered fields."""
    encoded = b""
    for number, value in values:
        if isinstance(value, int):
            encoded += _varint(number << 3) + _varint(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            encoded += _varint(number << 3 | 2) + _varint(len(content)) + content
    return encoded


def fields(encoded: bytes) -> Fields:
    """Decode a protobuf message: its fields by number, a number as its varint's bytes."""
    found: Fields = {}
    at = 0
    while at < len(encoded):
        key, at = _read_varint(encoded, at)
        start, (value, at) = at, _read_varint(encoded, at)
        if key & 7 == 2:
            start, at = at, at + value
        else:
            assert key & 7 == 0, f"wire type {key & 7}"
        found.setdefault(key >> 3, []).append(encoded[start:at])
    return found


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes(encoded) + bytes([number])


def _read_varint(encoded: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = encoded[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
