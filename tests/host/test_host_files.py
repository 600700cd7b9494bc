"""What `podway install` writes, and what it refuses to overwrite."""

import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from podway.cli.main import main
from podway.errors import InvalidInput
from podway.host.files import HostPaths, install, remove


@pytest.fixture
def paths(tmp_path: Path) -> HostPaths:
    return HostPaths(tmp_path / "bin", tmp_path / "net.d", tmp_path / "units")


def test_installing_twice_writes_once(paths: HostPaths) -> None:
    assert set(install(paths).values()) == {"written"}
    assert set(install(paths).values()) == {"unchanged"}
    assert all(path.exists() for path in paths.every)


def test_the_installed_plugin_runs(paths: HostPaths) -> None:
    install(paths)
    done = subprocess.run(
        [paths.plugins / "podway"], env={"CNI_COMMAND": "VERSION"}, input=b"{}", capture_output=True, check=True
    )
    assert b'"1.1.0"' in done.stdout


def test_the_unit_starts_this_very_podway(paths: HostPaths) -> None:
    install(paths)
    [line] = [text for text in paths.every[2].read_text().splitlines() if text.startswith("ExecStart=")]
    assert Path(line.removeprefix("ExecStart=").split()[0]).exists()


def test_an_edited_file_is_kept_and_nothing_else_is_written(paths: HostPaths) -> None:
    conflist = paths.configuration / "10-podway.conflist"
    conflist.parent.mkdir(parents=True)
    conflist.write_text("{}")
    with pytest.raises(InvalidInput, match=r"10-podway\.conflist"):
        install(paths)
    assert conflist.read_text() == "{}"
    assert not paths.plugins.exists()
    assert install(paths, overwrite=True)[conflist] == "written"


@pytest.mark.parametrize("there", [(), ("portmap",), ("portmap", "bandwidth")], ids=len)
def test_only_plugins_that_are_installed_are_chained(paths: HostPaths, there: tuple[str, ...]) -> None:
    paths.plugins.mkdir()
    for name in there:
        (paths.plugins / name).write_text("#!/bin/sh\n")
        (paths.plugins / name).chmod(0o755)
    (paths.plugins / "tuning").touch()
    install(paths)
    network = json.loads((paths.configuration / "10-podway.conflist").read_text())
    assert [plugin["type"] for plugin in network["plugins"]] == ["podway", *there]
    places = {"--plugin-dir": paths.plugins, "--conf-dir": paths.configuration, "--unit-dir": paths.units}
    words = [word for option, path in places.items() for word in (option, str(path))]
    result = CliRunner().invoke(main, ["install", "--overwrite", *words])
    left_out = {line.partition(":")[0] for line in result.stdout.splitlines() if "left out" in line}
    assert left_out == {"portmap", "bandwidth"} - set(there)


def test_removing_is_complete_and_may_be_repeated(paths: HostPaths) -> None:
    install(paths)
    assert set(remove(paths).values()) == {"removed"}
    assert set(remove(paths).values()) == {"was not there"}
