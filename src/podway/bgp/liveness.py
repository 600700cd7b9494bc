"""Tells "BIRD died on a live node" from "the node died", and forgets the routes of dead nodes at once.

Three things are wanted together: no packet lost when a node's BIRD is killed, none when it is restarted on
purpose, and the routes of a dead node gone from all others within a second. BIRD's own means do not give all
three, since its BFD lives in the same process as its BGP and falls silent with it. Measured on three nodes
with BFD at 100 ms times 3, and 1000 packets a second to the node in question:

===============  ========================  ==========================
BGP's BFD        BIRD killed, back 0.1 s   node dead: its routes gone
                 later: packets lost       from the others after
===============  ========================  ==========================
`bfd on`         3600 of 5000              0.3 s
`bfd graceful`   none                      0.3 s + restart time
apart from BGP   none                      hold time (9 s)
===============  ========================  ==========================

`bfd on` overrides graceful restart (RFC 4724) as soon as BFD times out; `bfd graceful` takes a dead node for
a restarting one. So BFD runs apart from BGP, as suspicion, and this module gives the verdict: a node whose
BFD session is down is asked by ICMP echo. If its kernel answers, its pods are reached by the routes there
are, and graceful restart is left alone. If not, its BGP session is restarted by the control socket, which
drops its routes within a millisecond. (Not `disable`: the node may come back.) A false alarm of BFD, say on
an overloaded machine, costs a ping and no session. While no agent runs, the hold timer gives the verdict.

BIRD has no events to subscribe to, but writes each change of a BFD session to its log at once; inotify(7)
tells of that without tying BIRD's life to the reader, as a pipe would. The log is never parsed: it only says
when to look. Looking has a second use: BIRD 2.0 computes its poll timeout before the events that its timers
scheduled, and may sit on the first routes of a new session for a second; any command wakes it.
"""

import asyncio
import contextlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import structlog

from podway import inotify
from podway.api.addresses import Address
from podway.bgp.daemon import Bird
from podway.bgp.probe import answering
from podway.bgp.render import RESTART_TIME
from podway.bgp.status import read_bfd
from podway.errors import RoutingError

log = structlog.get_logger(__name__)

ANSWER_WINDOW = 0.2
"""Seconds that a suspect has for its answer. With BFD's 0.3 s and COALESCE: routes gone after 0.55 s."""

COALESCE = 0.05
"""Seconds from the log's change to the look: log lines come in bursts."""

ASK_AGAIN = 0.25
"""Seconds between questions to a suspect that answers: it may still die before its BIRD is back."""

POLL = 0.1
"""Seconds between looks at the log's time without inotify."""

LOOK_ANYWAY = 5.0
"""Seconds after which to look though the log is silent, should a change ever have been missed."""


class Suspects:
    """Which nodes to ask: pure bookkeeping over successive views of the BFD sessions."""

    def __init__(self) -> None:
        self._since: dict[Address, float] = {}
        self._dead: frozenset[Address] = frozenset()

    def see(self, down: Collection[Address], now: float, partners: Collection[Address] = ()) -> frozenset[Address]:
        """Take the addresses whose BFD session is down at `now` (seconds); return those to ask.

        `partners` are asked as long as they are silent: whoever dies, its turn is another's. Of the others
        those are not asked that were found dead, until their session comes up, nor those that have been suspect
        for longer than peers keep their routes: nothing is at stake any more.
        """
        self._since = {address: self._since.get(address, now) for address in down}
        self._dead &= frozenset(down)
        return frozenset(
            address
            for address, since in self._since.items()
            if address in partners or (address not in self._dead and now - since <= RESTART_TIME)
        )

    @property
    def dead(self) -> frozenset[Address]:
        """Those that were found dead, and were not heard of since."""
        return self._dead

    def conclude(self, asked: Collection[Address], answered: Collection[Address]) -> None:
        """Take who of those that were asked answered: the others are found dead."""
        self._dead = (self._dead | frozenset(asked)) - frozenset(answered)


class LivenessArbiter:
    """Watches the nodes that BIRD has BFD sessions with."""

    def __init__(self, bird: Bird) -> None:
        self._sessions: Mapping[Address, str] = {}
        self._partners: frozenset[Address] = frozenset()
        self.dead: frozenset[Address] = frozenset()
        """Addresses of watched nodes that are dead."""
        self.known: frozenset[Address] = frozenset()
        """Addresses of partners of which it was found out whether they are, since the agent started."""
        self._listeners: list[asyncio.Event] = []
        self._bird = bird
        self._log = DirectoryWatch(bird.log.parent)

    def watch(self, sessions: Mapping[Address, str], partners: Collection[Address]) -> None:
        """Watch these addresses from now on.

        `sessions` maps addresses to BGP sessions. `partners` are those whose death has to be noticed whether there
        is a BGP session or not, and for however long BIRD is silent.
        """
        self._sessions, former, self._partners = sessions, self._partners, frozenset(partners)
        if self._partners != former:
            self._log.wake()

    @property
    def watched(self) -> frozenset[Address]:
        """The addresses that are watched."""
        return self._partners | self._sessions.keys()

    def tell(self, listener: asyncio.Event) -> None:
        """Set an event from now on whenever it is found out who is dead, or is no more."""
        self._listeners.append(listener)

    async def run(self) -> None:
        """Watch for ever. Raises UnsupportedSystem if nodes cannot be asked (CAP_NET_RAW)."""
        suspects, asking = Suspects(), False
        with self._log as watch:
            while True:
                try:
                    asking = await self._look(suspects)
                except RoutingError as error:
                    # BIRD itself is away; whoever keeps it alive brings it back, and its log then changes.
                    log.debug("cannot look at BFD sessions", reason=error.message)
                with contextlib.suppress(TimeoutError):
                    # Not wait_for: until Python 3.12 it loses a cancellation that comes with the result.
                    async with asyncio.timeout(ASK_AGAIN if asking else LOOK_ANYWAY):
                        await watch.changed()
                await asyncio.sleep(COALESCE)

    async def _look(self, suspects: Suspects) -> bool:
        """Look once, ask, and drop dead nodes' routes; return whether suspects are left."""
        sessions, partners = self._sessions, self._partners
        if not (sessions or partners):
            self._conclude(frozenset(), frozenset())
            return False
        async with self._bird.control() as control:
            states = {session.address: session.state for session in await read_bfd(control)}
            # BIRD may not know of a partner yet. Of a silent one nobody waits to hear.
            down = {one for one in sessions if states.get(one) == "Down"}
            down |= {one for one in partners if states.get(one, "Down") == "Down"}
            asked = suspects.see(down, asyncio.get_running_loop().time(), partners)
            answered = await answering(asked, window=ANSWER_WINDOW) if asked else frozenset()
            for address in (asked - answered - suspects.dead) & sessions.keys():
                await control.restart_protocol(sessions[address])
                log.warning("node does not answer: routes withdrawn", session=sessions[address])
            suspects.conclude(asked, answered)
        self._conclude(suspects.dead, partners)
        return not asked <= suspects.dead

    def _conclude(self, dead: frozenset[Address], known: frozenset[Address]) -> None:
        if (dead, known) == (self.dead, self.known):
            return
        self.dead, self.known = dead, known
        for listener in self._listeners:
            listener.set()


class DirectoryWatch:
    """Tells when a file in a directory was written, created or renamed (inotify(7)); a context manager.

    A user has only 128 inotify descriptors (fs.inotify.max_user_instances). Without one it looks for itself.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd = -1
        self._seen = 0
        self._event = asyncio.Event()

    def __enter__(self) -> "DirectoryWatch":
        try:
            self._fd = inotify.watch(self._directory, inotify.IN_MODIFY | inotify.IN_CREATE | inotify.IN_MOVED_TO)
        except OSError as error:
            log.warning("no inotify: looking again and again", directory=self._directory, reason=error.strerror)
            self._seen = self._written()
        else:
            asyncio.get_running_loop().add_reader(self._fd, self._readable)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def wake(self) -> None:
        """Let who waits go on as if something had been written."""
        self._event.set()

    async def changed(self) -> None:
        """Wait for a change since the last call; return at once if there was one."""
        while self._fd < 0 and not self._event.is_set():
            now = self._written()
            if now != self._seen:
                self._seen = now
                return
            await asyncio.sleep(POLL)
        await self._event.wait()
        self._event.clear()

    def _readable(self) -> None:
        inotify.drain(self._fd)
        self._event.set()

    def _written(self) -> int:
        """Return when, in nanoseconds since 1970, the directory or a file in it was last written."""
        paths = [self._directory, *self._directory.iterdir()]
        return max(status.st_mtime_ns for path in paths if (status := _stat(path)) is not None)


def _stat(path: Path) -> os.stat_result | None:
    with contextlib.suppress(FileNotFoundError):  # it went away between listing and looking
        return path.stat()
    return None
