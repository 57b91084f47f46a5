"""Training sees exactly the rows that detection sees, the newest or the first of them, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import history
from models.episodes import OPEN_NS, Episode, LeftOut
from models.history import Batches, Part, gather, recent_ms, topic_bounds, topic_source
from pipeline import config
from pipeline.bus import connect
from pipeline.control import Silenced, Standing
from pipeline.detect import Detector
from pipeline.errors import NotFound
from pipeline.ports import Reader
from pipeline.records import Bounds, RecordBatch, Send, TopicPartition, TopicSpec
from pipeline.silences import Matchers, Silence

TOPIC = "t"
STREAM = config.parse(f"streams: {{s: {{topic: {TOPIC}, events: {{features: [x], gap: 100s}}}}}}").stream("s")


def event(series: str, at: float, x: float | str) -> tuple[bytes, bytes, int]:
    return series.encode(), msgspec.json.encode({"time": at, "series": series, "x": x}), round(at * 1000)


def source(*records: tuple[bytes, bytes, int], partition: int = 0, size: int = 7) -> Batches:
    """The records in batches of ``size``."""

    def batches() -> Iterator[RecordBatch]:
        for first in range(0, len(records), size):
            yield RecordBatch.of(TopicPartition(TOPIC, partition), first, records[first : first + size])

    return batches


def gathered(
    *sources: Batches,
    rows: int = 1_000,
    first: float = 1.0,
    freezes: Sequence[Standing] = (),
    episodes: Sequence[Episode] = (),
    stream: config.Stream = STREAM,
) -> history.History:
    return gather(
        Detector("n", "s", stream), sources, Part(rows, first), LeftOut(freezes, episodes), lambda _: None
    )


def freeze(start: float, end: float, ended: float | None = None, **matchers: Any) -> Standing:  # noqa: ANN401
    """A silence of series under which nothing is learned; times are event times."""
    since, to, at = (datetime.fromtimestamp(each, UTC) for each in (start, end, ended or end))
    silence = Silence(matchers=Matchers(**matchers), mode="freeze", start=since, end=to)
    record = Silenced(stream="*", at=since, who="mona", why="a test", id="0" * 12, silence=silence)
    return Standing(record, None if ended is None else at)


def values(found: history.History) -> dict[str, list[float]]:
    return {name: each.values[:, 0].tolist() for name, each in found.series.items()}


series_of_rows = st.lists(st.sampled_from("abc"), min_size=1, max_size=60)


# The bound and the share are each series' own, however series are mixed and batches are cut.
@settings(deadline=None)  # the first example may compile kernels
@given(series_of_rows, st.integers(1, 20), st.floats(0.05, 1.0), st.integers(1, 9))
def test_the_newest_rows_of_the_first_share_are_kept(
    order: list[str], rows: int, first: float, size: int
) -> None:
    records = [event(series, 1_000.0 + n, n) for n, series in enumerate(order)]

    found = gathered(source(*records, size=size), rows=rows, first=first)

    expected = {}
    for series in set(order):
        own = [float(n) for n, each in enumerate(order) if each == series]
        share = own[: int(np.floor(len(own) * first))] if first < 1 else own
        if share:
            expected[series] = share[-rows:]
    assert values(found) == expected
    assert found.records == len(order)


def test_compaction_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [event("ab"[n % 2], 1_000.0 + n, n) for n in range(300)]
    plain = gathered(source(*records), rows=40)
    monkeypatch.setattr(history, "_COMPACT_ROWS", 16)

    compacted = gathered(source(*records), rows=40)

    assert values(compacted) == values(plain)
    for name, each in compacted.series.items():
        assert np.ptp(each.segment) == np.ptp(plain.series[name].segment) == 0


# A thousand series must not hold a thousand times the memory of one.
def test_memory_is_bounded_over_all_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_VALUES", 1_600)
    monkeypatch.setattr(history, "_COMPACT_ROWS", 64)
    records = [event(f"s{n % 4}", 1_000.0 + n, n) for n in range(1_200)]

    found = gathered(source(*records), rows=1_000)

    assert found.rows_limit == 100
    assert found.rows == 400
    assert values(found)["s3"] == [float(n) for n in range(803, 1_200, 4)]


def test_a_gap_begins_a_new_segment() -> None:
    records = [event("a", 1_000.0 + n + 500 * (n >= 5), n) for n in range(10)]

    found = gathered(source(*records)).series["a"]

    assert np.flatnonzero(np.diff(found.segment)).tolist() == [4]


# It should not happen, but where it does no window may reach from one partition's rows to the other's.
def test_a_series_in_two_partitions_is_two_stretches() -> None:
    one = source(*[event("a", 1_000.0 + n, n) for n in range(3)])
    other = source(*[event("a", 1_003.0 + n, n + 3) for n in range(3)], partition=1)

    found = gathered(one, other).series["a"]

    assert found.values[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert found.segment[2] != found.segment[3]


def test_what_did_not_become_rows_is_counted() -> None:
    records = [
        event("a", 1_000.0, 1),
        event("a", 1_000.0, 2),
        event("a", 1_001.0, "broken"),
        event("a", 1_002.0, 3),
    ]

    found = gathered(source(*records))

    assert values(found) == {"a": [1, 3]}
    assert found.bins["duplicate"] == 1
    assert found.bins["dead_lettered"] == 1


class TestFreezing:
    """What somebody declared to be no example of how things are is not learned from."""

    RECORDS = tuple(event("ab"[n % 2], 1_000.0 + n, n) for n in range(40))

    @pytest.mark.parametrize("size", [1, 7, 40])
    def test_rows_in_a_frozen_window_are_left_out_and_counted(self, size: int) -> None:
        found = gathered(source(*self.RECORDS, size=size), freezes=[freeze(1_010, 1_015, series="a")])

        left = [n for n in range(0, 40, 2) if not 10 <= n < 15]
        assert values(found) == {"a": left, "b": list(range(1, 40, 2))}
        assert found.account.frozen == 3

    # A window over the hole would show what never followed on each other.
    @pytest.mark.parametrize("size", [1, 3, 40])
    def test_no_window_reaches_over_the_hole(self, size: int) -> None:
        found = gathered(source(*self.RECORDS, size=size), freezes=[freeze(1_010, 1_015, series="a")])

        a, b = found.series["a"], found.series["b"]
        assert a.values[np.flatnonzero(np.diff(a.segment)) + 1, 0].tolist() == [16]
        assert np.ptp(b.segment) == 0

    def test_an_end_before_its_time_ends_it_here_too(self) -> None:
        found = gathered(source(*self.RECORDS), freezes=[freeze(1_010, 1_030, ended=1_012)])

        assert found.account.frozen == 2

    @pytest.mark.parametrize(
        ("matchers", "frozen"),
        [({}, 40), ({"stream": "s"}, 40), ({"stream": "t"}, 0), ({"series_regex": "[ac]"}, 20)],
    )
    def test_only_what_a_silence_is_about_is_frozen(self, matchers: dict[str, Any], frozen: int) -> None:
        assert (
            gathered(source(*self.RECORDS), freezes=[freeze(0, 9_999, **matchers)]).account.frozen == frozen
        )

    # Silences that overlap freeze a row once.
    def test_several_silences_are_added_up(self) -> None:
        freezes = [freeze(1_000, 1_010), freeze(1_005, 1_020), freeze(1_030, 1_031)]

        assert gathered(source(*self.RECORDS), freezes=freezes).account.frozen == 21

    @pytest.mark.parametrize("size", [1, 40])
    def test_labels_are_those_of_the_first_record_of_a_series(self, size: int) -> None:
        labelled = config.parse(
            f"streams: {{s: {{topic: {TOPIC}, events: {{features: [x], labels: [hall]}}}}}}"
        ).stream("s")
        records = [
            (key, msgspec.json.encode(msgspec.json.decode(value) | {"hall": hall}), at_ms)
            for (key, value, at_ms), hall in zip(
                self.RECORDS, ["north", "south", *["moved"] * 38], strict=True
            )
        ]
        records.insert(0, event("c", 999.0, "broken"))

        found = gathered(
            source(*records, size=size),
            freezes=[freeze(0, 9_999, labels={"hall": "n*"})],
            stream=labelled,
        )

        assert values(found) == {"b": list(range(1, 40, 2))}

    # Half of what can be learned from, and not half of which most is frozen.
    def test_the_first_share_is_of_the_rows_that_are_left(self) -> None:
        found = gathered(source(*self.RECORDS), freezes=[freeze(1_000, 1_020)], first=0.5)

        assert values(found) == {"a": [20, 22, 24, 26, 28], "b": [21, 23, 25, 27, 29]}


WINDOW = 4
SMALL = config.parse(
    f"streams: {{s: {{topic: {TOPIC}, events: {{features: [x], gap: 100s}}, model: {{window: {WINDOW}}}}}}}"
).stream("s")
SLICE = WINDOW * history.SLICE_WINDOWS


def told(
    series: str, start: float, end: float | None, *, critical: bool = False, normal: bool = False
) -> Episode:
    """An anomaly from one event time to another; open where it has no end."""
    ended_ns = OPEN_NS if end is None else round(end * 1e9)
    return Episode(series, round(start * 1e9), ended_ns, critical, normal)


class TestSlices:
    """A series with more rows than are asked for is learned from over its whole range."""

    # Real records are slow to make by the hundred thousand; batches of another size change nothing.
    @pytest.mark.parametrize("size", [999, 20_000])
    def test_the_newest_fifth_is_whole_and_slices_of_several_windows_stand_before_it(
        self, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        monkeypatch.setattr(history, "_COMPACT_ROWS", 64)
        records = [event("a", 1_000.0 + n, n) for n in range(20_000)]

        found = gathered(source(*records, size=size), rows=1_000, stream=SMALL).series["a"]

        x = found.values[:, 0].astype(int)
        assert x[-200:].tolist() == list(range(19_800, 20_000))
        assert 768 <= len(x) - 200 <= 800
        older = x[:-200]
        assert set(np.unique(older // SLICE, return_counts=True)[1].tolist()) == {SLICE}
        assert np.histogram(older, 5, (0, 19_800))[0].min() >= 64
        np.testing.assert_array_equal(np.diff(x) != 1, np.diff(found.segment) != 0)

    # Slices at equal distances can all meet the same hour of the day: of two weeks, at usual rates, these
    # meet every sixth of it.
    @pytest.mark.parametrize("every_s", [5, 10, 15, 20, 30, 60])
    def test_slices_are_spread_over_the_range_and_over_each_day(self, every_s: int) -> None:
        slice_s = 8 * 32 * every_s
        number = np.arange(14 * 86_400 // slice_s, dtype=np.int32)

        kept = number[history._spread(np.zeros(len(number), np.int32), number, 31)]

        assert len(kept) == 31
        assert np.bincount(kept * 7 // len(number), minlength=7).min() >= 3
        assert np.bincount(kept * slice_s % 86_400 // 14_400, minlength=6).min() >= 1

    def test_a_series_within_its_budget_is_learned_from_whole(self) -> None:
        records = [event("ab"[n % 4 == 0], 1_000.0 + n, n) for n in range(2_000)]

        found = gathered(source(*records), rows=600, stream=SMALL)

        assert len(found.series["b"].segment) == 500
        assert np.ptp(found.series["b"].segment) == 0
        assert found.accounts["b"].thinned == 0
        assert found.accounts["a"].thinned == 1_500 - found.accounts["a"].learned

    # Too few slices say less of a range than its newest rows.
    def test_a_small_budget_takes_the_newest_rows(self) -> None:
        rows = 4 * SLICE
        records = [event("a", 1_000.0 + n, n) for n in range(1_000)]

        found = gathered(source(*records), rows=rows, stream=SMALL)

        assert values(found)["a"] == list(range(1_000 - rows, 1_000))


class TestAlerts:
    """What was told as an anomaly is no example of how things are, unless people say so."""

    RECORDS = tuple(event("ab"[n % 2], 1_000.0 + n, n) for n in range(400))

    @pytest.mark.parametrize("size", [1, 7, 400])
    def test_an_episode_and_the_rows_whose_windows_it_touches_are_left_out(self, size: int) -> None:
        found = gathered(source(*self.RECORDS, size=size), episodes=[told("a", 1_100, 1_120)], stream=SMALL)

        out = set(range(100, 122, 2)) | {122, 124, 126}
        assert values(found) == {
            "a": [n for n in range(0, 400, 2) if n not in out],
            "b": list(range(1, 400, 2)),
        }
        assert found.accounts["a"].alerts == len(out)
        assert np.flatnonzero(np.diff(found.series["a"].segment)).tolist() == [49]

    def test_one_that_is_open_reaches_to_the_end(self) -> None:
        found = gathered(source(*self.RECORDS), episodes=[told("a", 1_380, None)], stream=SMALL)

        assert values(found)["a"][-1] == 378

    def test_what_people_called_normal_is_learned_from(self) -> None:
        found = gathered(source(*self.RECORDS), episodes=[told("a", 1_100, 1_120, normal=True)], stream=SMALL)

        assert len(found.series["a"].segment) == 200
        assert (found.accounts["a"].alerts, found.accounts["a"].normal) == (0, 14)

    # Where more than a fifth is out of the ordinary it is the ordinary that has changed.
    def test_beyond_a_fifth_the_critical_and_the_short_ones_are_left_out_first(self) -> None:
        episodes = [
            told("a", 1_000, 1_040),
            told("a", 1_100, 1_110),
            told("a", 1_200, 1_250, critical=True),
        ]

        found = gathered(source(*self.RECORDS), episodes=episodes, stream=SMALL)

        x = values(found)["a"]
        assert not set(x) & set(range(200, 258)), "the critical one"
        assert not set(x) & set(range(100, 118)), "the short one"
        assert (found.accounts["a"].alerts, found.accounts["a"].over) == (40, 24 - 2)
        assert set(range(0, 48, 2)) - set(x) == {0, 2}, "the beginning of the long one"

    # A hole ends a window: what comes after it shares none with the episode.
    def test_a_gap_ends_the_margin(self) -> None:
        records = [event("a", 1_000.0 + n + 500 * (n >= 20), n) for n in range(60)]

        found = gathered(source(*records), episodes=[told("a", 1_015, 1_019)], stream=SMALL)

        assert values(found)["a"] == [*range(15), *range(20, 60)]


@st.composite
def pasts(draw: st.DrawFn) -> tuple[list[str], list[tuple[str, int, int, bool, bool]], tuple[int, int], int]:
    n = draw(st.integers(1, 500))
    order = draw(st.randoms(use_true_random=False)).choices("ab", k=n)
    at = st.integers(0, n)
    spans = st.tuples(st.sampled_from("ab"), at, st.integers(0, 40), st.booleans(), st.booleans())
    freeze = draw(st.tuples(at, st.integers(1, 60)))
    return order, draw(st.lists(spans, max_size=5)), freeze, draw(st.integers(1, 90))


# Every row is accounted for, at most a fifth of a series is left out because of alerts, and no window holds
# two rows that did not follow on each other.
@settings(deadline=None)  # the first example may compile kernels
@given(pasts(), st.sampled_from([64, 5 * SLICE, 6 * SLICE]), st.sampled_from([1.0, 0.7]))
def test_rows_are_accounted_for_and_no_window_crosses_what_is_left_out(
    past: tuple[list[str], list[tuple[str, int, int, bool, bool]], tuple[int, int], int],
    rows: int,
    first: float,
) -> None:
    order, spans, (frozen_from, frozen_for), size = past
    records = [event(series, 1_000.0 + n, n) for n, series in enumerate(order)]
    episodes = [
        told(series, 1_000 + at, 1_000 + at + length, critical=critical, normal=normal)
        for series, at, length, critical, normal in spans
    ]

    found = gathered(
        source(*records, size=size),
        rows=rows,
        first=first,
        freezes=[freeze(1_000 + frozen_from, 1_000 + frozen_from + frozen_for, series="a")],
        episodes=episodes,
        stream=SMALL,
    )

    for series in set(order):
        own = [n for n, each in enumerate(order) if each == series]
        if series not in found.accounts:
            assert first < 1, "a share of nothing"
            continue
        account, learned = found.accounts[series], found.series.get(series)
        x = [] if learned is None else learned.values[:, 0].astype(int).tolist()
        assert account.rows == account.frozen + account.thinned + account.alerts + account.learned
        assert account.learned == len(x) <= rows
        assert account.rows == len(own) if first == 1 else account.rows <= len(own)
        assert account.alerts <= history.LEFT_OUT_SHARE * (account.alerts + account.learned)
        assert account.normal + account.over <= account.learned
        if learned is not None:
            place = np.searchsorted(own, x)
            whole = np.diff(learned.segment) == 0
            assert (np.diff(place)[whole] == 1).all(), "a window crosses a hole"
            assert (np.diff(place) > 0).all()


# The rows that come in a second, of all series, as of late.
def test_the_rate_is_that_of_the_newer_rows() -> None:
    records = [event("ab"[n % 2], 1_000.0 + n + 5_000 * (n >= 10), n) for n in range(40)]

    assert gathered(source(*records)).rate == pytest.approx(1.0)
    assert gathered(source(records[0])).rate is None


# The share of rows in which a feature was missing and held its last value.
def test_held_values_are_counted() -> None:
    stream = config.parse(f"streams: {{s: {{topic: {TOPIC}, events: {{features: [x, y]}}}}}}").stream("s")
    records = [
        (
            b"a",
            msgspec.json.encode({"time": 1_000.0 + n, "series": "a", "x": n} | {"y": 1 if n < 4 else None}),
            1_000_000 + 1_000 * n,
        )
        for n in range(10)
    ]

    account = gathered(source(*records), stream=stream).accounts["a"]

    assert (account.rows, account.held.tolist()) == (10, [0, 6])


def test_the_past_begins_so_long_before_the_newest_record() -> None:
    broker = connect("sqlite://")
    broker.admin().create([TopicSpec(TOPIC, 3)])
    producer, reader = broker.producer(), broker.reader()
    assert recent_ms(reader, TOPIC, 10) is None
    for n in range(5):
        producer.send([Send(TOPIC, b"a", b"{}", timestamp_ms=1_000 * n, partition=n % 2)])
    producer.flush()

    assert recent_ms(reader, TOPIC, 3) == 1_000
    assert recent_ms(reader, TOPIC, 3, 3_500) == 500
    assert recent_ms(Marked(reader), TOPIC, 3) == 1_000
    broker.close()


class Marked:
    """A reader of a bus whose partitions end with marks that are no records, as transactions leave them."""

    MARKS = 20

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def bounds(self, topic: str) -> dict[int, Bounds]:
        return {
            number: replace(each, end_offset=each.end_offset + self.MARKS)
            for number, each in self._reader.bounds(topic).items()
        }

    def read(
        self, partition: TopicPartition, next_offset: int, records: int, timeout_s: float
    ) -> RecordBatch:
        end = self._reader.bounds(partition.topic)[partition.partition].end_offset
        if next_offset >= end:
            return RecordBatch.of(partition, end + self.MARKS, [])
        return self._reader.read(partition, next_offset, records, timeout_s)


# Bounds are taken once: what comes while we read is left for the next training.
def test_a_range_of_a_topic_is_read_by_the_timestamps_of_its_records() -> None:
    broker = connect("sqlite://")
    broker.admin().create([TopicSpec(TOPIC, 2)])
    producer, reader = broker.producer(), broker.reader()
    for n in range(10):
        key, value, at_ms = event("a", 1_000.0 + n, n)
        producer.send([Send(TOPIC, key, value, timestamp_ms=at_ms, partition=1)])
        producer.flush()
    bounds = topic_bounds(reader, TOPIC, 1_002_000, 1_007_000)
    producer.send([Send(TOPIC, b"a", b"late", timestamp_ms=1_003_000, partition=1)])
    producer.flush()

    found = gathered(*[topic_source(reader, TopicPartition(TOPIC, n), each) for n, each in bounds.items()])

    topic_id = bounds[0].topic_id
    assert bounds == {0: Bounds(0, 0, topic_id, 0), 1: Bounds(2, 7, topic_id, 7)}
    assert values(found) == {"a": [2, 3, 4, 5, 6]}
    with pytest.raises(NotFound):
        topic_bounds(reader, "none", None, None)
    broker.close()


# The one guarantee that matters: no second way from records to rows.
def test_training_sees_the_rows_that_detection_scores() -> None:
    rng = np.random.default_rng(0)
    records = [event("ab"[n % 2], 1_000.0 + n + 200 * (n > 150), float(rng.normal())) for n in range(300)]
    batch = RecordBatch.of(TopicPartition(TOPIC, 0), 0, records)
    detector = Detector("n", "s", STREAM)
    state = detector.fresh("", 0)
    detector.step(state, batch, None)

    found = gathered(source(*records))

    window = STREAM.model.window
    for slot, name in enumerate(state.names):
        np.testing.assert_allclose(
            state.window(slot), found.series[name or ""].values[-window:], rtol=1e-6, atol=1e-6
        )
