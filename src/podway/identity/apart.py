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
from podway.identity.orders import KeyedRequest, Order, RequestOrder

TIMEOUT = 60.0
"""Seconds; it takes 0.15."""


async def fulfil(order: Order) -> KeyedCertificate:
    """Make what was ordered (see podway.identity.certificates). Raises AgentError."""
    return msgspec.json.decode(await _made(order), type=KeyedCertificate)


async def request() -> KeyedRequest:
    """Make a key, and a request for a certificate of it. Raises AgentError."""
    return msgspec.json.decode(await _made(RequestOrder()), type=KeyedRequest)


async def _made(order: Order | RequestOrder) -> bytes:
    command = [sys.executable, "-m", "podway.identity"]
    try:
        return (
            await asyncio.to_thread(
                subprocess.run,
                command,
                input=msgspec.json.encode(order),
                capture_output=True,
                timeout=TIMEOUT,
                check=True,
            )
        ).stdout
    except subprocess.TimeoutExpired as error:
        raise AgentError(f"no certificate was made within {TIMEOUT:g} s", hint="is the machine busy?") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise AgentError(
            f"no certificate could be made: {said or f'status {error.returncode}'}",
            hint="is Podway's Python environment whole? (`./dev setup`)",
        ) from error
