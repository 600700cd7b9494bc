"""A small cluster that exists nowhere."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from podway.cli.main import main
from podway.preview import snapshot
from podway.preview.simulate import World, build
from tests.builders import pool
from tests.preview.paper_cluster import snapshot_of


@pytest.fixture
def world() -> World:
    """Three nodes and five pods, dual stack."""
    return build(3, 5, [pool("four", "10.244.0.0/16"), pool("six", "fd10::/48")], seed=3)


@pytest.fixture
def file(world: World, tmp_path: Path) -> Path:
    """Its snapshot's file."""
    path = tmp_path / "cluster.json"
    path.write_bytes(snapshot.encode(snapshot_of(world)))
    return path


@pytest.fixture
def podway() -> Callable[..., Result]:
    """Run a command; the status that it must end with is the `status` argument."""

    def run(*words: object, stdin: str | None = None, status: int = 0) -> Result:
        result = CliRunner().invoke(main, [str(word) for word in words], input=stdin)
        assert result.exit_code == status, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run
