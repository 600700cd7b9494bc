"""What makes an object right among the others: rules for creating, changing and deleting. Pure.

A module of this package is a topic; to add one is to add a module. It may define either or both of

- `check_change(new, others, old)`: `new` is to be created, or to replace `old`, beside `others`;
- `check_deletion(obj, others)`: `obj` is to be deleted, and `others` stay;

which raise InvalidObject. Agents follow rules of their own (podway.ipam); these keep people from breaking a
running network.
"""

from collections.abc import Callable, Collection
from typing import Any

from podway.api.discovery import modules_of
from podway.api.resource import Resource, key

_TOPICS = modules_of(__name__, __path__)


def check_change(new: Resource, others: Collection[Resource], *, old: Resource | None = None) -> None:
    """Check an object that is to be created, or to replace `old`, beside the others of the cluster.

    `new` must be valid by itself (podway.api.validate). An object of its key among `others` is passed over.
    Raises InvalidObject, which names the other object.
    """
    rest = [other for other in others if key(other) != key(new)]
    for check in _CHANGES:
        check(new, rest, old)


def check_deletion(obj: Resource, others: Collection[Resource]) -> None:
    """Check that nothing that stays needs an object that is to be deleted.

    `others` are the objects that stay. Raises InvalidObject, which names one that needs it.
    """
    rest = [other for other in others if key(other) != key(obj)]
    for check in _DELETIONS:
        check(obj, rest)


def _rules(name: str) -> tuple[Callable[..., None], ...]:
    found: list[Any] = [getattr(topic, name, None) for topic in _TOPICS]
    return tuple(check for check in found if check is not None)


_CHANGES = _rules("check_change")
_DELETIONS = _rules("check_deletion")
