"""BGP speakers on the top-of-rack routers: BIRD, or FRR's zebra, bfdd and bgpd.

They are ours alone: each with its own files in the lab's directory, never the machine's services, nor a file
below /etc. They are marked and found as the lab's other processes are (podway.lab.processes).
"""

import shlex
import shutil
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from podway.errors import LabError
from podway.lab import names, processes
from podway.lab.fabric import Fabric, Tor
from podway.lab.processes import Spawned
from podway.lab.speaker_files import render_bird, render_frr
from podway.lab.state import tor_dir
from podway.plan.bgp import Bfd

FRR = Path("/usr/lib/frr")
"""Where Debian, and FRR's own packages, put the daemons."""

READY_SECONDS = 20.0
"""How long a daemon may take until it answers at its control socket."""

LOG_LINES = 15
"""How much of a daemon's output an error shows."""


class Daemon(NamedTuple):
    """A process on a router: what to execute, and the control socket that tells that it is ready.

    BIRD listens there before it has read its file, but `greets` only after.
    """

    name: str
    command: tuple[str, ...]
    socket: Path
    greets: bool = False

    def ready(self) -> bool:
        """Tell whether it answers."""
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(READY_SECONDS)
            try:
                asking.connect(str(self.socket))
                return not self.greets or bool(asking.recv(1))
            except OSError:
                return False  # not yet, or no more: the process tells which


def require(tor: Tor) -> None:
    """Raise LabError naming the Debian package if what shall run on the routers is not installed."""
    if tor == "bird" and shutil.which("bird") is None:
        raise LabError("--tor bird: BIRD is not installed", hint="install Debian's package bird2")
    for daemon in ("zebra", "bfdd", "bgpd") if tor == "frr" else ():
        if not (FRR / daemon).exists():
            raise LabError(
                f"--tor frr: FRR is not installed: there is no {FRR / daemon}",
                hint="install Debian's package frr, or choose --tor bird",
            )


def start_all(lab: str, fabric: Fabric, tor: Literal["bird", "frr"], bfd: Bfd) -> None:
    """Start the speakers of all routers. Raises LabError with a daemon's last words if one does not come up."""
    started: list[tuple[int, Daemon, Spawned]] = []
    for rack in fabric.numbers:
        directory = tor_dir(lab, rack)
        directory.mkdir(parents=True)
        conf = directory / f"{tor}.conf"
        conf.write_text((render_bird if tor == "bird" else render_frr)(fabric, rack, bfd))
        for daemon in _bird(directory, conf) if tor == "bird" else _frr(directory, conf):
            process = _start(lab, rack, daemon)
            started.append((rack, daemon, process))
            if daemon.name == "zebra":  # bgpd asks it for its socket once, and then only after seconds
                _wait(lab, rack, daemon, process)
    for rack, daemon, process in started:
        _wait(lab, rack, daemon, process)


def _bird(directory: Path, conf: Path) -> Sequence[Daemon]:
    control = directory / "bird.ctl"
    command = ("bird", "-f", "-c", str(conf), "-s", str(control), "-P", str(directory / "bird.pid"))
    return (Daemon("bird", command, control, greets=True),)


def _frr(directory: Path, conf: Path) -> Sequence[Daemon]:
    """Return FRR's daemons in the order in which they must start.

    Their group must be `frrvty`, or they refuse to run as root. Crash reports go below /var/tmp, which each
    sees in a mount namespace of its own as the router's directory, so that nothing stays behind.
    """
    zserv = directory / "zserv.api"
    bfdctl = directory / "bfdd.sock"

    def daemon(name: str, config: Path, *options: str) -> Daemon:
        command = [str(FRR / name), "-u", "root", "-g", "frrvty", "-f", str(config), "-z", str(zserv), "-P", "0"]
        command += ["-i", str(directory / f"{name}.pid"), "--vty_socket", str(directory), "--log", "stdout"]
        script = f"mount --bind {shlex.quote(str(directory))} /var/tmp && exec {shlex.join([*command, *options])}"
        return Daemon(name, ("unshare", "--mount", "sh", "-c", script), directory / f"{name}.vty")

    nothing = Path("/dev/null")
    return (
        daemon("zebra", nothing),
        daemon("bfdd", nothing, "--bfdctl", str(bfdctl)),
        daemon("bgpd", conf),
    )


def _start(lab: str, rack: int, daemon: Daemon) -> Spawned:
    return processes.spawn(
        daemon.command,
        namespace=names.tor_netns(lab, rack),
        mark=f"{lab}/{names.tor(rack)}",
        log=_log(lab, rack, daemon),
    )


def _wait(lab: str, rack: int, daemon: Daemon, process: Spawned) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not daemon.ready():
        code = process.ended()
        if code is None and time.monotonic() < deadline:
            time.sleep(0.02)
            continue
        what = "is not ready" if code is None else f"ended with status {code}"
        words = _log(lab, rack, daemon).read_text(errors="replace").splitlines()[-LOG_LINES:]
        said = "".join(f"\n    {line}" for line in words) or "\n    (nothing)"
        raise LabError(f"router {names.tor(rack)}: its {daemon.name} {what}; it said:{said}")


def _log(lab: str, rack: int, daemon: Daemon) -> Path:
    return tor_dir(lab, rack) / f"{daemon.name}.log"
