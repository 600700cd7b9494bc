"""A pod's little server: says which pod answered and who it thinks is asking.

    python -m podway.lab.echo PORT GREETING READY_FD

Speaks HTTP if the first line it is sent looks like it, else returns each line with that sentence before it.
Listens on both families through one socket (ipv6(7), IPV6_V6ONLY) and tells whoever started it through
READY_FD.
"""

import contextlib
import os
import re
import socket
import socketserver
import sys

_HTTP = re.compile(rb"(GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH) \S+ HTTP/1\.[01]\r?\n")
_MAPPED = "::ffff:"


class _Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128
    greeting = ""

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _Conversation(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, _Server)
        host, port = self.client_address[:2]
        sentence = f"{self.server.greeting}, you are {_endpoint(host.removeprefix(_MAPPED), port)}"
        line = self.rfile.readline(65536)
        if _HTTP.fullmatch(line):
            # Closing a socket with unread input resets the connection (RFC 2525, section 2.17).
            while self.rfile.readline(65536).strip():
                pass
            body = f"{sentence}\n".encode()
            head = f"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
            self.wfile.write(head.encode() + (b"" if line.startswith(b"HEAD") else body))
            return
        while line:
            self.wfile.write(sentence.encode() + b": " + line)
            line = self.rfile.readline(65536)

    def finish(self) -> None:
        with contextlib.suppress(ConnectionError):  # an asker that left needs no answer
            super().finish()


def _endpoint(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def main(port: str, greeting: str, ready: str) -> None:
    """Serve for ever."""
    with _Server(("::", int(port)), _Conversation) as server:
        server.greeting = greeting
        os.write(int(ready), b"ready")
        os.close(int(ready))
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
