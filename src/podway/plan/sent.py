"""The forms in which a node sends to other nodes."""

from collections.abc import Mapping, Set
from types import MappingProxyType
from typing import TypeAlias

from podway.plan.fabric import Form

Sent: TypeAlias = Mapping[str, Set[Form]]
"""The forms in which a node sends to other nodes, by pool."""

NOTHING_SENT: Sent = MappingProxyType({})
