"""History on disk: nothing written is lost, whatever happens to who writes; room is bounded, the newest kept."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from podway.flows import store as flow_store
from podway.flows.block import Names
from podway.flows.record import Who
from podway.flows.store import FlowStore
from podway.kernel.bpf.flow_layout import EVENT
from podway.kernel.flow_events import EVENT_SIZE
from tests.flows.flow_events import SECOND, WEB, event, names

LIMIT = 64 << 20


def at(second: int) -> bytes:
    """An event at a second of the monotonic clock."""
    return event(time=second * SECOND)


def times(store: FlowStore, since: float = 0.0, until: float = float("inf")) -> list[int]:
    """The seconds of all records, oldest first, by blocks of a time."""
    blocks = list(store.blocks(since, until))
    return [int(block.record(one).time) for block in reversed(blocks) for one in range(block.count)]


def put(store: FlowStore, *seconds: int) -> None:
    store.append(b"".join(map(at, seconds)), Names() if store.count else names())


def test_what_is_written_is_there_for_the_next_agent(tmp_path: Path) -> None:
    """Which is killed: nothing is closed in good order."""
    store = FlowStore(tmp_path, "node1", LIMIT)
    put(store, 1, 2)
    store.append(at(3), Names(addresses=[(2, WEB, Who("pod", "db", "shop", "node1"))]))
    again = FlowStore(tmp_path, "node1", LIMIT)
    assert times(again) == [1, 2, 3]
    assert again.next == 3
    assert again.tail() == {at(1), at(2), at(3)}
    [block] = again.blocks()
    assert [block.record(one).destination.label for one in range(3)] == ["shop/web", "shop/web", "shop/db"]


def test_records_keep_their_numbers_over_sealing_and_starting_again(tmp_path: Path) -> None:
    store = FlowStore(tmp_path, "node1", LIMIT)
    put(store, 1, 2)
    store.seal()
    put(store, 3)
    again = FlowStore(tmp_path, "node1", LIMIT)
    assert [(block.first, block.count) for block in again.blocks()] == [(2, 1), (0, 2)]
    again.seal()
    assert FlowStore(tmp_path, "node1", LIMIT).next == 3
    assert times(again) == [1, 2, 3]


def test_a_piece_that_was_cut_short_is_no_piece(tmp_path: Path) -> None:
    store = FlowStore(tmp_path, "node1", LIMIT)
    put(store, 1)
    whole = (tmp_path / "current").stat().st_size
    put(store, 2)
    os.truncate(tmp_path / "current", whole + 20)
    again = FlowStore(tmp_path, "node1", LIMIT)
    assert times(again) == [1]
    put(again, 3)
    assert times(FlowStore(tmp_path, "node1", LIMIT)) == [1, 3]


def test_what_was_sealed_when_the_agent_was_killed_is_there_once(tmp_path: Path) -> None:
    store = FlowStore(tmp_path, "node1", LIMIT)
    put(store, 1, 2)
    before = (tmp_path / "current").read_bytes()
    store.seal()
    (tmp_path / "current").write_bytes(before)
    (tmp_path / "half.new").write_bytes(b"something")
    again = FlowStore(tmp_path, "node1", LIMIT)
    assert times(again) == [1, 2]
    assert not (tmp_path / "half.new").exists()
    put(again, 3)
    assert times(again) == [1, 2, 3]


def test_only_blocks_of_the_time_are_read(tmp_path: Path) -> None:
    store = FlowStore(tmp_path, "node1", LIMIT)
    for second in (10, 20, 30):
        put(store, second)
        store.seal()
    put(store, 40)
    assert times(store, since=20) == [20, 30, 40]
    assert times(store, since=21, until=35) == [30, 40]  # what is not sealed is always looked at
    assert times(store, until=10) == [10, 40]


def test_the_oldest_go_when_there_is_no_more_room(tmp_path: Path) -> None:
    store = FlowStore(tmp_path, "node1", LIMIT)
    put(store, 1)
    store.seal()
    size = next(tmp_path.glob("*.flows")).stat().st_size
    small = FlowStore(tmp_path, "node1", 3 * size + size // 2)
    for second in range(2, 7):
        put(small, second)
        small.seal()
    assert times(small) == [4, 5, 6]
    assert small.status()["bytes"] <= 3 * size + size // 2
    assert small.next == 6


def test_a_damaged_block_is_passed_over(tmp_path: Path) -> None:
    store = FlowStore(tmp_path, "node1", LIMIT)
    for second in (1, 2):
        put(store, second)
        store.seal()
    first = min(tmp_path.glob("*.flows"))
    first.write_bytes(first.read_bytes()[:-5])
    assert times(store) == [2]


@pytest.mark.parametrize("pieces", [1, 3])
def test_events_of_another_size_are_left_out_and_counted_and_their_numbers_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    """As after an upgrade: whoever reads by numbers goes on behind them, and somebody is told."""
    size = EVENT_SIZE - 24
    with monkeypatch.context() as former:
        former.setattr(flow_store, "_EVENTS", bytes((size,)))
        former.setattr(flow_store, "EVENT_SIZE", size)
        before = FlowStore(tmp_path, "node1", LIMIT)
        for _ in range(pieces):
            before.append(bytes(2 * size), names())
        before.close()
    with structlog.testing.capture_logs() as logged:
        again = FlowStore(tmp_path, "node1", LIMIT)
    assert [(one["log_level"], one["records"]) for one in logged] == [("warning", 2 * pieces)]
    assert times(again) == []
    assert (again.unstored, again.next) == (2 * pieces, 2 * pieces)
    put(again, 2)
    with structlog.testing.capture_logs() as logged:
        last = FlowStore(tmp_path, "node1", LIMIT)
    assert times(last) == [2]
    assert (last.unstored, last.next, logged) == (0, 2 * pieces + 1, [])


def test_what_another_build_sealed_before_it_was_killed_is_not_counted_as_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FlowStore(tmp_path, "node1", LIMIT)
    put(store, 1, 2)
    left = (tmp_path / "current").read_bytes()
    store.seal()
    store.close()
    (tmp_path / "current").write_bytes(left)
    monkeypatch.setattr(flow_store, "_EVENTS", bytes((EVENT_SIZE + 8,)))
    with structlog.testing.capture_logs() as logged:
        again = FlowStore(tmp_path, "node1", LIMIT)
    assert (again.unstored, again.next, times(again), logged) == (0, 2, [1, 2], [])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "flows", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.kernel
def test_a_full_disk_is_told_and_lost_records_are_counted_and_then_it_goes_on(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_store, "RETRY", 0.0)
    store = FlowStore(small_disk / "flows", "node1", LIMIT)
    put(store, 1)
    assert store.problem == ""
    full = small_disk / "somebody's"
    with pytest.raises(OSError, match="No space left"):
        full.write_bytes(bytes(1 << 20))
    store.append(at(2) * 1000, Names())
    assert "No space left" in store.problem
    assert store.count == 1001  # still known to who asks
    store.seal()
    assert store.unstored == 1001
    store.append(at(5) * 1000, names())
    assert "No space left" in store.status()["problem"]
    full.unlink()
    put(store, 6)
    told = store.status()
    assert (told["problem"], told["unstored"]) == ("", 1001)
    store.close()
    again = FlowStore(small_disk / "flows", "node1", LIMIT)
    assert times(again) == [5] * 1000 + [6]
    assert again.next == 2002
    again.close()


@pytest.mark.kernel
def test_old_blocks_give_their_room_before_the_disk_is_full(small_disk: Path) -> None:
    """A twentieth of it stays free for others."""
    store = FlowStore(small_disk / "flows", "node1", LIMIT)
    for second in range(100):
        put(store, second)
        store.seal()
    kept = times(store)
    assert kept == list(range(100 - len(kept), 100))
    assert 0 < len(kept) < 100
    disk = os.statvfs(small_disk)
    assert disk.f_bavail * disk.f_frsize >= (256 << 10) // flow_store.SHARE - disk.f_frsize
    assert store.problem == ""
    assert store.unstored == 0
    store.close()


def test_a_disk_that_takes_nothing_is_tried_again_now_and_then_and_gets_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = 1000.0
    monkeypatch.setattr("podway.flows.store.time.monotonic", lambda: moment)
    (tmp_path / "file").write_text("")
    store = FlowStore(tmp_path / "file" / "flows", "node1", LIMIT)
    put(store, 1)
    (tmp_path / "file").unlink()
    put(store, 2)
    assert not (tmp_path / "file").exists()
    moment += flow_store.RETRY
    put(store, 3)
    assert store.problem == ""
    store.close()
    assert times(FlowStore(tmp_path / "file" / "flows", "node1", LIMIT)) == [1, 2, 3]


def test_a_place_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = FlowStore(tmp_path / "file" / "flows", "node1", LIMIT)
    put(store, 1)
    assert "Not a directory" in store.problem
    assert times(store) == [1]


def test_a_block_is_due_when_it_is_full(tmp_path: Path) -> None:
    store = FlowStore(tmp_path, "node1", LIMIT)
    due = [store.is_due]
    put(store, 1)
    due.append(store.is_due)
    store.append(at(2) * flow_store.BLOCK, Names())
    due.append(store.is_due)
    store.seal()
    assert [*due, store.is_due] == [False, False, True, False]
    assert len(next(store.blocks()).addresses("source")) == 16 * (flow_store.BLOCK + 1)
    assert next(tmp_path.glob("*.flows")).stat().st_size < EVENT.size * flow_store.BLOCK // 10
