"""What the flow engine goes by, and what it found: its maps, written and read (docs/datapath.md).

Whoever writes several things calls `changed` once afterwards: flows that were judged before are looked at again
from then on, at their next packet, and judged again if what they were judged by is another now.
"""

import contextlib
import struct
from collections import Counter as Counts
from collections.abc import Iterable, Iterator, Mapping

from podway.api.addresses import Address, Network
from podway.errors import KernelError
from podway.kernel.bpf import libbpf as bpf
from podway.kernel.bpf.flow_layout import (
    ENDPOINT,
    QUOTA,
    QUOTA_KEY,
    RULE_SET,
    STATE,
    Counter,
    Endpoint,
    Flow,
    FlowFlag,
    FlowKey,
    QuotaKey,
    Reason,
    RuleSet,
    State,
    is_open,
    lifetime,
    pack_address,
    pack_prefix,
    pack_rule_key,
    pack_rules,
)
from podway.policy.maps import MOST_RULE_SETS, Rule, RuleKey, Tier

_ONLY = bytes(4)
_SECOND = 10**9
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

    def sweep(self, now: int) -> list[tuple[FlowKey, Flow, Flow | None]]:
        """Take out the connections that are over at a time (CLOCK_MONOTONIC, ns), and count the open ones anew.

        Returns what was taken out: the direction of who called, and both its entries. What the engine itself saw
        the end of (TCP's FIN and RST) it has told already. Nothing depends on a sweep but how soon an end is told,
        and that connections which ended in silence leave their quota.
        """
        flows = dict(self.flows())
        open_now: Counts[QuotaKey] = Counts()
        over = []
        for key, flow in flows.items():
            if FlowFlag.REPLY in flow.flags:
                continue
            back = flows.get(key.reversed())
            seen = max(flow.seen, back.seen if back else 0)
            if now - seen > lifetime(key.protocol, flow.state) * _SECOND:
                over.append((key, flow, back))
            elif flow.owner and is_open(key, flow):
                open_now[QuotaKey(flow.owner, int(FlowFlag.INCOMING in flow.flags))] += 1
        taken = [one for one in over if self._take_out(one[0], one[1].seen)]
        for place, value in bpf.items(self._maps["quotas"]).items():
            half_open, replied, counted = QUOTA.unpack(value)
            right = open_now[QuotaKey(*QUOTA_KEY.unpack(place))]
            if counted != right:
                bpf.insert(self._maps["quotas"], place, QUOTA.pack(half_open, replied, right))
        return taken

    def _take_out(self, key: FlowKey, seen: int) -> bool:
        """Remove both entries, unless a packet came since."""
        flow = self.flow(key)
        if flow is None or flow.seen != seen:
            return False
        for one in (key.reversed(), key):
            with contextlib.suppress(KernelError):  # the table gave it up
                bpf.delete(self._maps["flows"], one.pack())
        return True

    def counters(self) -> dict[Reason | Counter, int]:
        """Return what was counted, summed over processors."""
        names: list[Reason | Counter] = [*Reason, *Counter]
        return dict(zip(names, bpf.per_cpu_sums(self._maps["counters"], names), strict=True))
