"""`podway flows`: what flows, and what was dropped and why, of the whole cluster, live and past."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from podway.cli.agents import PATIENCE, Ask, agents, ask_all
from podway.cli.complete import complete_namespaces, complete_nodes, complete_policies, objects
from podway.cli.help import examples
from podway.cli.options import GlobalOptions, cluster_options
from podway.errors import AgentError, InvalidArgument

if TYPE_CHECKING:
    from podway.flows.heard import Heard, Summed
    from podway.flows.query import AgentAnswer, AgentSums
    from podway.flows.record import Called, FlowRecord

T = TypeVar("T", "AgentAnswer", "AgentSums")

LAST = 100
"""Records that are shown where neither a time nor a number is given."""

HOUR = 3600.0
"""Seconds that are summed up where no time is given."""

FOLLOW = 1.0
"""Seconds between questions while flows are followed."""

SKEW = 2.0
"""Seconds that a node's clock may be off before that is told."""

LATEST = 1e11
"""A time, in seconds since 1970, that is none any more (it is in the year 5138)."""

_ODD = "it may be of another version: see `podway status` on that node"
VERDICTS = ("allowed", "denied", "dropped", "audited")
EVENTS = ("new", "lives", "end", "drop", "changed", "audit")
SUMS = (
    *("policy", "pod", "workload", "service", "dns", "verdict", "port", "reason", "namespace", "node"),
    *("pair", "connection"),
)
_COLOURS = {"allowed": "green", "denied": "red", "dropped": "yellow", "audited": "magenta"}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _complete_pods(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from podway.api.kinds.pod import Pod

    pods = (f"{pod.metadata.namespace}/{pod.metadata.name}" for pod in objects(ctx, Pod))
    return sorted(name for name in pods if name.startswith(incomplete))


def _complete_services(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from podway.api.kinds.service import Service

    services = (f"{one.metadata.namespace}/{one.metadata.name}" for one in objects(ctx, Service))
    return sorted(name for name in services if name.startswith(incomplete))


def _complete_reasons(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from podway.flows.reasons import names

    return [name for name in names() if name.startswith(incomplete.upper())]


@click.command(
    epilog=examples(
        "podway flows                                  # the latest of all nodes",
        "podway flows --follow --verdict denied",
        "podway flows --since 10m --pod shop/web --port 80",
        "podway flows --since 1h --from 'shop/*' --to 192.0.2.0/24 -o wide",
        "podway flows --policy shop/deny-all --last 20",
        "podway flows --since 1h --service shop/web --verdict denied",
        "podway flows --since 1h --workload shop/web --dns '*.example.com'",
        "podway flows --by policy --since 1h",
        "podway flows --by pod --verdict denied --top 10",
        "podway flows --since 10m -o jsonl               # a record a line, for pipes",
    )
)
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until ^C.")
@click.option("--since", metavar="AGO", help="From then on: 90s, 10m, 2h, 1d, or 2026-11-28T04:00:00Z.")
@click.option("--until", metavar="AGO", help="Up to then.")
@click.option("--last", metavar="N", type=click.IntRange(1, 10_000), help="At most so many, the newest.")
@click.option("--pod", "pods", metavar="POD", multiple=True, shell_complete=_complete_pods, help="Either end.")
@click.option("--from", "sources", metavar="END", multiple=True, shell_complete=_complete_pods, help="Who called.")
@click.option(
    "--to", "destinations", metavar="END", multiple=True, shell_complete=_complete_pods, help="Who was called."
)
@click.option(
    "-n",
    "--namespace",
    "namespaces",
    metavar="NS",
    multiple=True,
    shell_complete=complete_namespaces,
    help="Either end's.",
)
@click.option("-l", "--selector", metavar="LABELS", help="Either end is a pod with these labels, as they are now.")
@click.option(
    "--workload",
    "workloads",
    metavar="WORKLOAD",
    multiple=True,
    help="Either end's Deployment, StatefulSet, …: NAMESPACE/NAME, or NAMESPACE/KIND/NAME.",
)
@click.option(
    "--service",
    "services",
    metavar="SERVICE",
    multiple=True,
    shell_complete=_complete_services,
    help="The Service that was called: NAMESPACE/NAME.",
)
@click.option("--dns", "names", metavar="NAME", multiple=True, help="Either end's name in DNS: *.example.com.")
@click.option("--cidr", "cidrs", metavar="CIDR", multiple=True, help="Either end's address.")
@click.option("--verdict", "verdicts", type=click.Choice(VERDICTS), multiple=True, help="What was decided.")
@click.option(
    "--reason",
    "reasons",
    metavar="REASON",
    multiple=True,
    shell_complete=_complete_reasons,
    help="Why it was dropped: docs/datapath.md lists them.",
)
@click.option("--event", "events", type=click.Choice(EVENTS), multiple=True, help="What happened.")
@click.option(
    "--policy",
    "policies",
    metavar="POLICY",
    multiple=True,
    shell_complete=complete_policies,
    help="Whose rule spoke: NAMESPACE/NAME, or NAME.",
)
@click.option(
    "--port", "ports", metavar="P", type=click.IntRange(1, 65535), multiple=True, help="The called port."
)
@click.option("--protocol", "protocols", metavar="PROTO", multiple=True, help="tcp, udp, icmp, sctp, or a number.")
@click.option(
    "--node", "nodes", metavar="NODE", multiple=True, shell_complete=complete_nodes, help="Seen by this node."
)
@click.option(
    "--by",
    type=click.Choice(SUMS),
    metavar="WHAT",
    help=f"Sums instead of records, of the last hour or --since: by {', '.join(SUMS[:-1])} or {SUMS[-1]}.",
)
@click.option("--top", metavar="N", type=click.IntRange(1), help="With --by: so many rows.  [default: 20]")
@click.option("-o", "--output", type=click.Choice(["wide", "json", "jsonl"]), help="Another form.")
@click.option("--remote", is_flag=True, help="Ask over the network, also an agent on this machine.")
@cluster_options
@click.pass_obj
def flows(
    options: GlobalOptions,
    /,
    *,
    follow: bool,
    since: str | None,
    until: str | None,
    last: int | None,
    selector: str | None,
    by: str | None,
    top: int | None,
    output: str | None,
    nodes: tuple[str, ...],
    remote: bool,
    pods: tuple[str, ...],
    cidrs: tuple[str, ...],
    **filters: tuple[Any, ...],
) -> None:
    """Show flows of the whole cluster: who spoke to whom, what was decided, by which rule, and why.

    Each node tells what it saw; a connection between two nodes is seen by both. POD is NAMESPACE/POD (POD alone
    means the namespace `default`), with * for any letters; END is that, node/NAME, an address or a CIDR. Of one
    option given several times any may hold; of several options all must.

    Exit status 1: a node did not answer; what the others know is shown.
    """
    _check(follow=follow, until=until, by=by, top=top, last=last, output=output)
    now = time.time()
    params = question(now, since=since, until=until, selector=selector, pods=pods, cidrs=cidrs, **filters)
    asked = agents(options, nodes, remote=remote)
    if by is not None:
        status = _show_sums(asked, by, top or 20, output, {"since": now - HOUR, **params})
    else:
        limit = last or (10_000 if since is not None else LAST)
        status = _show(asked, {**params, "limit": limit}, output, said=last is not None, follow=follow)
    click.get_current_context().exit(status)


def _check(
    *, follow: bool, until: str | None, by: str | None, top: int | None, last: int | None, output: str | None
) -> None:
    if follow and (until is not None or by is not None):
        raise click.UsageError("--follow goes on: leave out --until and --by")
    if follow and output == "json":
        raise click.UsageError("--follow has no end, and a JSON list has: -o jsonl")
    if top is not None and by is None:
        raise click.UsageError(f"--top is for sums: name one with --by ({', '.join(SUMS)})")
    if last is not None and by is not None:
        raise click.UsageError("--last is for records, and --by sums them up: use --since, and --top for rows")
    if by is not None and output == "wide":
        raise click.UsageError("-o wide is for records: leave it out with --by")


def question(
    now: float,
    *,
    since: str | None = None,
    until: str | None = None,
    selector: str | None = None,
    pods: Sequence[str] = (),
    cidrs: Sequence[str] = (),
    **filters: Sequence[Any],
) -> dict[str, Any]:
    """Return what agents are asked, of filters as people write them (the command's options, by their fields).

    `now` is what times are counted back from, in seconds since 1970. Raises InvalidInput for what no node could
    answer, before any is asked.
    """
    from podway.flows.query import Query

    params: dict[str, Any] = {name: list(values) for name, values in filters.items() if values}
    if pods or cidrs:
        params["pods"] = [*map(_pod, pods), *map(_cidr, cidrs)]
    for name in ("sources", "destinations", "workloads", "services"):
        if name in params:
            params[name] = [_pod(text) for text in params[name]]
    if "reasons" in params:
        params["reasons"] = [one.upper().replace("-", "_") for one in params["reasons"]]
    if since is not None:
        params["since"] = moment_of("--since", since, now)
    if until is not None:
        params["until"] = moment_of("--until", until, now)
    Query.of(params)
    if selector is not None:
        import msgspec

        from podway.cli.selector import parse_selector

        params["selector"] = msgspec.to_builtins(parse_selector(selector))
    return params


def _pod(text: str) -> str:
    """Return an end as agents know it: a name alone is that of a pod in `default`."""
    if "/" in text or ":" in text or text.replace(".", "").isdigit():
        return text
    return f"default/{text}"


def _cidr(text: str) -> str:
    from ipaddress import ip_network

    try:
        return str(ip_network(text, strict=False))
    except ValueError as error:
        raise InvalidArgument(f"--cidr: {error}", hint="write an address or a network: 10.0.0.0/8") from None


def moment_of(option: str, text: str, now: float) -> float:
    """Return the time that is so long ago, or that is written, in seconds since 1970. Raises InvalidArgument."""
    from datetime import datetime

    number, unit = text[:-1], text[-1:]
    with contextlib.suppress(ValueError):
        if unit in _UNITS:
            return now - float(number) * _UNITS[unit]
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(text).timestamp()
    raise InvalidArgument(f"{option}: cannot read {text!r}", hint="write 90s, 10m, 2h, 1d or 2026-11-28T04:00:00Z")


# Records.


def hear(
    asked: Mapping[str, Ask], params: Mapping[str, Any], after: Mapping[str, int] | None = None, since: float = 0.0
) -> "Heard":
    """Ask all for records: with `after` for those from each node's number on, or `since` where none is known."""
    from podway.flows.heard import Heard
    from podway.flows.query import AgentAnswer

    def about(node: str, ask: Ask) -> Ask:
        if after is None:
            return ask
        begin = {"after": after[node] - 1} if node in after else {"since": since}
        return lambda method, **more: ask(method, **more, **begin)

    heard = Heard([], {}, [], {}, {})
    before = time.time()
    answers = ask_all(
        {node: about(node, ask) for node, ask in asked.items()}, "flows.find", timeout=PATIENCE, **params
    )
    notes = Notes()
    for node, given in answers.items():
        answer = read_answer(node, given, AgentAnswer)
        if isinstance(answer, AgentError):
            heard.silent[node] = answer
            continue
        heard.records.extend(answer.records)
        heard.following[node] = answer.next
        heard.lost[node] = answer.lost
        notes.take(node, answer, before)
    heard.records.sort(key=lambda record: (record.time, record.node, record.sequence))
    heard.notes.extend(notes.lines())
    return heard


def read_answer(node: str, answer: Any, kind: type[T]) -> T | AgentError:
    """Return what a node answered; an AgentError if that is one, or cannot be read: one odd node is not all."""
    import msgspec

    if isinstance(answer, AgentError):
        return answer
    try:
        found = msgspec.convert(answer, kind)
    except msgspec.ValidationError as error:
        return AgentError(f"{node}: its agent's answer cannot be read: {error}", hint=_ODD)
    moments = [found.now, found.reached]
    for one in getattr(found, "records", ()):
        moments += (one.time, one.began)
    moments += (row.last for row in getattr(found, "rows", ()))
    if not all(0 <= moment < LATEST for moment in moments):
        return AgentError(f"{node}: its agent's answer cannot be read: it bears a time that is none", hint=_ODD)
    return found


class Notes:
    """What is to be said of answers beside their records."""

    def __init__(self) -> None:
        self._off: dict[str, list[str]] = {}
        self._more: list[str] = []

    def take(self, node: str, answer: "AgentAnswer | AgentSums", asked: float) -> None:
        """Look at what a node answered to a question that was asked at a time."""
        if answer.note:
            self._off.setdefault(answer.note, []).append(node)
        if not answer.complete:
            self._more.append(
                f"{node} looked back to {_clock(answer.reached)} only, then its time was over: "
                "a shorter --since, or more filters, find the rest"
            )
        ahead = answer.now - (asked + time.time()) / 2
        if abs(ahead) > SKEW + (time.time() - asked):
            self._more.append(f"the clock of {node} is {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}")

    def lines(self) -> Iterator[str]:
        """Yield what is to be said."""
        for why, nodes in self._off.items():
            line = f"flows are not recorded on {', '.join(nodes)}: {plain(why)}"
            if "is off" in why:
                line += "\n  hint: switch it on: podway set config dataPath=ebpf"
            yield line
        yield from self._more


def _show(
    asked: Mapping[str, Ask], params: Mapping[str, Any], output: str | None, *, said: bool, follow: bool
) -> int:
    heard = hear(asked, params)
    if len(heard.silent) == len(asked):
        raise next(iter(heard.silent.values()))
    _tell(heard)
    limit = params["limit"]
    records = heard.records[-limit:]
    if not said and limit > LAST and len(heard.records) >= limit:
        click.echo(f"podway: these are the newest {limit}: narrow the question to see others", err=True)
    write = _writer(output)
    write(records)
    if follow:
        _follow(asked, {**params, "limit": 10_000}, heard, write)
    elif not records and output is None and not heard.notes:
        click.echo("no flow is known that matches", err=True)
    return 1 if heard.silent else 0


def _follow(
    asked: Mapping[str, Ask],
    params: Mapping[str, Any],
    heard: "Heard",
    write: Callable[[Sequence["FlowRecord"]], None],
) -> None:
    from podway.flows.heard import overtaken

    following, silent, notes, began = dict(heard.following), set(heard.silent), heard.notes, time.time()
    wanted = {name: value for name, value in params.items() if name != "since"}
    while True:
        time.sleep(FOLLOW)
        more = hear(asked, wanted, following, began)
        for node in more.silent.keys() - silent:
            click.echo(f"podway: {plain(more.silent[node].message)}", err=True)
        for node in silent - more.silent.keys():
            click.echo(f"podway: {node} answers again", err=True)
        for note in more.notes:
            if note not in notes:
                click.echo(f"podway: {note}", err=True)
        for node, count in overtaken(more.records, following, params["limit"]).items():
            lost = f"{count} records of {plain(node)} were passed over: more came at once than is looked through"
            click.echo(f"podway: {lost}; filters find what matters", err=True)
        notes, silent = more.notes, set(more.silent)
        following.update(more.following)
        write(more.records)


def _tell(heard: "Heard") -> None:
    for error in heard.silent.values():
        click.echo(f"podway: {plain(error.message)}", err=True)
    for note in heard.notes:
        click.echo(f"podway: {note}", err=True)


def _writer(output: str | None) -> Callable[[Sequence["FlowRecord"]], None]:
    import msgspec

    if output == "json":
        from podway.api.encode import to_json, to_list

        return lambda records: click.echo(
            to_json(to_list([msgspec.to_builtins(one) for one in records])), nl=False
        )
    if output == "jsonl":

        def write_lines(records: Sequence["FlowRecord"]) -> None:
            for one in records:
                click.echo(msgspec.json.encode(_shape(one)).decode())

        return write_lines
    lines = _Lines(wide=output == "wide")

    def write(records: Sequence["FlowRecord"]) -> None:
        for line in lines.of(records):
            click.echo(line)

    return write


def _shape(record: "FlowRecord") -> dict[str, Any]:
    import msgspec

    return {"apiVersion": "podway.io/v1", "kind": "FlowRecord", **msgspec.to_builtins(record)}


class _Lines:
    """Records as lines, whose columns are as wide as what was shown so far needs."""

    def __init__(self, *, wide: bool) -> None:
        self._wide = wide
        self._widths: list[int] = []
        self._today = time.strftime("%F")

    def of(self, records: Iterable["FlowRecord"]) -> Iterator[str]:
        rows = [(record, self._cells(record)) for record in records]
        for _, cells in rows:
            self._widths = [
                max(pair) for pair in zip(self._widths or [0] * len(cells), map(len, cells), strict=True)
            ]
        for record, cells in rows:
            if record.lost:
                lost = f"-- {plain(record.node)} lost {record.lost} events before this"
                lost += ": more came than its agent could take"
                yield click.style(lost, fg="yellow")
            padded = [cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True)]
            padded[2] = click.style(padded[2], fg=_COLOURS[record.verdict])
            yield " ".join([*padded, plain(_what(record, wide=self._wide))]).rstrip()

    def _cells(self, record: "FlowRecord") -> list[str]:
        source, destination = (
            plain(end.label) + (f":{end.port}" if end.port else "") for end in (record.source, record.destination)
        )
        arrow = "<-" if record.reply else "->"
        cells = [
            _clock(record.time, self._today),
            plain(record.node),
            record.verdict,
            record.event,
            plain(record.protocol),
        ]
        if self._wide:
            cells += [plain(record.direction) or "-", plain(record.path) or "-"]
            source, destination = (
                f"{text} ({plain(end.address)})" if end.label != end.address else text
                for text, end in zip((source, destination), (record.source, record.destination), strict=True)
            )
        return [*cells, source, f"{arrow} {destination}"]


def _what(record: "FlowRecord", *, wide: bool) -> str:
    """Return what is to be said of a record beside its ends."""
    from podway.flows.reasons import words_of

    parts = []
    if record.service:
        parts.append(_service(record.service, wide=wide))
    if record.message:
        parts.append(f"type/code {record.message}")
    if record.reason and record.verdict == "dropped":
        parts.append(f"{record.reason}: {words_of(record.reason)}")
    elif record.reason:
        would = "would be " if record.verdict == "audited" else ""
        parts.append(f"{would}{record.reason}: {_rule(record.speaking)}")
    if record.event == "drop" and record.packets > 1:
        parts.append(f"{record.packets} packets")
    if record.event in ("end", "lives"):
        lasted = (
            f"{record.how or 'goes on'} after {_lasted(record.time - record.began)}"
            if record.began
            else record.how
        )
        parts.append(
            f"{lasted}, {record.packets}+{record.packets_back} packets, "
            f"{_size(record.octets)}+{_size(record.octets_back)}"
        )
        parts += _tcp(record, wide=wide)
    if wide and not record.reason:
        rules = (("egress", record.egress), ("ingress", record.ingress))
        parts += [f"{name}: {_rule(rule)}" for name, rule in rules if rule]
    return ", ".join(parts)


def _service(called: "Called", *, wide: bool) -> str:
    """Return which Service was called; its address, too, if that is asked for or all that is known."""
    address = f"[{called.address}]" if ":" in called.address else called.address
    where = f"{address}:{called.port}" if called.port else called.address
    if not called.label:
        return f"Service at {where}"
    port = called.port_name or (str(called.port) if called.port else "")
    return f"Service {called.label}{f':{port}' if port else ''}{f' ({where})' if wide else ''}"


def _tcp(record: "FlowRecord", *, wide: bool) -> Iterator[str]:
    """Yield what TCP tells: in short only what was sent again, which is what is wrong."""
    there, back = record.retransmitted, record.retransmitted_back
    if there or back:
        yield f"{there}+{back} sent again"
    if wide and record.round_trip:
        halves = f"{_lasted(record.rtt / 1e6)} there, {_lasted(record.rtt_back / 1e6)} here"
        yield f"round trip {_lasted(record.round_trip / 1e6)} ({halves})"


def _rule(rule: Any) -> str:
    if rule is None:
        return "no rule is known"
    if rule.isolates:
        return f"isolated by {', '.join(rule.isolates)}, and no rule allows it"
    return f"{rule.rule} of {rule.policy}" if rule.rule else rule.policy


# Sums.


def sum_up(asked: Mapping[str, Ask], by: str, params: Mapping[str, Any]) -> "Summed":
    """Ask all for sums."""
    from podway.flows.heard import Summed
    from podway.flows.query import AgentSums, Sums, merged

    before, notes = time.time(), Notes()
    given = ask_all(asked, "flows.sums", timeout=PATIENCE, by=by, **params)
    found: list[Sums] = []
    silent: dict[str, AgentError] = {}
    for node, said in given.items():
        answer = read_answer(node, said, AgentSums)
        if isinstance(answer, AgentError):
            silent[node] = answer
        else:
            notes.take(node, answer, before)
            found.append(answer)
    return Summed(merged(found), list(notes.lines()), silent)


def _show_sums(asked: Mapping[str, Ask], by: str, top: int, output: str | None, params: Mapping[str, Any]) -> int:
    import msgspec

    from podway.cli.output import print_table

    whole, notes, silent = sum_up(asked, by, params)
    if len(silent) == len(asked):
        raise next(iter(silent.values()))
    for error in silent.values():
        click.echo(f"podway: {plain(error.message)}", err=True)
    for note in notes:
        click.echo(f"podway: {note}", err=True)
    rows = whole.rows[:top]
    if output in ("json", "jsonl"):
        from podway.api.encode import to_json, to_list

        shapes = [
            {"apiVersion": "podway.io/v1", "kind": "FlowSum", "by": by, **msgspec.to_builtins(row)} for row in rows
        ]
        if output == "json":
            click.echo(to_json(to_list(shapes)), nl=False)
        else:
            for shape in shapes:
                click.echo(msgspec.json.encode(shape).decode())
        return 1 if silent else 0
    today = time.strftime("%F")
    audited = any(row.audited for row in rows)
    print_table(
        [by.upper(), "FLOWS", "DENIED", "DROPPED", *(["AUDITED"] if audited else []), "PACKETS", "BYTES", "LAST"],
        [
            [
                plain(row.key),
                str(row.flows),
                str(row.denied),
                str(row.dropped),
                *([str(row.audited)] if audited else []),
                str(row.packets),
                _size(row.octets),
                _clock(row.last, today),
            ]
            for row in rows
        ],
    )
    left = len(whole.rows) - len(rows) + whole.more
    if left:
        click.echo(f"podway: {left} more: --top {len(rows) + left} shows all", err=True)
    return 1 if silent else 0


# Words.


def plain(text: str) -> str:
    """Return a text of which no letter does anything to a terminal: others are written as Python writes them."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _clock(moment: float, today: str = "") -> str:
    """Return a time of day, with the day unless it is today; in this machine's time zone."""
    local = time.localtime(moment)
    text = time.strftime("%T", local) + f".{int(moment % 1 * 1000):03}"
    return (
        text
        if time.strftime("%F", local) == (today or time.strftime("%F"))
        else f"{time.strftime('%F', local)} {text}"
    )


def _lasted(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    from podway.api.columns import age

    return age(seconds)


def _size(octets: int) -> str:
    if octets < 10_000:
        return f"{octets} B"
    size, unit = octets / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.4g} {unit}"
