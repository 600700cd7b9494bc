"""Where records of flows are sent to, as a person writes it, and who sends them there."""

from collections.abc import Sequence
from typing import Protocol
from urllib.parse import parse_qsl, urlsplit

import msgspec

from podway.errors import InvalidInput
from podway.flows.record import FlowRecord

SECONDS = 5.0
"""How long a receiver may take for one batch."""

_HINT = (
    "write file:///var/log/podway/flows.jsonl?size=64&keep=4 (MiB, files), otlp+http://HOST:4318, "
    "otlp+https://HOST, ipfix+udp://HOST:4739 or ipfix+tcp://HOST:4739"
)


class Sink(Protocol):
    """Sends records somewhere. All methods block, for so many seconds as SECONDS says."""

    def send(self, records: Sequence[FlowRecord]) -> int:
        """Send records, all or none; return how many of them the receiver refused for good. Raises OSError."""

    def close(self) -> None:
        """Let go of what is open."""


class Target(msgspec.Struct, frozen=True):
    """A receiver: its URL, `form` (`file`, `otlp`, `ipfix`), and what the URL says."""

    url: str
    form: str
    transport: str = ""
    host: str = ""
    port: int = 0
    path: str = ""
    size: int = 64
    keep: int = 4

    @classmethod
    def of_metrics(cls, url: str) -> "Target":
        """Read the URL of a receiver of metrics, which is an OpenTelemetry collector. Raises InvalidInput."""
        option, hint = "--metrics-export", "write otlp+http://HOST:4318 or otlp+https://HOST"
        try:
            found = cls.parse(url, option)
        except InvalidInput as error:
            raise InvalidInput(error.message, hint=hint) from None
        if found.form != "otlp":
            raise InvalidInput(f"{option} {url}: metrics are not sent so", hint=hint)
        return found

    @classmethod
    def parse(cls, url: str, option: str = "--flow-export") -> "Target":
        """Read a URL that an option says. Raises InvalidInput."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidInput(f"{option} {url}: {error}", hint=_HINT) from None
        form, _, transport = parts.scheme.partition("+")
        try:
            (parts.hostname or "").encode("idna")
        except UnicodeError as error:
            raise InvalidInput(f"{option} {url}: no name of a host: {error}", hint=_HINT) from None
        options = dict(parse_qsl(parts.query))
        try:
            if form == "file" and not transport and not parts.netloc and len(parts.path) > 1:
                size, keep = int(options.pop("size", "64")), int(options.pop("keep", "4"))
                if not options and 0 < size <= 1 << 20 and 0 <= keep <= 1000:
                    return cls(url, form, path=parts.path, size=size, keep=keep)
            elif parts.hostname and not options and form == "otlp" and transport in ("http", "https"):
                default = 4318 if transport == "http" else 443
                return cls(url, form, transport, parts.hostname, port or default, parts.path.rstrip("/") or "")
            elif parts.hostname and not options and form == "ipfix" and transport in ("udp", "tcp"):
                return cls(url, form, transport, parts.hostname, port or 4739)
        except ValueError:
            pass  # a number that is none
        raise InvalidInput(f"{option} {url}: cannot be read", hint=_HINT)

    def open(self, node: str) -> Sink:
        """Return who sends there what this node recorded. Opens nothing yet."""
        match self.form:
            case "file":
                from podway.export.lines import Lines

                return Lines(self)
            case "otlp":
                from podway.export.otlp import Otlp

                return Otlp(self, node)
        from podway.export.ipfix import Ipfix

        return Ipfix(self, node)
