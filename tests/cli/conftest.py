"""The command line on a store of its own."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from podway.cli import main as root


class Podway:
    def __init__(self, directory: Path) -> None:
        self.url = f"sqlite://{directory}/store.db"

    def __call__(self, *args: str, stdin: str | None = None, status: int = 0) -> str:
        result = CliRunner().invoke(root.main, ["--store", self.url, *args], input=stdin)
        assert result.exit_code == status, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.stdout if status == 0 else result.stderr

    def lines(self, *args: str) -> list[list[str]]:
        """Return the words of each line, ages as `0s`."""
        return [re.sub(r"\b\d+s\b", "0s", line).split() for line in self(*args).splitlines()]


@pytest.fixture
def podway(tmp_path: Path) -> Podway:
    return Podway(tmp_path)
