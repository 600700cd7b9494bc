"""The forms in which a node sends to other nodes."""

from collections.abc import Mapping, Set
from types import MappingProxyType
from typing import TypeAlias

from podway.api.kinds.ip_pool import Encapsulation

Sent: TypeAlias = Mapping[str, Set[Encapsulation]]
"""The forms in which a node sends to other nodes, by pool."""

NOTHING_SENT: Sent = MappingProxyType({})
