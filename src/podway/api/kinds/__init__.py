"""The kinds that a cluster is made of. A module of this package is a kind; to add one is to add a module.

A module holds all that is the kind's own: its type (a podway.api.resource.Resource, in which it says what there
is to know of a kind), and with it the rules for its fields, its names and its columns. Decoding, the store, the
commands and the agents' tables take kinds from KINDS. Rules between objects are in podway.api.rules.

Node, Namespace, Pod and Secret are Kubernetes' own kinds, the others Podway's.
"""

from collections.abc import Mapping
from types import MappingProxyType

from podway.api.discovery import modules_of
from podway.api.resource import Resource

KINDS: Mapping[str, type[Resource]] = MappingProxyType(
    {
        found.KIND: found
        for module in modules_of(__name__, __path__)
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, Resource) and found.__module__ == module.__name__
    }
)
"""Every kind, by its name."""
