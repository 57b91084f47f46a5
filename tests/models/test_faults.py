"""Faults stand where there is room for them, do what they are called, and reach the rows as they should."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replaying import EVERY_S, FEATURES, PARTITION, START_S, source, stream, times_ns

from models.faults import _TIMES, KINDS, Fault, Injecting, changes, place
from models.history import Batches
from models.tracks import Raw, Track, survey
from pipeline.config import Stream
from pipeline.detect import Detector
from pipeline.records import RecordBatch

WINDOW = 8


def track(rows: int, *, usable: np.ndarray, fresh: np.ndarray, seed: int = 0) -> Track:
    values = np.random.default_rng(seed).normal(size=(rows, 2))
    at = times_ns(rows)
    raw = tuple(Raw(np.arange(rows), at, values[:, f]) for f in range(2))
    return Track(f"s{seed}", PARTITION, at, values, usable, usable, fresh, raw)


@st.composite
def tracks(draw: st.DrawFn) -> list[Track]:
    """Series with holes in them and rows that are not to be used."""
    found = []
    for seed in range(draw(st.integers(1, 4))):
        rows = draw(st.integers(1, 1_500))
        usable, fresh = np.ones(rows, bool), np.zeros(rows, bool)
        usable[: WINDOW - 1] = False
        fresh[0] = True
        for row in draw(st.lists(st.integers(0, rows - 1), max_size=5)):
            fresh[row] = True
            usable[row : row + WINDOW - 1] = False
        for row in draw(st.lists(st.integers(0, rows - 1), max_size=5)):
            usable[row : row + 30] = False
        found.append(track(rows, usable=usable, fresh=fresh, seed=seed))
    return found


# An alert that one fault leaves open, or a row that no model is asked about, would count against a contender.
@settings(deadline=None)
@given(tracks(), st.integers(0, 3), st.sampled_from([0.0, 600.0]))
def test_each_fault_has_calm_rows_of_its_own(found: list[Track], seed: int, refractory_s: float) -> None:
    settings_ = stream(rules={"refractory": refractory_s})

    faults = place(found, settings_, seed)

    rest = 8 + int(refractory_s / EVERY_S)  # rows until an alert has ended and the series may raise the next
    for index, each in enumerate(found):
        mine = sorted((fault for fault in faults if fault.track == index), key=lambda fault: fault.first)
        for fault in mine:
            around = slice(fault.first - WINDOW, fault.end + WINDOW)
            assert around.start >= 0
            assert around.stop <= len(each.calm)
            assert each.calm[around].all()
            assert not each.fresh[around][1:].any()
            assert fault.start_ns == each.time_ns[fault.first]
            assert fault.end_ns == each.time_ns[fault.end]
            assert fault.until_ns == each.time_ns[fault.end + WINDOW - 1]
        for before, after in pairwise(mine):
            assert after.first - before.end >= 2 * WINDOW + rest
    assert place(found, settings_, seed) == faults


def test_faults_are_spread_over_series_time_and_kinds_alike() -> None:
    usable = np.arange(6_000) >= WINDOW - 1
    found = [track(6_000, usable=usable, fresh=np.arange(6_000) == 0, seed=seed) for seed in range(5)]

    faults = place(found, stream(), 0, most=120)

    by_series = np.bincount([fault.track for fault in faults])
    by_fifth = np.bincount([fault.first // 1_200 for fault in faults])
    by_kind = {kind: [fault for fault in faults if fault.kind == kind] for kind in KINDS}
    assert len(faults) == 120
    assert by_series.tolist() == [24] * 5
    assert by_fifth.min() >= 20
    assert {len(each) for each in by_kind.values()} == {20}
    for kind, mine in by_kind.items():
        sizes = sorted({abs(fault.push) for fault in mine})
        assert sizes == sorted({KINDS[kind].size * times for times in _TIMES})
        assert {fault.end - fault.first for fault in mine} == {KINDS[kind].rows(WINDOW)}
    assert place(found, stream(), 1, most=120) != faults


def test_a_series_that_never_changes_and_one_without_room_get_none() -> None:
    usable, fresh = np.ones(500, bool), np.arange(500) == 0
    still = track(500, usable=usable, fresh=fresh)
    still.values[:] = 3.0
    short = track(40, usable=usable[:40], fresh=fresh[:40])

    assert place([still, short], stream(), 0) == []


def test_series_with_room_for_one_fault_each_get_one_of_each_kind() -> None:
    usable, fresh = np.ones(48, bool), np.arange(48) == 0
    small = [track(48, usable=usable, fresh=fresh, seed=seed) for seed in range(7)]

    faults = place(small, stream(), 0)

    assert {fault.kind for fault in faults} == set(KINDS)
    assert len({fault.track for fault in faults}) == len(faults) == len(KINDS)


def waves(rows: int = 1_200, level: float = 50.0) -> np.ndarray:
    """Two features, a rhythm of 97 rows and some noise: nothing repeats exactly."""
    random = np.random.default_rng(5)
    angle = np.arange(rows)[:, None] * 2 * np.pi / 97 + np.array([0.0, 1.0])
    return level + 5 * np.sin(angle) + random.normal(0, 0.5, (rows, 2))


def rows_with(
    settings_: Stream, opened: Batches, *, faulty: bool
) -> tuple[Track, list[Fault], np.ndarray, np.ndarray]:
    """A series' track and faults, its rows by the detect step, and the times of those."""
    batches = list(opened())
    detector = Detector("n", "s", settings_)
    [found] = survey(detector, batches, (), ())
    faults = place([found], settings_, 0)
    changed = changes([found], faults, settings_, 0) if faulty else {}
    detector = Detector("n", "s", settings_, Injecting(settings_, changed))
    state = detector.fresh("", 0)
    rows = [rows for batch in batches for rows in detector.rows(state, batch)]
    return found, faults, np.concatenate([r.values for r in rows]), np.concatenate([r.time_ns for r in rows])


def narrow(values: np.ndarray) -> Batches:
    """The same readings, a metric a record, two readings of each in a cell."""
    records = []
    for row, cells in enumerate(values.tolist()):
        for half in range(2):
            for name, cell in zip(FEATURES, cells, strict=True):
                at = START_S + EVERY_S * (row + half / 3)
                event = {"series": "a", "time": at, "metric": name, "value": cell}
                records.append((b"a", json.dumps(event).encode(), round(at * 1_000)))
    return lambda: iter([RecordBatch.of(PARTITION, 7, records)])


def counters(values: np.ndarray) -> np.ndarray:
    """Counters that rise by ``values`` a second, and are reset once."""
    total = np.cumsum(values * EVERY_S, axis=0)
    total[700:] -= total[699]
    return total


WAYS = {
    "none": lambda values: source({"a": values}),
    "log": lambda values: source({"a": np.expm1(values / 10)}),
    "diff": lambda values: source({"a": np.cumsum(values, axis=0)}),
    "rate": lambda values: source({"a": counters(values)}),
    "narrow": narrow,
}


# What a model sees of a fault is the same whatever its rows are made of: the only change, of the size it has.
@pytest.mark.parametrize("way", WAYS)
def test_faults_reach_the_rows_as_they_are_defined_and_nothing_else_does(way: str) -> None:
    features = {name: {"transform": "none" if way == "narrow" else way} for name in FEATURES}
    grid = {"kind": "narrow", "every": EVERY_S} if way == "narrow" else {}
    settings_ = stream(features=features, **grid)
    opened = WAYS[way](waves())

    found, faults, clean, at_ns = rows_with(settings_, opened, faulty=False)
    *_, faulty, faulty_ns = rows_with(settings_, opened, faulty=True)

    assert np.array_equal(at_ns, faulty_ns)
    assert {fault.kind for fault in faults} == set(KINDS)
    moved, expected = faulty - clean, np.zeros_like(clean)
    for fault in faults:
        rows = slice(*np.searchsorted(at_ns, (fault.start_ns, fault.end_ns)))
        length = rows.stop - rows.start
        assert length == fault.end - fault.first
        for feature in fault.features:
            push = fault.push * found.spread[feature]
            before, donor = clean[rows.start - 1, feature], clean[fault.donor : fault.donor + length, feature]
            if fault.kind in {"spike", "level shift"}:
                expected[rows, feature] = push
            elif fault.kind == "drift":
                expected[rows, feature] = push * np.arange(1, length + 1) / length
            elif fault.kind == "stuck":
                held = 0.0 if way in {"diff", "rate"} else before
                expected[rows, feature] = held - clean[rows, feature]
            elif fault.kind == "lost phase":
                expected[rows, feature] = donor - clean[rows, feature]
            else:
                drawn = moved[rows, feature] / push
                assert 0.4 < drawn.std() < 2
                expected[rows, feature] = moved[rows, feature]
    np.testing.assert_allclose(moved, expected, atol=1e-4)


def test_a_lost_phase_takes_another_moment_of_the_rhythm() -> None:
    found, faults, *_ = rows_with(stream(), source({"a": waves()}), faulty=False)

    lost = [fault for fault in faults if fault.kind == "lost phase"]
    assert lost
    for fault in lost:
        length = fault.end - fault.first
        here = found.values[fault.first : fault.end, fault.features]
        there = found.values[fault.donor : fault.donor + length, fault.features]
        assert np.abs(here - there).mean() > found.spread.min() / 2


def test_a_counter_that_runs_slower_never_falls() -> None:
    settings_ = stream(features={name: {"transform": "rate"} for name in FEATURES})
    slow = np.random.default_rng(0).normal(1.0, 0.9, (1_200, 2)).clip(0)
    batches = list(source({"a": counters(slow)})())
    [found] = survey(Detector("n", "s", settings_), batches, (), ())

    changed = changes([found], place([found], settings_, 0), settings_, 0)[PARTITION]

    for feature, raw in enumerate(found.raw):
        value, mine = raw.value.copy(), changed.feature == feature
        value[np.searchsorted(raw.offset, changed.offset[mine])] = changed.value[mine]
        assert mine.any()
        assert np.flatnonzero(np.diff(value) < -1e-9).tolist() == [699]
