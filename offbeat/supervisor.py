"""Child processes in their slots: started, restarted when they crash, stopped with us, never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

SUPERVISED = "OFFBEAT_SUPERVISED"
"""Set in a child's environment: its standard input is a pipe that ends with its supervisor."""

LOOK_S = 0.1
HEALTHY_S = 60.0
MOST_PAUSE_S = 30.0
PATIENCE_S = 12.0
"""How long children may take to stop; each gives itself 10 s."""


@dataclass(slots=True)
class Child:
    """One child process and its slot.

    Attributes:
        name: for messages.
        arguments: of ``offbeat``.
        process: while it runs.
        pause_s: before it is started again.
        started_at, start_at: on the monotonic clock.
        restarts: how often it was started again.
    """

    name: str
    arguments: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    pause_s: float = 1.0
    started_at: float = 0.0
    start_at: float = 0.0
    restarts: int = field(default=0)

    def start(self) -> None:
        """Start it in a session of its own, so that Ctrl-C on the terminal reaches it through us alone."""
        self.process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-P", "-m", "offbeat", *self.arguments],
            stdin=subprocess.PIPE,
            env=os.environ | {SUPERVISED: "1"},
            start_new_session=True,
        )
        self.started_at = time.monotonic()

    def look(self, notice: Callable[[str], None]) -> None:
        """Start it again, after a pause that doubles, when it has ended."""
        now = time.monotonic()
        if self.process is None:
            if now >= self.start_at:
                self.restarts += 1
                self.start()
            return
        code = self.process.poll()
        if code is None:
            return
        if now - self.started_at >= HEALTHY_S:
            self.pause_s = 1.0
        self._forget()
        self.start_at = now + self.pause_s
        ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        notice(f"{self.name} {ended}; starting it again in {self.pause_s:g} s")
        self.pause_s = min(2 * self.pause_s, MOST_PAUSE_S)

    def signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self, seconds: float) -> bool:
        """Whether it ended within so long."""
        if self.process is None:
            return True
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self._forget()
        return True

    def _forget(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
        self.process = None


def supervise(
    children: Sequence[Child], should_stop: Callable[[], bool], notice: Callable[[str], None]
) -> None:
    """Keep children running until told to stop, then stop them all; returns when none is left."""
    try:
        for child in children:
            child.start()
        while not should_stop():
            for child in children:
                child.look(notice)
            time.sleep(LOOK_S)
    finally:
        _stop(children, notice)


def _stop(children: Sequence[Child], notice: Callable[[str], None]) -> None:
    for child in children:
        child.signal(signal.SIGTERM)
    until = time.monotonic() + PATIENCE_S
    for child in children:
        if not child.wait(max(until - time.monotonic(), 0.0)):
            notice(f"{child.name} did not stop within {PATIENCE_S:g} s and was ended")
            child.signal(signal.SIGKILL)
            child.wait(PATIENCE_S)
