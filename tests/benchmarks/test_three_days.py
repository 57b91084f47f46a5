"""What the three simulated days are checked for, and how they are drawn; the days themselves take minutes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def days() -> Iterator[ModuleType]:
    before = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    import three_days  # noqa: PLC0415 - the path comes first

    yield three_days
    sys.path[:] = before


def decision(what: str, hour: float) -> dict[str, Any]:
    return {"what": what, "hour": hour, "who": "x", "bundle": "b", "why": "1 < 2 & so"}


@pytest.fixture
def report(days: ModuleType) -> dict[str, Any]:
    told = days.story()
    return {
        "hours": 72.0,
        "records": 30,
        "in_topic": 30,
        "bins": {"scored": 20, "waiting_model": 10},
        "decisions": [
            decision("promoted", 0),
            decision("promoted", 14),
            decision("refused", 64),
            decision("by hand", 65),
            decision("rolled back", 67),
        ],
        "changes": [{"bundle": "b", "hour": 0.0}, {"bundle": "c", "hour": 14.0}],
        "alerts": [
            {"series": "unit-2", "kind": "anomaly", "start": 3.2, "end": 4.0, "severity": "warning"},
            {"series": "unit-2", "kind": "anomaly", "start": 15.0, "end": None, "severity": "warning"},
        ],
        "truth": [days._true(each) for each in told.odd],
        "drift": [(0.0, 0.0), (36.0, 0.5), (72.0, 0.1)],
        "values": {
            "hours": [0.0, 36.0, 72.0],
            "series": {str(n): [1.0, 2.0, 3.0] for n in range(told.series)},
        },
        "after_changes": [],
    }


def test_what_is_injected_is_there_and_nothing_else(days: ModuleType) -> None:
    told = days.story()
    quiet = days.Story(
        told.series, told.steps, (), told.end, told.accepted,
        days.Stretch("none", (), told.end, told.end), (),
        told.overruled, told.rolled_back, told.end,
    )  # fmt: skip

    differs = days.values(told) != days.values(quiet)

    hours = (np.arange(len(differs)) - days.HISTORY / days.MINUTE) / 60
    for n in range(told.series):
        injected = hours > told.regime / days.HOUR
        for each in (*told.faults, told.polluted):
            if n in each.series:
                injected |= (hours >= each.start / days.HOUR) & (hours < each.end / days.HOUR)
        assert np.array_equal(differs[:, n], injected)


def test_a_story_that_came_out_as_it_has_to_is_not_broken(days: ModuleType, report: dict[str, Any]) -> None:
    assert days.broken(report, days.story()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda report: report["bins"].update(scored=19), "not equally many"),
        (lambda report: report.update(in_topic=31), "not equally many"),
        (lambda report: report["decisions"][1].update(what="refused"), "after the change of regime"),
        (lambda report: report["decisions"][2].update(what="promoted"), "polluted rows"),
        (lambda report: report["decisions"].pop(2), "polluted rows"),
        (lambda report: report["decisions"].pop(), "rolled back"),
        (lambda report: report["alerts"][1].update(start=14.3), "followed a change of the model"),
    ],
)
def test_each_thing_that_has_to_hold_is_looked_at(
    days: ModuleType,
    report: dict[str, Any],
    change: Callable[[dict[str, Any]], object],
    said: str,
) -> None:
    broken = deepcopy(report)
    change(broken)

    [sentence] = days.broken(broken, days.story())

    assert said in sentence


# An alert at a change of the model is one too many, unless something was injected there.
def test_alerts_that_have_a_reason_are_not_laid_to_a_change(days: ModuleType, report: dict[str, Any]) -> None:
    report["changes"] = [{"bundle": "b", "hour": 3.0}]

    assert days.after_changes(report) == []

    report["alerts"][0]["series"] = "unit-3"
    assert days.after_changes(report) == [report["alerts"][0]]


def test_the_picture_is_well_formed_and_shows_every_decision_and_alert(
    days: ModuleType, report: dict[str, Any]
) -> None:
    picture = ET.fromstring(days.draw(report, (0, 2)))  # noqa: S314 - our own

    svg = "{http://www.w3.org/2000/svg}"
    titles = [each.text for each in picture.iter(f"{svg}title")]
    assert titles.count("1 < 2 & so") == len(report["decisions"])
    bars = [each.get("class") for each in picture.iter(f"{svg}rect")]
    assert bars.count("bar alert") == 2
    texts = [each.text for each in picture.iter(f"{svg}text")]
    assert {"▲ promoted", "✕ refused", "▲ by hand", "◀ rolled back", "unit-0", "unit-2"} <= set(texts)


def test_the_table_has_a_row_for_each_decision_and_the_counts(
    days: ModuleType, report: dict[str, Any]
) -> None:
    table = days.table(report)

    assert table.count("\n| ") == len(report["decisions"])
    assert "30 records were sent, 30 stand in the topic" in table
