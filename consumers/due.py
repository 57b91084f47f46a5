"""When a stream trains anew: what the control topic says of the last attempt, and how many rows there are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pipeline.control import ControlView
from pipeline.figures import lasting

NEVER: Final = float("inf")
_DAY_S: Final = 86_400.0
_DRIFT_SHARE: Final = 1 / 4
"""Of ``training.every``, or of a day where that is 0, what passes at least before a drift asks again."""
_LEAST_GROWTH: Final = 1.05
"""A topic is not read again for fewer records more, however little was missing the last time."""


@dataclass(frozen=True, slots=True)
class Due:
    """When the next training is due by itself.

    Attributes:
        at_s: seconds since the epoch; 0 for at once, and NEVER.
        why: what makes it due then.
    """

    at_s: float
    why: str


def due(view: ControlView, stream: str, every_s: float) -> Due:
    """At once where nothing was decided yet, else ``every_s`` after the last decision, where that is not 0.

    A decision is a champion, whoever chose it, or a challenger that was refused.
    """
    last = last_decision(view, stream)
    if last is None:
        return Due(0.0, "the stream has no model yet")
    if not every_s:
        return Due(NEVER, "training.every is 0")
    return Due(last.timestamp() + every_s, f"{lasting(every_s)} have passed since the last decision")


def last_decision(view: ControlView, stream: str) -> datetime | None:
    """When the stream's last champion was chosen or its last challenger refused; None where neither was."""
    decided = [*view.promotions.get(stream, ()), *view.refusals.get(stream, ())]
    return max((each.at for each in decided), default=None)


def may_follow_drift(view: ControlView, stream: str, every_s: float, now_s: float) -> bool:
    """Whether the last decision is so long ago that a stream that drifts trains before it is due.

    A drift goes on where a challenger was refused, or has not learned enough of what is new.
    """
    return now_s >= due(view, stream, every_s or _DAY_S).at_s - (1 - _DRIFT_SHARE) * (every_s or _DAY_S)


class Growth:
    """How far a topic is from holding enough rows, told from its number of records alone.

    Each record is taken for a row until training, which reads them all, knows better.
    """

    def __init__(self, need: int) -> None:
        """``need`` rows it takes."""
        self._need = self._wanted = need
        self._rows_a_record = 1.0
        self._first: tuple[float, int] | None = None

    def short(self, records: int, have: int, need: int) -> None:
        """Training found so many usable rows in so many records."""
        self._need, self._rows_a_record = need, have / max(records, 1)
        wanted = records * max(need / have if have else 2.0, _LEAST_GROWTH)
        self._wanted = max(round(wanted), records + 1)

    def refused(self, records: int) -> None:
        """What so many records taught was not good enough."""
        self._wanted = max(2 * records, records + 1)

    def enough(self, records: int) -> bool:
        """Whether it is worth while to read them."""
        return records >= self._wanted

    def told(self, records: int, now_s: float) -> str:
        """How far it is, for people; ``now_s`` on a clock that nobody sets."""
        self._first = self._first or (now_s, records)
        since, first = self._first
        have = min(round(records * self._rows_a_record), self._need - 1)
        if records == first or now_s == since:
            return f"{have:,} of {self._need:,} rows; no rate yet"
        left_s = (self._wanted - records) * (now_s - since) / (records - first)
        return f"{have:,} of {self._need:,} rows; about {lasting(left_s)} more"
