"""Made-up readings: the same bytes from the same seed, and faults exactly where their labels say."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from collecting import TOPIC, Collector, HandClock, read_all
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.ports import Broker
from pipeline.records import Send
from producers import synthetic
from producers.faults import FAULTS, Float64s
from producers.pacing import Recorded
from producers.synthetic import Label, Synthetic, SyntheticOptions


def matrix(options: SyntheticOptions) -> tuple[Float64s, Float64s]:
    """All times ``[rows, series]`` and values ``[rows, series, features]``."""
    blocks = list(Synthetic(options).blocks())
    return np.concatenate([times for times, _ in blocks]), np.concatenate([values for _, values in blocks])


def inside(label: Label, made: Synthetic, times: Float64s) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which cells ``[rows, series, features]`` a label covers."""
    series = np.array([name == label.series for name in made.series])
    features = np.array([name in label.features for name in made.features])
    span = (times >= label.start) & (times <= label.end)
    covered: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (span & series)[:, :, None] & features
    return covered


def test_events_arrive_on_the_bus(broker: Broker) -> None:
    options = SyntheticOptions(series=3, features=2, rows=50, every_s=10)

    sent = synthetic.produce(broker.producer(), TOPIC, options)

    records = read_all(broker)
    times, values = matrix(options)
    assert sent == len(records) == 150 == Synthetic(options).total
    assert list(records[0][1]) == ["time", "series", "temperature", "pressure"]
    assert [key.decode() for key, _, _ in records if key] == [event["series"] for _, event, _ in records]
    assert [event["series"] for _, event, _ in records[:4]] == ["unit-1", "unit-2", "unit-3", "unit-1"]
    assert [event["time"] for _, event, _ in records] == times.ravel().tolist()
    assert [round(event["time"] * 1000) for _, event, _ in records] == [stamp for _, _, stamp in records]
    assert [event["pressure"] for _, event, _ in records] == values[:, :, 1].ravel().tolist()


def sends(options: SyntheticOptions) -> list[Send]:
    return [send for chunk in Synthetic(options).chunks(TOPIC) for send in chunk.sends]


def test_the_same_seed_gives_the_same_bytes() -> None:
    options = SyntheticOptions(series=4, rows=700, faults=7, seed=5)

    assert sends(options) == sends(options)
    assert sends(options) != sends(SyntheticOptions(series=4, rows=700, faults=7, seed=6))


def test_more_rows_continue_the_same_series() -> None:
    short = sends(SyntheticOptions(series=300, rows=60))

    assert sends(SyntheticOptions(series=300, rows=130))[: len(short)] == short


# A fault changes its own cells and no other: outside its label everything is as without faults.
@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(FAULTS)),
    seed=st.integers(0, 10_000),
    series=st.sampled_from([1, 3, 200]),
    features=st.integers(1, 5),
    day_s=st.sampled_from([3_600.0, 86_400.0]),
)
def test_faults_stand_where_their_labels_say(
    kind: str, seed: int, series: int, features: int, day_s: float
) -> None:
    clean = SyntheticOptions(series=series, features=features, rows=1_000, day_s=day_s, seed=seed)
    faulty = SyntheticOptions(
        series=series,
        features=features,
        rows=1_000,
        day_s=day_s,
        seed=seed,
        faults=2,
        kinds=[kind],
        clean_rows=20,
    )
    made = Synthetic(faulty)
    times, before = matrix(clean)
    _, after = matrix(faulty)
    changed = ~np.isclose(before, after, rtol=0, atol=0, equal_nan=True)

    covered = [inside(label, made, times) for label in made.labels]

    assert not (changed & ~np.logical_or.reduce(covered)).any()
    assert not changed[:20].any()
    for label, cells in zip(made.labels, covered, strict=True):
        assert label.fault == kind
        least, most, _ = FAULTS[kind]
        assert least <= cells.any(axis=(1, 2)).sum() <= most
        # Every row and feature of the span, but those where it happens to agree: the first row of a value
        # that is stuck, or a crossing.
        assert changed[cells].mean() >= (1.0 if kind in {"spike", "level_shift", "silence"} else 0.9)


def one_fault(kind: str) -> tuple[Label, Synthetic, Float64s, Float64s]:
    """A fault, and the cells of its features ``[rows, features]`` without and with it."""
    # So many series that a block holds few rows, and the fault goes through several blocks.
    clean = SyntheticOptions(series=1_000, rows=300, seed=11)
    faulty = SyntheticOptions(series=1_000, rows=300, seed=11, faults=1, kinds=[kind])
    made = Synthetic(faulty)
    (label,) = made.labels
    times, before = matrix(clean)
    _, after = matrix(faulty)
    which = made.series.index(label.series)
    rows = (times[:, which] >= label.start) & (times[:, which] <= label.end)
    features = [made.features.index(name) for name in label.features]
    return label, made, before[rows][:, which, features], after[rows][:, which, features]


def test_a_stuck_value_is_the_first_of_its_span() -> None:
    _, _, before, after = one_fault("stuck")

    assert (after == before[0]).all()


def test_a_drift_grows_from_nothing_in_one_direction() -> None:
    _, _, before, after = one_fault("drift")

    moved = np.abs(after - before)
    assert (np.diff(moved, axis=0) > 0).all()
    assert (moved[0] < 0.05 * moved[-1]).all()


def test_a_level_shift_moves_every_row_alike() -> None:
    _, _, before, after = one_fault("level_shift")

    assert np.ptp(after - before, axis=0) == pytest.approx(0, abs=0.0021)


def test_a_silent_series_sends_nothing_in_its_span() -> None:
    options = SyntheticOptions(series=3, rows=800, faults=2, kinds=["silence"], seed=4)
    made = Synthetic(options)
    collector = Collector()

    sent = synthetic.produce(collector, TOPIC, options)

    assert sent == made.total == len(collector.sent) < 3 * 800
    for label in made.labels:
        assert label.features == made.features
        assert not [
            event
            for event in collector.events
            if event["series"] == label.series and label.start <= event["time"] <= label.end
        ]


def test_faults_of_a_series_stand_apart() -> None:
    made = Synthetic(SyntheticOptions(series=1, rows=20_000, every_s=1, faults=60, seed=3))

    assert {label.fault for label in made.labels} == set(FAULTS)
    gaps = [after.start - before.end for before, after in zip(made.labels, made.labels[1:], strict=False)]
    assert min(gaps) > 40


# What makes the readings worth a model: a daily rhythm, features that move together, a little noise.
def test_readings_repeat_daily_and_features_move_together() -> None:
    _, values = matrix(SyntheticOptions(series=5, rows=4 * 1_440, features=3, seed=2))

    for series in range(5):
        day_apart = np.corrcoef(values[:-1_440, series, 0], values[1_440:, series, 0])[0, 1]
        together = np.corrcoef(values[:, series].T)[np.triu_indices(3, 1)]
        steps = np.abs(np.diff(values[:, series], axis=0)).mean(axis=0)
        assert day_apart > 0.6
        assert (together > 0.4).all()
        assert (steps < 0.15 * values[:, series].std(axis=0)).all()


def test_labels_are_written_and_read_as_jsonl(tmp_path: Path) -> None:
    labels = Synthetic(SyntheticOptions(faults=9)).labels

    synthetic.write_labels(tmp_path / "labels.jsonl", labels)

    assert len(labels) == 9
    assert len((tmp_path / "labels.jsonl").read_bytes().splitlines()) == 9
    assert synthetic.read_labels(tmp_path / "labels.jsonl") == labels


def test_series_take_turns_at_their_recorded_pace(clock: HandClock) -> None:
    collector = Collector(clock)
    options = SyntheticOptions(series=4, rows=5, every_s=2)

    synthetic.produce(collector, TOPIC, options, pace=Recorded(), clock=clock, sleep=clock.sleep)

    assert [at - 1_000 for at in collector.sent_at] == pytest.approx([0.5 * n for n in range(20)], abs=0.011)


class Discard:
    def send(self, sends: Iterable[Send]) -> None:
        for _ in sends:
            pass

    def flush(self) -> None:
        pass


# Benchmarks fill topics with it. The line here is far below what it does, for machines that are busy.
def test_it_is_fast_enough_to_fill_topics() -> None:
    options = SyntheticOptions(series=1_000, rows=60, features=4)

    began = time.process_time()
    sent = synthetic.produce(Discard(), TOPIC, options)

    assert sent / (time.process_time() - began) > 50_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"series": 0}, "series is 0"),
        ({"rows": 0}, "rows is 0"),
        ({"every_s": 0.0}, "every_s is 0.0; give 0.001"),
        ({"day_s": float("nan")}, "day_s is nan"),
        ({"faults": -1}, "faults is -1"),
        ({"kinds": ["melt"]}, "no such fault: melt; there are spike"),
        ({"kinds": []}, "no such fault"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SyntheticOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "clean_rows", "faults"), [(20, 0, 1), (500, 480, 1), (500, 0, 30)])
def test_faults_that_do_not_fit(rows: int, clean_rows: int, faults: int) -> None:
    options = SyntheticOptions(series=1, rows=rows, clean_rows=clean_rows, faults=faults, kinds=["drift"])

    with pytest.raises(ConfigError, match="do not fit"):
        Synthetic(options)
