"""Training sees exactly the rows that detection sees, the newest or the first of them, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import history
from models.history import Batches, Part, gather, topic_bounds, topic_source
from pipeline import config
from pipeline.bus import connect
from pipeline.control import Silenced, Standing
from pipeline.detect import Detector
from pipeline.errors import NotFound
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
    stream: config.Stream = STREAM,
) -> history.History:
    return gather(Detector("n", "s", stream), sources, Part(rows, first), freezes, lambda _: None)


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
    monkeypatch.setattr(history, "MOST_VALUES", 400)
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
        assert found.frozen == 3

    # A window over the hole would show what never followed on each other.
    @pytest.mark.parametrize("size", [1, 3, 40])
    def test_no_window_reaches_over_the_hole(self, size: int) -> None:
        found = gathered(source(*self.RECORDS, size=size), freezes=[freeze(1_010, 1_015, series="a")])

        a, b = found.series["a"], found.series["b"]
        assert a.values[np.flatnonzero(np.diff(a.segment)) + 1, 0].tolist() == [16]
        assert np.ptp(b.segment) == 0

    def test_an_end_before_its_time_ends_it_here_too(self) -> None:
        found = gathered(source(*self.RECORDS), freezes=[freeze(1_010, 1_030, ended=1_012)])

        assert found.frozen == 2

    @pytest.mark.parametrize(
        ("matchers", "frozen"),
        [({}, 40), ({"stream": "s"}, 40), ({"stream": "t"}, 0), ({"series_regex": "[ac]"}, 20)],
    )
    def test_only_what_a_silence_is_about_is_frozen(self, matchers: dict[str, Any], frozen: int) -> None:
        assert gathered(source(*self.RECORDS), freezes=[freeze(0, 9_999, **matchers)]).frozen == frozen

    # Silences that overlap freeze a row once.
    def test_several_silences_are_added_up(self) -> None:
        freezes = [freeze(1_000, 1_010), freeze(1_005, 1_020), freeze(1_030, 1_031)]

        assert gathered(source(*self.RECORDS), freezes=freezes).frozen == 21

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
