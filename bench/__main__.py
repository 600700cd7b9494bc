"""The command: run benchmarks, print their results, and write them into the documentation."""

import argparse
import importlib
import os
import signal
import sys
import time
from pathlib import Path

from bench import machine
from bench.report import Section, replace_marked, summary, table

BENCHMARKS = (
    "attach",
    "burst",
    "roundtrip",
    "datapath",
    "flows",
    "nat",
    "services",
    "racks",
    "restart",
    "withdrawal",
    "switching",
    "loop",
    "kubernetes",
    "churn",
    "startup",
    "convergence",
)
"""Modules of this package, in the order in which they run (the heaviest last); each has a function `measure`."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which to run: {', '.join(BENCHMARKS)} (default all)"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the marked part of this Markdown file")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    if options.write and options.names:
        parser.error("--write replaces all results, so it goes with all benchmarks")
    if options.write:
        replace_marked(options.write.read_text(), "")  # better now than in ten minutes
    if os.geteuid() != 0:
        parser.error("root is needed for network namespaces: ./dev bench")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    facts = machine.facts()
    sections = []
    for name in options.names or BENCHMARKS:
        sections.append(_run(name))
        print(table(sections[-1]), flush=True)
    print(summary(facts, sections))
    if options.write:
        results = "\n".join([summary(facts, sections), *map(table, sections)])
        options.write.write_text(replace_marked(options.write.read_text(), results))
    return 0


def _interrupted(number: int, _: object) -> None:
    """End in good order, labs taken down; whoever asks a second time has to wait for that."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def _run(name: str) -> Section:
    print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
    begun = time.monotonic()
    section: Section = importlib.import_module(f"bench.{name}").measure()
    print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)
    return section


if __name__ == "__main__":
    sys.exit(main())
