"""Alerts as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from offbeat import show
from pipeline.alerts import Alert, FeatureEvidence, Source
from pipeline.control import Feedback, Silenced, Standing
from pipeline.figures import number
from pipeline.silences import Matchers, Silence

STARTED = datetime(2026, 3, 1, 12, tzinfo=UTC)
HEAT = FeatureEvidence(
    name="heat",
    unit="°C",
    observed=81.25,
    expected=20.0,
    contribution=0.9,
    window_observed=[20.0, 20.0, 81.25],
    window_expected=[20.0, 20.0, 20.0],
)
FIRING = Alert(
    id="0123456789abcdef" * 2,
    revision=1,
    kind="anomaly",
    state="firing",
    reason="error above its threshold",
    namespace="offbeat",
    stream="pumps",
    series="pump-7",
    labels={"site": "north"},
    started_at=STARTED,
    at=STARTED,
    severity="warning",
    score=3.25,
    peak_score=3.25,
    error=1.3,
    threshold=0.4,
    features=[HEAT],
    bundle="b" * 64,
    source=Source(topic="pumps", partition=2, offset=1_234),
)
RESOLVED = FIRING.model_copy(
    update={"revision": 2, "state": "resolved", "reason": "recovered", "at": STARTED + timedelta(minutes=5)}
)
SILENT = FIRING.model_copy(
    update={"kind": "silent", "reason": "no events", "score": None, "peak_score": None, "features": []}
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (3.14159, "3.142"), (1e-7, "1e-07"), (-1234567.8, "-1,234,568"), (999.96, "1000")],
)
def test_numbers_have_the_digits_that_matter(value: float, text: str) -> None:
    assert number(value) == text


def test_a_sparkline_spans_its_scale() -> None:
    assert show.sparkline([0, 1, 2, 3, 4, 5, 6, 7], 0, 7) == "▁▂▃▄▅▆▇█"
    assert show.sparkline([5, 5], 5, 5) == "▁▁"


# On scales of their own, a flat expectation would look like the anomaly itself.
def test_observed_and_expected_share_one_scale() -> None:
    assert show.picture(HEAT) == ("▁▁█", "▁▁▁")


def test_a_line_says_what_where_how_far_and_why() -> None:
    assert show.line(FIRING) == (
        "2026-03-01 12:00:00  firing    pumps  pump-7  anomaly  score 3.25  "
        "heat 81.25 °C (expected 20 °C)  0123456789ab"
    )
    assert show.line(RESOLVED).endswith("score 3.25  peak 3.25  recovered  0123456789ab")
    assert show.line(SILENT).endswith("silent  no events  0123456789ab")


SAID = {"stream": "pumps", "at": STARTED + timedelta(minutes=1), "who": "mona@plant (a test)"}
ACK = Feedback(**SAID, why="on my way", alert=FIRING.id, series="pump-7", verdict="ack")
WRONG = Feedback(**SAID, why="", alert=FIRING.id, series="pump-7", verdict="false alarm")
OUTAGE = Standing(
    Silenced(
        **SAID,
        why="",
        id="0123456789ab",
        silence=Silence(matchers=Matchers(), mode="freeze", start=STARTED, end=STARTED + timedelta(hours=2)),
    )
)


def test_a_row_tells_how_long_it_lasted_and_why_it_fired() -> None:
    row = dict(zip(show.LIST_HEADERS, show.list_row([FIRING, RESOLVED], []), strict=True))

    assert row["lasted"] == "0:05:00"
    assert (row["state"], row["severity"], row["feedback"]) == ("resolved", "warning", "")
    assert row["because"] == "heat 81.25 °C not 20 °C"
    assert show.list_row([SILENT], [])[1] == ""
    assert "no events" in show.list_row([SILENT], [])


def test_a_row_tells_what_was_said_last() -> None:
    row = dict(zip(show.LIST_HEADERS, show.list_row([FIRING], [ACK, WRONG]), strict=True))

    assert row["feedback"] == "false alarm"


def test_facts_name_every_revision_and_its_record() -> None:
    facts = dict(show.facts([FIRING, RESOLVED], [], []))

    assert facts["labels"] == "site=north"
    assert facts["severity"] == "warning"
    assert "score 3.25 (error 1.3 over threshold 0.4), record pumps[2] offset 1234" in facts["firing"]
    assert facts["resolved"].startswith("2026-03-01 12:05:00.000000 UTC: recovered")


# Who asks later why nobody was told finds both: what was said, and what was silenced.
def test_facts_name_what_was_said_and_the_silences() -> None:
    spans = [(OUTAGE, each) for each in OUTAGE.spans(STARTED, STARTED)]

    facts = show.facts([FIRING], [ACK, WRONG], spans)

    assert facts[-3:] == [
        ("ack", "2026-03-01 12:01:00 UTC by mona@plant (a test): on my way"),
        ("false alarm", "2026-03-01 12:01:00 UTC by mona@plant (a test)"),
        (
            "silenced",
            "2026-03-01 12:00:00 to 2026-03-01 14:00:00 UTC (freeze, 0123456789ab) by mona@plant (a test)",
        ),
    ]
