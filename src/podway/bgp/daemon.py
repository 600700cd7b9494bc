"""Runs the node's BIRD: starts it, adopts a running one, keeps it alive, gives it configurations.

BIRD is a daemon of its own, not a child that dies with the agent: routes and sessions stay while the agent
is killed, upgraded or stuck. So it is known by its pid file, and its death is noticed through a pidfd, which
needs no parenthood.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

import structlog

from podway import census
from podway.bgp.control import BirdControl
from podway.bgp.status import parse_peers
from podway.errors import RoutingError, UnsupportedSystem

log = structlog.get_logger(__name__)

MAX_SOCKET_PATH = 107
"""sizeof(sun_path) - 1 (unix(7))."""

STOP_TIMEOUT = 5.0
START_TIMEOUT = 10.0

AGAIN = 0.02
"""Seconds between looks whether a BIRD that was started has come up."""

STABLE = 10.0
"""A BIRD that lived for so many seconds is started again at once; after a shorter life, with a pause."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0


class BirdProcess:
    """A running BIRD, held by a pidfd so that its number cannot come to mean another process."""

    def __init__(self, pid: int) -> None:
        """Take hold of a process. Raises ProcessLookupError if there is none of this number."""
        self.pid = pid
        self.gone = asyncio.Event()
        self._pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._exited)

    def _exited(self) -> None:
        self.release()
        self.gone.set()

    def kill(self) -> None:
        """Send SIGKILL, unless it has exited."""
        if self._pidfd >= 0:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def release(self) -> None:
        """Let go of the process without touching it."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def runs(self, socket: Path) -> bool:
        """Tell whether this is the BIRD of that control socket."""
        try:
            return str(socket) in Path(f"/proc/{self.pid}/cmdline").read_text().split("\0")
        except OSError:
            return False

    def in_our_namespace(self) -> bool:
        """Tell whether the process has the network namespace of the calling thread."""
        try:
            return os.path.samefile(f"/proc/{self.pid}/ns/net", "/proc/thread-self/ns/net")
        except OSError:
            return False


class Bird:
    """The BIRD of this network namespace, with its files in `run_dir`: bird.conf, .ctl, .pid and .log."""

    def __init__(self, run_dir: Path) -> None:
        """Raises RoutingError if the directory's path is too long for a socket in it."""
        run_dir = run_dir.absolute()
        self.conf = run_dir / "bird.conf"
        self.socket = run_dir / "bird.ctl"
        self.pid_file = run_dir / "bird.pid"
        self.log = run_dir / "bird.log"
        if len(os.fsencode(self.socket)) > MAX_SOCKET_PATH:
            raise RoutingError(
                f"{self.socket}: a socket's path has at most {MAX_SOCKET_PATH} bytes",
                hint="Choose a run directory with a shorter path.",
            )
        self._process: BirdProcess | None = None
        self._loaded: str | None = None
        self._lock = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """The process' number, None if none runs."""
        return self._process.pid if self._process and not self._process.gone.is_set() else None

    def control(self) -> BirdControl:
        """Return a new connection to BIRD, to be entered by `async with`."""
        return BirdControl(self.socket)

    async def start(self, configuration: str) -> None:
        """Adopt the BIRD that runs here, or start one, and give it this configuration.

        A BIRD that died without removing its pid file left its routes in the kernel: the new one recovers
        (`bird -R`), that is, keeps them until the peers have told theirs.
        Raises RoutingError with BIRD's words, and UnsupportedSystem if BIRD is not installed.
        """
        self.conf.parent.mkdir(parents=True, exist_ok=True)
        async with self._lock:
            # BIRD makes the file before it reads its configuration, and writes its number when it starts.
            crashed = self.pid_file.exists() and self.pid_file.stat().st_size > 0
            found = await self._find_started()
            if found and not found.in_our_namespace():
                log.warning("stopping a BIRD of a former network namespace", pid=found.pid)
                await self._kill(found)
                found, crashed = None, False
            if found and not await self._answers():
                log.warning("stopping a BIRD that does not answer", pid=found.pid)
                await self._kill(found)
                found = None
            self._process = found
            if found is None:
                self._candidate(configuration).replace(self.conf)
                await self._launch(recover=crashed)
                self._loaded = configuration
        await self.load(configuration)

    async def load(self, configuration: str) -> bool:
        """Give BIRD a new configuration; return False if it is the one that it has.

        Raises RoutingError if BIRD rejects it, with BIRD's message (file:line:column and the reason); the
        running configuration and its file stay as they were.
        """
        async with self._lock:
            if configuration == self._loaded:
                return False
            candidate = self._candidate(configuration)
            try:
                async with self.control() as control:
                    await control.check(candidate)
                    candidate.replace(self.conf)
                    await control.configure()
            finally:
                candidate.unlink(missing_ok=True)
            self._loaded = configuration
            return True

    async def keep_alive(self) -> None:
        """Start BIRD again whenever it dies, for ever; a fast series of deaths is slowed down."""
        clock = asyncio.get_running_loop().time
        pause = 0.0
        while process := self._process:
            born = clock()
            await process.gone.wait()
            async with self._lock:
                if self._process is not process:
                    continue
                pause = 0.0 if clock() - born > STABLE else _longer(pause)
                log.error("BIRD died: starting it again", pid=process.pid)
                await self._revive(pause)

    async def restart(self) -> None:
        """Replace the running BIRD by a new process, as after an upgrade; no route is lost meanwhile.

        Raises RoutingError.
        """
        async with self._lock:
            if process := self._process:
                await self._leave(process, "graceful restart")
            await self._launch(recover=True)

    async def stop(self) -> None:
        """Stop BIRD for good. Peers forget this node's routes; those in this kernel stay (`persist`)."""
        async with self._lock:
            if process := self._process:
                self._process = None
                await self._leave(process, "down")

    async def retire(self) -> bool:
        """Stop the BIRD that runs here, if any, and leave no route of its own in the kernel.

        Sessions go first: BIRD then withdraws what they told, which `persist` would leave at its end.
        Tells whether there was one. Raises RoutingError.
        """
        self._process = await self._find_started()
        if self._process is None:
            return False
        async with self.control() as control:
            peers = parse_peers(await control.command("show protocols all"))
            for peer in peers:
                await control.command(f"disable '{peer.name}'")
        await self.stop()
        return True

    def release(self) -> None:
        """Let go of BIRD, which runs on: the agent ends."""
        if self._process:
            self._process.release()

    async def _revive(self, pause: float) -> None:
        while True:
            await asyncio.sleep(pause)
            try:
                return await self._launch(recover=True)
            except (RoutingError, UnsupportedSystem) as error:
                pause = _longer(pause)
                log.error("BIRD does not start", reason=error.message, next_try_seconds=pause)

    async def _launch(self, *, recover: bool) -> None:
        files = ("-c", self.conf, "-s", self.socket, "-P", self.pid_file)
        starter = await asyncio.create_subprocess_exec(
            _program(),
            *files,
            *(("-R",) if recover else ()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        # BIRD reads its configuration, then goes into the background and closes its standard error.
        try:
            async with asyncio.timeout(START_TIMEOUT):
                _, complaint = await starter.communicate()
        except TimeoutError as error:
            starter.kill()
            await starter.wait()
            raise RoutingError(f"BIRD does not start within {START_TIMEOUT:g} s") from error
        if starter.returncode:
            raise RoutingError(
                f"BIRD does not start: {complaint.decode(errors='replace').strip()}",
                hint=f"See {self.log} too.",
            )
        async with self.control():  # it answers only after it has written its pid
            self._process = self._find()
        if self._process is None:
            raise RoutingError(f"BIRD answers at {self.socket}, but {self.pid_file} does not name it")

    def _find(self) -> BirdProcess | None:
        try:
            process = BirdProcess(int(self.pid_file.read_text()))
        except (OSError, ValueError, OverflowError):  # no such file or process, or no number in it
            return None
        if process.runs(self.socket):
            return process
        process.release()
        return None

    async def _find_started(self) -> BirdProcess | None:
        """Return the BIRD of this socket, once it runs: it may have been started a moment ago.

        An agent that is killed while BIRD starts leaves it reading its configuration: it goes into the background
        and writes its number later. One that answers though its number is lost is found all the same, and one that
        does not come up is killed.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while (found := self._find()) is None:
            if not self.conf.exists():
                return None  # none was ever started here
            try:
                processes = census.find(self._serves, deadline=deadline)
            except TimeoutError:
                return None  # should there be one, it tells the next one that it runs
            if not processes:
                return None
            if len(processes) == 1 and await self._answers():
                if found := self._find():  # it has come up meanwhile
                    return found
                log.warning("BIRD's number was lost: writing it again", pid=processes[0], file=str(self.pid_file))
                self.pid_file.write_text(f"{processes[0]}\n")
            elif time.monotonic() > deadline:
                log.warning("killing BIRDs that do not come up", pids=processes)
                for pid in processes:
                    await self._kill_serving(pid)
            else:
                await asyncio.sleep(AGAIN)
        return found

    def _serves(self, pid: int) -> bool:
        """Tell whether a process is a BIRD of this socket, or is about to become one. Raises OSError if it ended.

        A zombie has no command line, and neither has who is in the middle of execve(2).
        """
        command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
        if command == [""]:
            raise ProcessLookupError(f"process {pid} has no command line")
        return str(self.socket) in command and str(self.pid_file) in command

    async def _kill_serving(self, pid: int) -> None:
        with contextlib.suppress(OSError):  # it has ended
            process = BirdProcess(pid)
            if self._serves(pid):
                await self._kill(process)
            process.release()

    async def _answers(self) -> bool:
        try:
            async with self.control():
                return True
        except RoutingError:
            return False

    async def _leave(self, process: BirdProcess, command: str) -> None:
        try:
            async with self.control() as control:
                await control.command(command)
            async with asyncio.timeout(STOP_TIMEOUT):
                await process.gone.wait()
        except (RoutingError, TimeoutError) as error:
            log.warning("BIRD does not stop when asked: killing it", pid=process.pid, reason=str(error))
            await self._kill(process)

    async def _kill(self, process: BirdProcess) -> None:
        process.kill()
        await process.gone.wait()

    def _candidate(self, configuration: str) -> Path:
        """Write a configuration beside the one in force, for nobody else to read: it may hold passwords."""
        candidate = self.conf.with_suffix(".new")
        candidate.unlink(missing_ok=True)  # else it would keep its mode
        with open(candidate, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(configuration)
        return candidate


def _longer(pause: float) -> float:
    return min(LONGEST_PAUSE, max(FIRST_PAUSE, pause * 2))


def _program() -> str:
    # Debian keeps it in /usr/sbin, which is not in everyone's PATH.
    path = shutil.which("bird", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if path is None:
        raise UnsupportedSystem(
            "BIRD, which speaks BGP for Podway, is not installed",
            hint="Install it (Debian: apt install bird2); its system service is not needed.",
        )
    return path
