"""From records to a bundle and the report it keeps: the same each time, and said in numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest
from reading_pages import Reader

from models.episodes import Episode, LeftOut
from models.history import Part
from models.learning import Source, Step, Taught, learn
from models.manifest import REPORT_FILES
from models.pictures import Plot, bounds
from models.spec import model_spec
from pipeline import config
from pipeline.detect import Detector
from pipeline.errors import TooFewRows
from pipeline.records import RecordBatch, TopicPartition

MINUTE_NS = 60 * 10**9
HOSTILE = "<script>alert('x')</script>"
STREAM = config.parse("""
streams:
  pumps:
    topic: t
    events:
      every: 1m
      features: {heat: {unit: °C}, load: {}, errors: {}}
    model: {window: 8}
    threshold: {policy: ewma}
    training: {steps: 300, rows: 2000}
""").stream("pumps")


def records(rows: int, *series: str, start: int = 0, wild: int = -1) -> list[tuple[bytes, bytes, int]]:
    """A row a minute of each series: heat a noisy sine, load missing half of the time, errors always 0."""
    random, made = np.random.default_rng(0), []
    for n in range(start, start + rows):
        for name in series:
            heat = math.sin(n * math.tau / 60) + float(random.normal(0, 0.05)) + 90 * (n == wild)
            event = {"time": 60 * n, "series": name, "heat": heat, "errors": 0}
            event["load"] = None if n % 2 else float(random.normal(5, 1))
            made.append((name.encode(), msgspec.json.encode(event), 60_000 * n))
    return made


def source(made: list[tuple[bytes, bytes, int]]) -> Source:
    def batches() -> Iterator[RecordBatch]:
        for first in range(0, len(made), 997):
            yield RecordBatch.of(TopicPartition("t", 0), first, made[first : first + 997])

    return Source([batches], len(made), {"topic": "t"})


def taught(made: list[tuple[bytes, bytes, int]], *episodes: Episode, **more: Any) -> Taught:  # noqa: ANN401
    return learn(
        Detector("n", "pumps", STREAM),
        model_spec(STREAM),
        source(made),
        Part(STREAM.training.rows),
        more.get("on_step", lambda _: None),
        left_out=LeftOut((), episodes),
        created_at=more.get("created_at", "2026-01-01T00:00:00Z"),
    )


@cache
def learned() -> Taught:
    """Two series of 3,000 rows, wild once in rows held out, which was told of one; and one that is new."""
    made = records(2_960, "unit-a", HOSTILE, wild=2_900) + records(40, "unit-a", HOSTILE, "new", start=2_960)
    told = Episode("unit-a", 2_890 * MINUTE_NS, 2_930 * MINUTE_NS, critical=True, normal=False)
    said = Episode("unit-a", 2_800 * MINUTE_NS, 2_810 * MINUTE_NS, critical=True, normal=True)
    return taught(made, told, said)


class TestTheSameEachTime:
    def test_the_same_records_and_settings_give_the_same_bundle(self) -> None:
        made = records(400, "unit-a")

        assert taught(made).bundle.sha == taught(made).bundle.sha

    def test_the_time_of_training_is_all_that_makes_another(self) -> None:
        made = records(400, "unit-a")

        one, two = (taught(made, created_at=f"2026-01-0{day}T00:00:00Z").bundle for day in (1, 2))

        assert one.sha != two.sha
        assert one.manifest.files["model.safetensors"] == two.manifest.files["model.safetensors"]
        assert (one.manifest.spec, one.manifest.source) == (two.manifest.spec, two.manifest.source)


class TestTooLittle:
    def test_it_says_how_much_there_is_and_how_long_it_takes_yet(self) -> None:
        with pytest.raises(TooFewRows) as refused:
            taught(records(43, "unit-a"))

        error = refused.value
        assert (error.have, error.need, error.rate) == (41, 56, pytest.approx(1 / 60))
        sentence = "stream 'pumps' has 41 of 56 rows to train on; about 15 min more at the present rate"
        assert str(error).startswith(sentence)
        assert "(1 series with windows of 8 rows; each gap and each further series costs 7)" in str(error)

    def test_without_two_rows_there_is_no_rate(self) -> None:
        with pytest.raises(TooFewRows, match=r"has 0 of 56 rows to train on \(0 series") as refused:
            taught([])

        assert refused.value.rate is None

    def test_what_alerts_took_is_named(self) -> None:
        told = Episode("unit-a", 0, 5 * MINUTE_NS, critical=False, normal=False)

        with pytest.raises(TooFewRows, match="8 rows are left out because of alerts"):
            taught(records(43, "unit-a"), told)


def test_progress_tells_losses_and_comes_to_its_end() -> None:
    steps: list[Step] = []

    taught(records(400, "unit-a"), on_step=steps.append)

    reading = [each for each in steps if each.phase == "reading"]
    training = [each for each in steps if each.phase == "training"]
    assert reading[-1].fraction == training[-1].fraction == 1
    assert "loss 0." in training[0].detail
    assert "on rows held out 0." in training[0].detail


class TestReport:
    """What a bundle tells of its training."""

    def test_it_is_kept_in_the_bundle(self) -> None:
        reports = learned().bundle.reports

        assert tuple(reports) == REPORT_FILES
        kept = msgspec.json.decode(reports["report.json"])
        assert kept["stream"] == "pumps"
        assert kept["counts"]["learned"] == learned().history.rows

    def test_rows_are_accounted_for_in_all_and_by_series(self) -> None:
        report = learned().report

        sums = {
            name: sum(getattr(each.counts, name) for each in report.series)
            for name in ("rows", "learned", "thinned", "frozen", "alerts", "normal", "over", "short")
        }
        assert sums == msgspec.to_builtins(report.counts)
        assert report.counts.alerts == 41 + 7
        assert report.counts.normal == 11 + 7
        assert report.counts.thinned > 1_500

    def test_features_that_never_change_or_are_missing_are_named(self) -> None:
        report = learned().report

        features = {each.name: each for each in report.features}
        assert [each.constant_series for each in report.features] == [0, 0, 3]
        assert features["load"].held == pytest.approx(0.5, abs=0.01)
        remarks = list(report.remarks())
        assert [each.split()[0] for each in remarks] == ["load", "errors"]
        assert "errors never changed in the rows learned from, in any series" in remarks[1]
        assert "load is missing in 50% of the rows" in remarks[0]

    def test_the_worst_window_is_drawn_as_it_was(self) -> None:
        worst = learned().report.worst[0]

        assert (worst.series, worst.features[0].name, worst.features[0].unit) == (HOSTILE, "heat", "°C")
        assert worst.score > 1
        assert len(worst.features[0].observed) == 8
        assert max(worst.features[0].observed) > 8 > max(worst.features[0].expected)

    def test_errors_are_counted_against_the_line(self) -> None:
        report = learned().report

        assert sum(report.errors.counts) == report.errors.windows
        by_series = {each.series: each for each in report.series}
        assert by_series["unit-a"].above == 0
        assert report.errors.above > 0
        above = sum(
            count
            for count, edge in zip(report.errors.counts, report.errors.edges[1:], strict=True)
            if edge > 1
        )
        assert above >= report.errors.above

    def test_losses_fall(self) -> None:
        curves = {each.name: each for each in learned().report.curves}

        assert next(iter(curves)) == "mean"
        assert {HOSTILE, "unit-a", "shared model"} < set(curves)
        train = [value for value in curves["mean"].train if value is not None]
        assert train[-1] < train[0]

    def test_the_page_needs_nothing_else_and_takes_no_name_for_markup(self) -> None:
        page = learned().bundle.reports["report.html"].decode()

        seen = Reader()
        seen.feed(page)
        assert seen.open == []
        assert "script" not in seen.tags
        assert not {"src", "href", "onload"} & seen.attributes
        assert "url(" not in page
        assert HOSTILE in seen.text
        assert seen.tags.count("svg") == len(learned().report.curves) + 1 + sum(
            len(each.features) for each in learned().report.worst
        )
        assert "nan" not in page.lower().replace("tenant", "")


class TestPictures:
    def test_a_line_breaks_where_there_is_no_number(self) -> None:
        plot = Plot("p", x=(0, 4), y=(0, 1))

        plot.line(range(5), [0, 1, math.nan, 1, 0], "one")

        assert plot.svg().count("M56.0") == 1
        [path] = [part for part in plot.svg().split("<path") if 'class="line one"' in part]
        assert path.count("M") == 2
        assert path.count("L") == 2

    @pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0], [-1e9, 1e9], [math.nan]])
    def test_bounds_leave_room_for_any_values(self, values: list[float]) -> None:
        low, high = bounds(values)

        plot = Plot("p", x=(0, 1), y=(low, high))
        plot.line(range(len(values)), values, "one")
        assert low < high
        assert "nan" not in plot.svg()
