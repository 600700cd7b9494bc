"""Records as log records of OpenTelemetry, by OTLP over HTTP, in JSON.

The protocol's JSON is what protobuf's mapping says (64-bit numbers are text), so that a few dictionaries do what
the SDK would: that brings protobuf, a second HTTP library, and a batch processor with a queue of its own.
Source: opentelemetry.io/docs/specs/otlp (1.9), opentelemetry-proto's logs.proto.
"""

import gzip
import http.client
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from podway import __version__
from podway.export.target import SECONDS, Target
from podway.flows.record import Called, End, FlowRecord, Rule

Value: TypeAlias = str | int | bool | tuple[str, ...]
"""What an attribute may be."""

_SEVERITIES = {"allowed": (9, "INFO"), "denied": (13, "WARN"), "dropped": (13, "WARN"), "audited": (13, "WARN")}
_WORKLOADS = frozenset(
    {"CronJob", "DaemonSet", "Deployment", "Job", "ReplicaSet", "ReplicationController", "StatefulSet"}
)
"""Kinds that have a name in OpenTelemetry's conventions (k8s.*.name); others are whatever tenants write."""
_FOR_GOOD = (400, 413, 422)
"""What is wrong with the records themselves; all else (404 or 401, say) somebody mends, and wants them then."""


class Collector:
    """Posts to a collector, over one connection that is kept."""

    def __init__(self, target: Target, path: str) -> None:
        """Take where it is, and the path to be asked where the target names none. Opens nothing yet."""
        kind = http.client.HTTPSConnection if target.transport == "https" else http.client.HTTPConnection
        self._connection = kind(target.host, target.port, timeout=SECONDS)
        self._path = target.path or path

    def post(self, request: dict[str, Any]) -> bytes | None:
        """Send a request in JSON's shape; return what was answered, None if it refused that for good.

        Raises OSError if it may take it another time.
        """
        body = gzip.compress(msgspec.json.encode(request), 1)
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        kept = self._connection.sock is not None
        try:
            answer, said = self._post(body, headers)
        except ConnectionError:
            if not kept:
                raise
            answer, said = self._post(
                body, headers
            )  # a collector may close what it has not heard from for a while
        if answer.status in _FOR_GOOD:
            return None
        if not 200 <= answer.status < 300:  # OTLP says 200, and some receivers 204
            raise OSError(f"HTTP status {answer.status} {answer.reason}")
        return said

    def _post(self, body: bytes, headers: dict[str, str]) -> tuple[http.client.HTTPResponse, bytes]:
        try:
            self._connection.request("POST", self._path, body, headers)
            answer = self._connection.getresponse()
            return answer, answer.read(1 << 20)
        except http.client.HTTPException as error:
            self._connection.close()
            if isinstance(error, OSError):
                raise
            raise OSError(f"no answer of HTTP: {error!r}") from error
        except OSError:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def resource_of(node: str) -> dict[str, Any]:
    """Return the Resource that tells whose records and metrics those are: an agent's, on a node."""
    return {
        "attributes": attributes({"service.name": "podway", "service.version": __version__, "k8s.node.name": node})
    }


class Otlp:
    """Sends records to a collector."""

    def __init__(self, target: Target, node: str) -> None:
        self._collector = Collector(target, "/v1/logs")
        self._resource = resource_of(node)

    def send(self, records: Sequence[FlowRecord]) -> int:
        """Send records; see Sink."""
        said = self._collector.post(self.request(records))
        if said is None:
            return len(records)  # it will not take them another time, either
        return min(len(records), _rejected(said))

    def close(self) -> None:
        """Close the connection."""
        self._collector.close()

    def request(self, records: Sequence[FlowRecord]) -> dict[str, Any]:
        """Return an ExportLogsServiceRequest in JSON's shape."""
        now = str(time.time_ns())
        scope = {"name": "podway.flows", "version": __version__}
        logs = {"scope": scope, "logRecords": [_log_record(record, now) for record in records]}
        return {"resourceLogs": [{"resource": self._resource, "scopeLogs": [logs]}]}


def _rejected(said: bytes) -> int:
    """Return how many records a collector says that it did not take (ExportLogsPartialSuccess)."""
    try:
        return int(msgspec.json.decode(said)["partialSuccess"]["rejectedLogRecords"])
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError):
        return 0


def _log_record(record: FlowRecord, now: str) -> dict[str, Any]:
    number, text = _SEVERITIES[record.verdict]
    ends = f"{record.source.label}:{record.source.port} -> {record.destination.label}:{record.destination.port}"
    return {
        "timeUnixNano": str(round(record.time * 1e9)),
        "observedTimeUnixNano": now,
        "severityNumber": number,
        "severityText": text,
        "eventName": f"podway.flow.{record.event}",
        "body": {"stringValue": " ".join(filter(None, (record.verdict, record.protocol, ends, record.reason)))},
        "attributes": attributes(dict(_fields(record))),
    }


def _fields(record: FlowRecord) -> Iterator[tuple[str, Value]]:
    """Yield attributes: OpenTelemetry's names where it has some (source.*, destination.*, network.*)."""
    yield "network.transport", record.protocol
    yield "network.type", "ipv6" if ":" in record.source.address else "ipv4"
    for name, end in (("source", record.source), ("destination", record.destination)):
        yield from _end(name, end)
    if record.service:
        yield from _service(record.service)
    yield "podway.sequence", record.sequence
    for name in ("verdict", "reason", "direction", "how", "path", "device", "message"):
        if value := getattr(record, name):
            yield f"podway.{name}", value
    for name, rule in (("egress", record.egress), ("ingress", record.ingress)):
        if rule:
            yield from _rule(f"podway.{name}", rule)
    counts = (record.packets, record.octets, record.packets_back, record.octets_back)
    for name, count in zip(("packets", "bytes", "packets_back", "bytes_back"), counts, strict=True):
        yield f"podway.{name}", count
    for name in ("rtt", "rtt_back", "retransmitted", "retransmitted_back"):
        if number := getattr(record, name):
            yield f"podway.{name}", number
    if record.began:
        yield "podway.began", str(round(record.began * 1e9))
    if record.reply:
        yield "podway.reply", True
    if record.lost:
        yield "podway.lost", record.lost


def _end(name: str, end: End) -> Iterator[tuple[str, Value]]:
    yield f"{name}.address", end.address
    if end.port:
        yield f"{name}.port", end.port
    yield f"podway.{name}.kind", end.who.kind
    if end.who.kind == "pod":
        yield f"podway.{name}.k8s.namespace.name", end.who.namespace
        yield f"podway.{name}.k8s.pod.name", end.who.name
    if end.who.workload:
        kind, _, workload = end.who.workload.partition("/")
        if kind in _WORKLOADS:
            yield f"podway.{name}.k8s.{kind.lower()}.name", workload
        else:
            yield f"podway.{name}.workload", end.who.workload
    if end.who.names:
        yield f"podway.{name}.names", end.who.names
    if end.who.node:
        yield f"podway.{name}.k8s.node.name", end.who.node


def _service(called: Called) -> Iterator[tuple[str, str | int]]:
    """Yield what was called, before it was translated: `destination` is what it became."""
    yield "podway.service.address", called.address
    if called.port:
        yield "podway.service.port", called.port
    if called.name:
        yield "podway.service.k8s.namespace.name", called.namespace
        yield "podway.service.k8s.service.name", called.name
    if called.port_name:
        yield "podway.service.port_name", called.port_name


def _rule(name: str, rule: Rule) -> Iterator[tuple[str, str]]:
    yield f"{name}.policy", rule.policy
    if rule.rule:
        yield f"{name}.rule", rule.rule
    if rule.revision:
        yield f"{name}.revision", rule.revision


def attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return attributes as KeyValues."""
    return [{"key": name, "value": _value(value)} for name, value in values.items()]


def _value(value: Value) -> dict[str, Any]:
    if isinstance(value, tuple):
        return {"arrayValue": {"values": list(map(_value, value))}}
    if isinstance(value, bool):
        return {"boolValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}
