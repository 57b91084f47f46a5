"""Series to learn from, and the small network that does."""

from __future__ import annotations

import numpy as np

from models import ModelSpec, SeriesRows

SPEC = ModelSpec(features=("load", "heat"), window_rows=8, seed=3, steps=400)


def waves(seed: int, level: float, rows: int = 400) -> SeriesRows:
    """A noisy sine and its delayed double, around a level."""
    random = np.random.default_rng(seed)
    angle = np.arange(rows) * 2 * np.pi / 12
    values = np.stack([np.sin(angle), 2 * np.sin(angle - 1)], axis=1) + random.normal(0, 0.05, (rows, 2))
    return SeriesRows(values + level, np.zeros(rows, np.int32))
