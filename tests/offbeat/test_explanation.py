"""A trace in words: the verdict first, by the rule that decided, or why there was none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from consumers.tracer import RULES, Trace
from offbeat.explanation import facts, sentences

AT = datetime(2026, 3, 1, 12, 3, 20, tzinfo=UTC)
BEFORE = AT - timedelta(seconds=40)


def episode(**others: Any) -> dict[str, Any]:  # noqa: ANN401 - fields of Episode
    none = dict.fromkeys(["since", "above_since", "calm_since", "quiet_until", "peak_score"])
    return {"state": "none", "rows": 0, **none, **others}


def judgement(**others: Any) -> dict[str, Any]:  # noqa: ANN401 - fields of Judgement
    return {
        "error": 0.5, "last_error": 0.3, "score": 1.25, "last_score": 0.5, "rule": "below",
        "line": line(), "joined": None, "features": [], "deviation": None, "taught": True, "frozen_by": None,
        "before": episode(), "after": episode(), "alert": None,
        "rules": {"for": 3, "recovery": 8, "recovery_for": "60s"}, **others,
    }  # fmt: skip


def line(**others: Any) -> dict[str, Any]:  # noqa: ANN401 - fields of Line
    return {
        "value": 0.4, "last_value": 0.6, "policy": {"policy": "ewma", "k": 5}, "mean": 0.2, "sd": 0.04,
        "quantile": None, "rows": 1200, "raised": 1.0, "grown": None, "false_alarms": 0,
        "accepted": False, "carried": False, **others,
    }  # fmt: skip


def trace(**others: Any) -> Trace:  # noqa: ANN401 - fields of Trace
    return Trace.model_validate(
        {
            "stream": "pumps", "series": "pump-7", "labels": {}, "asked": AT, "at": AT, "cell_s": None,
            "found": True, "source": {"topic": "pumps", "partition": 3, "offset": 1234}, "bin": "scored",
            "reason": None, "window_filled": 12, "window_rows": 32, "bundle": "b" * 64, "policy": "p" * 64,
            "judgement": None, "silent": None, "silences": [], "exact": True, "basis": "from the snapshot",
            "notes": [], **others,
        }
    )  # fmt: skip


FIGURES = "score 1.25 (error 0.5 over threshold 0.4)"
DEVIATION = {
    "feature": "flow", "unit": "l/s", "by": -0.4, "least": 2.0, "direction": "above", "enough": False,
}  # fmt: skip
SAID: dict[str, tuple[dict[str, Any], str]] = {
    "below": ({"score": 0.4}, "was judged normal: score 0.40 (error 0.5 over threshold 0.4)"),
    "trivial": (
        {"deviation": DEVIATION},
        (
            f"was judged normal although it is above the line, {FIGURES}: flow was 0.4 l/s below what was "
            "expected, and `min_deviation` asks for 2 l/s and `direction` asks for values above"
        ),
    ),
    "waits": (
        {"after": episode(state="pending", rows=2, since=BEFORE)},
        f"was above the line, {FIGURES}, and fired no alert yet: it is row 2 of the 3 that `for` asks for",
    ),
    "quiet": (
        {"after": episode(quiet_until=AT)},
        (
            f"was above the line, {FIGURES}, and fired no alert: the last one ended a short time before, and "
            "`refractory` holds new ones back until 2026-03-01 12:03:20"
        ),
    ),
    "stale": (
        {},
        (
            f"fired no alert: its window is above the line, {FIGURES}, on account of earlier rows, and its "
            "own row is not (score 0.50)"
        ),
    ),
    "fires": ({"after": episode(state="firing", since=AT)}, f"fired an alert: {FIGURES}"),
    "open": (
        {"after": episode(state="firing", since=BEFORE)},
        f"was judged anomalous: {FIGURES}, and its alert stayed open; it began at 2026-03-01 12:02:40",
    ),
    "recovers": (
        {"after": episode(state="firing", since=BEFORE, rows=3)},
        (
            "was below the recovery line (its own row's score 0.50), and its alert stayed open: row 3 of the "
            "8 that `recovery` asks for; it began at 2026-03-01 12:02:40"
        ),
    ),
    "ends": (
        {},
        (
            "ended its alert: its own row's score was 0.50, the last of 8 rows in a row below the recovery "
            "line of 1"
        ),
    ),
}


def test_every_rule_has_its_sentence() -> None:
    assert SAID.keys() == set(RULES)


@pytest.mark.parametrize("rule", SAID)
def test_the_verdict_names_the_rule_that_decided(rule: str) -> None:
    others, says = SAID[rule]

    told = sentences(trace(judgement=judgement(rule=rule, **others)))

    assert told == [f"pump-7 at 2026-03-01 12:03:20 UTC {says}."]


# While an alert is pending the rule is `below`, whatever held the row back.
def test_a_row_above_the_line_is_never_called_below_it() -> None:
    [told] = sentences(trace(judgement=judgement(deviation=DEVIATION)))

    assert "although it is above the line" in told


def test_recovery_by_time_is_told_as_such() -> None:
    after = episode(state="firing", since=BEFORE, calm_since=BEFORE, rows=8)

    [told] = sentences(trace(judgement=judgement(rule="recovers", after=after)))

    assert "`recovery_for` asks for 60 s of such rows, which began at 2026-03-01 12:02:40;" in told


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"bin": "warming"}, "its window held 12 of the 32 rows that it takes"),
        ({"bin": "warming", "window_filled": 0}, "its row was not complete"),
        ({"bin": "waiting_model", "bundle": None}, "there was no model yet (`offbeat train pumps`"),
        ({"bin": "outside", "reason": "pump.on"}, "its event was outside `when`, which is pump.on"),
        ({"bin": "late"}, "it came too late, when newer rows of its series had been made"),
        ({"bin": "duplicate"}, "its series held a reading of that time already"),
        ({"bin": "dead_lettered", "reason": "it is not JSON"}, "is a dead letter: it is not JSON"),
        ({"bin": "over_limit"}, "as many series as `max_series` allows"),
        ({"bin": "pending", "cell_s": 10.0}, "its grid cell of 10 s is still open"),
    ],
)
def test_a_record_without_a_row_is_told_why(others: dict[str, Any], says: str) -> None:
    [told] = sentences(trace(**others))

    assert told.startswith("pump-7 at 2026-03-01 12:03:20 UTC was not judged: ")
    assert says in told


def test_what_people_decided_is_told() -> None:
    silence = {
        "id": "a" * 12, "mode": "freeze", "who": "ada@desk", "why": "new filter", "start": BEFORE,
        "end": AT + timedelta(hours=1), "matchers": {"series": "pump-*", "severity": "warning"},
    }  # fmt: skip
    raised = line(raised=1.1, false_alarms=2, accepted=True, carried=True)

    told = sentences(
        trace(judgement=judgement(line=raised, taught=False, frozen_by=silence), silences=[silence])
    )

    assert told[1:] == [
        "Somebody accepted what the series does as its new normal: the threshold starts with this row.",
        "The model changed: the threshold starts with what the new one makes of the rows before this.",
        "The threshold is raised by 10% on account of 2 false alarms.",
        (
            "The threshold learned nothing from it: the silence aaaaaaaaaaaa of ada@desk froze it, because: "
            "new filter."
        ),
        (
            "The silence aaaaaaaaaaaa of ada@desk holds from 2026-03-01 12:02:40 to 2026-03-01 13:03:20 "
            "(freeze: nobody is told, and nothing is learned of alerts with severity warning), because: "
            "new filter."
        ),
    ]


def test_another_time_than_asked_for_and_a_silent_series_are_told_around_the_verdict() -> None:
    silent = {
        "id": "c" * 32, "kind": "silent", "state": "firing", "revision": 1, "severity": "warning",
        "started_at": BEFORE,
    }  # fmt: skip

    first, _, last = sentences(trace(found=False, at=BEFORE, judgement=judgement(), silent=silent))

    assert first == (
        "There is no row of pump-7 at 2026-03-01 12:03:20 UTC; this is about its newest record before, of "
        "2026-03-01 12:02:40."
    )
    assert "the alert cccccccccccc (silent) was open, from 2026-03-01 12:02:40 on" in last


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({}, "ewma: mean 0.2 + 5 x sd 0.04, from 1,200 rows"),
        (
            {"policy": {"policy": "quantile"}, "quantile": 0.25, "raised": 1.1, "false_alarms": 2},
            "quantile: 1.25 x the 0.99 quantile 0.25, from 1,200 rows, times 1.1 for 2 false alarms",
        ),
        ({"policy": {"policy": "static", "value": 0.4}, "rows": None}, "static: 0.4"),
    ],
)
def test_the_facts_say_what_the_line_was_made_of(others: dict[str, Any], says: str) -> None:
    told = dict(facts(trace(judgement=judgement(line=line(**others)), notes=["a note"])))

    assert told["threshold"] == says
    assert told["record"] == "pumps[3] offset 1234, bin scored"
    assert told["rests on"] == "exact: from the snapshot"
    assert told["note"] == "a note"


JOINED = {
    "channels": [{"name": "shapes", "z": 6.5, "share": 0.9}, {"name": "level", "z": 3.2, "share": 0.1}],
    "rarity": 0.25,
}


def test_of_a_joined_score_it_is_told_what_it_was_made_of() -> None:
    policy = line(policy={"policy": "joint"}, value=0.6, last_value=0.6, grown=0.25, raised=1.0)
    found = trace(judgement=judgement(rule="fires", score=2.0, joined=JOINED, line=policy))

    said, told = sentences(found), dict(facts(found))

    assert said[0].endswith("fired an alert: score 2.00 (shapes 6.5 sd, level 3.2 sd, rarity 0.25).")
    assert said[1] == "The line is raised by 25% on account of the series' own alerts before."
    assert told["joined score"] == "1.2, the line at 0.6: score 2"
    assert told["shapes"] == "6.5 sd from what is usual, 90% of the joined score"
    assert told["rarity"] == "0.25, which multiplies it by 0.5"
    assert told["threshold"] == "joint: 0.48 x 1.25 for its own alerts; error 0.2 ± 0.04, from 1,200 rows"
