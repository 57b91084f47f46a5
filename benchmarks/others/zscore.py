"""What the other engines do with a reading: how many deviations its temperature is off its rolling mean.

One feature and no window: much less than an autoencoder on every row. Runs without offbeat, in their
environments.
"""

import json
import time
from dataclasses import dataclass, field

ALPHA = 0.001
LINE = 3.0
MIN_ROWS = 32


@dataclass
class Series:
    """The moments of one series."""

    rows: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def score(self, value: float) -> float:
        """Deviations from the mean, before the value is learned."""
        self.rows += 1
        off = value - self.mean
        z = abs(off) / self.variance**0.5 if self.rows > MIN_ROWS and self.variance > 0 else 0.0
        gain = max(ALPHA, 1 / self.rows)
        self.mean += gain * off
        self.variance = (1 - gain) * (self.variance + gain * off * off)
        return z


@dataclass
class Meter:
    """Counts rows, and measures from the first one behind the warm-up to the last."""

    warm: int
    records: int
    rows: int = 0
    above: int = 0
    began: tuple[float, float] = (0.0, 0.0)
    taken: dict[str, float] = field(default_factory=dict)

    def count(self, z: float) -> bool:
        """Take in a row; whether it is above the line."""
        self.rows += 1
        if self.rows == self.warm:
            self.began = time.perf_counter(), time.process_time()
        if self.rows == self.records:
            wall_s, cpu_s = self.began
            self.taken = {
                "records": self.records - self.warm,
                "wall_s": time.perf_counter() - wall_s,
                "cpu_s": time.process_time() - cpu_s,
            }
        if z > LINE:
            self.above += 1
            return True
        return False

    def tell(self) -> None:
        """Print what it took, for the program that started this one."""
        print(json.dumps({**self.taken, "above": self.above}), flush=True)
