"""How the agent logs: one line an event, times in UTC, key and value behind; JSON where nobody watches."""

import logging
import sys
from collections import deque
from typing import TextIO, cast

import structlog

KEPT = 1000
"""Lines that are remembered for who asks for a dump: where the agent's log goes it does not know."""


class _Remembering:
    """Writes to standard error, and remembers the last lines."""

    def __init__(self) -> None:
        self._parts: deque[str] = deque(maxlen=2 * KEPT)  # a line and its end may come apart

    def write(self, text: str) -> int:
        self._parts.append(text)
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    @property
    def text(self) -> str:
        return "".join(tuple(self._parts))


_remembering = _Remembering()
_stream = cast(TextIO, _remembering)  # as much of one as loggers need


def remembered() -> str:
    """Return the last lines that were logged."""
    return _remembering.text


def configure(level: str) -> None:
    """Set up logging to standard error at this level (a name of the logging module, in lower case)."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    final = (
        structlog.dev.ConsoleRenderer()
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer(sort_keys=False)
    )
    structlog.configure(
        processors=[*shared, final],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(_stream),
        cache_logger_on_first_use=True,
    )
    # Modules below the agent log by the standard library: the same lines for them.
    handler = logging.StreamHandler(_stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, final],
            foreign_pre_chain=shared,
        )
    )
    logging.basicConfig(level=number, handlers=[handler])
