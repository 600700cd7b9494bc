"""DELs that shims left while no agent answered, one file each, named after the attachment.

Nothing is lost and nothing is deleted twice over:

* a shim writes its file, then tries to connect once more; the agent listens first, then reads the spool.
  Whichever comes second sees the other.
* an ADD removes the file of its own attachment, so that no DEL from before it can strike after it.
"""

import errno
import logging
import os
import time
from pathlib import Path
from typing import Protocol

from podway.api.lease import Attachment
from podway.cni.frames import FrameError, decode_request
from podway.cni.request import Delete, parse
from podway.errors import CniError, PodwayError

log = logging.getLogger(__name__)

UNFINISHED = "."
"""First character of a file that a shim has not finished writing."""


ABANDONED = 60.0
"""Seconds after which such a file's shim was killed: writing it takes a millisecond."""


class Deleter(Protocol):
    """Whoever carries out a DEL."""

    async def delete(self, request: Delete) -> None:
        """Detach a container."""
        ...


def spool_name(attachment: Attachment) -> str:
    """Return the name of this attachment's file; the shim makes the same."""
    return f"{attachment.container}:{attachment.ifname}"


def forget(spool: Path, attachment: Attachment) -> None:
    """Remove this attachment's file, if there is one. Raises OSError."""
    # os.unlink rather than Path.unlink: this is in the way of every ADD, and nearly always for nothing.
    try:
        os.unlink(f"{spool}/{spool_name(attachment)}")
    except OSError as error:
        # ENAMETOOLONG: no shim could have written it either.
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise


async def replay(spool: Path, network: Deleter) -> int:
    """Carry out every DEL in the spool and remove its file; return how many remain.

    What fails remains for the next time, and is logged; what can never be carried out is removed, and so is what
    shims that were killed have left unfinished.
    """
    remaining = 0
    try:
        names = sorted(entry.name for entry in spool.iterdir())
    except FileNotFoundError:
        return 0
    for name in names:
        if name.startswith(UNFINISHED):
            _remove_if_abandoned(spool / name)
        else:
            remaining += not await _replay_one(spool / name, network)
    return remaining


def _remove_if_abandoned(file: Path) -> None:
    try:
        age = time.time() - file.stat().st_mtime
        if abs(age) > ABANDONED:  # from the future is one that a set clock tells wrongly of
            file.unlink()
            log.warning("removed %s, which a shim that was killed left unfinished", file)
    except OSError as error:
        if error.errno != errno.ENOENT:  # finished meanwhile
            log.warning("%s: %s", file, error)


async def _replay_one(file: Path, network: Deleter) -> bool:
    try:
        frame = decode_request(file.read_bytes())
        request = parse(frame.environment, frame.stdin)
        if not isinstance(request, Delete):
            raise FrameError("not a DEL")
    except FileNotFoundError:
        return True  # its shim reached the agent after all
    except OSError as error:
        log.warning("spooled DEL %s cannot be read, keeping it: %s", file.name, error)
        return False
    except (FrameError, CniError) as error:
        log.warning("spooled DEL %s cannot be carried out, removing it: %s", file.name, error)
    else:
        try:
            await network.delete(request)
        except PodwayError as error:
            log.warning("spooled DEL %s failed, keeping it: %s", file.name, error)
            return False
        except Exception:
            log.exception("spooled DEL %s failed, keeping it", file.name)
            return False
    file.unlink(missing_ok=True)
    return True
