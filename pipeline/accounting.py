"""The bins: every record read ends in exactly one of them, and they sum to the records read."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Bin(IntEnum):
    """Where a record ended; the value is its index in :attr:`Counters.bins`."""

    SCORED = 0
    """It produced a score."""
    WARMING = 1
    """The window of its series is not full."""
    WAITING_MODEL = 2
    """There is no bundle yet."""
    MERGED = 3
    """It went into a grid cell already counted."""
    PENDING = 4
    """It is in a cell still open."""
    LATE = 5
    """It is older than the last row or closed cell of its series beyond ``late``."""
    DUPLICATE = 6
    """Its series (narrow: and metric) already holds a value of that time."""
    DEAD_LETTERED = 7
    """It could not be read."""
    OVER_LIMIT = 8
    """Its series is beyond the stream's bound on series."""
    CORRUPT = 9
    """The broker's batch was damaged."""
    OUTSIDE = 10
    """It shows that its series is alive, and is outside the condition ``when``."""


@dataclass(slots=True)
class Counters:
    """Counters of one partition since it was first read; part of its state.

    Attributes:
        bins: int64[11], indexed by :class:`Bin`.
        attributes: int64[2]: rows made or completed by holding values over a hole (``gap_filled``), and
            rows that taught the threshold nothing because they were judged anomalous (``frozen``).
    """

    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(Bin), np.int64))
    attributes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, np.int64))

    @property
    def records_read(self) -> int:
        """The sum of all bins."""
        return int(self.bins.sum())

    def named(self) -> dict[str, int]:
        """Each bin by its name in configuration, metrics and documentation."""
        return {name.name.lower(): int(self.bins[name]) for name in Bin}

    @property
    def gap_filled(self) -> int:
        """Rows made or completed by holding values over a hole."""
        return int(self.attributes[0])

    @property
    def frozen(self) -> int:
        """Rows that taught the threshold nothing."""
        return int(self.attributes[1])
