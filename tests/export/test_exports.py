"""Records of flows sent to real receivers: files, nfcapd, and OTLP as the protocol's own package reads it."""

import asyncio
import gzip
import http.server
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from google.protobuf import json_format
from msgspec.structs import replace
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

from podway.agent import flow_exports
from podway.agent.flow_exports import FlowExport, FlowExports
from podway.agent.metrics_export import MetricsExport
from podway.errors import InvalidInput
from podway.export.ipfix import Ipfix
from podway.export.otlp_metrics import OtlpMetrics
from podway.export.target import Target
from podway.flows import store as flow_store
from podway.flows.block import Block
from podway.flows.record import Called, FlowRecord, Frontend, Who
from podway.flows.store import FlowStore
from podway.kernel.bpf.flow_layout import EventKind, FlowState, Reason
from podway.metrics.exposition import Histogram, Metric, Values
from tests.flows.flow_events import CLIENT, OUTSIDE, SECOND, WEB, event, names
from tests.patience import PATIENCE, eventually

NOW = time.time_ns()
VIP = "10.96.0.10"


def records() -> list[FlowRecord]:
    """A new flow, its end, a refused one, and IPv6."""
    events = (
        event(time=0),
        event(EventKind.FLOW_END, time=3 * SECOND, state=FlowState.CLOSED, counts=(5, 500, 4, 4000), made=0),
        event(
            EventKind.PACKET_DROPPED, time=4 * SECOND, source=OUTSIDE, reason=Reason.DENIED_INGRESS, rules=(0, 7)
        ),
        event(EventKind.FLOW_END, time=5 * SECOND, source="2001:db8::1", destination="2001:db8::2", protocol=17),
    )
    return told(b"".join(events))


def called() -> list[FlowRecord]:
    """A Deployment's pod calls a Service; another calls what DNS has two names for."""
    return told(event(service=(VIP, 443), ports=(40000, 8443)) + event(destination=OUTSIDE))


def told(events: bytes) -> list[FlowRecord]:
    """Events as records."""
    said = names(NOW)
    said.addresses += [
        (0, CLIENT, Who("pod", "client", "shop", "node2", "Deployment/client")),
        (0, OUTSIDE, Who(names=("api.example.com", "www.example.com"))),
    ]
    said.services.append((0, VIP, (Frontend("shop", "web", "tcp", 443, "https"),)))
    block = Block.of("node1", 10, events, said)
    return [block.record(at) for at in range(block.count)]


# Forms.


def test_lines_are_appended_and_full_files_are_kept_as_many_as_wanted(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "flows.jsonl"
    lines = Target.parse(f"file://{path}?size=1&keep=2").open("node1")
    assert lines.send(records()) == 0
    assert [json.loads(line)["verdict"] for line in path.read_text().splitlines()] == [
        "allowed",
        "allowed",
        "denied",
        "allowed",
    ]
    assert path.stat().st_mode & 0o777 == 0o600
    many = records() * 400
    for _ in range(8):
        lines.send(many)
    assert sorted(one.name for one in path.parent.iterdir()) == ["flows.jsonl", "flows.jsonl.1", "flows.jsonl.2"]
    for one in path.parent.iterdir():
        assert one.stat().st_size <= 1 << 20
        assert all(json.loads(line)["node"] == "node1" for line in one.read_text().splitlines())
    path.rename(tmp_path / "moved")
    lines.send(records())
    assert len(path.read_text().splitlines()) == 4


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes what the protocol's own package can read, and refuses the rest."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = cast(Any, self.server)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if server.answers:
            status, said = server.answers.pop(0)
        else:
            kind: dict[str, Any] = {"logs": ExportLogsServiceRequest, "metrics": ExportMetricsServiceRequest}
            request = json_format.Parse(gzip.decompress(body), kind[self.path.rpartition("/")[2]]())
            server.taken.append((self.path, self.headers["Content-Type"], request))
            status, said = 200, b"{}"
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Any]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        found = cast(Any, server)
        found.answers, found.taken, found.daemon_threads = [], [], True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield found
        server.shutdown()


def test_a_collector_reads_records_as_the_protocol_says(collector: Any) -> None:
    sink = Target.parse(f"otlp+http://127.0.0.1:{collector.server_port}").open("node1")
    for _ in range(2):
        assert sink.send(records()) == 0
    sink.close()
    assert [path for path, _, _ in collector.taken] == ["/v1/logs"] * 2
    [resource] = collector.taken[0][2].resource_logs
    own = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert (own["service.name"], own["k8s.node.name"]) == ("podway", "node1")
    logs = list(resource.scope_logs[0].log_records)
    assert [one.event_name for one in logs] == [f"podway.flow.{name}" for name in ("new", "end", "drop", "end")]
    assert [one.severity_text for one in logs] == ["INFO", "INFO", "WARN", "INFO"]
    ended = {one.key: one.value for one in logs[1].attributes}
    assert logs[1].time_unix_nano == pytest.approx(NOW + 3 * SECOND, abs=1000)
    assert ended["source.address"].string_value == CLIENT
    assert ended["destination.port"].int_value == 80
    assert ended["podway.destination.k8s.pod.name"].string_value == "web"
    assert ended["podway.bytes_back"].int_value == 4000
    denied = {one.key: one.value.string_value for one in logs[2].attributes}
    assert denied["podway.reason"] == "DENIED_INGRESS"
    assert denied["podway.ingress.policy"]


def test_a_collector_is_told_workloads_services_and_names(collector: Any) -> None:
    sink = Target.parse(f"otlp+http://127.0.0.1:{collector.server_port}").open("node1")
    assert sink.send(called()) == 0
    sink.close()
    [resource] = collector.taken[0][2].resource_logs
    logs = list(resource.scope_logs[0].log_records)
    led, named = ({one.key: one.value for one in log.attributes} for log in logs)
    assert (led["destination.address"].string_value, led["destination.port"].int_value) == (WEB, 8443)
    assert (led["podway.service.address"].string_value, led["podway.service.port"].int_value) == (VIP, 443)
    assert led["podway.service.k8s.service.name"].string_value == "web"
    assert led["podway.service.port_name"].string_value == "https"
    assert led["podway.source.k8s.deployment.name"].string_value == "client"
    found = [one.string_value for one in named["podway.destination.names"].array_value.values]
    assert found == ["api.example.com", "www.example.com"]
    assert "podway.service.address" not in named


@pytest.mark.parametrize("workload", ["Node/node1", "Mine/web"])
def test_a_workload_of_a_kind_without_a_name_of_open_telemetrys_makes_no_key(
    collector: Any, workload: str
) -> None:
    """Keys would be as many as tenants like, and a static pod's owner would be where it runs."""
    sink = Target.parse(f"otlp+http://127.0.0.1:{collector.server_port}").open("node1")
    record = called()[0]
    who = Who("pod", "client", "shop", "node2", workload)
    assert sink.send([replace(record, source=replace(record.source, who=who))]) == 0
    sink.close()
    [log] = collector.taken[0][2].resource_logs[0].scope_logs[0].log_records
    told = {one.key: one.value.string_value for one in log.attributes if one.key.startswith("podway.source.")}
    assert told == {
        "podway.source.kind": "pod",
        "podway.source.k8s.namespace.name": "shop",
        "podway.source.k8s.pod.name": "client",
        "podway.source.k8s.node.name": "node2",
        "podway.source.workload": workload,
    }


def test_what_a_collector_refuses_for_good_is_counted_and_what_it_cannot_take_now_comes_again(
    collector: Any,
) -> None:
    sink = Target.parse(f"otlp+http://127.0.0.1:{collector.server_port}/v1/logs").open("node1")
    collector.answers += [
        (200, b'{"partialSuccess": {"rejectedLogRecords": "3", "errorMessage": "no"}}'),
        (400, b"no"),
        (503, b"later"),
        (429, b"later"),
        (401, b"who are you?"),
        (404, b"not yet"),
        (204, b""),
    ]
    assert sink.send(records()) == 3
    assert sink.send(records()) == 4
    for _ in range(4):
        with pytest.raises(OSError, match="HTTP status"):
            sink.send(records())
    assert sink.send(records()) == 0
    assert collector.answers == []
    assert sink.send(records()) == 0
    sink.close()


def free_port(kind: int) -> int:
    with socket.socket(socket.AF_INET, kind) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


LEASES = Metric("podway_leases", "Attachments.")
RECORDS = Metric("podway_flow_records_total", "Records.", "counter", ("event",))
TRIPS = Metric("podway_tcp_round_trip_seconds", "Round trips.", "histogram")


def test_a_collector_reads_metrics_once_it_takes_them(collector: Any) -> None:
    took = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.5, 0.7, 5.0):
        took.observe(seconds)

    async def collect() -> list[tuple[Metric, Values]]:
        return [
            (LEASES, 3.0),
            (RECORDS, {("new",): 7.0, ("end",): 5.0}),
            (TRIPS, took),
        ]

    async def run() -> None:
        target = Target.of_metrics(f"otlp+http://127.0.0.1:{collector.server_port}")
        task = asyncio.create_task(MetricsExport(target, "node1", collect, period=0.02).run())
        async with asyncio.timeout(PATIENCE):
            while len(collector.taken) < 2:
                assert not task.done()
                await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    collector.answers += [(503, b"later"), (400, b"no")]
    asyncio.run(run())
    path, kind, request = collector.taken[0]
    assert (path, kind) == ("/v1/metrics", "application/json")
    [resource] = request.resource_metrics
    own = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert (own["service.name"], own["k8s.node.name"]) == ("podway", "node1")
    leases, records_total, trips = resource.scope_metrics[0].metrics
    assert [point.as_double for point in leases.gauge.data_points] == [3]
    assert records_total.sum.is_monotonic
    assert records_total.sum.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    points = {point.attributes[0].value.string_value: point for point in records_total.sum.data_points}
    assert {event: point.as_double for event, point in points.items()} == {"new": 7, "end": 5}
    assert 0 < points["new"].start_time_unix_nano <= points["new"].time_unix_nano
    [point] = trips.histogram.data_points
    assert (list(point.bucket_counts), list(point.explicit_bounds)) == ([1, 2, 1], [0.1, 1.0])
    assert (point.count, point.sum) == (4, pytest.approx(6.25))


OTELCOL = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "podway/collector/otelcol"


@pytest.mark.skipif(not OTELCOL.exists(), reason="no OpenTelemetry collector here: ./dev collector builds one")
def test_an_opentelemetry_collector_takes_flows_and_metrics(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    parts = {"receivers": ["otlp"], "exporters": ["debug"]}
    configuration = {
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{port}"}}}},
        "exporters": {"debug": {"verbosity": "detailed"}},
        "service": {"telemetry": {"metrics": {"level": "none"}}, "pipelines": {"logs": parts, "metrics": parts}},
    }
    path, said = tmp_path / "collector.yaml", tmp_path / "said"
    path.write_text(json.dumps(configuration))
    target = Target.of_metrics(f"otlp+http://127.0.0.1:{port}")
    with said.open("wb") as out, subprocess.Popen([OTELCOL, "--config", path], stdout=out, stderr=out) as process:
        try:
            sink, metrics = target.open("node1"), OtlpMetrics(target, "node1")

            def taken() -> bool:
                assert process.poll() is None, said.read_text()
                try:
                    return sink.send(records()) == 0
                except OSError:
                    return False

            eventually(taken)
            took = Histogram((0.1, 1.0))
            took.observe(0.5, 3)
            metrics.send([(LEASES, 3.0), (RECORDS, {("new",): 7.0}), (TRIPS, took)])
            eventually(lambda: "podway_tcp_round_trip_seconds" in said.read_text())
            sink.close()
            metrics.close()
        finally:
            process.terminate()
    words = said.read_text()
    for one in (
        "k8s.node.name: Str(node1)",
        "EventName: podway.flow.drop",
        "SeverityText: WARN",
        "podway.destination.k8s.pod.name: Str(web)",
        "Name: podway_leases",
        "IsMonotonic: true",
        "event: Str(new)",
        "Buckets #1, Count: 3",
    ):
        assert one in words


@pytest.mark.parametrize("url", ["file:///tmp/x", "ipfix+udp://host", "http://host", "otlp+grpc://host"])
def test_a_receiver_of_metrics_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="--metrics-export") as refused:
        Target.of_metrics(url)
    assert "otlp+http://" in refused.value.hint


def test_a_record_by_ipfix_is_as_long_as_its_template_says_whatever_its_service_is() -> None:
    """One byte more, and a receiver misreads all that follow it in the set."""
    sink = Ipfix(Target.parse("ipfix+tcp://127.0.0.1:4739"), "node1")
    plain = records()[:1]
    odd = [replace(plain[0], service=Called(address, 443)) for address in ("::", "fd00::1")]
    _, alone = sink.messages(plain)  # the templates are sent first
    header = 20  # the message's, and the set's
    (together,) = sink.messages(plain + odd)
    assert together[header:] == alone[header:] * 3


def test_nfcapd_reads_records_by_ipfix(tmp_path: Path) -> None:
    port = free_port(socket.SOCK_DGRAM)
    command = ["nfcapd", "-4", "-b", "127.0.0.1", "-p", str(port), "-w", str(tmp_path), "-t", "3600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as receiver:
        listening = f":{port:04X} "
        eventually(lambda: listening in Path("/proc/net/udp").read_text())
        sink = Target.parse(f"ipfix+udp://127.0.0.1:{port}").open("node1")
        many = records() * 40
        sink.send(many)
        sink.close()
        time.sleep(0.5)
        receiver.send_signal(signal.SIGTERM)
        receiver.wait(PATIENCE)
    form = "fmt:%pr %sa %sp %da %dp %opkt %obyt %ipkt %ibyt"
    said = subprocess.run(
        ["nfdump", "-R", str(tmp_path), "-q", "-N", "-6", "-o", form], check=True, capture_output=True, text=True
    ).stdout
    lines = [line.split() for line in said.splitlines() if line.strip()]
    assert len(lines) == len(many), said
    ends = [CLIENT, "40000", WEB, "80"]
    assert lines.count(["6", *ends, "0", "0", "1", "60"]) == 40
    assert lines.count(["6", *ends, "4", "4000", "5", "500"]) == 40
    assert lines.count(["17", "2001:db8::1", "40000", "2001:db8::2", "80", "0", "0", "1", "60"]) == 40


def test_tshark_understands_every_field_of_ipfix(tmp_path: Path) -> None:
    sink = Ipfix(Target.parse("ipfix+udp://127.0.0.1:4739"), "node1")
    datagrams = list(sink.messages(records() + called()))
    assert all(len(one) <= 1400 for one in datagrams)
    path = tmp_path / "ipfix.pcap"
    with path.open("wb") as file:
        file.write(bytes.fromhex("d4c3b2a1020004000000000000000000ffff000065000000"))
        for one in datagrams:
            udp = (4739).to_bytes(2, "big") * 2 + (8 + len(one)).to_bytes(2, "big") + b"\0\0" + one
            packet = (
                b"\x45\0" + (20 + len(udp)).to_bytes(2, "big") + bytes(5) + b"\x11\0\0" + bytes([127, 0, 0, 1] * 2)
            )
            packet = packet[:8] + b"\x40\x11" + packet[10:] + udp
            size = len(packet).to_bytes(4, "little")
            file.write(bytes(8) + size + size + packet)
    said = subprocess.run(
        ["tshark", "-r", str(path), "-d", "udp.port==4739,cflow", "-V"], check=True, capture_output=True, text=True
    ).stdout
    assert "Malformed" not in said
    assert "Unknown" not in said
    for text in ("SrcAddr: 10.244.2.2", "DstPort: 80", "Protocol: TCP (6)", "Octets: 500", "Octets: 4000"):
        assert text in said, text
    assert "Firewall Event: Flow denied (3)" in said
    backend = (f"Post NAT Destination IPv4 Address: {WEB}", "Post NAPT Destination Transport Port: 8443")
    for text in (f"DstAddr: {VIP}", "DstPort: 443", *backend):
        assert text in said, text
    assert "Flow End Reason: End of Flow detected (3)" in said


@pytest.mark.parametrize(
    "url",
    [
        "flows.jsonl",
        "file://host/path",
        "file:///x?size=0",
        "file:///x?size=many",
        "file:///x?rotate=1",
        "otlp://host",
        "otlp+grpc://host",
        "otlp+http://",
        "ipfix+udp://host:99999",
        "ipfix+sctp://host",
        "kafka://host",
        "otlp+http://a..b:4318",
        f"ipfix+udp://{'a' * 64}.example",
    ],
)
def test_a_target_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="--flow-export"):
        Target.parse(url)


# How they are sent.


class Receiver:
    """A sink that fails when it is told to."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.fails = False

    def send(self, records: Sequence[FlowRecord]) -> int:
        if self.fails:
            raise ConnectionRefusedError(111, "Connection refused")
        self.taken += [one.sequence for one in records]
        return 0

    def close(self) -> None:
        pass


def export(position: int = -1) -> tuple[FlowExport, Receiver]:
    made, receiver = FlowExport(Target.parse("file:///nowhere"), "node1", position), Receiver()
    made._sink = receiver
    return made, receiver


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlowStore]:
    monkeypatch.setattr(flow_store, "BLOCK", 700)
    found = FlowStore(tmp_path / "flows", "node1", 64 << 20)
    yield found
    found.close()


def grow(history: FlowStore, count: int) -> None:
    for _ in range(count // 100):
        history.append(event() * 100, names() if not history.count else type(names())())
        if history.is_due:
            history.seal()


def drain(made: FlowExport, history: FlowStore) -> None:
    while made.step(history):
        pass


def test_a_receiver_that_was_gone_is_sent_all_that_it_missed_in_order_and_once(history: FlowStore) -> None:
    grow(history, 300)
    made, receiver = export()
    made.begin(history)
    grow(history, 200)
    drain(made, history)
    receiver.fails = True
    grow(history, 2500)
    with pytest.raises(OSError, match="refused"):
        drain(made, history)
    receiver.fails = False
    drain(made, history)
    assert receiver.taken == list(range(300, 3000))
    assert (made.sent, made.skipped, made.status(history)["behind"]) == (2700, 0, 0)


def test_what_the_history_gave_up_and_what_is_too_far_behind_is_left_out_and_counted(
    history: FlowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, receiver = export(position=0)
    grow(history, 3500)
    oldest = history._sealed.pop(0)
    oldest.path.unlink()
    drain(made, history)
    assert receiver.taken == list(range(oldest.records, 3500))
    assert made.skipped == oldest.records
    monkeypatch.setattr(flow_exports, "MOST_BEHIND", 1000)
    grow(history, 1500)
    drain(made, history)
    assert receiver.taken[-1000:] == list(range(4000, 5000))
    assert made.skipped == oldest.records + 500
    assert made.sent + made.skipped == 5000


def test_another_agent_goes_on_where_the_former_one_was(history: FlowStore, tmp_path: Path) -> None:
    target = Target.parse(f"file://{tmp_path}/out.jsonl")

    async def run(more: int) -> list[dict[str, Any]]:
        exports = FlowExports([target], "node1", tmp_path / "flows")
        exports.trigger(history)
        running = asyncio.ensure_future(exports.run())
        grow(history, more)
        exports.trigger(history)
        async with asyncio.timeout(PATIENCE):
            while True:
                await asyncio.sleep(0.01)
                if not exports.status()[0]["behind"]:
                    break
        await asyncio.sleep(0.1)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return exports.status()

    asyncio.run(run(400))
    grow(history, 300)
    [status] = asyncio.run(run(200))
    assert (status["sent"], status["skipped"], status["problem"]) == (500, 0, "")
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == list(range(900))
