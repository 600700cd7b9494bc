"""How `podway plan` tells its answer: on a terminal, and as JSON."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import ndiff
from itertools import islice
from typing import Any

import msgspec

from podway.api.resource import Key, subject
from podway.ipam.ranges import given
from podway.plan.changes import Change, words_of
from podway.plan.objects import Device, ForwardingEntry, Link, NftTable, Sysctl
from podway.preview.pairs import PairChanges
from podway.preview.paths import Group, PathChange, PathChanges, PlannedPath
from podway.preview.preview import Comparison, NodeChange

VERSION = 1
"""Of the JSON form (docs/plan.md)."""

NODES = 10
"""How many nodes are shown without --all."""
OBJECTS = 5
"""How many objects of each node, and pairs of groups of pods, are shown without --all."""

SIGN = {"add": "+", "replace": "~", "remove": "-"}
ACTION_WORDS = {"add": "added", "replace": "changed", "remove": "removed"}


@dataclass(frozen=True)
class Answer:
    """What was found. `nodes` holds those that change, and can be gone through once."""

    comparison: Comparison
    actions: Mapping[Key, str]
    silent: Mapping[str, str]
    nodes: Iterator[NodeChange]
    paths: PathChanges
    pairs: PairChanges


def lines(answer: Answer, *, everything: bool) -> Iterator[str]:
    """Yield the answer line by line."""
    if not answer.actions:
        yield "Nothing would change: the cluster is so already."
        return
    for known, action in answer.actions.items():
        yield f"{subject(known)} would be {action}"
    total: Counter[str] = Counter()
    changed = restarting = shown = 0
    for change in answer.nodes:
        changed += 1
        restarting += change.restarting
        total.update(ACTION_WORDS[one.action] for one in change.changes)
        if everything or shown < NODES:
            shown += 1
            yield ""
            yield from _node(change, everything=everything)
    if changed > shown:
        yield f"\nand {changed - shown} more nodes (--all shows them)"
    if answer.paths.changes:
        yield ""
        yield from _paths(answer.paths, everything=everything)
    if answer.pairs.changes:
        yield ""
        yield from _pairs(answer.pairs, everything=everything)
    notes = [*_notes(answer, restarting)]
    if notes:
        yield ""
        yield from (f"note: {note}" for note in notes)
    yield ""
    yield _verdict(changed, total, answer.paths)


def _verdict(changed: int, total: Counter[str], paths: PathChanges) -> str:
    if not changed and not paths.changes:
        return "No node would change. Nothing was done."
    objects = (
        ", ".join(f"{total[deed]} {deed}" for deed in ACTION_WORDS.values() if total[deed]) or "no object changed"
    )
    nodes = f"{_count(changed, 'node')} would change ({objects})"
    least = "" if paths.complete else "at least "
    pairs = f"{least}{_count(paths.pairs, 'pair')} of pod addresses with another way"
    ways = pairs if paths.changes else "every path stays"
    return f"{nodes}; {ways}. Nothing was done."


def _node(change: NodeChange, *, everything: bool) -> Iterator[str]:
    groups = (("kernel", change.kernel), ("learned routes", change.learned), ("BGP sessions", change.sessions))
    counted = [f"{name} {_counts(found)}" for name, found in groups if found]
    if change.bird:
        counted.append("BIRD's filters and settings")
    membership = {"joins": " joins the cluster", "leaves": " leaves the cluster"}.get(change.membership, "")
    yield f"{change.node}{membership}: {'; '.join(counted)}"
    yield from (f"  {words}" for words in change.pools)
    for _, found in groups:
        yield from _some([told(one) for one in found], everything)
    yield from _some(list(change.bird), everything)


def _some(texts: list[str], everything: bool) -> Iterator[str]:
    most = len(texts) if everything else OBJECTS
    yield from (f"  {text}" for text in texts[:most])
    if len(texts) > most:
        yield f"    and {len(texts) - most} more"


def _counts(changes: tuple[Change, ...]) -> str:
    counted = Counter(ACTION_WORDS[change.action] for change in changes)
    return ", ".join(f"{count} {deed}" for deed, count in counted.items())


def told(change: Change) -> str:
    """Return a change on one line: `~ link pway01 (mtu 1500 -> 1400)`."""
    obj = change.want or change.have
    line = f"{SIGN[change.action]} {obj}"
    if isinstance(obj, Link):
        line += f" of pod {obj.alias.split()[0]}"
    elif isinstance(obj, Device) and change.have is None:
        line += f" ({obj.kind}, MTU {obj.mtu})"
    elif isinstance(obj, ForwardingEntry):
        line += f" to {obj.endpoint}"
    elif isinstance(obj, Sysctl):
        line += f" = {obj.value}"
    if isinstance(obj, NftTable):
        return "\n".join((line, *_rules(change)))
    fields = ", ".join(f"{field} {words_of(have)} -> {words_of(want)}" for field, have, want in change.altered)
    return f"{line} ({fields})" if fields else line


def _rules(change: Change) -> Iterator[str]:
    """Yield the lines of a table's rules that go and come, where it is there before and after."""
    if change.action != "replace":
        return
    before, after = (table.body.splitlines() for table in (change.have, change.want))
    for text in ndiff(before, after):
        if text[0] in "+-" and text[1:].strip():
            yield f"      {text[0]} {text[1:].strip()}"


def _paths(paths: PathChanges, *, everything: bool) -> Iterator[str]:
    least = "" if paths.complete else "at least "
    yield f"{least}{_count(paths.pairs, 'pair')} of pod addresses with another way or MTU between them:"
    most = len(paths.changes) if everything else OBJECTS
    for change in islice(paths.changes, most):
        yield f"  {_group(change.source)} -> {_group(change.target)}: {_count(change.pairs, 'pair')}, such as"
        yield f"    now   {change.before}"
        yield f"    then  {change.after}"
    if len(paths.changes) > most:
        yield f"    and {len(paths.changes) - most} more such groups"


def _pairs(pairs: PairChanges, *, everything: bool) -> Iterator[str]:
    least = "" if pairs.complete else "at least "
    yield f"{least}{_count(sum(one.pairs for one in pairs.changes), 'pair')} of pods, by policies:"
    most = len(pairs.changes) if everything else OBJECTS
    for one in pairs.changes[:most]:
        sign = "+" if one.change == "allowed" else "-"
        yield f"  {sign} {one.change}: {one.source} -> {one.target}: {one.ports} ({_count(one.pairs, 'pair')})"
    if len(pairs.changes) > most:
        yield f"    and {len(pairs.changes) - most} more (--all shows them)"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _group(group: Group) -> str:
    return f"pods of {group.node} {f'in {group.block}' if group.block else 'outside its blocks'}"


def _notes(answer: Answer, restarting: int) -> Iterator[str]:
    comparison = answer.comparison
    if answer.silent:
        node, problem = next(iter(answer.silent.items()))
        more = f" and {len(answer.silent) - 1} more nodes" if len(answer.silent) > 1 else ""
        yield f"{node}{more}: planned without its pods: {problem}"
    if comparison.claimed:
        yield (
            f"nodes claim {_count(len(comparison.claimed), 'block')} by themselves; which one a node gets is "
            "decided then, and may be another than shown"
        )
    if comparison.returned:
        returned = _count(len(comparison.returned), "block")
        yield f"{returned} that no pod uses, or whose node is gone, go back to the pool some time later"
    for node, pool in islice(comparison.unserved, 3):
        if given(comparison.settled_after.view.pools[pool]):
            yield f"{node} has no range of IPPool/{pool} in spec.podCIDRs, and its pods get no address of it"
        else:
            yield f"{node} finds no free block in IPPool/{pool}: give it a larger range or smaller blocks"
    if restarting:
        yield (
            f"{restarting} ends of BGP sessions start anew: their routes are withdrawn until both ends agree, and "
            "packets are lost meanwhile, for about a second"
        )


def to_json(answer: Answer) -> str:
    """Return the answer as a JSON document."""
    comparison = answer.comparison
    document = {
        "apiVersion": "podway.io/v1",
        "kind": "PlanReport",
        "version": VERSION,
        "objects": [{"object": subject(known), "action": action} for known, action in answer.actions.items()],
        "nodes": [_node_json(change) for change in answer.nodes],
        "paths": {
            "pairs": answer.paths.pairs,
            "complete": answer.paths.complete,
            "changes": [_path_json(change) for change in answer.paths.changes],
        },
        "policies": {
            "complete": answer.pairs.complete,
            "changes": msgspec.to_builtins(answer.pairs.changes),
        },
        "claimed": [msgspec.to_builtins(block.spec) for block in comparison.claimed],
        "returned": [msgspec.to_builtins(block.spec) for block in comparison.returned],
        "unserved": [{"node": node, "pool": pool} for node, pool in comparison.unserved],
        "silent": dict(answer.silent),
    }
    return msgspec.json.format(msgspec.json.encode(document, enc_hook=str), indent=2).decode()


def _node_json(change: NodeChange) -> dict[str, Any]:
    return {
        "node": change.node,
        "membership": change.membership,
        "pools": list(change.pools),
        "kernel": [_change_json(one) for one in change.kernel],
        "learned": [_change_json(one) for one in change.learned],
        "sessions": [_change_json(one) for one in change.sessions],
        "restartingSessions": change.restarting,
        "bird": list(change.bird),
    }


def _change_json(change: Change) -> dict[str, Any]:
    fields = [{"field": field, "before": have, "after": want} for field, have, want in change.altered]
    shape = {"action": change.action, "kind": change.kind, "object": str(change.want or change.have)}
    return {**shape, "fields": fields} if fields else shape


def _path_json(change: PathChange) -> dict[str, Any]:
    return {
        "source": _group_json(change.source),
        "target": _group_json(change.target),
        "pairs": change.pairs,
        "before": _path_hops_json(change.before),
        "after": _path_hops_json(change.after),
    }


def _group_json(group: Group) -> dict[str, Any]:
    return {"node": group.node, "block": group.block, "pods": group.pods, "pod": group.first.pod}


def _path_hops_json(planned_path: PlannedPath) -> dict[str, Any]:
    hops = [
        {
            "node": hop.node,
            "pod": hop.pod,
            "entry": hop.entry,
            "exit": hop.exit,
            "disposition": hop.disposition,
            "route": str(hop.route) if hop.route else "",
        }
        for hop in planned_path.hops
    ]
    return {"hops": hops, "mtu": min(planned_path.mtus), "arrives": planned_path.arrives}
