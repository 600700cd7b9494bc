"""Reads Prometheus' text format, as its description says; knows nothing of how Podway writes it."""

import re
from typing import TypeAlias

Samples: TypeAlias = dict[tuple[str, tuple[tuple[str, str], ...]], float]

_SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[^"{}]|"(?:\\.|[^"\\])*")*)\})? (\S+)', re.DOTALL)
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:\\.|[^"\\])*)"', re.DOTALL)
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


def parse(text: str) -> Samples:
    """Return the samples of a page. Raises AssertionError for what is no page."""
    found: Samples = {}
    kinds: dict[str, str] = {}
    for line in text.split("\n")[:-1]:
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in kinds, f"{name} comes twice"
            kinds[name] = kind
        if line.startswith("#"):
            continue
        sample = _SAMPLE.fullmatch(line)
        assert sample, line
        name, inside, value = sample.groups()
        assert any(name == kind or name.startswith(f"{kind}_") for kind in kinds), f"{name} has no type"
        labels = tuple((label, _plain(quoted)) for label, quoted in _LABEL.findall(inside or ""))
        assert (name, labels) not in found, f"{line} comes twice"
        found[name, labels] = float(value)
    return found


def _plain(quoted: str) -> str:
    return re.sub(r"\\.", lambda match: _ESCAPES[match.group()], quoted)
