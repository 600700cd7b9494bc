"""A trial of all that a pod's ADD needs: the real plugin attaches a namespace of no pod, which then is reached.

What a container runtime does is done here, with the same program and the same socket. Afterwards nothing is left.
"""

import asyncio
import os
from ipaddress import ip_interface
from pathlib import Path

import msgspec

from podway.api.addresses import Address
from podway.cni.conflist import VERSION
from podway.cni.spec import NETWORK
from podway.errors import AgentError, explain
from podway.kernel import netns
from podway.subprocesses import running

SECONDS = 20.0
"""How long the plugin may take, and how long a first answer."""
DISCARD = 9
"""A port (RFC 863) where nobody listens in a namespace that is empty: its kernel says so, which is an answer."""

_CONFIGURATION = msgspec.json.encode({"cniVersion": VERSION, "name": NETWORK, "type": NETWORK})


class _Ip(msgspec.Struct, frozen=True):
    address: str


class _Result(msgspec.Struct, frozen=True):
    ips: tuple[_Ip, ...] = ()


class _Error(msgspec.Struct, frozen=True):
    msg: str = ""
    details: str = ""


async def try_attachment(plugin: Path, socket: Path, spool: Path, pods: str) -> tuple[Address, ...]:
    """Attach a network namespace, reach it, detach it; return the addresses that it had.

    `plugin` is the executable, `socket` and `spool` are where it finds the agent, and `pods` is the namespace of
    Kubernetes for whose pod it is taken. Raises AgentError with what went wrong.
    """
    namespace = netns.new()
    container = f"podway-trial-{os.getpid()}"
    environment = {
        "CNI_CONTAINERID": container,
        "CNI_NETNS": f"/proc/{os.getpid()}/fd/{namespace}",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": f"K8S_POD_NAMESPACE={pods};K8S_POD_NAME=podway-trial",
        "CNI_PATH": str(plugin.parent),
        "PODWAY_CNI_SOCKET": str(socket),
        "PODWAY_CNI_SPOOL": str(spool),
    }
    try:
        try:
            answer = await _call(plugin, "ADD", environment)
            found = msgspec.json.decode(answer, type=_Result)
            addresses = tuple(ip_interface(one.address).ip for one in found.ips)
            for address in addresses:
                await _reach(address)
        finally:
            await _call(plugin, "DEL", environment)
    except (msgspec.MsgspecError, ValueError) as error:
        raise AgentError(f"the plugin's answer to ADD cannot be read: {explain(error)}") from error
    finally:
        os.close(namespace)
    return addresses


async def _call(plugin: Path, command: str, environment: dict[str, str]) -> bytes:
    try:
        async with (
            asyncio.timeout(SECONDS),
            running(
                plugin,
                env={**environment, "CNI_COMMAND": command},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            ) as process,
        ):
            answer, _ = await process.communicate(_CONFIGURATION)
    except TimeoutError as error:  # an OSError, too
        raise AgentError(f"{plugin} has not answered {command} after {SECONDS:g} s") from error
    except OSError as error:
        raise AgentError(f"{plugin} cannot be run: {error.strerror}") from error
    if process.returncode:
        raise AgentError(_words(answer) or f"{plugin} ended with status {process.returncode} at {command}")
    return answer


def _words(answer: bytes) -> str:
    try:
        error = msgspec.json.decode(answer, type=_Error)
    except msgspec.MsgspecError:
        return ""
    return f"{error.msg}: {error.details}" if error.details else error.msg


async def _reach(address: Address) -> None:
    """Have a namespace's kernel answer. Raises AgentError if it does not."""
    try:
        async with asyncio.timeout(SECONDS):
            _, writer = await asyncio.open_connection(str(address), DISCARD)
        writer.close()
    except ConnectionRefusedError:
        return
    except (TimeoutError, OSError) as error:
        raise AgentError(
            f"{address}, which was just given to a pod, cannot be reached: {explain(error)}"
        ) from error
