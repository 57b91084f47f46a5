"""Robust scaling of features: in units of the training rows' own spread, never adapted afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.ports import Float32s, Float64s

Int64s = NDArray[np.int64]

INPUT_CLIP: Final = 5.0
"""What the network sees is clipped here, so that one wild value does not saturate every unit."""
TARGET_CLIP: Final = 50.0
"""What the output is compared with is clipped only here: an error must be able to grow."""

_LARGEST: Final = 1e100  # its square is still a float64


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """Per model and feature, where zero is and how long one unit is.

    Attributes:
        median: float64[M, F].
        spread: float64[M, F], above zero.
    """

    median: Float64s
    spread: Float64s

    @classmethod
    def fit(cls, rows: Float64s) -> Scaling:
        """The scaling of one model from its training rows float64[n, F].

        The spread is max(IQR / 1.349, sd / 2), or sd where the IQR is 0, and at least
        max(0.001 |median|, 1e-9): 1.349 is the IQR of a standard normal, and the floors keep a constant
        feature from turning rounding into anomalies.
        """
        rows = rows.clip(-_LARGEST, _LARGEST)
        low, median, high = np.percentile(rows, (25, 50, 75), axis=0)
        deviation = rows.std(axis=0)
        between = high - low
        spread = np.where(between > 0, np.maximum(between / 1.349, 0.5 * deviation), deviation)
        floor = np.maximum(0.001 * np.abs(median), 1e-9)
        return cls(median[None], np.maximum(spread, floor)[None])

    @classmethod
    def join(cls, scalings: list[Scaling]) -> Scaling:
        """The scalings of a stack, in the given order."""
        return cls(
            np.concatenate([each.median for each in scalings]),
            np.concatenate([each.spread for each in scalings]),
        )

    def apply(self, model: int | Int64s, rows: Float64s) -> Float32s:
        """Rows in the units of their models, clipped at ``TARGET_CLIP``.

        Either rows float64[n, F] of one model, or windows float64[k, W, F] of the models int64[k].
        """
        median, spread = self.median[model][..., None, :], self.spread[model][..., None, :]
        with np.errstate(over="ignore"):  # what overflows is clipped
            scaled: Float64s = (rows - median) / spread
        return scaled.clip(-TARGET_CLIP, TARGET_CLIP).astype(np.float32)
