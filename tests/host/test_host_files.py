"""What `podway install` writes, and what it refuses to overwrite."""

import subprocess
from pathlib import Path

import pytest

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


def test_removing_is_complete_and_may_be_repeated(paths: HostPaths) -> None:
    install(paths)
    assert set(remove(paths).values()) == {"removed"}
    assert set(remove(paths).values()) == {"was not there"}
