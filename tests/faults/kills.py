"""Workers killed or stopped at a named point of their turn, and naive ones that show what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from pipeline.state import connect as connect_state

from .place import Grounds, Run, cut_off, cut_short, place_at, running
from .seam import Outcome, judged
from .words import Orders, Point

KILLED_AFTER = (7, 16, 11, 20)
"""Commits of each of four workers before it is killed; a checkpoint comes with every fourth, about."""
SEEN = 10
"""Outputs that the naive variant must double, or lose, to show that the suite can see."""


@dataclass(frozen=True)
class Kill:
    """The workers on a place are cut short, or off.

    Attributes:
        stop: the worker is stopped past its session and let go on, not killed.
        naive: without transactions and silent reading.
    """

    point: Point
    stop: bool = False
    naive: bool = False
    buses = "sqlite", "kafka"
    given_up = ""

    @property
    def name(self) -> str:
        return f"stopped {self.point}" if self.stop else str(self.point)

    @property
    def tries(self) -> int:
        return 1 if self.stop else len(KILLED_AFTER)

    def suffer(self, grounds: Grounds) -> Outcome:
        with place_at(grounds) as place:
            with running(place, deciding=not self.naive) as run:
                recoveries = self._suffer(run)
            verdict = judged(place, run)
        made = NaiveOutcome if self.naive else Outcome
        return made(self, grounds.bus, verdict, recoveries)

    def _suffer(self, run: Run) -> list[float]:
        cuts = self._cuts(str(run.place.path))
        if not self.stop:
            return cut_short(run, cuts)
        # The server must not end with the worker that started it: here it is ours, as it is a supervisor's.
        with closing(connect_state(run.place.settings.state)):
            return [cut_off(run, cuts[0])]

    def _cuts(self, config: str) -> list[Orders]:
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


def faults() -> Iterator[Kill]:
    """Every point, killed and stopped, and the two that a naive worker dies at."""
    for point in Point:
        yield Kill(point)
    for point in (Point.SENT, Point.COMMITTED):
        yield Kill(point, naive=True)
    for point in Point:
        yield Kill(point, stop=True)


@dataclass(frozen=True)
class NaiveOutcome(Outcome):
    """What came of a naive worker."""

    fault: Kill

    @property
    def variant(self) -> str:
        return "naive"

    @property
    def held(self) -> bool:
        """Whether it shows that it is not exact."""
        verdict = self.verdict
        if verdict.ties:
            return False
        if self.fault.point is Point.SENT:
            return verdict.doubled >= SEEN
        return verdict.lost >= SEEN and len(verdict.wrong) >= SEEN
