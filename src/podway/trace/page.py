"""A trace as a page for people: the verdict, then the steps that every article tells, with this packet in them.

Where plan, kernel and probe agree a step is one line, unless all of it is asked for.
"""

import textwrap
from collections.abc import Callable, Iterable, Iterator

from podway.api.addresses import with_port
from podway.trace.report import (
    Direction,
    FamilyTrace,
    Hop,
    Kernel,
    Planned,
    Seen,
    ThroughService,
    TraceReport,
    Underlay,
    Verdict,
)

Paint = Callable[[str, str], str]
"""Colours a line: takes it and what it is (`title`, `hop`, `link`, `good`, `bad`, `plain`)."""

NARROWEST, WIDEST = 40, 110
_LABEL = 8
_INDENT = 3

_BASIS = {
    "probe": "",
    "answer": "",
    "echo": " (an echo request of its own: there was no answer to follow)",
    "kernel": " (by the kernels' word: nothing was sent)",
    "none": "",
}


def to_text(report: TraceReport, *, width: int, full: bool = False, paint: Paint = lambda line, kind: line) -> str:
    """Return the report for people, in lines of at most `width` columns where words allow.

    With `full` plan, kernel and probe are told at every hop, not only where they disagree.
    """
    page = _Page(max(NARROWEST, min(width, WIDEST)), paint)
    for number, family in enumerate(report.families):
        if number:
            page.blank()
        _family(page, report, family, full=full)
    if not full and not report.dry_run and any(_agrees(hop, dry_run=False) for hop in _hops(report)):
        page.blank()
        page.text("A hop of one line: plan, kernel and probe agree there. All that they say: --full.", "link")
    elif not full and report.dry_run and any(_agrees(hop, dry_run=True) for hop in _hops(report)):
        page.blank()
        page.text("A hop of one line: plan and kernel agree there. All that they say: --full.", "link")
    if report.silent:
        page.blank()
        for silent in report.silent:
            page.row("silent", f"node {silent.node}: {silent.reason}", "bad")
    return "\n".join(page.lines)


def _hops(report: TraceReport) -> Iterator[Hop]:
    for family in report.families:
        yield from family.there.hops
        if not _smooth(family.back):
            yield from family.back.hops


class _Page:
    """Lines under construction."""

    def __init__(self, width: int, paint: Paint) -> None:
        self._width = width
        self._paint = paint
        self.lines: list[str] = []

    def blank(self) -> None:
        self.lines.append("")

    def text(self, text: str, kind: str = "plain", *, first: str = "", rest: str = "") -> None:
        """Add text filled to the width, the first line after `first`, the others after `rest`."""
        # Device names, addresses and commands are copied from here: never broken.
        lines = textwrap.wrap(
            text,
            self._width,
            initial_indent=first,
            subsequent_indent=rest,
            break_long_words=False,
            break_on_hyphens=False,
        )
        self.lines += [self._paint(line, kind) for line in lines or [first.rstrip()]]

    def row(self, label: str, text: str, kind: str = "plain", indent: int = 0) -> None:
        """Add a labelled text whose lines hang below each other; an empty label continues the row before."""
        margin = " " * indent
        self.text(text, kind, first=f"{margin}{label:<{_LABEL}}", rest=margin + " " * _LABEL)

    def rows(self, label: str, texts: Iterable[str], kind: str = "plain") -> None:
        """Add the texts of one label, the first one as this kind, inside a hop."""
        for number, text in enumerate(texts):
            self.row("" if number else label, text, "plain" if number else kind, indent=_INDENT)


def _family(page: _Page, report: TraceReport, family: FamilyTrace, *, full: bool) -> None:
    port = f" port {family.port}" if family.port else ""
    page.text(f"{report.sender} → {report.receiver}", "title")
    sent = ", nothing sent" if report.dry_run else ""
    page.text(f"{family.source} → {family.destination}, {report.protocol}{port}{sent}")
    page.blank()
    _service(page, family.service)
    _verdict(page, "There", family.there)
    _verdict(page, "Back", family.back)
    _policy(page, family)
    page.blank()
    _direction(page, family.there, dry_run=report.dry_run, full=full)
    if family.back.hops and _smooth(family.back):
        page.blank()
        page.row("back", _in_one_line(family.back))
    elif family.back.hops:
        page.blank()
        page.text(f"The way back: {family.back.sender} → {family.back.receiver}", "title")
        page.blank()
        _direction(page, family.back, dry_run=report.dry_run or family.back.verdict.basis == "kernel", full=full)


def _smooth(direction: Direction) -> bool:
    """Tell whether nothing on a way deserves more than a line."""
    verdict = direction.verdict
    return verdict.outcome == "delivered" and not verdict.problem and all(hop.on_plan for hop in direction.hops)


def _in_one_line(direction: Direction) -> str:
    places = []
    for hop in direction.hops:
        devices = ", ".join(device for device in (hop.entry, hop.exit) if device)
        places.append(f"{_whose(hop)} ({devices})" if devices else _whose(hop))
    return " → ".join(places) + ": as planned"


def _whose(hop: Hop) -> str:
    return f"pod {hop.pod}" if hop.pod else hop.node


def _direction(page: _Page, direction: Direction, *, dry_run: bool, full: bool) -> None:
    before: Hop | None = None
    for hop in direction.hops:
        inside = before is not None and (before.pod or hop.pod)
        if before is not None and (full or not inside):
            page.text(_link(before, hop), "link", first=" " * _INDENT + "↓ ", rest=" " * (_INDENT + 2))
        lost = direction.verdict.outcome == "lost" and direction.verdict.hop == hop.number
        on = f" on {hop.node}" if hop.pod else ""
        told = bool(direction.verdict.problem) and direction.verdict.hop == hop.number
        brief = "" if full or told else _briefly(hop, dry_run=dry_run)
        page.text(
            f"{_whose(hop)}{on}: {brief or _step(hop)}" + ("  ✗ LOST HERE" if lost else ""),
            "bad" if lost else "hop",
            first=f"{hop.number:<{_INDENT}}",
            rest=" " * _INDENT,
        )
        if not brief:
            page.rows("plan", _plan_words(hop.planned))
            page.rows("kernel", _kernel_words(hop), "plain" if hop.on_plan else "bad")
            if not dry_run:
                page.rows("probe", _probe_words(hop))
        before = hop


def _agrees(hop: Hop, *, dry_run: bool) -> bool:
    """Tell whether plan, kernel and probe say the same of a hop, and no more than that need be told."""
    alike = hop.planned is not None and hop.kernel is not None and hop.on_plan and not hop.problem
    return alike and (dry_run or len({_ends(seen) for seen in hop.seen}) == 1)


def _briefly(hop: Hop, *, dry_run: bool) -> str:
    """Return a hop in one line if that says all: where all agree, or the packet did not come. Empty if not."""
    visited = _through(hop)
    if hop.problem:
        return f"{visited}; {hop.problem}" if visited else hop.problem
    if hop.kernel is None or (not dry_run and not hop.seen):
        alike = hop.kernel is None or hop.on_plan
        return f"{visited}; the packet does not come here" if alike and hop.number > 1 else ""
    planned = hop.planned
    if planned is None or not _agrees(hop, dry_run=dry_run):
        return ""
    if planned.translation:
        return f"{visited}, its source translated ({planned.translation})"
    if planned.disposition != "forwarded" or not planned.route:
        return visited
    told = f" (learned from {planned.learned_from})" if planned.learned_from else ""
    return f"{visited}, {planned.route.partition(' dev ')[0]}{told}"


def _through(hop: Hop) -> str:
    """Return the devices of a hop: `in by A`, `A → B`, `out by B`."""
    if not hop.entry and not hop.exit:
        return ""
    if hop.entry == hop.exit and hop.wire_entry and hop.wire_exit:
        return f"{hop.wire_entry} → {hop.wire_exit}, bridged by {hop.exit}"
    came = f"{hop.entry} (on {hop.wire_entry})" if hop.wire_entry else hop.entry
    leaves = f"{hop.exit} (on {hop.wire_exit})" if hop.wire_exit else hop.exit
    if not hop.entry:
        return f"out by {leaves}"
    return f"{came} → {leaves}" if hop.exit else f"in by {came}"


def _step(hop: Hop) -> str:
    if hop.problem and not hop.entry and not hop.exit:
        return "by devices that are not known"
    if not hop.entry and not hop.exit:
        return "stays inside"
    if hop.entry == hop.exit and hop.wire_entry and hop.wire_exit:
        return f"in by {hop.wire_entry}, bridged by {hop.exit}, out by {hop.wire_exit}"
    came = f"{hop.entry} (on {hop.wire_entry})" if hop.wire_entry else hop.entry
    leaves = f"{hop.exit} (on {hop.wire_exit})" if hop.wire_exit else hop.exit
    if not hop.entry:
        return f"leaves by {leaves}"
    if not hop.exit:
        return f"arrives by {came}"
    return f"in by {came}, routed, out by {leaves}"


def _link(before: Hop, hop: Hop) -> str:
    """Return what lies between two hops, and how the packet crossed it."""
    if hop.kernel is None and not hop.seen and not before.exit:
        return "…"
    what = "veth pair" if before.pod or hop.pod else f"the wire to {hop.node}"
    if not (before.pod or hop.pod) and (router := _router(before.kernel)):
        what += f" by the router {router}"
    if not (before.pod or hop.pod) and hop.seen:
        what += f", {' inside '.join(hop.seen[0].tunnels) or 'bare'}"
    return what


def _router(kernel: Kernel | None) -> str:
    if kernel is None:
        return ""
    return kernel.underlay.router if kernel.underlay else kernel.router


def _plan_words(planned: Planned | None) -> Iterator[str]:
    if planned is None:
        yield "nothing: this packet should not come here"
    elif planned.disposition == "delivered":
        yield "the packet is at home here"
    elif planned.disposition == "discarded":
        why = "no way leads to its node" if " unreachable" in planned.route else "no pod has this address"
        yield f"{planned.route}: {why}, so it ends here"
    elif planned.disposition == "outside":
        yield "out of the cluster, by the host's own routes"
        if planned.translation:
            yield f"its source is translated there ({planned.translation}): the pool has natOutgoing"
    elif not planned.route:
        yield "by the host's own routes" if planned.owner == "host" else "not known without its agent"
    else:
        told = f", learned from {planned.learned_from} by BGP" if planned.learned_from else ""
        own = ", which the kernel knows itself" if planned.owner == "kernel" else ""
        yield f"{planned.route}{told}{own}"
        if planned.neighbour:
            yield f"{planned.neighbour.replace(' at ', ' is at ')} (permanent)"
        if planned.encapsulation != "none":
            yield f"leaves the node in {planned.encapsulation}"


def _kernel_words(hop: Hop) -> Iterator[str]:
    kernel = hop.kernel
    if kernel is None:
        yield hop.problem or "the kernels before do not send the packet here"
        return
    match kernel.type:
        case "unicast":
            told = f", learned from {kernel.learned_from}" if kernel.learned_from else ""
            table = f", table {kernel.table}" if kernel.table not in ("", "main") else ""
            yield f"{kernel.route or f'dev {kernel.device}'} (proto {kernel.owner}{told}{table})"
            if kernel.next_hops:
                yield f"one of {len(kernel.next_hops)} next hops: {'; '.join(kernel.next_hops)}"
            yield from _neighbour_words(kernel)
            kind = f"{kernel.kind}, " if kernel.kind else ""
            yield f"{kernel.device}: {kind}MTU {kernel.mtu}"
            if kernel.underlay:
                yield from _underlay_words(kernel.underlay)
        case "local":
            yield "local: taken here"
        case "source refused":
            yield f"refuses the source: its route back does not lead to {hop.entry} (rp_filter)"
        case kind:
            owner = f" (proto {kernel.owner})" if kernel.owner else ""
            yield f"{kernel.route or kind}{owner}: goes nowhere"


def _underlay_words(underlay: Underlay) -> Iterator[str]:
    """Tell how a packet gets from an overlay device to the wire."""
    match underlay.missing:
        case "neighbour":
            return
        case "forwarding":
            yield f"{underlay.mac}: no forwarding entry says which node has it"
            return
        case "program":
            yield "the program that puts the outer header on is not attached"
    by = "forwarding entry" if underlay.encapsulation == "vxlan" else "as the address itself says"
    yield f"{underlay.mac} is behind {underlay.endpoint} ({by})"
    if underlay.missing == "route":
        yield f"to {underlay.endpoint}: no route"
    elif underlay.device:
        yield f"outer packet: {underlay.route or f'dev {underlay.device}'} (proto {underlay.owner})"
        yield f"{underlay.device}: MTU {underlay.mtu}"


def _neighbour_words(kernel: Kernel) -> Iterator[str]:
    neighbour = kernel.neighbour
    if neighbour is None:
        return
    match neighbour.state:
        case "absent":
            yield f"{neighbour.address}: no neighbour entry yet"
        case "unresolved":
            yield f"{neighbour.address}: nobody has answered for it"
        case state:
            yield f"{neighbour.address} is at {neighbour.mac} ({state})"


def _probe_words(hop: Hop) -> Iterator[str]:
    before = ""
    for seen in hop.seen:
        ends = _ends(seen)
        yield _seen_words(seen, "unchanged" if ends == before else ends)
        before = ends
    if hop.carried:
        yield "carried straight into the pod by the flow engine, past the stack"
    if not hop.seen:
        yield "nobody watches here" if hop.problem else "not seen here"


def _ends(seen: Seen) -> str:
    return f"{_endpoint(seen.source, seen.source_port)} → {_endpoint(seen.destination, seen.destination_port)}"


def _seen_words(seen: Seen, ends: str) -> str:
    since = "" if not seen.since_last else f", +{_microseconds(seen.since_last)}"
    inside = f", in {' in '.join(seen.tunnels)}" if seen.tunnels else ""
    return (
        f"{seen.direction:<3} {seen.interface}: {ends}, TTL {seen.hop_limit}, {seen.length} bytes{since}{inside}"
    )


def _service(page: _Page, service: ThroughService | None) -> None:
    if service is None:
        return
    among = "its only backend" if service.choices == 1 else f"one of {service.choices} backends"
    ends = f"{with_port(service.address, service.port)} becomes {with_port(service.backend, service.backend_port)}"
    page.row("Service", f"{service.service}: {ends}, {among}, and its answers have the Service's name")
    if service.problem:
        page.row("", service.problem, "bad")


def _policy(page: _Page, family: FamilyTrace) -> None:
    for number, said in enumerate(family.policy):
        verdict = "allowed" if said.allowed else "DENIED"
        where = f"{said.direction} of {said.pod}" if said.direction else said.pod
        kind = "bad" if said.denies else "good"
        page.row("" if number else "Policy", f"{where}: {verdict}: {said.reason}", kind)
        if said.audit:
            page.row("", f"audited policies would deny it: {said.audit}")
    for reason in dict.fromkeys(said.unenforced for said in family.policy if said.unenforced):
        page.row("", f"nothing enforces that: {reason}")


def _verdict(page: _Page, name: str, direction: Direction) -> None:
    verdict = direction.verdict
    good = verdict.outcome == "delivered" and not verdict.problem
    page.row(name, _summary(direction), "good" if good else "bad")
    if verdict.problem:
        page.row("", f"why: {verdict.problem}")
    if verdict.detail:
        page.row("", f"also: {verdict.detail}")
    if verdict.last_seen and verdict.outcome != "delivered":
        page.row("", f"last seen: {verdict.last_seen}")
    if verdict.advice:
        where = f", on {direction.hops[verdict.hop - 1].node}" if verdict.hop else ""
        page.row("", f"do{where}: {verdict.advice}")


def _summary(direction: Direction) -> str:
    verdict = direction.verdict
    match verdict.outcome:
        case "lost":
            where = f" at hop {verdict.hop}, {_whose(direction.hops[verdict.hop - 1])}" if verdict.hop else ""
            return f"NOT DELIVERED{where}{_BASIS[verdict.basis]}"
        case "unknown":
            return "NOT KNOWN"
    sure = verdict.basis != "kernel"
    parts = [f"{'delivered' if sure else 'would be delivered'}{_BASIS[verdict.basis]}"]
    if verdict.answered_by:
        parts.append(verdict.answered_by)
    parts += _facts(verdict)
    own = direction.hops[0].kernel.mtu if direction.hops and direction.hops[0].kernel else 0
    if 0 < verdict.largest < own:
        parts.append(f"but packets over {verdict.largest} bytes do not pass, and the sender's own MTU is {own}")
    elif verdict.largest:
        parts.append(f"MTU {verdict.largest} all the way")
    return "; ".join(parts)


def _facts(verdict: Verdict) -> Iterator[str]:
    if verdict.source_kept is not None:
        if verdict.translated:
            yield f"from {verdict.translated} as it leaves the cluster (natOutgoing)"
        else:
            yield "original source kept (no NAT)" if verdict.source_kept else "original source NOT kept (NAT)"
    if verdict.encapsulated is not None:
        yield f"encapsulated in {verdict.encapsulation}" if verdict.encapsulated else "not encapsulated"
    if verdict.took is not None:
        yield f"took {_microseconds(verdict.took)}"


def _microseconds(nanoseconds: int) -> str:
    micro = nanoseconds / 1000
    return f"{micro / 1000:.1f}ms" if micro >= 1000 else f"{micro:.0f}µs"


def _endpoint(address: str, port: int) -> str:
    return with_port(address, port) if port else address
