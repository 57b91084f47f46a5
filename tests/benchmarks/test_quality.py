"""What `make quality` says is made of what the program itself does, and of nothing that comes later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from contamination import _episodes, _pushed, contaminated, halved, stretches
from controls import episodes, ewma_z
from labelled import DataSet, Series, as_records, counted, train
from quality import DEFAULT, Control, Entry, causes, equal_line, judge, judge_control, rowwise

from models.episodes import Episode
from pipeline.alerts import Transition

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "quality.py"
QUICK = {"training": {"steps": 60}, "model": {"window": 8}}


def made(rows: int = 1_200, learned: int = 300) -> DataSet:
    """Two sensors with two faults in the second of them, at rows 700 and 1,000."""
    luck = np.random.default_rng(0)
    values = np.sin(np.arange(rows)[:, None] / [5.0, 9.0]) + luck.normal(0, 0.05, (rows, 2))
    values[700:710, 1] += 6
    values[1_000:1_005, 1] -= 6
    times = np.arange(rows, dtype=np.int64) * 60 * 10**9
    windows = times[np.array([[700, 709], [1_000, 1_004]])]
    features = ("left", "right")
    records = as_records("made", "pump", features, times, values)
    series = Series("pump", records, learned, times, values, windows, ((1,), (1,)))
    return DataSet("made", features, [series], 60 * 10**9, "min")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


def test_the_same_scores_under_the_same_rules_raise_the_same_alerts(bundles: Path) -> None:
    data = made()

    [judged] = judge(data, Entry("quick", QUICK), {}, bundles)

    times = data.every[0].time_ns[judged.rows]
    fired, ended = episodes(judged.scores, judged.last, times, data.stream(QUICK))
    assert judged.rows[fired].tolist() == judged.fired.tolist()
    assert judged.rows[ended].tolist() == judged.ended.tolist()
    assert len(judged.fired) >= 2


def test_faults_are_found_and_their_cause_named(bundles: Path) -> None:
    data = made()

    judged = judge(data, Entry("quick", QUICK), {}, bundles)

    assert counted(data.every[0], data.every[0].time_ns[judged[0].fired]).which == [0, 1]
    rates = {each["ranking"]: each["hit_rate_100%"] for each in causes(data, judged)}
    assert rates["contributions of the alert"] == 1.0
    assert 0.2 < rates["by chance"] < 0.8


def test_what_comes_later_changes_no_score(bundles: Path) -> None:
    data, entry = made(), Entry("quick", QUICK)
    whole = data.every[0]
    cut = 900
    shorter = DataSet(
        data.name,
        data.features,
        [
            Series(
                whole.name,
                whole.records.before(cut),
                whole.learned,
                whole.time_ns[:cut],
                whole.values[:cut],
                whole.windows[:1],
            )
        ],
    )

    for detector in (lambda some: judge(some, entry, {}, bundles), lambda some: judge_control(some, EWMA, 0)):
        [all_rows], [first_rows] = detector(data), detector(shorter)
        n = len(first_rows.rows)
        assert n > 800
        np.testing.assert_allclose(all_rows.scores[:n], first_rows.scores, rtol=1e-5)


EWMA = Control("EWMA-z", ewma_z, 5.0)


def test_a_bundle_is_kept_by_what_it_learned_from(bundles: Path, tmp_path: Path) -> None:
    data = made()

    first, again = train(data, QUICK, bundles), train(data, QUICK, bundles)
    other = train(data, {**QUICK, "training": {"steps": 50}}, bundles)
    apart = train(data, QUICK, tmp_path)

    assert first.sha == again.sha != other.sha
    np.testing.assert_array_equal(first.calibration, apart.calibration)


def test_the_equal_line_raises_no_more_false_alarms_than_it_may(bundles: Path) -> None:
    data = made()
    judged = judge(data, Entry("quick", QUICK), {}, bundles)

    def false_alarms(allowed: int) -> int:
        line = equal_line(data, judged, allowed)
        times = data.every[0].time_ns[judged[0].rows]
        fired, _ = episodes(judged[0].scores / line, judged[0].last / line, times, data.stream())
        return counted(data.every[0], times[fired]).false_alarms

    assert false_alarms(0) == 0
    assert false_alarms(3) in {1, 2, 3}


def test_an_alarm_that_is_always_on_misses_nothing_and_is_wrong_all_the_time_else() -> None:
    labels = np.arange(10) < 4

    assert rowwise(np.ones(10, bool), labels) == {"far": 1.0, "mar": 0.0, "row_f1": pytest.approx(8 / 14)}
    assert rowwise(np.arange(10) < 2, labels) == {"far": 0.0, "mar": 0.5, "row_f1": pytest.approx(4 / 6)}


def measure(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCHMARK, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_each_detector_has_a_row_in_the_file_and_on_the_page(
    tmp_path: Path, recorded: Path, bundles: Path
) -> None:
    written, page = tmp_path / "quality.json", tmp_path / "quality.md"
    page.write_text("above\n<!-- written by make quality -->\nstale\n<!-- until here -->\nbelow\n")
    tiny = ("--only", "nab", "--series", "realTraffic/*_t4013.csv", "--no-contamination", "--kept", bundles)

    done = measure(*tiny, "--output", written, "--page", page, OFFBEAT_DATA=str(recorded))

    assert done.returncode == 0, done.stderr
    report = json.loads(written.read_text())["nab"]
    assert (len(report["series"]), report["events"]) == (2, 4)
    rows = {row["detector"]: row for row in report["detectors"]}
    default = rows[DEFAULT.name]
    assert default["found"] >= 2
    for row in rows.values():
        assert row["at_equal_false_alarms"]["false_alarms"] <= default["false_alarms"]
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "stale" not in text
    assert all(f"\n| {name} |" in text for name in rows)


class TestContamination:
    def test_earlier_windows_are_learned_from_and_later_ones_are_to_be_found(self) -> None:
        data = made()
        halves = halved(data)
        series = halves.every[0]

        assert halves.events == 1
        assert series.windows.tolist() == data.every[0].windows[1:].tolist()
        assert series.time_ns[series.learned - 1] == data.every[0].windows[0, 1]
        assert len(series.lessons) == 300

    @pytest.mark.parametrize("share", [0.05, 0.1])
    def test_so_many_of_the_rows_learned_from_are_anomalous_and_known(self, share: float) -> None:
        data = made()

        bad, put = contaminated(halved(data), data, share)

        series = bad.every[0]
        events = [json.loads(series.lessons.value(n) or b"") for n in range(len(series.lessons))]
        right = np.array([each["right"] for each in events])
        within = np.zeros(len(right), bool)
        for each in put:
            within |= (series.time_ns[:300] >= each.started_ns) & (series.time_ns[:300] <= each.ended_ns)
        assert within.sum() == pytest.approx(share * 300, abs=4)
        assert (np.abs(right[within]) > 4).all()
        np.testing.assert_array_equal(right[~within], data.every[0].values[:300, 1][~within])

    def test_alerts_are_left_out_from_their_first_row_to_the_one_that_ends_them(self) -> None:
        fired = Transition(
            id="a", revision=1, alert="anomaly", state="firing", series="pump", labels={}, started_ns=5,
            at_ns=5, offset=1, judged=True,
        )  # fmt: skip
        ended = msgspec.structs.replace(fired, revision=2, state="resolved", at_ns=9)

        assert _episodes("pump", [fired, ended], 20) == [Episode("pump", 5, 9, critical=False, normal=False)]
        assert _episodes("pump", [fired], 20) == [Episode("pump", 5, 20, critical=False, normal=False)]


class TestPushes:
    def test_a_series_is_cut_where_the_reference_before_ends(self) -> None:
        whole = made(rows=18_500)

        data = stretches(whole)

        assert [each.name for each in data.every] == ["pump from row 0", "pump from row 4000"]
        assert all(each.values.shape == (14_000, 2) for each in data.every)
        assert (data.every[1].values == whole.every[0].values[4_000:18_000]).all()
        assert [len(each.lessons) for each in data.every] == [4_000, 4_000]
        assert stretches(made()).every == []

    def test_a_push_is_noticed_when_it_has_come_to_a_spread_and_nothing_is_without_one(
        self, bundles: Path
    ) -> None:
        data = stretches(made(rows=14_000))
        reference = train(data, QUICK, bundles)

        none, little, much = (_pushed(data, reference, push, [np.ones(2)]) for push in (0.0, 0.02, 0.5))

        assert (none["noticed"], little["noticed"], much["noticed"]) == (0, 0, 1)
        assert (none["noticed_retrains"], none["retrains"]) == (0, 10)
        assert none["days"] == pytest.approx(10_000 / 1_440)
        assert much["features"] == 2
        assert 2 <= much["at_retrain"] <= 3

    def test_features_pushed_one_at_a_time_are_told_apart(self, bundles: Path) -> None:
        data = stretches(made(rows=14_000))

        alone = _pushed(data, train(data, QUICK, bundles), 0.5, list(np.eye(2)))

        assert (alone["features"], alone["series"], alone["noticed"]) == (1, 2, 2)


def test_without_data_it_says_what_to_set(tmp_path: Path) -> None:
    done = measure("--output", tmp_path / "quality.json", OFFBEAT_DATA="")

    assert done.returncode == 2
    assert "OFFBEAT_DATA" in done.stderr
