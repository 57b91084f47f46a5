"""A real burst of load: busy processes, one a core, that cannot outlive their time or their parent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.errors import ConfigError

LONGEST_S = 600.0
MOST_PROCESSES = 256
_SCRIPT = Path(__file__).with_name("busy.py")


class Burst:
    """Keeps cores busy from entering the context until it is left, at most ``seconds``.

    The processes run at a low priority: whoever watches the burst keeps a share of the machine.

    Args:
        seconds: how long each process is busy, up to 600.
        processes: how many; by default one for each core this process may use.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(self, seconds: float, *, processes: int | None = None) -> None:
        if not 0 < seconds <= LONGEST_S:
            raise ConfigError(
                f"a burst of {seconds} s was asked for; give more than 0 and up to {LONGEST_S:g}"
            )
        self.seconds = seconds
        self.processes = min(_cores(), MOST_PROCESSES) if processes is None else processes
        if not 1 <= self.processes <= MOST_PROCESSES:
            raise ConfigError(f"a burst of {processes} processes was asked for; give 1 to {MOST_PROCESSES}")
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that were started and not yet stopped."""
        return tuple(child.pid for child in self._children)

    @property
    def running(self) -> bool:
        """Whether any process is still busy."""
        return any(child.poll() is None for child in self._children)

    def __enter__(self) -> Self:
        command = [sys.executable, "-I", "-S", str(_SCRIPT), str(self.seconds), str(os.getpid())]
        try:
            for _ in range(self.processes):
                self._children.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))  # noqa: S603 - our own interpreter
        except OSError:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the processes now; idempotent."""
        for child in self._children:
            child.kill()
        self.wait()

    def wait(self) -> None:
        """Return when the processes have ended by themselves."""
        for child in self._children:
            child.wait()
        self._children.clear()


def _cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
