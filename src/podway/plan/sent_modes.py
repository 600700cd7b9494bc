"""The modes in which a node sends to other nodes."""

from collections.abc import Mapping, Set
from types import MappingProxyType
from typing import TypeAlias

from podway.plan.fabric import TunnelMode

SentModes: TypeAlias = Mapping[str, Set[TunnelMode]]
"""The modes in which a node sends to other nodes, by pool."""

NOTHING_SENT: SentModes = MappingProxyType({})
