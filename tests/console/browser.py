"""A real Chromium without a window, asked over the Chrome DevTools Protocol."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from tests.patience import PATIENCE

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or ""


class Page:
    """One tab. What it logged as an error, or asked of others than the console, is kept."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._task = asyncio.create_task(self._listen())
        self.errors: list[str] = []
        self.asked: list[str] = []

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        async with asyncio.timeout(PATIENCE):
            result: dict[str, Any] = await answer
            return result

    async def _listen(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                answer = self._answers.pop(said["id"])
                if "error" in said:
                    answer.set_exception(AssertionError(said["error"]))
                else:
                    answer.set_result(said["result"])
            elif said["method"] == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(said["params"]["exceptionDetails"]))
            elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.errors.append(said["params"]["entry"]["text"])
            elif said["method"] == "Network.requestWillBeSent":
                self.asked.append(said["params"]["request"]["url"])

    async def run(self, script: str) -> Any:
        """Run JavaScript (an expression; promises are awaited) and return its value."""
        done = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    async def until(self, script: str, within: float = 30.0) -> Any:
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + within
        plain = f"((found) => found instanceof Node ? true : found)({script})"  # an element itself is no value
        while not (found := await self.run(plain)):
            assert time.monotonic() < end, f"it never became so: {script}; errors: {self.errors}"
            await asyncio.sleep(0.05)
        return found

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && !!document.querySelector('main')")

    async def look(
        self, width: int, height: int, *, dark: bool = False, mobile: bool = False, calm: bool = False
    ) -> None:
        """Set the size of the window, and what its owner prefers."""
        scale = 2 if mobile else 1
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=mobile,
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if calm else "no-preference"},
        ]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def key(self, name: str, *, text: str = "", modifiers: int = 0) -> None:
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            await self.call("Input.dispatchKeyEvent", type=kind, key=name, modifiers=modifiers, **more)

    async def pan(self) -> float:
        """Move the map about, and return how long half of the pictures took at least, in ms."""
        found: float = await self.run(
            """new Promise((done) => {
                const board = window.podwayBoard;
                board.frames.length = 0;
                let left = 60;
                const step = () => {
                    board.pan(4, 2);
                    if (left--) requestAnimationFrame(step);
                    else done([...board.frames].sort((a, b) => a - b)[board.frames.length >> 1]);
                };
                requestAnimationFrame(step);
            })"""
        )
        return found

    async def picture(self, path: Path) -> None:
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    async def tree(self) -> list[Mapping[str, Any]]:
        """Return what a screen reader is told: role and name of each node of the accessibility tree."""
        found = await self.call("Accessibility.getFullAXTree")
        return [
            {"role": one.get("role", {}).get("value"), "name": one.get("name", {}).get("value", "")}
            for one in found["nodes"]
            if not one.get("ignored")
        ]


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Page]:
    """Start a Chromium with one empty tab; end it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        process = await asyncio.create_subprocess_exec(
            PROGRAM,
            "--headless=new",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--remote-debugging-port=0",
            f"--user-data-dir={home}",
            "about:blank",
            stderr=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            port = await _port(Path(home, "DevToolsActivePort"))
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                    tabs = await answer.json()
                url = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
                async with session.ws_connect(url, max_msg_size=0) as socket:
                    page = Page(socket)
                    for domain in ("Page", "Runtime", "Log", "Network"):
                        await page.call(f"{domain}.enable")
                    yield page
                    await page.close()
        finally:
            process.terminate()
            await process.wait()


async def _port(path: Path) -> int:
    async with asyncio.timeout(PATIENCE):
        while not (path.exists() and path.read_text().count("\n")):
            await asyncio.sleep(0.05)
    return int(path.read_text().split("\n")[0])
