"""Results, and the table they become."""

from collections.abc import Sequence

import msgspec

BEGIN = "<!-- begin of what `./dev bench --write` writes -->"
END = "<!-- end of what `./dev bench --write` writes -->"

VERDICTS = {True: "met", False: "**missed**", None: ""}


class Row(msgspec.Struct, frozen=True):
    """One result in words. `met` is None where there is no target: for information."""

    what: str
    measured: str
    target: str = ""
    met: bool | None = None


class Section(msgspec.Struct, frozen=True):
    """What one benchmark found. `how` says in a sentence or two what was run, and how often."""

    title: str
    how: str
    rows: tuple[Row, ...]


def table(section: Section) -> str:
    """Write one section as Markdown."""
    return "\n".join(
        [
            f"### {section.title}",
            "",
            section.how,
            "",
            "| what | measured | target | verdict |",
            "|---|---|---|---|",
            *(f"| {row.what} | {row.measured} | {row.target} | {VERDICTS[row.met]} |" for row in section.rows),
            "",
        ]
    )


def summary(facts: Sequence[str], sections: Sequence[Section]) -> str:
    """Write the circumstances, and how many targets were met; each missed one is named."""
    rows = [row for section in sections for row in section.rows]
    targets = [row for row in rows if row.met is not None]
    missed = [row for row in targets if not row.met]
    lines = [*(f"- {fact}" for fact in facts), ""]
    lines += [f"{len(targets) - len(missed)} of {len(targets)} targets are met.", ""]
    if missed:
        lines += ["Missed:", "", *(f"- {row.what}: {row.measured}; wanted {row.target}" for row in missed), ""]
    return "\n".join(lines)


def replace_marked(text: str, new: str) -> str:
    """Return a document with everything between its two marks replaced. Raises ValueError if it has none."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document lacks the line {END if begin else BEGIN}")
    return f"{before}{BEGIN}\n\n{new.strip()}\n\n{END}{after}"
