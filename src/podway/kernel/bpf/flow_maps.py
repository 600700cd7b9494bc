"""What the flow engine goes by, and what it found: its maps, written and read (docs/datapath.md).

Whoever writes several things calls `changed` once afterwards: flows that were judged before are looked at again
from then on, at their next packet, and judged again if what they were judged by is another now.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping

from podway.api.addresses import Address, Network
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_layout import (
    ENDPOINT,
    RULE_SET,
    STATE,
    Counter,
    Endpoint,
    Flow,
    FlowKey,
    Reason,
    RuleSet,
    State,
    pack_address,
    pack_prefix,
    pack_rule_key,
    pack_rules,
)
from podway.policy.maps import MOST_RULE_SETS, Rule, RuleKey, Tier

_ONLY = bytes(4)
_NUMBER = struct.Struct("=I")


class FlowMaps:
    """The maps of an engine, by their descriptors. Every method raises KernelError."""

    def __init__(self, maps: Mapping[str, int]) -> None:
        self._maps = maps

    @property
    def state(self) -> State:
        """What all programs go by."""
        return State(*STATE.unpack(bpf.element(self._maps["state"], 0)))

    def set_state(self, **changes: int) -> None:
        """Change some of the state."""
        bpf.insert(self._maps["state"], _ONLY, STATE.pack(*self.state._replace(**changes)))

    def changed(self, *, ways: bool = False) -> None:
        """Have flows looked at again; with `ways`, the ways of their packets too."""
        state = self.state
        generation = (state.way_generation + ways) & 0xFFFFFFFF
        self.set_state(epoch=(state.epoch + 1) & 0xFFFFFFFF, way_generation=generation)

    def set_endpoint(self, address: Address, endpoint: Endpoint) -> None:
        """Say whose an address is: a pod of this node."""
        bpf.insert(self._maps["endpoints"], pack_address(address), ENDPOINT.pack(*endpoint))

    def remove_endpoint(self, address: Address) -> None:
        """An address is no pod's of this node any more."""
        bpf.delete(self._maps["endpoints"], pack_address(address))

    def set_pool(self, network: Network) -> None:
        """Addresses of this range are pods': what goes from one to another may be carried past the stack."""
        bpf.insert(self._maps["pools"], pack_prefix(network), _NUMBER.pack(1))

    def set_identity(self, network: Network, identity: int) -> None:
        """Say what rules know the addresses of a prefix by, where no longer prefix says something else."""
        bpf.insert(self._maps["identities"], pack_prefix(network), _NUMBER.pack(identity))

    def remove_identity(self, network: Network) -> None:
        """Forget a prefix."""
        bpf.delete(self._maps["identities"], pack_prefix(network))

    def set_rules(
        self, number: int, entries: Mapping[RuleKey, Mapping[Tier, Rule]], removed: Iterable[RuleKey] = ()
    ) -> None:
        """Write entries of a rule set and remove others, and count up its generation.

        `entries` may be all or what changed. The prefixes of ports that the set was seen with stay in use.
        """
        at = _NUMBER.pack(number)
        lengths = RuleSet(*RULE_SET.unpack(bpf.element(self._maps["rule_sets"], number)))
        wanted = lengths.port_lengths
        for key in entries:
            if key.rule_set != number or not 0 < number < MOST_RULE_SETS:
                raise ValueError(f"{key} is no entry of rule set {number}")
            if key.protocol:
                wanted |= 1 << key.port_length
        # Lengths first: an entry that is not looked for is one that says nothing.
        if wanted != lengths.port_lengths and lengths.generation:
            bpf.insert(self._maps["rule_sets"], at, RULE_SET.pack(lengths.generation, wanted))
        for key, tiers in entries.items():
            bpf.insert(self._maps["rules"], pack_rule_key(key), pack_rules(tiers))
        for key in removed:
            bpf.delete(self._maps["rules"], pack_rule_key(key))
        generation = self.state.generations + 1
        self.set_state(generations=generation)
        bpf.insert(self._maps["rule_sets"], at, RULE_SET.pack(generation, wanted))

    def flow(self, key: FlowKey) -> Flow | None:
        """Return what is known of one direction of a connection."""
        found = bpf.lookup(self._maps["flows"], key.pack())
        return Flow.unpack(found) if found else None

    def flows(self) -> Iterator[tuple[FlowKey, Flow]]:
        """Go through the table of flows as it was at one time or another."""
        for key, value in bpf.items(self._maps["flows"]).items():
            yield FlowKey.unpack(key), Flow.unpack(value)

    def counters(self) -> dict[Reason | Counter, int]:
        """Return what was counted, summed over processors."""
        names: list[Reason | Counter] = [*Reason, *Counter]
        return dict(zip(names, bpf.per_cpu_sums(self._maps["counters"], names), strict=True))
