"""Opens a node to pods once their network works: not a moment before, and again when somebody closes it.

A kubelet takes its node for ready as soon as there is a CNI configuration, and a scheduler may then send it a
hundred pods. So the configuration is written last, by rename, after the real plugin has attached a namespace that
was reached (podway.agent.trial). A Node object then says so, too: the condition NetworkUnavailable becomes false,
and the taint goes with which a kubelet may have registered its node.
"""

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from podway.agent.options import AgentOptions
from podway.agent.trial import try_attachment
from podway.api.addresses import Family
from podway.api.kinds.node import Node
from podway.api.merge_patch import Document
from podway.cni import files
from podway.cni.conflist import FILE_NAME, render_conflist
from podway.cni.spec import NETWORK
from podway.errors import NotFound, PodwayError, explain
from podway.reconcile.state import NodeState
from podway.store.base import Shared, Store

log = structlog.get_logger(__name__)

TAINT = "podway.io/agent-not-ready"
"""Key of the taint that an agent takes from its node."""
CONDITION = "NetworkUnavailable"

DEFAULT = "default"
"""The namespace that every cluster has."""

LOOK = 2.0
"""Seconds between looks at the files."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
"""Seconds between trials that fail: doubled from the first to the longest."""


class Opening:
    """Keeps plugin and configuration in place, and the Node object right."""

    def __init__(self, options: AgentOptions, state: NodeState, store: Store) -> None:
        self._options = options
        self._state = state
        self._store = store
        self._put: tuple[object, ...] = ()
        """The chained plugins, and what both files looked like when they were right."""
        self._told = ""
        """The uid of the Node object that says so."""
        self.problem = "" if options.plugin_dir is None else "it was not tried yet"
        """Why no pod can be attached yet, in words; empty if one can, or if nobody asked to find out."""

    async def run(self) -> None:
        """Open the node once an attachment worked, and keep it open, for ever."""
        plugins, configurations = self._options.plugin_dir, self._options.conf_dir
        if plugins is None or configurations is None:
            return
        await self._until_attachable(plugins)
        while True:
            await self._open(plugins, configurations)
            await asyncio.sleep(LOOK)

    async def _until_attachable(self, plugins: Path) -> None:
        pause, begun = FIRST_PAUSE, time.monotonic()
        while True:
            try:
                files.put(plugins / NETWORK, files.plugin(), 0o755)
                options = self._options
                plugin, pods = plugins / NETWORK, self._served()
                addresses = await try_attachment(plugin, options.cni_socket, options.cni_spool, pods)
            except (PodwayError, OSError) as error:
                if explain(error) != self.problem:
                    self.problem = explain(error)
                    log.warning("pods cannot be attached yet", problem=self.problem)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            self.problem = ""
            seconds = round(time.monotonic() - begun, 2)
            log.info("pods can be attached", tried=[*map(str, addresses)], seconds=seconds)
            return

    def _served(self) -> str:
        """Return a namespace whose pods some pool serves here: `default`, if it is one."""
        for name in (DEFAULT, *sorted(self._state.view.namespaces)):
            if any(self._state.pod_pools(family, name) for family in Family):
                return name
        return DEFAULT

    async def _open(self, plugins: Path, configurations: Path) -> None:
        """Put what is missing. What cannot be put now is tried again at the next look."""
        plugin, configuration, chained = plugins / NETWORK, configurations / FILE_NAME, files.chained(plugins)
        try:
            if (chained, _mark(plugin), _mark(configuration)) != self._put:
                conflist = render_conflist(chained=chained)
                for path, content, mode in ((plugin, files.plugin(), 0o755), (configuration, conflist, 0o644)):
                    if files.put(path, content, mode):
                        log.info("written", path=str(path))
                self._put = (chained, _mark(plugin), _mark(configuration))
            await self._tell()
        except NotFound:
            return  # its kubelet registers it again
        except (PodwayError, OSError) as error:
            if explain(error) != self.problem:
                self.problem = explain(error)
                log.error("this node cannot be opened to pods", problem=self.problem)
            return
        self.problem = ""

    async def _tell(self) -> None:
        """Have the Node object say it, once for each that there is under this name."""
        here = self._state.view.nodes.get(self._options.node)
        if here is None or here.metadata.uid == self._told or not isinstance(self._store, Shared):
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        await self._store.amend(Node, self._options.node, lambda found: available(found, now), status=True)
        await self._store.amend(Node, self._options.node, untainted)
        self._told = here.metadata.uid


def _mark(path: Path) -> tuple[int, ...] | None:
    """Return what changes with a file, None if it is missing: who looks every few seconds need not read it."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode


def available(node: Mapping[str, Any], now: str) -> Document | None:
    """Return the patch by which a Node object's status says that its network is there; None if it does.

    `now` is an RFC 3339 time. Other conditions stay as they are; a merge patch replaces all of a list.
    """
    conditions = node.get("status", {}).get("conditions", [])
    if any(one["type"] == CONDITION and one["status"] == "False" for one in conditions):
        return None
    said = {
        "type": CONDITION,
        "status": "False",
        "reason": "PodwayIsUp",
        "message": "Podway has attached a namespace here, and reached it",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
    return {"status": {"conditions": [*(one for one in conditions if one["type"] != CONDITION), said]}}


def untainted(node: Mapping[str, Any]) -> Document | None:
    """Return the patch that takes the taint of a node without an agent from its object; None if it has none."""
    taints = node.get("spec", {}).get("taints", [])
    kept = [taint for taint in taints if taint["key"] != TAINT]
    return {"spec": {"taints": kept}} if len(kept) < len(taints) else None
