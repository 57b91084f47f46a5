"""Times as people's files write them: which format a cell has, and what it says in epoch seconds."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, date, datetime

AUTO = "auto"
ISO = "iso"
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Epoch formats and their parts of a second."""

FORMATS_HINT = "iso, s, ms, us, ns, or a pattern such as '%d/%m/%Y %H:%M'"

_YEAR_10000 = 253_402_300_800.0


def is_format(name: str) -> bool:
    """Whether ``name`` is ``auto`` or one of ``FORMATS_HINT``."""
    return name in {AUTO, ISO, *UNITS} or "%" in name


def detect(cell: object) -> str:
    """The format of a time: ``iso`` or the epoch unit in which a number lies between 1973 and 5138.

    Raises:
        ValueError: it is neither; the message says what it looks like.
    """
    if isinstance(cell, datetime | date):
        return ISO
    try:
        number = float(cell)  # type: ignore[arg-type]  # what is no number raises
    except (TypeError, ValueError):
        _iso(cell)
        return ISO
    for unit, parts in UNITS.items():
        if 1e8 <= number / parts < 1e11:
            return unit
    raise ValueError(f"{cell!r} is no epoch time after 1973, it looks like a count")


def parser(time_format: str) -> Callable[[object], float]:
    """What turns cells of one format into epoch seconds; times without a zone are UTC.

    The function raises ValueError, with the value in its message, for a cell of another format or a time
    before 1970 or after 9999.
    """
    if time_format == ISO:
        read = _iso
    elif time_format in UNITS:
        parts = UNITS[time_format]

        def read(cell: object) -> float:
            try:
                return float(cell) / parts  # type: ignore[arg-type]  # what is no number raises
            except (TypeError, ValueError):
                raise ValueError(f"{cell!r} is not a number ({time_format} since 1970)") from None
    else:

        def read(cell: object) -> float:
            try:
                return _utc(datetime.strptime(str(cell), time_format))  # noqa: DTZ007 - _utc sees to the zone
            except ValueError:
                raise ValueError(f"{cell!r} does not fit the pattern {time_format!r}") from None

    def seconds(cell: object) -> float:
        if cell is None or cell == "":
            raise ValueError("the time is empty")
        at = _utc(cell) if isinstance(cell, date) else read(cell)
        if not (math.isfinite(at) and 0 <= at < _YEAR_10000):
            raise ValueError(f"the time {cell!r} is not between the years 1970 and 9999")
        return at

    return seconds


def _iso(cell: object) -> float:
    try:
        return _utc(datetime.fromisoformat(str(cell).strip()))
    except ValueError:
        raise ValueError(f"{cell!r} is neither an ISO 8601 time nor an epoch number") from None


def _utc(at: date) -> float:
    if not isinstance(at, datetime):
        at = datetime(at.year, at.month, at.day, tzinfo=UTC)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
