"""Sends what is recorded of flows to others, from the history of the node.

The history is the queue: whoever is slow or gone is sent later what he missed, from where he was, also by the next
agent. Nothing waits for him, and he costs no memory. What the history has given up meanwhile, or what is further
behind than MOST_BEHIND, is left out, and counted.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import structlog

from podway.errors import explain
from podway.export.target import Target
from podway.flows.store import FlowStore

log = structlog.get_logger(__name__)

PAUSE = 1.0
"""Seconds between looks for more, once something was recorded."""

BATCH = 500
"""Records that are sent at once."""

MOST_BEHIND = 1_000_000
"""Records that a receiver may be behind before some are left out for him."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds after which a receiver that failed is tried again: longer and longer."""

POSITIONS = "exports.json"
"""The file beside the history that says how far each receiver is."""


class FlowExport:
    """What one receiver is sent. `position` is the number of the record that is next, -1 for the newest."""

    def __init__(self, target: Target, node: str, position: int = -1) -> None:
        self.target = target
        self.position = position
        self.sent = self.skipped = self.refused = 0
        self.problem = ""
        self.wanted = asyncio.Event()
        """There may be more to be sent."""
        self._sink = target.open(node)

    def begin(self, store: FlowStore) -> None:
        """Begin with what comes next, unless a former agent began."""
        if self.position < 0 or self.position > store.next:  # the latter if that was another history
            self.position = store.next

    def step(self, store: FlowStore) -> int:
        """Send a batch; return how many records that were. Blocks. Raises OSError, and nothing was sent then."""
        behind = store.next - MOST_BEHIND
        if self.position < behind:
            self._skip_to(behind)
        block = store.block_at(self.position)
        if block is None:
            return 0
        if self.position < block.first:
            self._skip_to(block.first)
        records = []
        for at in range(self.position - block.first, min(block.count, self.position - block.first + BATCH)):
            records.append(block.record(at))
            if not len(records) % 50:
                time.sleep(0)
        self.refused += self._sink.send(records)
        self.position += len(records)
        self.sent += len(records)
        return len(records)

    def _skip_to(self, number: int) -> None:
        self.skipped += number - self.position
        self.position = number

    def status(self, store: FlowStore | None) -> dict[str, Any]:
        """Return how far it is, in plain JSON values."""
        behind = store.next - self.position if store and self.position >= 0 else 0
        return {
            "target": self.target.url,
            "sent": self.sent,
            "skipped": self.skipped,
            "refused": self.refused,
            "behind": behind,
            "problem": self.problem,
        }

    def close(self) -> None:
        """Close what is open."""
        self._sink.close()


class FlowExports:
    """All receivers of one node's records."""

    def __init__(self, targets: Iterable[Target], node: str, directory: Path) -> None:
        """Take up again where a former agent was; positions are kept in this directory, that of the history."""
        self._file = directory / POSITIONS
        targets = tuple(targets)
        known = self._load() if targets else {}
        self._exports = [FlowExport(target, node, known.get(target.url, -1)) for target in targets]
        self._store: FlowStore | None = None

    def trigger(self, store: FlowStore) -> None:
        """Have records sent that come now or just came; to be called in the loop."""
        for export in self._exports:
            export.begin(store)
            export.wanted.set()
        self._store = store

    def status(self) -> list[dict[str, Any]]:
        """Return how far each receiver is."""
        return [export.status(self._store) for export in self._exports]

    async def run(self) -> None:
        """Send what comes, for ever. Each receiver has a thread: one that is slow holds up no other."""
        if not self._exports:
            await asyncio.Event().wait()
        async with asyncio.TaskGroup() as tasks:
            for export in self._exports:
                tasks.create_task(self._run(export))

    async def _run(self, export: FlowExport) -> None:
        loop, worker = asyncio.get_running_loop(), ThreadPoolExecutor(1, "flow export")
        try:
            while True:
                await export.wanted.wait()
                export.wanted.clear()
                await asyncio.sleep(PAUSE)
                wait = FIRST_WAIT
                while True:
                    assert self._store is not None
                    try:
                        sent = await loop.run_in_executor(worker, export.step, self._store)
                    except (OSError, ValueError) as error:  # one that cannot be sent to keeps no other from it
                        self._note(export, explain(error) if isinstance(error, OSError) else str(error))
                        await asyncio.sleep(wait)
                        wait = min(2 * wait, LONGEST_WAIT)
                        continue
                    self._note(export, "")
                    wait = FIRST_WAIT
                    if not sent:
                        break
                    await loop.run_in_executor(worker, self._save)
        finally:
            export.close()
            worker.shutdown(wait=False, cancel_futures=True)

    def _note(self, export: FlowExport, problem: str) -> None:
        if problem and not export.problem:
            log.error("flows cannot be exported", target=export.target.url, problem=problem)
        elif export.problem and not problem:
            log.info("flows are exported again", target=export.target.url)
        export.problem = problem

    def _load(self) -> dict[str, int]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, int])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            log.error("how far exports of flows were cannot be read: they begin anew", problem=str(error))
            return {}

    def _save(self) -> None:
        """Write how far each is. What cannot be written is sent once more by the next agent."""
        new = self._file.with_suffix(".new")
        with contextlib.suppress(OSError):  # the history, on the same disk, says so
            new.write_bytes(msgspec.json.encode({one.target.url: one.position for one in self._exports}))
            new.rename(self._file)
