"""The bins by number and by name."""

from __future__ import annotations

from pipeline.accounting import Bin, Counters


def test_the_bins_are_eleven_and_keep_their_numbers_because_they_are_stored_by_them() -> None:
    assert [name.name.lower() for name in Bin] == [
        "scored",
        "warming",
        "waiting_model",
        "merged",
        "pending",
        "late",
        "duplicate",
        "dead_lettered",
        "over_limit",
        "corrupt",
        "outside",
    ]


def test_the_records_read_are_the_sum_of_all_bins() -> None:
    counters = Counters()
    counters.bins[Bin.SCORED] = 5
    counters.bins[Bin.CORRUPT] = 2

    assert counters.records_read == 7
    assert counters.named()["scored"] == 5
    assert sum(counters.named().values()) == 7


def test_frozen_and_gap_filled_are_counted_apart() -> None:
    counters = Counters()
    counters.attributes[:] = 3, 4

    assert (counters.gap_filled, counters.frozen, counters.records_read) == (3, 4, 0)
