import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from podway.store.base import Store
from podway.store.sqlite import SqliteStore


@asynccontextmanager
async def opened(path: Path):
    store = SqliteStore(path)
    try:
        yield store
    finally:
        await store.close()


# Every implementation of Store runs through test_conformance.py: one entry here opens another handle
# on the same cluster each time it is called.
IMPLEMENTATIONS = {"sqlite": lambda directory: opened(directory / "store.db")}


class Scene:
    """Runs a scenario with as many handles on one store as it takes arguments for."""

    def __init__(self, opener: Callable[[], object]) -> None:
        self._opener = opener

    def run(self, scenario: Callable[..., Awaitable[object]], handles: int = 1) -> object:
        async def main() -> object:
            async with AsyncExitStack() as stack:
                stores: list[Store] = [await stack.enter_async_context(self._opener()) for _ in range(handles)]
                async with asyncio.timeout(30):
                    return await scenario(*stores)

        return asyncio.run(main())


@pytest.fixture(params=list(IMPLEMENTATIONS))
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    return Scene(lambda: IMPLEMENTATIONS[request.param](tmp_path))
