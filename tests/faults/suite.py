"""What is done to workers, and what came of it: one row for each fault, bus and variant."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.state import connect as connect_state

from .check import Verdict, judge
from .place import Place, Run, cut_off, cut_short, place_at, running
from .words import Orders, Point

KILLED_AFTER = (7, 16, 11, 20)
"""Commits of each of four workers before it is killed; a checkpoint comes with every fourth, about."""
SEEN = 10
"""Outputs that the naive variant must double, or lose, to show that the suite can see."""


@dataclass(frozen=True)
class Fault:
    """Something that is done to the workers on a place.

    Attributes:
        stop: the worker is stopped past its session and let go on, not killed.
        naive: without transactions and silent reading.
    """

    point: Point
    stop: bool = False
    naive: bool = False

    @property
    def name(self) -> str:
        return f"stopped {self.point}" if self.stop else str(self.point)

    @property
    def tries(self) -> int:
        return 1 if self.stop else len(KILLED_AFTER)

    def cuts(self, config: str) -> list[Orders]:
        """How the workers live, one after another."""
        if self.stop:
            return [Orders(config=config, point=self.point, after=KILLED_AFTER[0], stop=True)]
        cuts = []
        for after in KILLED_AFTER:
            # What is decided comes at its own time; the next worker dies before it has stored anything, so
            # that the one after it reads on both sides of what came into force.
            control = self.point is Point.CONTROL
            cuts.append(
                Orders(config=config, point=self.point, after=1 if control else after, naive=self.naive)
            )
            if control:
                cuts.append(Orders(config=config, point=Point.COMMITTED, after=1))
        return cuts


def faults() -> Iterator[Fault]:
    """All of the suite, for one bus."""
    for point in Point:
        yield Fault(point)
    for point in (Point.SENT, Point.COMMITTED):
        yield Fault(point, naive=True)
    for point in Point:
        yield Fault(point, stop=True)


@dataclass(frozen=True)
class Outcome:
    """What came of a fault."""

    fault: Fault
    bus: str
    verdict: Verdict
    recoveries: Sequence[float]

    @property
    def held(self) -> bool:
        """Whether the real variant is exact, or the naive one shows that it is not."""
        verdict = self.verdict
        if verdict.ties:
            return False
        if not self.fault.naive:
            return not (verdict.lost or verdict.doubled or verdict.wrong)
        if self.fault.point is Point.SENT:
            return verdict.doubled >= SEEN
        return verdict.lost >= SEEN and len(verdict.wrong) >= SEEN

    def row(self) -> dict[str, Any]:
        """As it stands in the report; seconds are None where nobody could take over."""
        seconds = [each for each in self.recoveries if not math.isnan(each)]
        return {
            "fault": self.fault.name,
            "bus": self.bus,
            "variant": "naive" if self.fault.naive else "offbeat",
            "tries": self.fault.tries,
            "lost": self.verdict.lost,
            "doubled": self.verdict.doubled,
            "wrong_states": len(self.verdict.wrong),
            "recovery_s": round(statistics.median(seconds), 2) if seconds else None,
        }


def suffer(
    fault: Fault, kafka: str | None, folder: Path, registry: Path, bundles: tuple[str, str]
) -> Outcome:
    """Do it on a place of its own, see :func:`faults.place.place_at`."""
    with place_at(kafka, folder, registry, bundles) as place:
        with running(place, deciding=not fault.naive) as run:
            recoveries = _suffer(run, fault)
        verdict = judged(place, run)
    return Outcome(fault, "kafka" if kafka else "sqlite", verdict, recoveries)


def _suffer(run: Run, fault: Fault) -> list[float]:
    cuts = fault.cuts(str(run.place.path))
    if not fault.stop:
        return cut_short(run, cuts)
    # The server must not end with the worker that started it: here it is ours, as it is a supervisor's.
    with closing(connect_state(run.place.settings.state)):
        return [cut_off(run, cuts[0])]


def judged(place: Place, run: Run) -> Verdict:
    """What is left on a place, and what was seen on the way."""
    verdict = judge(place)
    verdict.wrong += run.wrong
    return verdict
