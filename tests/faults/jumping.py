"""A worker on a machine whose wall clock is set while it works: ``python -m faults.jumping CLOCK ORDERS``.

Wall time is the real one and what the file CLOCK holds besides, for every worker that is given the file. It
takes its place before any part of the worker is loaded, so that nothing has kept the real one.
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
from pathlib import Path

_SHIFT = struct.Struct("=q")
_SET, _SEEN = 0, _SHIFT.size


class WallClock:
    """The file: how far the clock is set, and how far it was when a worker last looked, in seconds."""

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(2 * _SHIFT.size)
            self._memory = mmap.mmap(file.fileno(), 2 * _SHIFT.size)
        self._time, self._time_ns = time.time, time.time_ns

    def set(self, shift_s: int) -> None:
        """Set the clock so far ahead of the real time; backwards below zero."""
        _SHIFT.pack_into(self._memory, _SET, shift_s)

    @property
    def seen_s(self) -> int:
        """How far it was ahead when a worker last looked."""
        (shift_s,) = _SHIFT.unpack_from(self._memory, _SEEN)
        return int(shift_s)

    def rule(self) -> None:
        """Be the wall clock of this process."""
        time.time = lambda: self._time() + self._look()
        time.time_ns = lambda: self._time_ns() + self._look() * 1_000_000_000

    def _look(self) -> int:
        (shift_s,) = _SHIFT.unpack_from(self._memory, _SET)
        _SHIFT.pack_into(self._memory, _SEEN, shift_s)
        return int(shift_s)


if __name__ == "__main__":
    WallClock(Path(sys.argv[1])).rule()
    from .worker import main

    sys.exit(main(sys.argv[2]))
