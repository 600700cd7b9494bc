"""The address book, by a state machine beside a model that knows only sets and times."""

from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from podway.api.addresses import Address
from podway.errors import AddressUnavailable
from podway.ipam.addresses import AddressBook

BLOCKS = [ip_network("10.0.0.0/29"), ip_network("10.0.0.8/29")]
COOLDOWN = 10.0
GIVABLE = {
    ip_address(a)
    for a in (
        "10.0.0.2",
        "10.0.0.4",
        "10.0.0.5",
        "10.0.0.6",
        "10.0.0.10",
        "10.0.0.11",
        "10.0.0.12",
        "10.0.0.13",
        "10.0.0.14",
    )
}


def book(blocks: int = 2) -> AddressBook[str]:
    result: AddressBook[str] = AddressBook()
    result.set_blocks(
        dict.fromkeys(BLOCKS[:blocks], "pool"), {"pool": (ip_network("10.0.0.3/32"),)}, {"pool": COOLDOWN}
    )
    return result


class BookMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.book = book()
        self.now = 0.0
        self.held: dict[Address, str] = {}
        self.freed: dict[Address, float] = {}
        self.count = 0

    def owner(self) -> str:
        self.count += 1
        return f"pod{self.count}"

    @rule(seconds=st.floats(0, 15))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def lease(self) -> None:
        owner = self.owner()
        cooled = {a for a in GIVABLE - self.held.keys() if self.now - self.freed.get(a, -1e9) >= COOLDOWN}
        address = self.book.lease("pool", owner, self.now)
        if address is None:
            assert not cooled
            return
        assert address in cooled
        same_block = {a for a in cooled for b in BLOCKS if a in b and address in b}
        assert self.freed.get(address, -1) == min(self.freed.get(a, -1) for a in same_block)
        self.held[address] = owner
        self.freed.pop(address, None)

    @rule(address=st.sampled_from([*BLOCKS[0], *BLOCKS[1]]))
    def take(self, address: IPv4Address) -> None:
        owner = self.owner()
        if address in GIVABLE and address not in self.held:
            self.book.take(address, owner)
            self.held[address] = owner
            self.freed.pop(address, None)
        else:
            with pytest.raises(AddressUnavailable):
                self.book.take(address, owner)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        address = data.draw(st.sampled_from(sorted(self.held)))
        self.book.free([address], "somebody else", self.now)
        assert self.book.owner(address) == self.held[address]
        self.book.free([address], self.held.pop(address), self.now)
        self.freed[address] = self.now

    @precondition(lambda self: self.held)
    @rule()
    def lose_a_block_and_get_it_back(self) -> None:
        self.book.set_blocks({BLOCKS[0]: "pool"}, {"pool": (ip_network("10.0.0.3/32"),)}, {"pool": COOLDOWN})
        for address, owner in self.held.items():
            assert self.book.owner(address) == owner
        self.book.set_blocks(
            dict.fromkeys(BLOCKS, "pool"), {"pool": (ip_network("10.0.0.3/32"),)}, {"pool": COOLDOWN}
        )
        self.freed = {a: t for a, t in self.freed.items() if a in BLOCKS[0]}

    @rule()
    def begin_anywhere(self) -> None:
        self.book.scatter()

    @invariant()
    def every_lease_has_its_owner(self) -> None:
        assert {a: self.book.owner(a) for a in self.held} == self.held
        assert sum(u.leased for u in self.book.use(self.now)) == len(self.held)
        assert sum(u.capacity for u in self.book.use(self.now)) == len(GIVABLE)


TestBook = BookMachine.TestCase


def test_never_used_first_then_longest_free() -> None:
    addresses = book(1)
    first = [addresses.lease("pool", f"p{i}", 0) for i in range(4)]
    assert [str(a) for a in first] == ["10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
    assert addresses.lease("pool", "late", 0) is None
    addresses.free([ip_address("10.0.0.5")], "p2", 1)
    addresses.free([ip_address("10.0.0.2")], "p0", 2)
    assert addresses.lease("pool", "early", 10) is None
    assert str(addresses.lease("pool", "a", 20)) == "10.0.0.5"
    assert str(addresses.lease("pool", "b", 20)) == "10.0.0.2"


def test_after_a_restart_leasing_begins_anywhere_and_misses_no_address() -> None:
    starts = set()
    for _ in range(40):
        addresses = book(1)
        addresses.scatter()
        given = [addresses.lease("pool", f"p{i}", 0) for i in range(4)]
        assert {str(a) for a in given} == {"10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"}
        assert addresses.lease("pool", "late", 0) is None
        starts.add(given[0])
    assert len(starts) > 1


def test_a_draining_block_gives_nothing() -> None:
    addresses = book(1)
    addresses.drain(BLOCKS[0], draining=True)
    assert addresses.lease("pool", "a", 0) is None
    addresses.drain(BLOCKS[0], draining=False)
    assert addresses.lease("pool", "a", 0) is not None


def test_a_large_exclusion_is_stepped_over() -> None:
    addresses: AddressBook[str] = AddressBook()
    block = ip_network("fd00::/64")
    addresses.set_blocks({block: "six"}, {"six": (ip_network("fd00::/65"),)}, {"six": 0})
    assert str(addresses.lease("six", "a", 0)) == "fd00::8000:0:0:0"
    assert addresses.use(0)[0].capacity == 1 << 63


def test_leases_of_the_kernel_outside_our_blocks_are_kept_in_sight() -> None:
    addresses = book(1)
    addresses.restore(ip_address("10.9.9.9"), "stray")
    assert addresses.owner(ip_address("10.9.9.9")) == "stray"
    addresses.free([ip_address("10.9.9.9")], "stray", 0)
    assert addresses.owner(ip_address("10.9.9.9")) is None
