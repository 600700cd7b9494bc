"""Tables as kubectl prints them."""

import shutil
import sys
from collections.abc import Sequence
from typing import TextIO

GAP = "   "
MISSING = "<none>"


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; on a terminal too narrow for it, one line for each value instead."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    print(format_table(headers, rows, width=width))


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, width: int = 0) -> str:
    """Return the lines of a table in columns; stacked if they need more than `width` (0: any width)."""
    table = [list(headers), *([cell or MISSING for cell in row] for row in rows)]
    widths = widths_of(table)
    if rows and 0 < width < sum(widths) + len(GAP) * (len(widths) - 1):
        return _stacked(headers, table[1:])
    return "\n".join(align(row, widths) for row in table)


def widths_of(table: Sequence[Sequence[str]]) -> list[int]:
    """Return how wide each column is."""
    return [max(map(len, column)) for column in zip(*table, strict=True)]


def align(row: Sequence[str], widths: Sequence[int]) -> str:
    """Return a row of a table whose columns are so wide."""
    return GAP.join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip()


def _stacked(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    left = max(map(len, headers))
    return "\n\n".join(
        "\n".join(f"{header.ljust(left)}  {cell}" for header, cell in zip(headers, row, strict=True))
        for row in rows
    )


def fold(text: str, indent: str = "", *, stream: TextIO) -> str:
    """Fold lines between words to the width of a terminal, further ones behind an indent; leave them elsewhere."""
    import textwrap

    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        for line in text.splitlines()
    )
