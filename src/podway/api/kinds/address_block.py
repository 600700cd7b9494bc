"""AddressBlock: a part of a pool, and which node owns it."""

from collections.abc import Hashable, Iterable, Iterator
from ipaddress import ip_network
from typing import ClassVar, Literal

from podway.api.addresses import Network, parse_plain_network
from podway.api.cel import NETWORK, USABLE_NETWORK
from podway.api.columns import AGE, Column
from podway.api.fields import SUBDOMAIN_SCHEMA, Problem, check_name, check_usable_network, parse_cidr
from podway.api.meta import Rule, StrictRecord
from podway.api.resource import Names, Resource
from podway.cached import cached_property


class AddressBlockSpec(StrictRecord, frozen=True, kw_only=True):
    """Who owns a block. The object's creation is the claim: its name is unique in the store."""

    cidr: str
    pool: str
    node: str


def _length(block: "AddressBlock") -> Iterable[Hashable]:
    address, _, length = block.spec.cidr.partition("/")
    return ((6 if ":" in address else 4, int(length)),)


class AddressBlock(Resource, frozen=True, kw_only=True, dict=True, forbid_unknown_fields=True):
    """A part of a pool that belongs to one node."""

    KIND: ClassVar = "AddressBlock"
    NAMESPACED: ClassVar = False
    NAMES: ClassVar = Names("addressblocks", usual=("blocks", "block"))
    COLUMNS: ClassVar = (
        Column("CIDR", lambda block, _: block.spec.cidr, path=".spec.cidr"),
        Column("POOL", lambda block, _: block.spec.pool, path=".spec.pool"),
        Column("NODE", lambda block, _: block.spec.node, path=".spec.node"),
        AGE,
        Column("NAME", lambda block, _: block.metadata.name, wide=True),
    )
    IN_VIEW: ClassVar = True
    SELECTABLE: ClassVar = ("spec.node", "spec.pool")
    SCHEMA: ClassVar = {
        "spec.cidr": {"maxLength": 43},
        "spec.pool": SUBDOMAIN_SCHEMA,
        "spec.node": SUBDOMAIN_SCHEMA,
    }
    RULES: ClassVar = (
        Rule("spec.cidr", *NETWORK),
        Rule("spec.cidr", *USABLE_NETWORK),
        Rule(
            "",
            # The name of an IPv6 block is written out in full, which CEL cannot do.
            "self.spec.cidr.contains(':') "
            "|| self.metadata.name == self.spec.cidr.replace('.', '-').replace('/', '-')",
            "the name is that of the block, 10-244-3-0-24 for 10.244.3.0/24: it is what makes a claim unique",
        ),
    )
    INDICES: ClassVar = {"node": lambda block: (block.spec.node,), "length": _length}

    api_version: Literal["podway.io/v1"] = "podway.io/v1"
    kind: Literal["AddressBlock"] = "AddressBlock"
    spec: AddressBlockSpec

    @cached_property
    def network(self) -> Network:
        """The block's range."""
        return parse_plain_network(self.spec.cidr)

    def problems(self) -> Iterator[Problem]:
        """Yield what cannot be right in the claim."""
        yield from check_name("spec.pool", self.spec.pool)
        yield from check_name("spec.node", self.spec.node)
        try:
            network = parse_cidr(self.spec.cidr)
        except ValueError as error:
            yield "spec.cidr", str(error), "write the block's network; agents make blocks themselves"
            return
        yield from check_usable_network("spec.cidr", network)
        if self.metadata.name != block_name(network):
            problem = f"{self.metadata.name!r} is not the name of block {network}"
            yield "metadata.name", problem, f"name it {block_name(network)}: the name is what makes a claim unique"


def block_name(block: Network) -> str:
    """Return the object name of a block: its CIDR with `-` for `.`, `:` and `/`.

    IPv6 is written out in full, so that a name never starts or ends with a hyphen.
    """
    base = block.network_address.exploded.replace(".", "-").replace(":", "-")
    return f"{base}-{block.prefixlen}"


def block_named(name: str) -> Network | None:
    """Return the block whose object has this name, None if it can be no block's."""
    *base, length = name.split("-")
    try:
        return ip_network(f"{('.' if len(base) == 4 else ':').join(base)}/{length}")
    except ValueError:
        return None
