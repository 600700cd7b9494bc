"""Waiting in tests: for events, with an end that only a fault reaches, however busy the machine is."""

import time
from collections.abc import Callable

PATIENCE = 60.0
"""Seconds after which a test gives up waiting for what must come. What must not come is waited for briefly."""

ANSWERED = ("ping", "-n", "-i0.2", "-c1", f"-w{PATIENCE:g}")
"""A ping that asks again and again until one answer has come (ping(8), -c together with -w)."""

ONCE = ("ping", "-n", "-c1", f"-W{PATIENCE:g}")
"""A ping that asks once: where the first packet must pass."""


def eventually(
    holds: Callable[..., object], what: str = "", *, within: float = PATIENCE, every: float = 0.02
) -> float:
    """Wait until something holds (is true, and raises no AssertionError); return after how many seconds it did.

    Fails with `what`, or with what was asserted, if it never does.
    """
    begun = time.monotonic()
    while True:
        late = time.monotonic() - begun >= within
        try:
            if holds():
                return time.monotonic() - begun
        except AssertionError:
            if late:
                raise
        assert not late, f"not so within {within:g} s: {what or holds}"
        time.sleep(every)
