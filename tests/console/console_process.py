"""The command itself, asked over HTTP as a browser does."""

import contextlib
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from tests.patience import PATIENCE


class ConsoleProcess:
    """A `podway console` that runs."""

    def __init__(self, url: str) -> None:
        self.url = url

    def open(self, path: str, **headers: str) -> Any:
        asked = urllib.request.Request(
            self.url + path, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
        return urllib.request.urlopen(asked, timeout=PATIENCE)

    def ask(self, path: str) -> Any:
        """The JSON of an answer, also of one that refuses."""
        try:
            with self.open(f"api/v1/{path}", Podway_Console="1") as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)

    @contextlib.contextmanager
    def follow(self, query: str = "", last: str = "") -> Iterator[Iterator[tuple[str, str, dict[str, Any]]]]:
        """Follow flows: yields the events' ids, names and data."""
        more = {"Last_Event_ID": last} if last else {}
        with self.open(f"api/v1/flows/live?{query}", **more) as stream:

            def events() -> Iterator[tuple[str, str, dict[str, Any]]]:
                found: dict[str, str] = {}
                for line in stream:
                    name, _, value = line.decode().rstrip("\n").partition(": ")
                    if name:
                        found[name] = value
                    elif "data" in found:
                        yield found.get("id", ""), found["event"], json.loads(found["data"])
                        found = {}

            yield events()


@contextlib.contextmanager
def console(*options: str) -> Iterator[ConsoleProcess]:
    """Run the command on a port that is free; end it as ^C does."""
    command = [sys.executable, "-m", "podway", "console", "--listen", "127.0.0.1:0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://\S+", line)
            assert found, f"it did not say where it listens: {line!r}"
            yield ConsoleProcess(found[0])
        finally:
            process.terminate()
        assert process.wait(PATIENCE) == 0
