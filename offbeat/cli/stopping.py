"""Ending in order: the first signal asks a command to finish, the second ends it at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

GRACE_S = 10
_LOOK_S = 0.1


class Stop:
    """Whether a command was asked to end. Calling it asks; no lock is taken, so a signal may set it."""

    def __init__(self) -> None:
        self.asked = False
        self._until: float | None = None

    def after(self, seconds: float | None) -> None:
        """Ask by itself after so many seconds; None never does."""
        self._until = None if seconds is None else time.monotonic() + seconds

    def __call__(self) -> bool:
        """Whether to end now."""
        return self.asked or (self._until is not None and time.monotonic() >= self._until)

    def wait(self, seconds: float) -> bool:
        """Wait so long, or less when asked to end; whether that was asked."""
        until = time.monotonic() + seconds
        while not self() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_S))
        return self()


@contextmanager
def stopping(*, grace_s: int | None = None) -> Iterator[Stop]:
    """SIGINT and SIGTERM ask to stop; a second one, or ``grace_s`` seconds, end the process at once."""
    stop = Stop()

    def on_signal(number: int, _frame: object) -> None:
        if stop.asked:
            os._exit(128 + number)
        stop.asked = True
        if grace_s is not None:
            signal.alarm(grace_s)  # nobody handles it, so it ends the process wherever it hangs

    asked = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, on_signal) for number in asked]
    try:
        yield stop
    finally:
        for number, handler in zip(asked, before, strict=True):
            signal.signal(number, handler)
        if stop.asked and grace_s is not None:
            signal.alarm(0)
