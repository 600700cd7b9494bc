"""What the console asks, and how often: the commands' own functions answer (podway.cli.console).

However many look, the cluster is asked as if one did: an answer is kept for a moment, and while it is fetched
everybody waits for the same one.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import msgspec
import structlog

from podway.errors import AgentError, PodwayError, explain
from podway.flows.heard import Heard, Summed
from podway.store.base import Everything

T = TypeVar("T")

log = structlog.get_logger(__name__)

REST = 4.0
"""An answer is kept so many times as long as it took, at least."""


class Question(NamedTuple):
    """A question about flows: what agents are asked, and which nodes' (none: all)."""

    params: Mapping[str, Any]
    nodes: tuple[str, ...] = ()

    @property
    def name(self) -> bytes:
        """The same for questions that ask the same."""
        return msgspec.json.encode([self.params, sorted(self.nodes)], order="sorted")


class Sources(Protocol):
    """Where the facts come from. All methods block, and may be called from several threads at once.

    All may raise PodwayError; what a single node did not answer is an AgentError in its place.
    """

    @property
    def cluster(self) -> str:
        """What the cluster is called: `lab NAME`, or its store's URL without what is secret in it."""
        ...

    def objects(self) -> Everything:
        """Return all objects of the store, without what is secret in them."""
        ...

    def doubts(self) -> Mapping[str, str]:
        """Return which nodes seem to be gone, and why that is thought."""
        ...

    def status(self) -> Mapping[str, Any]:
        """Return what each node's agent says of itself: the documents of `podway status -o json`, by node."""
        ...

    def routes(self, nodes: Collection[str]) -> Mapping[str, Any]:
        """Return the routes that agents know, by node: entries as of `podway get routes`, or an AgentError."""
        ...

    def diagnosis(self) -> Mapping[str, Any]:
        """Return the document of `podway doctor -o json`."""
        ...

    def question(self, filters: Mapping[str, Sequence[str]], now: float) -> Question:
        """Return the question that filters ask, named as the options of `podway flows`. Raises InvalidInput."""
        ...

    def flows(self, question: Question, after: Mapping[str, int] | None = None, since: float = 0.0) -> Heard:
        """Return records: the newest, or with `after` those from each node's number on."""
        ...

    def sums(self, question: Question, by: str) -> Summed:
        """Return sums of records."""
        ...

    def trace(
        self, source: str, target: str, *, protocol: str, port: int, families: Sequence[int], dry_run: bool
    ) -> bytes:
        """Return the document of `podway trace -o json`."""
        ...


class Fresh(NamedTuple, Generic[T]):
    """An answer, when it was given (seconds since 1970), and why there is no newer one, if there should be."""

    value: T
    at: float
    problem: str = ""


class Kept(Generic[T]):
    """The last answer of a source.

    One older than `age` seconds is fetched again by whoever asks for it, and handed out meanwhile, unless it is
    older than `patience`.
    """

    def __init__(self, threads: Executor, fetch: Callable[[], T], *, age: float, patience: float = 15.0) -> None:
        self._threads = threads
        self._fetch = fetch
        self._age = age
        self._patience = patience
        self._known: Fresh[T] | None = None
        self._next = 0.0
        self._work: asyncio.Task[None] | None = None
        self._failure: PodwayError | None = None

    async def get(self) -> Fresh[T]:
        """Return the answer. Raises PodwayError if there never was one."""
        if time.monotonic() >= self._next and self._work is None:
            self._work = asyncio.create_task(self._refresh())
        known = self._known
        if self._work is not None and (known is None or time.time() - known.at > self._patience):
            await asyncio.shield(self._work)
        if self._known is None:
            assert self._failure is not None
            raise self._failure
        return self._known._replace(problem=self._failure.message if self._failure else "")

    async def _refresh(self) -> None:
        began = time.monotonic()
        try:
            value = await asyncio.get_running_loop().run_in_executor(self._threads, self._fetch)
        except PodwayError as error:
            self._failure = error
        except Exception as error:  # a mistake in the source: what was known is shown, and that there is one
            log.exception("a source of the console failed")
            self._failure = AgentError(explain(error), hint="see what the console printed, and report it")
        else:
            self._known, self._failure = Fresh(value, time.time()), None
        finally:
            now = time.monotonic()
            self._next = now + max(self._age, REST * (now - began))
            self._work = None
