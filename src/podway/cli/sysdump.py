"""`podway sysdump`: all that somebody needs to help, in one file, without secrets."""

import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import click

from podway.api.redaction import Redactor
from podway.cli.help import examples
from podway.cli.options import SNAPSHOT, GlobalOptions, cluster_options
from podway.errors import AgentError, InvalidArgument, PodwayError

ASKED: Mapping[str, tuple[str, dict[str, Any]]] = {
    "status": ("status", {}),
    "peers": ("peers", {}),
    "routes": ("routes", {}),
    "leases": ("leases", {}),
    "kernel": ("trace.ground", {}),
    "flows-denied": ("flows.find", {"limit": 500, "verdicts": ["denied", "dropped"]}),
    "flows": ("flows.find", {"limit": 500}),
}
"""What each agent is asked, by the file that its answer goes to."""

LOG_BYTES = 1 << 20
"""How much of the end of an agent's log is taken."""

DUMP_SECONDS = 30.0
"""How long an agent may take to show its kernel."""

DOCTOR_SECONDS = 180
"""How long `podway doctor` may take."""

Part: TypeAlias = tuple[str, str]
"""A file's path in the dump, and its text."""


@click.command(
    epilog=examples(
        "podway sysdump",
        "podway sysdump -o dump.tar.gz",
        "podway --store kubernetes: sysdump --no-doctor",
    )
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file.  [default: podway-sysdump-TIME.tar.gz, here]",
)
@click.option("--doctor/--no-doctor", default=True, help="Whether `podway doctor` looks at all nodes for it.")
@cluster_options
@click.pass_obj
def sysdump(options: GlobalOptions, *, output: Path | None, doctor: bool) -> None:
    """Write all that somebody needs to help into one file: a gzipped tar archive.

    The cluster's objects; of every node what its agent says of itself, its BGP sessions, routes, leases, kernel
    (ip, nft, tc), the flow engine's programs and entries, metrics, the latest flows and lines of its log; what
    `podway doctor` finds. Passwords, keys and tokens are
    left out. Names and addresses are not: look into it before you give it to others.
    """
    path = output or Path(time.strftime("podway-sysdump-%Y%m%d-%H%M%S.tar.gz"))
    if options.store_url().startswith(SNAPSHOT):
        raise InvalidArgument("a snapshot has no agents to ask", hint="give away the snapshot itself")
    known, problems = _objects(options)
    redactor = Redactor(known)
    began = time.time()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, text in _parts(options, problems, doctor=doctor):
                _add(archive, name, redactor.text(text), began)
            _add(archive, "README.txt", redactor.text(_readme(problems)), began)
    except OSError as error:
        raise InvalidArgument(
            f"{path}: {error.strerror}", hint="name a file that can be written: -o FILE"
        ) from error
    for problem in problems:
        click.echo(f"podway: not in the dump: {redactor.text(problem)}", err=True)
    click.echo(f"{path}: {path.stat().st_size >> 10} KiB, without secrets; look into it before you give it away")
    click.get_current_context().exit(1 if problems else 0)


def _objects(options: GlobalOptions) -> tuple[tuple[Any, ...], list[str]]:
    """Return all objects as they are stored, their secrets included, and what could not be read."""
    from podway.store.base import list_all

    try:
        found = options.run(list_all)
    except PodwayError as error:
        return (), [f"the cluster's objects: {error.message}"]
    return found.items, [f"an object that is rejected: {one.error.message}" for one in found.rejected]


def _parts(options: GlobalOptions, problems: list[str], *, doctor: bool) -> Iterator[Part]:
    from podway.cli.agents import agents

    yield from _attempt("the snapshot", problems, lambda: [("cluster.json", _snapshot(options))])
    try:
        asked = agents(options)
    except PodwayError as error:
        problems.append(f"what agents say: {error.message}")
        asked = {}
    for name, (method, params) in ASKED.items():
        yield from _answers(asked, name, method, params, problems)
    yield from _dumps(asked, problems)
    yield from _logs(options)
    if doctor:
        yield from _attempt("doctor's report", problems, lambda: [("doctor.json", _doctor(options))])


def _attempt(what: str, problems: list[str], work: Callable[[], list[Part]]) -> list[Part]:
    try:
        return work()
    except (PodwayError, OSError, subprocess.SubprocessError) as error:
        problems.append(f"{what}: {getattr(error, 'message', error)}")
        return []


def _snapshot(options: GlobalOptions) -> str:
    from podway.cli.preview import take
    from podway.preview.snapshot import encode

    return encode(take(options)).decode()


def _answers(
    asked: Mapping[str, Any], name: str, method: str, params: Mapping[str, Any], problems: list[str]
) -> Iterator[Part]:
    import msgspec

    from podway.cli.agents import ask_all

    for node, answer in ask_all(asked, method, **params).items():
        if isinstance(answer, AgentError):
            problems.append(f"{name} of {node}: {answer.message}")
        else:
            text = msgspec.json.format(msgspec.json.encode(answer), indent=1).decode()
            yield f"nodes/{node.replace('/', '_')}/{name}.json", text


def _dumps(asked: Mapping[str, Any], problems: list[str]) -> Iterator[Part]:
    """Yield what agents give to a dump: texts by their names."""
    from podway.cli.agents import ask_all

    for node, answer in ask_all(asked, "doctor.dump", timeout=DUMP_SECONDS).items():
        if isinstance(answer, AgentError):
            problems.append(f"kernel, engine, metrics and log of {node}: {answer.message}")
            continue
        for name, text in answer.items():
            yield f"nodes/{node.replace('/', '_')}/{name.replace('/', '_')}", str(text)


def _logs(options: GlobalOptions) -> Iterator[Part]:
    """Yield the ends of the logs of a lab's agents; elsewhere whoever runs them has them."""
    from podway.lab.agents import LOG
    from podway.lab.paths import lab_dir

    if options.store is not None:
        return
    for path in sorted((lab_dir(options.lab) / "nodes").glob(f"*/{LOG}")):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            yield f"nodes/{path.parent.name}/{LOG}", file.read().decode(errors="replace")


def _doctor(options: GlobalOptions) -> str:
    """Return what `podway doctor` says. Raises InvalidArgument if it says nothing, and SubprocessError."""
    where = ["--store", options.store] if options.store is not None else ["--lab", options.lab]
    command = [sys.executable, "-m", "podway", *where, "doctor", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DOCTOR_SECONDS, check=False)
    if not done.stdout.strip():
        raise InvalidArgument(f"it said nothing: {done.stderr.strip()}")
    return done.stdout


def _readme(problems: list[str]) -> str:
    from podway import __version__

    system = os.uname()
    python = sys.version.split()[0]
    lines = [
        f"Podway {__version__}, Python {python}, {system.sysname} {system.release} {system.machine}",
        time.strftime("taken %Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "",
        "cluster.json       the cluster's objects, and nodes' pods: podway --store snapshot:cluster.json get …",
        "doctor.json        what `podway doctor` found",
        "nodes/NODE/*.json  what that node's agent said; flows-denied are those that were not let pass",
        "nodes/NODE/*.txt   its kernel (ip, bridge, nft, tc), the flow engine, metrics, the last lines of its log",
        "nodes/NODE/*.log   more of its log (of a lab)",
        "",
        "Secrets were taken out: passwords, private keys, tokens.",
        *(["", "Missing:", *problems] if problems else []),
    ]
    return "\n".join(lines) + "\n"


def _add(archive: tarfile.TarFile, name: str, text: str, moment: float) -> None:
    data = text.encode()
    entry = tarfile.TarInfo(f"podway-sysdump/{name}")
    entry.size, entry.mtime, entry.mode = len(data), int(moment), 0o600
    archive.addfile(entry, io.BytesIO(data))
