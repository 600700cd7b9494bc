"""What an agent gives to a dump besides what it tells anyway: its kernel as tools show it, the flow engine's
maps, metrics, and the last lines of its log.
"""

import asyncio
from collections.abc import Iterable, Mapping
from itertools import chain, islice
from typing import Any

from podway.agent.components import Components
from podway.agent.logs import remembered
from podway.agent.metrics import AgentMetrics
from podway.api.redaction import Redactor
from podway.channel.admin import Method
from podway.cni.server import CniServer
from podway.errors import KernelError
from podway.policy.maps import Rule
from podway.subprocesses import running

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "links": ("ip", "-details", "-statistics", "link"),
    "addresses": ("ip", "address"),
    "rules": ("ip", "rule"),
    "rules6": ("ip", "-6", "rule"),
    "routes": ("ip", "-4", "route", "show", "table", "all"),
    "routes6": ("ip", "-6", "route", "show", "table", "all"),
    "neighbours": ("ip", "neighbour"),
    "forwarding": ("bridge", "fdb"),
    "nftables": ("nft", "list", "ruleset"),
    "qdiscs": ("tc", "-statistics", "qdisc"),
}
"""What shows the kernel, by name."""

SECONDS = 10.0
"""How long a command may take."""

MOST_BYTES = 1 << 20
"""How much of its output is taken."""

_PIECE = 1 << 16

MOST_ENTRIES = 20_000
"""How many entries of each map are."""


class Dump:
    """Answers `doctor.dump`."""

    def __init__(self, components: Components, requests: CniServer) -> None:
        self._components = components
        self._metrics = AgentMetrics(components, requests)

    @property
    def methods(self) -> Mapping[str, Method]:
        """The methods by name. Who may ask for what doctor finds may ask for this."""
        return {"doctor.dump": Method(self.dump, remote=True)}

    async def dump(self) -> dict[str, Any]:
        """Return texts by name: of commands, of metrics, of the log; and what the flow engine holds.

        What looks like a secret is taken out of the log: who may ask doctor may not read Secrets.
        """
        outputs = await asyncio.gather(*(output_of(command) for command in COMMANDS.values()))
        engine = self._engine()
        return {
            **{f"{name}.txt": text for name, text in zip(COMMANDS, outputs, strict=True)},
            "metrics.txt": await self._metrics.text(),
            "log.txt": Redactor().text(remembered()),
            "programs.txt": _lines(self._programs()),
            "engine.txt": await asyncio.to_thread(_lines, engine),  # there may be many
        }

    def _programs(self) -> Iterable[str]:
        """Return the flow engine's programs on devices."""
        parts = self._components
        try:
            return sorted(map(str, parts.kernel.flow.list(parts.reconciler.plan()).values()))
        except KernelError as error:
            return [f"cannot be listed: {error.message}"]

    def _engine(self) -> Iterable[str]:
        """Return what the engine counted, and what it is to judge by; that its maps are so, audits see to."""
        parts, enforcement = self._components, self._components.reconciler.enforcement
        maps, planner = enforcement.maps, enforcement.planner
        pods = tuple(islice(maps.endpoints.items(), MOST_ENTRIES))
        identities = tuple(islice(maps.identities.items(), MOST_ENTRIES))
        rules = tuple(islice(maps.rules.items(), MOST_ENTRIES))

        def name_of(rule: Rule) -> str:
            name = planner.rule_name(rule.number) if planner else None
            return f"{rule.verdict.name} {rule.precedence} {name or rule.number}"

        counters = parts.kernel.flow.counters()
        return chain(
            (f"counter {name.name} {count}" for name, count in counters.items() if count),
            (f"table {name} {table.used} of {table.room}" for name, table in parts.tables().items()),
            (f"pod {'/'.join(name)} {sets}" for name, sets in pods),
            (f"identity {number} {prefix}" for prefix, number in identities),
            (f"rule {key}: {', '.join(name_of(rule) for rule in said if rule)}" for key, said in rules),
        )


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


async def output_of(command: tuple[str, ...], *, seconds: float = SECONDS, most: int = MOST_BYTES) -> str:
    """Return what a command says, or why it says nothing: no more than `most` bytes, for no longer than `seconds`.

    It has ended when this returns, also when it is cancelled; no more of its output than that is ever held.
    """
    words = " ".join(command)
    said, end = bytearray(), ""
    try:
        async with (
            asyncio.timeout(seconds),
            running(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            ) as process,
        ):
            assert process.stdout
            while len(said) <= most and (part := await process.stdout.read(_PIECE)):
                said += part
    except TimeoutError:  # an OSError, too
        end = f"\n... {words}: not done after {seconds:g} s\n"
    except OSError as error:
        return f"{words}: {error.strerror}\n"
    if len(said) > most:
        end = f"\n... only the first {most} bytes are here\n"
    return f"$ {words}\n{said[:most].decode(errors='replace')}{end}"
