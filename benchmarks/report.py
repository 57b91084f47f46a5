"""What the figures say of themselves: the verdict against what the design holds them to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Hold:
    """A line of section 10 of the design.

    Attributes:
        what: what is measured.
        hold, aim: the bounds; NaN where there is none.
        unit: of the figures.
        least: more is better.
        measured: takes the figure from the report; KeyError or TypeError where it was not measured.
    """

    what: str
    hold: float | None
    aim: float | None
    unit: str
    least: bool
    measured: Callable[[dict[str, Any]], float]


def _median(key: str, scope: str) -> Callable[[dict[str, Any]], float]:
    return lambda report: report[key][scope]["median"]


def _value(key: str, scope: str) -> Callable[[dict[str, Any]], float]:
    return lambda report: report[key][scope]


HOLDS = [
    *(
        Hold(f"{what}, {scope}", hold, aim, unit, least, find(key, scope))
        for what, key, hold, aim, unit, least, find in (
            ("whole path against raw confluent-kafka", "whole_path_ratio", 0.33, 0.6, "", True, _median),
            ("CPU per million records", "cpu_s_per_million", 1.7, 0.9, "s", False, _median),
            ("against bytewax, a plain z-score", "x_bytewax", 3.5, 6.0, "x", True, _median),
            ("against quixstreams, a plain z-score", "x_quixstreams", 5.0, 8.0, "x", True, _median),
            ("produce to alert at 50,000/s, p99", "p99_ms_at_50k", 80.0, 40.0, "ms", False, _value),
            ("CPU at 5,000 records/s", "core_at_5k", 0.25, 0.15, "core", False, _value),
        )
        for scope in ("shared", "stacked")
    ),
    Hold(
        "killed worker, restarted in its slot",
        12.0,
        8.0,
        "s",
        False,
        _median("takeover_s", "restarted_in_its_slot"),
    ),
    Hold(
        "killed worker, another takes over",
        12.0,
        8.0,
        "s",
        False,
        _median("takeover_s", "taken_over_by_another"),
    ),
    Hold(
        "killed mid-transaction, another takes over",
        22.0,
        8.0,
        "s",
        False,
        _median("takeover_s", "killed_mid_transaction"),
    ),
    Hold(
        "worker, a series besides its window",
        None,
        1_024.0,
        "B",
        False,
        _value("worker_bytes_per_series", "shared"),
    ),
    Hold(
        "Redis, a series besides its window",
        None,
        400.0,
        "B",
        False,
        _value("redis_bytes_per_series", "shared"),
    ),
    Hold(
        "one series filling batches, times the even case",
        2.0,
        None,
        "x",
        False,
        lambda report: report["skew_ratio"]["median"],
    ),
]


def verdicts(report: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """What, hold, aim, measured, and how it stands."""
    rows = []
    for each in HOLDS:
        try:
            measured = each.measured(report)
        except (KeyError, TypeError):
            rows.append(
                (each.what, _number(each.hold, each.unit), _number(each.aim, each.unit), "", "not measured")
            )
            continue
        sign = 1 if each.least else -1
        reached = each.aim is not None and sign * measured >= sign * each.aim
        held = each.hold is None or sign * measured >= sign * each.hold
        stands = (
            "aim reached"
            if reached
            else "NOT HELD"
            if not held
            else "held"
            if each.hold is not None
            else "aim not reached"
        )
        rows.append(
            (
                each.what,
                _number(each.hold, each.unit),
                _number(each.aim, each.unit),
                _number(measured, each.unit),
                stands,
            )
        )
    return rows


def print_verdicts(report: dict[str, Any]) -> bool:
    """Print the table; whether everything that was measured holds."""
    rows = [("what", "hold", "aim", "measured", ""), *verdicts(report)]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return not any(row[-1] == "NOT HELD" for row in rows)


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    digits = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{digits} {unit}".rstrip()
