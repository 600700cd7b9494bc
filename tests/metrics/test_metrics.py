"""Metrics as text, and the small server: its answers by an HTTP client that is not ours."""

import asyncio
import http.client
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podway.errors import AgentError, InvalidArgument
from podway.metrics.exposition import CONTENT_TYPE, Histogram, Metric, expose
from podway.metrics.http_server import MAX_CONNECTIONS
from podway.metrics.server import MetricsServer, parse_endpoint
from tests.metrics.text_format import parse


def test_counters_gauges_and_histograms_are_read_as_they_were_written() -> None:
    times = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        times.observe(seconds)
    text = expose(
        [
            (Metric("a_total", "How\nmany.", "counter", ("pool",)), {('b"\\',): 3.0, ("c",): 0.0}),
            (Metric("b_seconds", "Times.", "histogram"), times),
            (Metric("nothing", "None.", labels=("x",)), {}),
        ]
    )
    read = parse(text)
    assert read["a_total", (("pool", 'b"\\'),)] == 3
    assert read["b_seconds_bucket", (("le", "0.1"),)] == 2, "what is just at a limit is within it"
    assert read["b_seconds_bucket", (("le", "1.0"),)] == 3
    assert read["b_seconds_bucket", (("le", "+Inf"),)] == read["b_seconds_count", ()] == 4
    assert read["b_seconds_sum", ()] == pytest.approx(7.65)
    assert "nothing" not in text


@given(st.dictionaries(st.tuples(st.text(max_size=8)), st.floats(allow_nan=False), max_size=5))
def test_any_label_and_number_comes_back(values: dict[tuple[str, ...], float]) -> None:
    read = parse(expose([(Metric("m", "h", labels=("l",)), values)]))
    assert read == {("m", (("l", text),)): number for (text,), number in values.items()}


def served(scenario: Callable[[int], Any], collect: Callable[[], Awaitable[str]]) -> Any:
    """Run a scenario in a thread, with the port of a server."""

    async def main() -> Any:
        server = MetricsServer(collect)
        await server.start("127.0.0.1", 0)
        try:
            return await asyncio.to_thread(scenario, server.port)
        finally:
            server.close()

    return asyncio.run(main())


async def page() -> str:
    return "m 1.0\n"


def test_a_client_is_answered() -> None:
    def scenario(port: int) -> list[tuple[int, str, str]]:
        answers = []
        for method, path in (
            ("GET", "/metrics"),
            ("GET", "/metrics?x=1"),
            ("GET", "/healthz"),
            ("GET", "/"),
            ("POST", "/metrics"),
        ):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request(method, path)
            answer = connection.getresponse()
            answers.append((answer.status, answer.getheader("Content-Type", ""), answer.read().decode()))
            connection.close()
        return answers

    found = served(scenario, page)
    assert found[0] == found[1] == (200, CONTENT_TYPE, "m 1.0\n")
    assert [status for status, *_ in found] == [200, 200, 200, 404, 405]


def test_who_says_nothing_or_garbage_holds_nobody_up() -> None:
    def scenario(port: int) -> bytes:
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(MAX_CONNECTIONS - 2)]
        with socket.create_connection(("127.0.0.1", port), timeout=10) as garbage:
            garbage.sendall(b"\xff" * 100_000 + b"\r\n\r\n")
        with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
            one.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            told = one.makefile("rb").read()
        for each in silent:
            each.close()
        return told

    assert served(scenario, page).endswith(b"m 1.0\n")


def test_an_address_that_is_taken_or_none_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AgentError, match="metrics cannot be served") as told:
            asyncio.run(MetricsServer(page).start("127.0.0.1", port))
    assert "--metrics" in told.value.hint
    assert parse_endpoint("[::1]:9180") == ("::1", 9180)
    assert parse_endpoint(":9180") == ("", 9180)
    for text in ("9180", "node1:9180", "127.0.0.1:0", "127.0.0.1:x", "127.0.0.1:70000", ""):
        with pytest.raises(InvalidArgument):
            parse_endpoint(text)
