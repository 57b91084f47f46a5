"""The seam of the suite: what a fault is, where it is suffered, and what came of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .check import GivenUp, Verdict, judge
from .place import Grounds, Place, Run


class Fault(Protocol):
    """Something that is done to an installation: one row of the report for each bus.

    Every wait in it has an end (:meth:`Run.follow` has), and it leaves nothing behind.
    """

    @property
    def name(self) -> str:
        """As the report names it."""

    @property
    def buses(self) -> Sequence[str]:
        """Where it can be done: of "sqlite" and "kafka"."""

    @property
    def tries(self) -> int:
        """How often it is done."""

    @property
    def given_up(self) -> str:
        """What is given up, why, and how a user sees it; "" where nothing is."""

    def suffer(self, grounds: Grounds) -> Outcome:
        """Do it. Raises AssertionError where a worker hangs or ends otherwise than it should."""


@dataclass(frozen=True)
class Outcome:
    """What came of a fault.

    Attributes:
        recoveries: seconds from each blow to the next newly settled batch; NaN where nobody could take over.
        figures: what else was measured.
    """

    fault: Fault
    bus: str
    verdict: Verdict
    recoveries: Sequence[float] = ()
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """Of the worker: the program itself."""
        return "offbeat"

    @property
    def held(self) -> bool:
        """Whether what is left is that of uninterrupted work."""
        verdict = self.verdict
        return not (verdict.ties or verdict.lost or verdict.doubled or verdict.wrong)

    def row(self) -> dict[str, Any]:
        """As it stands in the report; seconds are None where nobody could take over."""
        seconds = [each for each in self.recoveries if not math.isnan(each)]
        return {
            "fault": self.fault.name,
            "bus": self.bus,
            "variant": self.variant,
            "tries": self.fault.tries,
            "lost": self.verdict.lost,
            "doubled": self.verdict.doubled,
            "wrong_states": len(self.verdict.wrong),
            "recovery_s": round(statistics.median(seconds), 2) if seconds else None,
            **{name: round(figure, 2) for name, figure in self.figures.items()},
            "given_up": self.fault.given_up,
        }


def judged(place: Place, run: Run, given_up: GivenUp | None = None) -> Verdict:
    """What is left on a place, and what was seen on the way."""
    verdict = judge(place, given_up)
    verdict.wrong += run.wrong
    return verdict
