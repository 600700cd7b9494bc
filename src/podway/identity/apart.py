"""Certificates made in a process of their own.

An agent makes one certificate in many hours; the 12 MiB that this needs would stay with it all the time.
Keys pass through pipes: they are never on a command line, nor on a disk.
"""

import asyncio
import subprocess
import sys

import msgspec

from podway.api.kinds.cluster_authority import KeyedCertificate
from podway.errors import AgentError
from podway.identity.orders import Order

TIMEOUT = 60.0
"""Seconds; it takes 0.15."""


async def fulfil(order: Order) -> KeyedCertificate:
    """Make what was ordered (see podway.identity.certificates). Raises AgentError."""
    command = [sys.executable, "-m", "podway.identity"]
    try:
        done = await asyncio.to_thread(
            subprocess.run,
            command,
            input=msgspec.json.encode(order),
            capture_output=True,
            timeout=TIMEOUT,
            check=True,
        )
        return msgspec.json.decode(done.stdout, type=KeyedCertificate)
    except subprocess.TimeoutExpired as error:
        raise AgentError(f"no certificate was made within {TIMEOUT:g} s", hint="is the machine busy?") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise AgentError(
            f"no certificate could be made: {said or f'status {error.returncode}'}",
            hint="is Podway's Python environment whole? (`./dev setup`)",
        ) from error
