"""Others' firewall rules. Run as a program it prints a Firewall in JSON, and that is how `read` uses it.

A listing can be large (kube-proxy's, say): in a process of its own it takes nothing from the agent's memory,
and libnftables' lock, which every thread would wait for, is another one.
"""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec

from podway.errors import AgentError
from podway.health.facts import Firewall
from podway.health.ruleset import Ruleset, from_iptables, from_nft
from podway.kernel import firewall
from podway.plan.objects import is_our_table
from podway.subprocesses import running

_LEGACY = {
    "iptables-legacy": Path("/proc/thread-self/net/ip_tables_names"),
    "ip6tables-legacy": Path("/proc/thread-self/net/ip6_tables_names"),
}
"""Where the kernel names the tables of the old xtables interface that are in use."""

_SAVE_SECONDS = 5.0


async def read() -> Firewall:
    """Return the rules of this network namespace. Raises AgentError if they cannot be listed."""
    async with running(
        sys.executable,
        *("-m", __name__),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    ) as process:
        output, complaint = await process.communicate()
    if process.returncode:
        words = complaint.decode(errors="replace").strip().splitlines()[-1:]
        raise AgentError(f"the firewall's rules cannot be listed: {''.join(words)}")
    return msgspec.json.decode(output, type=Firewall)


def list_here() -> Firewall:
    """List the rules of the calling thread's namespace. Raises KernelError, UnsupportedSystem."""
    chains = from_nft(firewall.ruleset(), without=is_our_table).chains
    unread = []
    for tool, tables in _LEGACY.items():
        if not tables.exists() or not tables.read_text().strip():
            continue
        program = shutil.which(f"{tool}-save")
        if program is None:
            unread.append(f"rules of {tool}: {tool}-save is not installed")
            continue
        done = subprocess.run([program], capture_output=True, text=True, timeout=_SAVE_SECONDS, check=False)
        if done.returncode:
            unread.append(f"rules of {tool}: {done.stderr.strip()}")
        else:
            chains += from_iptables(done.stdout, tool=tool).chains
    return Firewall(Ruleset(chains), "; ".join(unread))


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(list_here()))
