"""Where objects are in etcd. Pure.

    PREFIX/store                            which cluster this is, and in which form it is written
    PREFIX/KIND/NAME                        an object of the cluster's, as JSON
    PREFIX/KIND/NAMESPACE/NAME              one in a namespace
    PREFIX/AddressBlock/NODE/NAME           a node's claim of a block

etcd's roles allow ranges of keys. So all that a node's agent writes must be in ranges of its own: its Node, its
Lease and its NodeCertificate have its name, and its claims stand below its name, though a block's name says
nothing of who owns it. That a name is claimed once is then not what one key can say: of several claims the first
one counts (create_revision, which etcd gives and nobody can forge).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, cast
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec

from podway.api.kinds import KINDS
from podway.api.kinds.address_block import AddressBlock
from podway.api.kinds.node import Node
from podway.api.kinds.node_certificate import NodeCertificate
from podway.api.kinds.node_lease import LEASES, NodeLease
from podway.api.kinds.secret import Secret
from podway.api.resource import Key, Resource

OWNED: Mapping[str, Callable[[Resource], str]] = MappingProxyType(
    {AddressBlock.KIND: lambda block: cast("AddressBlock", block).spec.node}
)
"""By kind, the node below whose name an object stands."""

SPACES: Mapping[str, str] = MappingProxyType({Secret.KIND: LEASES})
"""By kind, the namespace in which alone objects are looked for: agents are to see no other secrets."""

_PLAIN = "/:@!$&'()*+,;=~"
"""What stands in a name as it is, besides letters, digits and -._; other bytes are shown as %XX."""


class Range(NamedTuple):
    """Keys from `key` on and before `end`; `key` alone if there is no end."""

    key: bytes
    end: bytes = b""


def below(start: bytes) -> Range:
    """Return all keys that begin so; it ends with a slash."""
    return Range(start, start[:-1] + bytes([start[-1] + 1]))


class Layout(msgspec.Struct, frozen=True):
    """Where objects are below a prefix."""

    prefix: str

    @property
    def identity(self) -> bytes:
        """The key that tells clusters apart."""
        return f"{self.prefix}/store".encode()

    def of_kind(self, kind: type[Resource], namespace: str | None = None) -> Range:
        """Return where a kind's objects are, or those in a namespace."""
        space = namespace or SPACES.get(kind.KIND)
        within = f"{space}/" if space and kind.NAMESPACED else ""
        return below(f"{self.prefix}/{kind.KIND}/{within}".encode())

    def key(self, about: Key, owner: str = "") -> bytes:
        """Return where an object is that this node owns (none: it is no such kind, or its name says so itself)."""
        kind, namespace, name = about
        within = "".join(f"{one}/" for one in (kind, owner, namespace) if one)
        return f"{self.prefix}/{within}".encode() + unquote_to_bytes(name)

    def read(self, kind: type[Resource], key: bytes) -> tuple[Key, str]:
        """Return which object is at a key, and which node owns it; nobody: any.

        A key that cannot be one of ours is told so that `key` gives it again.
        """
        rest = quote_from_bytes(key[len(f"{self.prefix}/{kind.KIND}/".encode()) :], safe=_PLAIN)
        first, slash, name = rest.partition("/")
        if not (kind.NAMESPACED or kind.KIND in OWNED) or not (first and slash and name) or "%" in first:
            return (kind.KIND, "", rest), ""
        return ((kind.KIND, first, name), "") if kind.NAMESPACED else ((kind.KIND, "", name), first)

    def unknown(self) -> tuple[Range, ...]:
        """Return where objects of kinds are that this Podway does not know."""
        everything, gaps = below(f"{self.prefix}/".encode()), []
        start = everything.key
        for name in sorted(KINDS):
            known = below(f"{self.prefix}/{name}/".encode())
            gaps.append(Range(start, known.key))
            start = known.end
        return (*gaps, Range(start, everything.end))

    def stranger(self, key: bytes) -> Key | None:
        """Return which object of an unknown kind is at a key; None if it is nothing of the sort."""
        kind, slash, rest = quote_from_bytes(key[len(self.prefix) + 1 :], safe=_PLAIN).partition("/")
        return (kind, "", rest) if slash else None

    def readable(self) -> tuple[Range, ...]:
        """Return what every node's agent has to read: all but others' secrets."""
        secrets = below(f"{self.prefix}/{Secret.KIND}/".encode())
        everything = below(f"{self.prefix}/".encode())
        return Range(everything.key, secrets.key), self.of_kind(Secret), Range(secrets.end, everything.end)

    def writable(self, node: str) -> tuple[Range, ...]:
        """Return what the agent of a node has to write: its own objects."""
        return (
            Range(self.key((Node.KIND, "", node))),
            Range(self.key((NodeLease.KIND, LEASES, node))),
            Range(self.key((NodeCertificate.KIND, "", node))),
            below(f"{self.prefix}/{AddressBlock.KIND}/{node}/".encode()),
        )
