"""The state of a partition: what is packed, what is read back, and bytes that must not change unnoticed."""

from __future__ import annotations

import dataclasses
import json
import struct

import msgspec
import numpy as np
import pytest
from feeding import COMPILED, Feed, batch, reading, stream
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.policy import NEVER
from pipeline.records import BUCKET_ROWS, PackedRows
from pipeline.series import SCHEMA_VERSION, Layout, PartitionState


def series_of(state: PartitionState, packed: PackedRows) -> list[str]:
    assert [state.names[slot] for slot in packed.slots] == [key.decode() for key in packed.series]
    return [key.decode() for key in packed.series]


def checkpoint(feed: Feed, *, whole: bool = False) -> PackedRows:
    packed = feed.state.pack(whole=whole)
    feed.state.stored()
    return packed


class TestPacking:
    def test_a_delta_holds_what_changed_since_the_last_checkpoint(self) -> None:
        feed = Feed(stream())
        feed.send(reading("a", 0), reading("b", 0))
        checkpoint(feed, whole=True)

        feed.send(reading("b", 1))

        assert series_of(feed.state, checkpoint(feed)) == ["b"]
        assert series_of(feed.state, checkpoint(feed)) == []

    def test_what_was_packed_but_not_stored_is_packed_again(self) -> None:
        feed = Feed(stream())
        feed.send(reading("a", 0))

        feed.state.pack(whole=False)

        assert series_of(feed.state, feed.state.pack(whole=False)) == ["a"]

    def test_a_whole_write_holds_everything_and_replaces_its_buckets(self) -> None:
        feed = Feed(stream())
        feed.send(reading("a", 0), reading("b", 0))
        checkpoint(feed)

        packed = feed.state.pack(whole=True)

        assert series_of(feed.state, packed) == ["a", "b"]
        assert packed.whole_buckets == {0}
        assert packed.rows.shape == (2, feed.detector.layout.row_bytes)

    @pytest.mark.parametrize("every", [None, "10s"])
    def test_a_state_without_series_packs_to_its_header(self, every: str | None) -> None:
        feed = Feed(stream(every=every))
        feed.send(b"?")

        packed = feed.state.pack(whole=True)

        assert packed.rows.shape == (0, feed.detector.layout.row_bytes)
        restored = PartitionState.unpack(feed.detector.layout, packed)
        assert restored is not None
        assert restored.counters.named() == feed.state.counters.named()

    def test_changes_beyond_one_script_are_widened_to_whole_buckets(self) -> None:
        feed = Feed(stream())
        names = [f"s{n}" for n in range(2 * BUCKET_ROWS + 10)]
        feed.send(*(reading(name, 0) for name in names))
        checkpoint(feed, whole=True)

        feed.send(*(reading(name, 1) for name in names[: BUCKET_ROWS + 1]))
        packed = checkpoint(feed)

        assert packed.whole_buckets == {0, 1}
        assert series_of(feed.state, packed) == names[: 2 * BUCKET_ROWS]

    def test_changes_that_fit_one_script_stay_a_delta(self) -> None:
        feed = Feed(stream())
        names = [f"s{n}" for n in range(BUCKET_ROWS + 10)]
        feed.send(*(reading(name, 0) for name in names))
        checkpoint(feed, whole=True)

        feed.send(*(reading(name, 1) for name in names[10:]))
        packed = checkpoint(feed)

        assert packed.whole_buckets == frozenset()
        assert len(packed.slots) == BUCKET_ROWS

    def test_slots_stay_where_they_are_for_the_life_of_a_series(self) -> None:
        feed = Feed(stream(forget_after="100s"))
        feed.each(reading("a", 0), reading("b", 0), reading("b", 100))

        feed.send(reading("b", 101), reading("c", 101))

        assert (feed.state.index["b"], feed.state.index["c"]) == (1, 0)


class TestRemoving:
    def forgotten(self, **events: object) -> Feed:
        """`a` was stored, and is forgotten."""
        feed = Feed(stream(forget_after="100s", **events))
        feed.send(reading("a", 0, site="north"), reading("b", 0, site="west"))
        checkpoint(feed, whole=True)
        feed.send(reading("b", 100, site="west"))
        return feed

    def test_a_forgotten_series_is_removed_with_the_next_checkpoint_and_once(self) -> None:
        feed = self.forgotten()

        assert checkpoint(feed).removed == ((0, b"a"),)
        assert checkpoint(feed).removed == ()

    def test_a_whole_bucket_needs_no_removals(self) -> None:
        feed = self.forgotten()

        packed = feed.state.pack(whole=True)

        assert (packed.removed, packed.whole_buckets) == ((), {0})

    def test_a_series_that_is_back_in_its_bucket_is_not_removed(self) -> None:
        feed = self.forgotten()

        feed.send(reading("a", 101))
        packed = checkpoint(feed)

        assert packed.removed == ()
        assert series_of(feed.state, packed) == ["a", "b"]

    def test_a_series_that_is_back_in_another_bucket_is_removed_from_the_old_one(self) -> None:
        feed = Feed(stream(forget_after="100s"))
        others = [f"s{n}" for n in range(1, BUCKET_ROWS)]
        feed.send(reading("a", 0), *(reading(name, 50) for name in others))
        checkpoint(feed, whole=True)

        feed.each(reading("s1", 100), reading("takes the free slot", 101), reading("a", 102))
        packed = checkpoint(feed)

        assert packed.slots.tolist() == [0, 1, BUCKET_ROWS]
        assert packed.removed == ((0, b"a"),)

    def test_a_series_that_is_back_with_other_labels_is_removed_under_the_old_ones(self) -> None:
        feed = self.forgotten(labels=["site"])

        feed.send(reading("a", 101, site="south"))
        packed = checkpoint(feed)

        assert packed.removed == ((0, b"a\x1fnorth"),)
        assert b"a\x1fsouth" in packed.series

    def test_a_series_that_comes_back_within_a_batch_with_other_labels_is_removed_under_the_old_ones(
        self,
    ) -> None:
        feed = Feed(stream(forget_after="100s", labels=["site"]))
        feed.send(reading("a", 0, site="north"))
        checkpoint(feed, whole=True)

        feed.send(reading("b", 100, site="west"), reading("a", 101, site="south"))

        assert checkpoint(feed).removed == ((0, b"a\x1fnorth"),)

    def test_removals_beyond_one_script_are_widened_to_whole_buckets(self) -> None:
        feed = Feed(stream(forget_after="100s"))
        feed.send(*(reading(f"s{n}", 0) for n in range(BUCKET_ROWS + 10)))
        checkpoint(feed, whole=True)

        feed.send(reading("last", 100))
        packed = checkpoint(feed)

        assert (packed.removed, packed.whole_buckets) == ((), {0, 1})
        assert series_of(feed.state, packed) == ["last"]


class TestUnpacking:
    def stored(self) -> tuple[Feed, PackedRows]:
        feed = Feed(stream(labels=["site"]))
        feed.send(reading("a", 0, site="north"), reading("b", 1), b"?")
        return feed, feed.state.pack(whole=True)

    def test_everything_is_read_back(self) -> None:
        feed, packed = self.stored()

        state = PartitionState.unpack(feed.detector.layout, packed)

        assert state is not None
        assert (state.topic_id, state.next_offset, state.clock_ns) == ("topic-1", 3, 1_000_000_000)
        assert (state.bundle_id, state.live) == ("bundle-1", 2)
        assert state.labels == [("north",), ("",)]
        assert state.counters.named() == feed.state.counters.named()
        again = state.pack(whole=True)
        assert (again.header, again.series, again.rows.tobytes()) == (
            packed.header,
            packed.series,
            packed.rows.tobytes(),
        )

    def test_nothing_is_dirty_and_free_slots_are_known(self) -> None:
        feed = Feed(stream(forget_after="100s"))
        feed.each(reading("a", 0), reading("b", 0), reading("b", 100))

        state = PartitionState.unpack(feed.detector.layout, feed.state.pack(whole=True))

        assert state is not None
        assert not state.dirty.any()
        assert (state.names, state.free) == ([None, "b"], [0])

    @pytest.mark.parametrize(
        "other",
        [
            {"window": 3},
            {"features": ["x", "y"]},
            {"every": "10s"},
            {"kind": "narrow", "every": "10s"},
            {"labels": ["city"]},
            {"series": "unit"},
            {"features": {"x": {"transform": "log"}}},
        ],
    )
    def test_rows_of_another_layout_are_not_read(self, other: dict[str, object]) -> None:
        _, packed = self.stored()

        assert PartitionState.unpack(Layout.of(stream(**{"labels": ["site"], **other})), packed) is None

    def test_rows_of_another_schema_version_are_not_read(self) -> None:
        feed, packed = self.stored()
        header = json.loads(packed.header) | {"schema_version": SCHEMA_VERSION + 1}
        newer = PackedRows(json.dumps(header).encode(), packed.slots, packed.series, packed.rows)

        assert PartitionState.unpack(feed.detector.layout, newer) is None

    @pytest.mark.parametrize("header", [b"", b"garbage", b"{}", b"\xff"])
    def test_a_header_that_cannot_be_read_is_no_state(self, header: bytes) -> None:
        feed, packed = self.stored()
        damaged = PackedRows(header, packed.slots, packed.series, packed.rows)

        assert PartitionState.unpack(feed.detector.layout, damaged) is None

    # Nothing writes this, and who meets it all the same makes the state anew.
    def test_rows_that_are_not_as_long_as_their_header_says_are_not_read(self) -> None:
        feed, other = Feed(stream()), Feed(stream(window=3))
        feed.send(reading("a", 0))
        other.send(reading("a", 0))
        rows = other.state.pack(whole=True)

        mixed = dataclasses.replace(rows, header=feed.state.pack(whole=True).header)

        assert PartitionState.unpack(feed.detector.layout, mixed) is None

    def test_settings_that_change_no_bytes_keep_the_state(self) -> None:
        feed, packed = self.stored()

        other = stream(labels=["site"], max_series=5, gap="1h", silent_after="5m", rules={"for": 5})
        assert PartitionState.unpack(Layout.of(other), packed) is not None
        assert feed.detector.layout.name == Layout.of(other).name


def checksum_after(*offsets: int) -> int:
    """Of a series that saw these records, in this order."""
    feed = Feed(stream())
    for offset in offsets:
        feed.take(batch([reading("a", 0)], first_offset=offset))
    return int(feed.row("a")["checksum"])


class TestTheRollingChecksum:
    @settings(derandomize=True, deadline=None, max_examples=50 if COMPILED else 10)
    @given(offsets=st.lists(st.integers(0, 10**9), min_size=2, max_size=8, unique=True), draw=st.data())
    def test_one_missed_doubled_or_swapped_record_shows(
        self, offsets: list[int], draw: st.DataObject
    ) -> None:
        right, at = sorted(offsets), draw.draw(st.integers(0, len(offsets) - 2))
        missed = right[:at] + right[at + 1 :]
        doubled = right[: at + 1] + right[at:]
        swapped = [*right[:at], right[at + 1], right[at], *right[at + 2 :]]

        assert len({checksum_after(*each) for each in (right, missed, doubled, swapped)}) == 4

    def test_records_of_other_series_are_no_part_of_it(self) -> None:
        feed = Feed(stream())

        feed.send(reading("a", 0), reading("b", 1), reading("a", 2))

        assert feed.row("a")["checksum"] == checksum_after(0, 2)

    def test_late_records_and_duplicates_are(self) -> None:
        feed, other = Feed(stream()), Feed(stream())
        feed.send(reading("a", 5), reading("a", 5), reading("a", 1), reading("a", 6))
        other.send(reading("a", 5), b"?", b"?", reading("a", 6))

        assert feed.window("a") == other.window("a")
        assert feed.row("a")["checksum"] != other.row("a")["checksum"]

    def test_a_series_that_begins_anew_begins_it_anew(self) -> None:
        feed = Feed(stream(forget_after="100s"))

        feed.each(reading("a", 0), reading("b", 500), reading("a", 501))

        assert feed.row("a")["checksum"] == 2 + 1

    def test_it_is_stored_with_the_row(self) -> None:
        feed = Feed(stream())
        feed.send(reading("a", 0), reading("a", 1))

        restored = PartitionState.unpack(feed.detector.layout, feed.state.pack(whole=True))

        assert restored is not None
        assert restored.rows[restored.index["a"]]["checksum"] == checksum_after(0, 1) > 0


class TestBytes:
    def test_no_field_leaves_bytes_between_or_hides_behind_a_name_of_numpys(self) -> None:
        for array in Layout(2, 1, 2, 2, 2, "").arrays(1):
            fields = array.dtype.fields
            if fields is not None:
                assert sum(kind.itemsize for kind, *_ in fields.values()) == array.dtype.itemsize
                assert [name for name in fields if hasattr(np.void, name)] == []

    def test_one_row_of_schema_version_5_to_the_byte(self) -> None:
        """If this fails, the format has changed: raise SCHEMA_VERSION, or stored state is misread."""
        feed = Feed(stream(every="10s", late="0s", features=["x", "y"], labels=["site"]), scorer=None)
        feed.send(
            reading("a", 1_000_000_001, 1.5, y=-2.0, site="north"),
            reading("a", 1_000_000_012, 2.5, y=4.0),
            b"?",
            stamp_s=1_000_000_012,
        )

        packed = feed.state.pack(whole=True)

        assert SCHEMA_VERSION == 5
        assert packed.series == [b"a\x1fnorth"]
        assert msgspec.json.decode(packed.header) == {
            "schema_version": 5,
            "layout": "c4f8fee82ab67dd3",
            "topic_id": "topic-1",
            "next_offset": 3,
            "clock_ns": 1_000_000_012_000_000_000,
            "bundle_id": None,
            "in_force": None,
            "journal_offset": 0,
            "bins": [0, 0, 1, 0, 1, 0, 0, 1, 0, 0, 0],
            "attributes": [0, 0],
            "letters_second": 1_000_000_012,
            "letters_count": 1,
        }
        assert packed.rows[0].tobytes() == b"".join(
            [
                bytes.fromhex("01 00 01 00 01000000"),  # live, armed, one row went into the window
                integers(-1, 0, 1_000_005),  # no key, not moved, checksum of the offsets 0 and 1
                times_s(1_000_000_020, 1_000_000_012, 1_000_000_000),  # due, newest reading, newest row
                integers(0),  # offset
                bytes(8 * 6),  # moments and the row they were last moved by: no model has judged yet
                integers(
                    NEVER, 0, NEVER, NEVER, 0
                ),  # above since, episode's start, calm since, quiet until, silent since
                bytes(8 + 4 + 4),  # peak, run, revision
                floats(1.5, -2.0),  # raw
                times_s(1_000_000_000, 1_000_000_000),  # when they were observed
                floats(1.5, -2.0),  # after the transforms
                floats(1.5, -2.0),  # anchor
                bytes(4 * 2 * 2),  # tail
                bytes(8 * 3),  # the free cell
                integers(100_000_001, 1, 1),  # the open cell: index, offset, readings
                floats(0.0, 0.0, 2.5, 4.0),  # merged values by cell
                integers(0, 0),
                times_s(1_000_000_012, 1_000_000_012),  # when they were read
                struct.pack("<4i", 0, 0, 1, 1),  # how many
                bytes(8 * 16),  # readings held by the free cell
                integers(2_000_000_000, *[0] * 15),  # and by the open one: 2 s into it
            ]
        )


def integers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def times_s(*values: int) -> bytes:
    return integers(*(value * 1_000_000_000 for value in values))


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)
