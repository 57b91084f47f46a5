"""What the three simulated days are checked for, and how they are drawn; the days themselves take minutes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
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


def decision(what: str, hour: float, cause: str = "") -> dict[str, Any]:
    return {"what": what, "hour": hour, "who": "x", "why": "1 < 2 & so", "asked": cause, "cause": cause}


@pytest.fixture
def report(days: ModuleType) -> dict[str, Any]:
    told = days.story()
    return {
        "seed": 7,
        "hours": 72.0,
        "records": 30,
        "in_topic": 30,
        "bins": {"scored": 20, "waiting_model": 10},
        "decisions": [
            decision("promoted", 0),
            decision("accepted", 4),
            decision("promoted", 14, "drift"),
            decision("refused", 38, "daily"),
            decision("refused", 44, "drift"),
            decision("by hand", 46),
            decision("rolled back", 47),
            decision("frozen", 47),
            decision("promoted", 71, "daily"),
        ],
        "changes": [
            {"bundle": "b", "hour": 0.0, "without": []},
            {"bundle": "c", "hour": 14.0, "without": []},
        ],
        "alerts": [
            {"series": "unit-7", "kind": "anomaly", "start": 20.2, "end": 21.0, "severity": "warning"},
            {"series": "unit-2", "kind": "anomaly", "start": 15.0, "end": None, "severity": "warning"},
        ],
        "truth": [days._true(each) for each in told.odd],
        "drift": [(0.0, 0.0), (36.0, 0.5), (72.0, 0.1)],
        "values": {
            "hours": [0.0, 36.0, 72.0],
            "series": {str(n): [1.0, 2.0, 3.0] for n in range(told.series)},
        },
        "after_changes": [],
        "broken": [],
    }


def test_what_is_injected_is_there_and_nothing_else(days: ModuleType) -> None:
    told = days.story()
    nothing = days.Stretch("nothing", (), told.end, told.end)
    quiet = replace(told, faults=(), regime=nothing, polluted=nothing)

    differs = days.values(told, 7) != days.values(quiet, 7)

    hours = (np.arange(len(differs)) - days.HISTORY / days.MINUTE) / 60
    for n in range(told.series):
        injected = np.zeros(len(hours), bool)
        for each in told.faults:
            if n in each.series:
                injected |= (hours >= each.start / days.HOUR) & (hours < each.end / days.HOUR)
        if n in told.regime.series:
            injected |= hours > told.regime.start / days.HOUR
        polluted = (hours >= told.polluted.start / days.HOUR) & (hours < told.polluted.end / days.HOUR)
        assert np.array_equal(differs[~polluted, n], injected[~polluted])
        assert 0.25 < (days.values(told, 7)[polluted, n] == 0).mean() < 0.35


def test_another_seed_is_another_noise_and_the_same_story(days: ModuleType) -> None:
    told = days.story()

    one, other = days.values(told, 7), days.values(told, 8)

    calm = np.arange(int(days.HISTORY / days.MINUTE))
    assert 0.5 < np.std(one[calm] - other[calm]) < 1.5


def test_a_story_that_came_out_as_it_has_to_is_not_broken(days: ModuleType, report: dict[str, Any]) -> None:
    assert days.broken(report, days.story()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda report: report["bins"].update(scored=19), "not equally many"),
        (lambda report: report.update(in_topic=31), "not equally many"),
        (lambda report: report["decisions"][3].update(cause="drift"), "the daily ones"),
        (lambda report: report["decisions"][2].update(what="refused"), "after the change of regime"),
        (lambda report: report["decisions"][4].update(what="promoted"), "polluted rows"),
        (lambda report: report["decisions"].pop(4), "polluted rows"),
        (lambda report: report["decisions"].pop(6), "rolled back"),
        (lambda report: report["decisions"][8].update(what="refused"), "were frozen"),
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

    assert [said in sentence for sentence in days.broken(broken, days.story())] == [True]


def test_a_story_without_drift_is_not_the_story(days: ModuleType, report: dict[str, Any]) -> None:
    for each in report["decisions"]:
        each["cause"] = each["cause"] and "daily"

    assert days.broken(report, days.story()) == ["no training followed a drift"]


# An alert at a change of the model is one too many, unless something was injected there or it comes anyway.
def test_alerts_that_have_a_reason_are_not_laid_to_a_change(days: ModuleType, report: dict[str, Any]) -> None:
    report["changes"] = [{"bundle": "b", "hour": 20.0, "without": []}]

    assert days.after_changes(report) == []

    report["alerts"][0]["series"] = "unit-6"
    assert days.after_changes(report) == [report["alerts"][0]]

    report["changes"][0]["without"] = [{"series": "unit-6"}]
    assert days.after_changes(report) == []


def test_the_picture_is_well_formed_and_shows_every_decision_and_alert(
    days: ModuleType, report: dict[str, Any]
) -> None:
    picture = ET.fromstring(days.draw(report, (7, 2)))  # noqa: S314 - our own

    svg = "{http://www.w3.org/2000/svg}"
    titles = [each.text for each in picture.iter(f"{svg}title")]
    assert titles.count("1 < 2 & so") == len(report["decisions"])
    bars = [each.get("class") for each in picture.iter(f"{svg}rect")]
    assert bars.count("bar alert") == 2
    texts = [each.text for each in picture.iter(f"{svg}text")]
    assert {"▲ promoted", "▲ promoted (daily)", "✕ refused (drift)", "✓ accepted", "■ frozen"} <= set(texts)
    assert {"▲ by hand", "◀ rolled back", "unit-7", "unit-2"} <= set(texts)


def test_the_table_has_a_row_for_each_decision_and_each_run(days: ModuleType, report: dict[str, Any]) -> None:
    other = report | {"seed": 8, "in_topic": 29, "broken": ["one record is gone"]}

    table = days.table([report, other])

    decisions, runs = table.split("\n\n")
    assert decisions.count("\n| ") == len(report["decisions"])
    assert "| 44 | refused | drift | 1 < 2 & so |" in decisions
    assert "| 7 | 30, 30, 30 | 0, 14, 71 | 38, 44 | 38, 71 | 2 | 0 | yes |" in runs
    assert "| 8 | 30, 29, 30 |" in runs
    assert "| one record is gone |" in runs
