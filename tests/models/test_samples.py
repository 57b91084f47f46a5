"""Windows to learn from: none crosses a gap, and what is held out shares no row with training."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.samples import SeriesRows, evenly, pool, split, usable_rows, window_starts

stretches = st.lists(st.integers(1, 40), min_size=1, max_size=8)


def segments(lengths: list[int]) -> np.ndarray:
    """Stretches told apart by 0 and 1 in turn, so that a number comes again."""
    return np.concatenate([np.full(length, i % 2, np.int32) for i, length in enumerate(lengths)])


@given(stretches, st.integers(2, 12))
def test_windows_are_all_those_that_cross_no_gap(lengths: list[int], window_rows: int) -> None:
    starts = window_starts(segments(lengths), window_rows)

    ends = np.cumsum(lengths)
    begins = ends - lengths
    expected = [
        i
        for begin, end in zip(begins, ends, strict=True)
        for i in range(begin, end)
        if i + window_rows <= end
    ]
    assert starts.tolist() == expected


@given(stretches, st.integers(2, 12))
def test_held_out_windows_share_no_row_with_training_and_come_last(
    lengths: list[int], window_rows: int
) -> None:
    parts = split(segments(lengths), window_rows)

    everything = window_starts(segments(lengths), window_rows)
    assert len(parts.train) or not len(everything)
    if len(parts.held_out):
        assert parts.train[-1] + window_rows <= parts.held_out[0]
        assert len(parts.held_out) == round(0.2 * len(everything))
        assert parts.held_out[-1] == everything[-1]


def test_a_gap_costs_a_window_less_one_row() -> None:
    assert usable_rows(np.zeros(100, np.int32), 32) == 100
    assert usable_rows(np.repeat([0, 1], 50).astype(np.int32), 32) == 100 - 31
    assert usable_rows(np.zeros(31, np.int32), 32) == 0


def test_evenly_keeps_few_and_thins_many() -> None:
    assert evenly(np.arange(5), 10).tolist() == [0, 1, 2, 3, 4]
    assert evenly(np.arange(100), 4).tolist() == [0, 25, 50, 75]


def test_the_fallbacks_sample_takes_part_of_every_series_and_holds_out_whole_short_ones() -> None:
    series = [SeriesRows(np.full((10, 1), float(i)), np.zeros(10, np.int32)) for i in range(10)]

    pooled = pool(series, [split(each.segment, 8) for each in series], 8)

    assert sorted(set(pooled.windows[pooled.train :, 0, 0])) == [4.0, 9.0]
    assert sorted(set(pooled.windows[: pooled.train, 0, 0])) == [0.0, 1.0, 2.0, 3.0, 5.0, 6.0, 7.0, 8.0]
