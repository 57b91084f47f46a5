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

    Each record is taken for a row that can be used until training, which reads them all, knows better.

    Attributes:
        wanted: records from which on it is worth while to read them.
    """

    def __init__(self, need: int) -> None:
        """``need`` rows it takes."""
        self._need = self.wanted = need
        self._at, self._have, self._rows_a_record = 0, 0, 1.0
        self._first: tuple[float, int] | None = None

    def short(self, records: int, *, rows: int, have: int, need: int) -> None:
        """Training found so many rows in so many records, and ``have`` of them usable.

        What windows and series take from them is paid by then: of further rows all are taken for usable.
        """
        self._at, self._have, self._need = records, have, need
        self._rows_a_record = rows / max(records, 1)
        missing = (need - have) / self._rows_a_record if rows else records
        self.wanted = max(round(records + missing), round(_LEAST_GROWTH * records), records + 1)

    def refused(self, records: int) -> None:
        """What so many records taught was not good enough."""
        self.wanted = max(2 * records, 1)

    def enough(self, records: int) -> bool:
        """Whether it is worth while to read them."""
        return records >= self.wanted

    def told(self, records: int, now_s: float) -> str:
        """How far it is, for people; ``now_s`` on a clock that nobody sets."""
        self._first = self._first or (now_s, records)
        since, first = self._first
        have = min(self._have + round((records - self._at) * self._rows_a_record), self._need - 1)
        said = f"{have:,} of {self._need:,} rows{'' if self._at else ' at best'}"
        if records == first or now_s == since:
            return f"{said}; no rate yet"
        left_s = (self.wanted - records) * (now_s - since) / (records - first)
        return f"{said}; about {lasting(left_s)} more at the present rate"
