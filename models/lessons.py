"""What networks learn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.samples import Int64s
from pipeline.ports import Float32s


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What one network learns from.

    Attributes:
        random: its own randomness, for its first weights, its batches and its noise.
        rows: float32[n, F], scaled.
        train: first rows of windows, int64.
        held_out: the same, for the checks.
    """

    random: np.random.Generator
    rows: Float32s
    train: Int64s
    held_out: Int64s
