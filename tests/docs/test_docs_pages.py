"""Every command of README and docs is run, in its order, and prints what the page shows.

With PODWAY_GOLDEN=write (`./dev docs`) outputs that are other than shown are written into the pages, to be looked
over. What is not run, and why: scenes.py.
"""

import difflib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from podway.errors import LabError
from podway.lab import cluster
from tests.docs.console import Console, Names, match, parse, replaced
from tests.docs.scenes import PAGES, RUN_AS, Scene
from tests.docs.terminal import ROOT, Terminal
from tests.patience import PATIENCE

AGAIN = 3.0 if os.environ.get("PODWAY_GOLDEN") == "write" else PATIENCE
"""How long something that comes a moment later is waited for, in seconds."""

CHINESE = {"README.md": "README.zh-CN.md", "docs/tutorial.md": "docs/tutorial.zh-CN.md"}

SOURCES = (
    "README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md") if ".zh-CN." not in path.name),
)


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """A terminal in a directory that has the sources; its lab is removed."""
    lab = f"d{os.getpid()}x{secrets.token_hex(3)}"
    directory = tmp_path / "podway"
    directory.mkdir()
    (directory / "src").symlink_to(ROOT / "src")
    with Terminal(lab, directory) as terminal:
        yield terminal
    try:
        cluster.down(lab)
    except LabError as error:
        assert error.message == f"no lab {lab!r}"  # noqa: PT017 - anything else is a failure to clean up


@pytest.mark.parametrize("page", SOURCES)
def test_no_command_hides_in_another_kind_of_block(page: str) -> None:
    text = text_of(page)
    consoles = parse(text)
    assert bool(consoles) == (page in PAGES), "scenes.py knows the pages that have commands, and no others"
    if consoles:
        commands = {step.bare for console in consoles for step in console.steps}
        assert set(PAGES[page].without) <= commands, "what is left out is on the page"
    fenced, console = False, False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
            console = line.startswith("```console")
        elif fenced and not console:
            assert not line.startswith(("$ ", "podway ")), f"a command outside of a console: {line}"


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [page for page, scene in PAGES.items() if not scene.nothing])
def test_what_a_page_shows_is_true(page: str, terminal: Terminal) -> None:
    check(page, PAGES[page], terminal)


def check(page: str, scene: Scene, terminal: Terminal) -> None:
    """Type a page's commands; compare what they print, or write it."""
    text, names, new = text_of(page), Names(), []
    for command in scene.before:
        printed, status = terminal.type(command)
        assert status == 0, f"{command}: {printed}"
    for console in parse(text):
        for step in console.steps:
            if step.bare in scene.without:
                continue
            where = f"{page}, line {step.at}: {step.command}"
            wanted = console.status if step is console.steps[-1] else 0
            compared = step.output or scene.whole
            deadline = time.monotonic() + (AGAIN if console.again else 0)
            while True:
                printed, status = terminal.type(names.real(RUN_AS.get(step.bare, step.command)), console.node)
                known = match(step.output, printed, names) if compared else names
                if (status == wanted and known is not None) or time.monotonic() >= deadline:
                    break
                time.sleep(0.2)
            assert status == wanted, f"{where}\nends with {status}, not {wanted}:\n" + "\n".join(printed)
            if known is not None:
                names = known
            elif os.environ.get("PODWAY_GOLDEN") == "write":
                new.append((step, [names.show(line) for line in printed]))
            else:
                told = difflib.unified_diff(
                    step.output, [names.show(line) for line in printed], "shown", "printed"
                )
                raise AssertionError(f"{where}\n" + "\n".join(line.rstrip("\n") for line in told))
    if new:
        (ROOT / page).write_text(replaced(text, new))


def _typed(console: Console) -> tuple[str, int, bool, list[str]]:
    return console.node, console.status, console.again, [step.bare for step in console.steps]


@pytest.mark.parametrize("page", CHINESE)
def test_the_chinese_page_has_the_same_consoles(page: str) -> None:
    """Commands and outputs are the same; comments are translated. It runs after the pages themselves."""
    english, text = parse(text_of(page)), text_of(CHINESE[page])
    chinese = parse(text)
    assert [_typed(console) for console in chinese] == [_typed(console) for console in english]
    pairs = [
        (ours, theirs.output)
        for console, model in zip(chinese, english, strict=True)
        for ours, theirs in zip(console.steps, model.steps, strict=True)
    ]
    if os.environ.get("PODWAY_GOLDEN") == "write":
        (ROOT / CHINESE[page]).write_text(replaced(text, pairs))
    else:
        assert [ours.output for ours, _ in pairs] == [output for _, output in pairs]
    for one, other in ((page, CHINESE[page]), (CHINESE[page], page)):
        assert f"]({Path(other).name})" in text_of(one), "each leads to the other"
