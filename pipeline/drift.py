"""Whether a stream's errors have moved away from those that its bundle was calibrated on.

Thresholds follow errors that move, so alerts do not tell for long; the calibration stands still.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.policy import NEVER
from pipeline.ports import Float64s
from pipeline.records import Int64s

FAR: Final = 3.0
"""Standard deviations above the calibration's mean from which on an error is far from it."""
DRIFTED: Final = 0.2
"""Share of far errors from which on a stream has drifted. Of 34 series of the Numenta benchmark, calibrated
on their first rows, 24 have 0.02 at most on a usual day, two 0.1, and 8 from 0.24 to 1."""

_HALF_LIFE_NS: Final = 6 * 3_600 * 10**9
_HALF_LIFE_ROWS: Final = 1_000.0


def far(errors: Float64s, calibration: Float64s) -> NDArray[np.bool_]:
    """bool[n]: which errors of windows are far above the calibration of their series, float64[n, 5]."""
    return np.asarray(errors > calibration[:, 0] + FAR * calibration[:, 1])


@dataclass(slots=True)
class Drift:
    """The share of far errors among the newest of a stream: half-life six hours, or 1,000 rows if longer.

    Attributes:
        share: it, from 0 to 1; 0 before the first row.
    """

    share: float = 0.0
    _rows: float = 0.0
    _newest_ns: int = NEVER
    _bundle_id: str | None = None

    def add(self, bundle_id: str | None, time_ns: Int64s, errors: Float64s, calibration: Float64s) -> None:
        """Count rows by event time int64[n]; with another bundle the count begins anew."""
        if bundle_id != self._bundle_id:
            self._bundle_id, self.share, self._rows, self._newest_ns = bundle_id, 0.0, 0.0, NEVER
        if not len(errors):
            return
        newest_ns = max(int(time_ns.max()), self._newest_ns)
        by_time = (newest_ns - self._newest_ns) / _HALF_LIFE_NS
        before = self._rows * 2.0 ** -min(by_time, len(errors) / _HALF_LIFE_ROWS)
        self._rows, self._newest_ns = before + len(errors), newest_ns
        self.share = (self.share * before + np.count_nonzero(far(errors, calibration))) / self._rows
