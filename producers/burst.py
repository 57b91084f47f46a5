"""A real burst of load: pairs of busy processes that cannot outlive their time or their parent."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.errors import ConfigError

LONGEST_S = 600.0
MOST_PAIRS = 128
_SCRIPT = Path(__file__).with_name("busy.py")
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
"""Where a container finds how many microseconds of processor time it is given in how many."""


class Burst:
    """Pairs of processes that pass a byte to and fro from entering the context until it is left.

    Each pass is a switch of context, so their rate leaves what it was even where other work keeps every core
    busy already; of memory, disk and network they take next to nothing. They run at the usual priority: at a
    lower one other work would leave them no share of a busy core.

    Args:
        seconds: how long each process is busy at most, up to 600.
        pairs: how many; by default one for each core that this process may use.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(self, seconds: float, *, pairs: int | None = None) -> None:
        if not 0 < seconds <= LONGEST_S:
            raise ConfigError(
                f"a burst of {seconds} s was asked for; give more than 0 and up to {LONGEST_S:g}"
            )
        self.seconds = seconds
        self.pairs = min(usable_cores(), MOST_PAIRS) if pairs is None else pairs
        if not 1 <= self.pairs <= MOST_PAIRS:
            raise ConfigError(f"a burst of {pairs} pairs was asked for; give 1 to {MOST_PAIRS}")
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
            for _ in range(self.pairs):
                left, right = socket.socketpair()
                with left, right:
                    right.send(b"x")
                    for end in (left, right):
                        self._children.append(subprocess.Popen(command, stdin=end.fileno()))  # noqa: S603 - our own interpreter
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


def usable_cores(cpu_max: Path = _CPU_MAX) -> int:
    """Cores this process may use: fewer than there are in a container that is held to a share of them."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        quota, period = map(float, cpu_max.read_text(encoding="ascii").split())
    except (OSError, ValueError):  # no such group, or its quota is "max"
        return cores
    return min(cores, math.ceil(quota / period))
