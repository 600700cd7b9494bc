"""What of a cluster's pools and settings a node goes by, where they contradict each other. Pure.

An object that does not hold (podway.api.judgement) is set aside: it is rejected as what is wrong by itself is, and
its last good state stays, unless that contradicts what does hold. A pool of which nodes own blocks stays as it is
without one: that it contradicts the rest is told, and its pods go on. Of the settings there has to be some state:
without a good one they are taken as they are.
"""

from collections.abc import Iterator

from podway.api.checked import RejectedObject
from podway.api.judgement import Blocks, judge
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.ip_pool import IPPool
from podway.api.kinds.network_config import NetworkConfig
from podway.api.kinds.node import Node
from podway.api.resource import Resource, key
from podway.api.validate import problems
from podway.cluster.change import Change
from podway.cluster.view import ClusterView

_KINDS = (IPPool, NetworkConfig)
RANGED = frozenset(kind.KIND for kind in _KINDS)
"""The kinds whose objects are set aside."""
_BESIDE = frozenset({Node.KIND, AddressBlock.KIND})


def needs_a_look(view: ClusterView, changes: tuple[Change[Resource], ...]) -> bool:
    """Tell whether changes may alter what contradicts what; `view` is the one after them."""
    kinds = {change.kind for change in changes if not (change.empty or change.only_status)}
    if not kinds.isdisjoint(RANGED):
        return True
    return not kinds.isdisjoint(_BESIDE) and any(True for _ in _set_aside(view))


def consistent(view: ClusterView, former: ClusterView | None = None) -> ClusterView:
    """Return the view without what contradicts the rest; `former` knows last good states."""
    stated = {key(obj): obj for kind in _KINDS for obj in view.table(kind).values()}
    stated = {wanted: obj for wanted, obj in stated.items() if wanted not in view.rejected}
    stated.update({one.key: one.found for one in _set_aside(view) if one.found is not None})
    blocks = Blocks(view.blocks.values())
    beside = (*view.nodes.values(), *view.blocks.values())
    verdicts = judge((*stated.values(), *beside))
    holding = [obj for wanted, obj in stated.items() if verdicts[wanted].accepted]
    changes, rejected = [Change(key(obj), view.find(key(obj)), obj) for obj in holding], []
    for wanted, obj in stated.items():
        if verdicts[wanted].accepted:
            continue
        last = former.find(wanted) if former is not None else None
        if last is not None and last != obj and _holds_beside(last, holding):
            rejected.append(RejectedObject(wanted, verdicts[wanted].message, obj))
            changes.append(Change(wanted, view.find(wanted), last))
        elif isinstance(obj, NetworkConfig):
            changes.append(Change(wanted, view.find(wanted), obj))
        else:
            rejected.append(RejectedObject(wanted, verdicts[wanted].message, obj))
            # Of what is in use nothing is taken away: without their pool, pods would be cut off.
            kept = obj if isinstance(obj, IPPool) and blocks.used(obj) else None
            changes.append(Change(wanted, view.find(wanted), kept))
    after = view.after(*(change for change in changes if not change.empty))
    for one in rejected:
        after = after.without(one)
    return after


def _holds_beside(last: Resource, holding: list[Resource]) -> bool:
    """Tell whether a last good state contradicts nothing that holds; what it owns of blocks counts for it."""
    verdicts = judge((*holding, last))
    return verdicts[key(last)].accepted and all(verdicts[key(obj)].accepted for obj in holding)


def _set_aside(view: ClusterView) -> Iterator[RejectedObject]:
    """Yield what is rejected though it is right by itself."""
    for one in view.rejected.values():
        if isinstance(one.found, IPPool | NetworkConfig) and not any(problems(one.found)):
            yield one
