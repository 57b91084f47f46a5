"""A bundle taken apart: windows to codes and back, in the features' own units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from models.bundle import Bundle
from models.samples import as_windows
from models.scorer import StackScorer
from pipeline.errors import ConfigError
from pipeline.ports import Errors, Float32s, Float64s, Int32s

UNSEEN: Final = ""
"""The name of no series: what is given for it goes through the shared model."""


@dataclass(frozen=True, slots=True, eq=False)
class Restored:
    """Windows after passing through their codes.

    Attributes:
        windows: float64[n, W, F].
        errors: between each window and what was given, exactly as a detector sees them.
    """

    windows: Float64s
    errors: Errors


class Codec:
    """Encoder and decoder of a bundle's models; used from one thread.

    Each call is told the series of all windows, or of each; one that training has not seen goes through the
    shared model. Values are features, after transforms and grid.

    Example:
        >>> codec = Codec(load(folder))
        >>> codes = codec.encode(codec.cut(rows), "pump-1")
        >>> codec.decode(codes, "pump-1")[:, -1]  # the newest row of each window
    """

    def __init__(self, bundle: Bundle) -> None:
        self.spec = bundle.manifest.spec
        self._scorer = StackScorer(bundle)
        self._stack = bundle.stack()

    def cut(self, rows: Float64s) -> Float64s:
        """The windows float64[n - W + 1, W, F] of rows float64[n, F] without a gap, by where they end."""
        windows: Float64s = np.lib.stride_tricks.sliding_window_view(rows, self.spec.window_rows, axis=0)
        return windows.transpose(0, 2, 1)

    def encode(self, windows: Float64s, series: str | Sequence[str] = UNSEEN) -> Float32s:
        """The codes float32[n, code] of windows float64[n, W, F]; a variational code is its mean."""
        return self._stack.encode(self._models(len(windows), series), windows)

    def decode(self, codes: Float32s, series: str | Sequence[str] = UNSEEN) -> Float64s:
        """The windows float64[n, W, F] of codes float32[n, code]."""
        return self._stack.decode(self._models(len(codes), series), codes)

    def reconstruct(self, windows: Float64s, series: str | Sequence[str] = UNSEEN) -> Restored:
        """What is left of windows float64[n, W, F] after passing through their codes, and the errors."""
        raw = as_windows(windows, self._models(len(windows), series))
        return Restored(self._stack.explain(raw).expected, self._stack.score(raw))

    def generate(self, count: int, seed: int, series: str = UNSEEN) -> Float64s:
        """Windows float64[count, W, F] that were never measured: decoded from draws of the prior.

        Raises:
            ConfigError: the kind of autoencoder has no prior.
        """
        if self.spec.family.heads == 1:
            raise ConfigError(
                f"this model is of kind {self.spec.kind}, whose codes are distributed in no known way; only "
                "a variational one generates (model.kind: variational)"
            )
        drawn = np.random.default_rng(seed).standard_normal((count, self.code), dtype=np.float32)
        return self.decode(drawn, series)

    @property
    def code(self) -> int:
        """Numbers in a code."""
        return self.spec.encoder_widths()[-1]

    def _models(self, count: int, series: str | Sequence[str]) -> Int32s:
        model = self._scorer.assign([series] if isinstance(series, str) else series).model
        return np.repeat(model, count) if isinstance(series, str) else model
