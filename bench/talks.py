"""Round trips, connections and streams over many paths, a few milliseconds each in turn (connect.c).

On a machine that does other things as well, what two paths took is comparable only if it was measured almost at
the same time: so a round is short, all paths have their turn in it, and each is compared with the base's of that
round.
"""

import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path as File
from typing import Literal

from bench import paths
from bench.labs import inside
from bench.paths import CORE, Path
from bench.samples import median
from podway.errors import LabError

What = Literal["trips", "connections", "stream"]

CONNECT_PORT = 7000
MILLISECONDS = 25
"""How long a path has its turn."""


@contextlib.contextmanager
def connect_tool() -> Iterator[str]:
    """Compile connect.c; give its path while the block runs."""
    with tempfile.TemporaryDirectory() as scratch:
        target = str(File(scratch, "connect"))
        subprocess.run(["cc", "-O2", "-o", target, str(File(__file__).parent / "connect.c")], check=True)
        yield target


def command(tool: str, role: str, path: Path, *more: str) -> list[str]:
    """Return how the tool is called for one end of a path, pinned to the core that both ends share."""
    return ["taskset", "-c", str(CORE), tool, role, path.address, str(CONNECT_PORT), *more]


@contextlib.contextmanager
def answering(tool: str, ways: Sequence[Path]) -> Iterator[None]:
    """Have somebody answer at the end of each path while the block runs. Raises LabError."""
    with contextlib.ExitStack() as servers:
        for path in {path.target: path for path in ways}.values():
            servers.enter_context(paths.server(path, CONNECT_PORT, command(tool, "server", path)))
        yield


class Asker:
    """Who asks along a path, whenever it is told to."""

    def __init__(self, tool: str, path: Path) -> None:
        self.path = path
        self._process = inside(
            path.source,
            lambda: subprocess.Popen(
                command(tool, "asker", path), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ),
        )

    def ask(self, what: What) -> float:
        """Return how long one took, as median of a turn, in seconds; of a stream, a MiB. Raises LabError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what} {MILLISECONDS}\n")
        self._process.stdin.flush()
        said = self._process.stdout.readline()
        if not said:
            raise LabError(f"{what} over {self.path.name}: nobody answers at {self.path.address}")
        return int(said) / 1e9

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def askers(tool: str, ways: Sequence[Path]) -> Iterator[Mapping[str, Asker]]:
    """Give one for each path, by the paths' names, while the block runs."""
    with contextlib.ExitStack() as stack:
        yield {path.name: stack.enter_context(contextlib.closing(Asker(tool, path))) for path in ways}


def talk(
    who: Mapping[str, Asker],
    what: What,
    rounds: int,
    prepare: Callable[[Path], None] = lambda _: None,
) -> Mapping[str, list[float]]:
    """Have all paths take their turns, after a round to warm up; return what each took (seconds), one a round.

    `prepare` is called ahead of each turn.
    """

    def turn(path: Path) -> float:
        prepare(path)
        return who[path.name].ask(what)

    return paths.in_turn([asker.path for asker in who.values()], rounds, turn, warm_up=1)


def ratio(samples: Mapping[str, list[float]], name: str, base: str) -> float:
    """Return the median of a path's ratios to the base, of the same round each."""
    return median([one / other for one, other in zip(samples[name], samples[base], strict=True)])
