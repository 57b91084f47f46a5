"""Notifications as people read them."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.figures import measured, number
from pipeline.notifications import Member, Notification

_SHOWN = 10


def line(told: Notification) -> str:
    """On one line: when, what happened, how bad, and the sentence."""
    by = f" (acknowledged by {told.acknowledged_by})" if told.acknowledged_by else ""
    return (
        f"{told.at:%Y-%m-%d %H:%M:%S}  {told.event:<8}  {told.severity:<8}  {told.title}{by}  {told.id[:12]}"
    )


def lines(told: Notification) -> Iterator[str]:
    """The same, and below it the worst of its alerts in columns."""
    yield line(told)
    rows = [_row(each) for each in told.alerts[:_SHOWN]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "    " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    if told.count > len(rows) > 0:
        yield f"    and {told.count - len(rows):,} more alerts"


def _row(alert: Member) -> list[str]:
    feature = alert.feature
    return [
        alert.series,
        alert.state,
        alert.severity,
        f"peak {alert.peak_score:.2f}" if alert.peak_score is not None else "",
        f"{feature.name} {measured(feature.observed, feature.unit)}, expected {number(feature.expected)}"
        if feature
        else alert.reason,
        alert.id[:12],
    ]
