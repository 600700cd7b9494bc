"""Consoles in Markdown: what a page says is typed and printed, and whether that is true.

A console is a fenced block of the language `console`. A line that begins with `$ ` or `# ` is a command (it goes
on while its lines end with a backslash); the lines below it are its output. In an output a line of `…` alone
stands for any lines, and a line that ends with `…` for all lines that begin so.

Further words after `console`: `on=NODE`, the commands are run on that node; `exit=N`, so the last one ends;
`again`, they are looks at something that comes a moment later, and may be typed again until it has come.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

ELLIPSIS = "…"

_FENCE = re.compile(r"^(```+)\s*(\S*)(.*)$")
_COMMENT = re.compile(r"\s+# .*$")

_VARYING = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?"), "<date>"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC"), "<date>"),
    (re.compile(r"(?<![\w:])\d\d:\d\d:\d\d(\.\d+)?(?![\w:])"), "<clock>"),
    (re.compile(r"\b(\d+\.\d+/){3}\d+\.\d+ ms"), "<times>"),
    (re.compile(r"(?<![\w.])(\d+[dhm])*\d+(\.\d+)? ?(µs|ms|ns|s|min|h)(?![\w])"), "<time>"),
    (re.compile(r"\b(id|pid) \d+"), r"\1 <number>"),  # tcpdump's, of ICMP echoes; a process's
    (re.compile(r"\d+ MiB"), "<memory>"),
    (re.compile(r"\d+ checks on"), "<checks> on"),  # what the doctor looks at grows
    (re.compile(r"\b(REACHABLE|STALE|DELAY|PROBE)\b"), "<learned>"),  # ages of a neighbour entry
    (re.compile(r"\d+ packets captured"), "<packets> captured"),  # whatever else was on the wires
    (re.compile(r"(you are [\d.]+):\d+"), r"\1:<port>"),  # one that a translation chose may be any
    (re.compile(r"(?<=[.\]\d]:)[3-6]\d{4}\b"), "<port>"),  # ephemeral: net.ipv4.ip_local_port_range
    (re.compile(r"(?<=\d\.)[3-6]\d{4}(?= >|: )"), "<port>"),
)
"""What no two runs have in common, and what stands for it. Sizes and counts are not among them."""

_NAME = re.compile(
    r"pway[0-9a-f]{11}|\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b|\bfe80::[0-9a-f:]+[0-9a-f]|(?<=@if)\d+|^\d+(?=:$)"
)
"""What is named by chance, but is the same wherever it stands on a page: links, their addresses and numbers."""


@dataclass
class Step:
    """One command and what it printed; `at` is the line of the page (from 0) at which the output begins."""

    command: str
    output: list[str]
    at: int

    @property
    def bare(self) -> str:
        """The command without its comment."""
        return _COMMENT.sub("", self.command).strip()


@dataclass
class Console:
    """One block; `line` is where its fence stands (from 0)."""

    line: int
    steps: list[Step] = field(default_factory=list)
    node: str = ""
    status: int = 0
    again: bool = False


def parse(page: str) -> list[Console]:
    """Return a page's consoles."""
    found: list[Console] = []
    fence, console = "", None
    more = False
    for number, line in enumerate(page.splitlines()):
        if not fence:
            if opened := _FENCE.match(line):
                fence, language, words = opened.groups()
                console = _opened(number, words) if language == "console" else None
                found += [console] if console else []
        elif line.strip() == fence:
            fence, console = "", None
        elif console is not None:
            if more:
                console.steps[-1].command += f"\n{line}"
                console.steps[-1].at = number + 1
            elif line.startswith(("$ ", "# ")):
                console.steps.append(Step(line[2:], [], number + 1))
            elif console.steps:
                console.steps[-1].output.append(line)
                continue
            elif line:
                raise ValueError(f"line {number + 1}: output before the first command: {line}")
            more = line.endswith("\\")
    for console in found:
        for step in console.steps:  # an empty line between two commands is no output
            while step.output and not step.output[-1]:
                step.output.pop()
    return found


def _opened(line: int, words: str) -> Console:
    options = dict(word.partition("=")[::2] for word in words.split())
    if unknown := options.keys() - {"on", "exit", "again"}:
        raise ValueError(f"line {line + 1}: a console has no {', '.join(unknown)}")
    status = int(options.get("exit", 0))
    return Console(line, node=options.get("on", ""), status=status, again="again" in options)


def replaced(page: str, outputs: Sequence[tuple[Step, Sequence[str]]]) -> str:
    """Return the page with other outputs."""
    lines = page.splitlines()
    for step, output in sorted(outputs, key=lambda pair: pair[0].at, reverse=True):
        lines[step.at : step.at + len(step.output)] = output
    return "\n".join(lines) + "\n"


class Names:
    """Which name on the page stands for which in reality; one for one."""

    def __init__(self) -> None:
        self._real: dict[str, str] = {}
        self._shown: dict[str, str] = {}

    def copy(self) -> "Names":
        """Return names that may be tried and thrown away."""
        other = Names()
        other._real, other._shown = dict(self._real), dict(self._shown)
        return other

    def same(self, shown: str, real: str) -> bool:
        """Tell whether a name on the page may be this real one; it is from now on."""
        return self._real.setdefault(shown, real) == real and self._shown.setdefault(real, shown) == shown

    def real(self, command: str) -> str:
        """Return a command of the page with real names."""
        return _NAME.sub(lambda name: self._real.get(name[0], name[0]), command)

    def show(self, line: str) -> str:
        """Return a real line with the page's names."""
        return _NAME.sub(lambda name: self._shown.get(name[0], name[0]), line)


def match(shown: Sequence[str], real: Sequence[str], names: Names) -> Names | None:
    """Compare an output with what the page shows; return the names known then, or None if it is another.

    Words count, not where lines break: that depends on what varies.
    """
    if bool(shown) != bool(real) and set(shown) != {ELLIPSIS}:
        return None
    pieces: list[list[str]] = [[]]
    for word in _words(shown):
        if word.endswith(ELLIPSIS):
            pieces[-1] += [word] if word != ELLIPSIS else []
            pieces.append([])
        else:
            pieces[-1].append(word)
    return _match(pieces, _words(real), names)


def _match(pieces: Sequence[Sequence[str]], words: Sequence[str], names: Names) -> Names | None:
    """Find pieces one after the other, the first at the beginning, the last at the end."""
    first, rest = pieces[0], pieces[1:]
    if not rest:
        return _same(first, words, names)
    known = _same(first, words[: len(first)], names)
    words = words[len(first) :]
    while known is not None and len(rest) > 1:
        piece, rest = rest[0], rest[1:]
        for start in range(len(words) - len(piece) + 1):
            if (found := _same(piece, words[start : start + len(piece)], known)) is not None:
                known, words = found, words[start + len(piece) :]
                break
        else:
            return None
    last = rest[0]
    if known is None or len(last) > len(words):
        return None
    return _same(last, words[len(words) - len(last) :], known)


def _same(shown: Sequence[str], real: Sequence[str], names: Names) -> Names | None:
    if len(shown) != len(real):
        return None
    tried = names.copy()
    for expected, found in zip(shown, real, strict=True):
        if expected.endswith(ELLIPSIS):
            if not found.startswith(expected[: -len(ELLIPSIS)]):
                return None
        elif _NAME.split(expected) != _NAME.split(found) or not all(
            map(tried.same, _NAME.findall(expected), _NAME.findall(found))
        ):
            return None
    return tried


def _words(lines: Sequence[str]) -> list[str]:
    """Return the words, without what varies."""
    text = " ".join(" ".join(lines).split())
    for pattern, word in _VARYING:
        text = pattern.sub(word, text)
    return text.split()
