"""Every record ends in exactly one bin, whatever the batches: kernels against a plain model of the rules.

The model works record by record on dictionaries and brings what the clock passed to every series after each
record; the kernels must agree with it in any batching, and across a restart at any batch's end.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from feeding import COMPILED, PARTITION, Feed, S, encoded, stream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.accounting import Bin
from pipeline.alerts import LETTER_BYTES, Alert
from pipeline.conditions import Condition
from pipeline.config import Events, Stream
from pipeline.detect import LETTERS_PER_S, Detector
from pipeline.episodes import FIRING
from pipeline.readings import MAX_SERIES_CHARS
from pipeline.records import PackedRows, RecordBatch
from pipeline.series import Layout, PartitionState
from pipeline.testing import FakeScorer

Record = tuple[bytes | None, float]
"""Value and record timestamp in seconds."""
MAX_BYTES = 200
FEATURES = ("x", "y", "z")
Condition("on")  # what it imports uses `random`, which nobody may while Hypothesis draws


@dataclass
class Cell:
    offset: int
    seen: set[tuple[int, int]] = field(default_factory=set)
    values: dict[int, list[tuple[int, float]]] = field(default_factory=dict)


@dataclass
class Life:
    """A series from its first reading until it is forgotten."""

    offset: int
    last: int | None = None
    row: int | None = None
    silent_since: int | None = None
    window: int = 0
    raw: dict[int, tuple[int, float]] = field(default_factory=dict)
    out: dict[int, float] = field(default_factory=dict)
    cells: dict[int, Cell] = field(default_factory=dict)


class Model:
    """The rules of docs/bins.md as plainly as they can be said; durations in nanoseconds."""

    def __init__(self, settings: Stream, *, scoring: bool) -> None:
        events = self.events = settings.events
        self.window_rows, self.scoring = settings.model.window, scoring
        self.transforms = [feature.transform for feature in events.features.values()]
        self.names = list(events.features)
        self.every = None if events.every is None else round(events.every * S)
        self.late = round(events.late_s * S)
        self.gap = math.inf if events.gap_s is None else round(events.gap_s * S)
        self.silent = math.inf if events.silent_after is None else round(events.silent_after * S)
        self.forget = round(events.forget_after * S)
        self.clock = -(10**30)
        self.live: dict[str, Life] = {}
        self.bins: Counter[str] = Counter()
        self.gap_filled = 0
        self.silences: list[tuple[str, str, str, int, int, int]] = []
        self.rows: list[tuple[str, int, tuple[float, ...], bool]] = []

    def read(self, offset: int, value: bytes | None, stamp_s: float) -> None:
        event = self.decoded(value, stamp_s)
        if event is None:
            self.bins["dead_lettered"] += 1
            return
        name, time, *_ = event
        if name not in self.live:
            if len(self.live) == self.events.max_series:
                self.bins["over_limit"] += 1
                self.move_clock(time)
                return
            self.live[name] = Life(offset)
        life = self.live[name]
        self.clock = max(self.clock, time)
        if self.every is not None:
            self.close(name, self.clock)
        bin_ = self.placed(name, offset, event, inside=self.inside(value))
        self.bins[bin_] += 1
        if bin_ not in {"late", "duplicate"} and (life.last is None or time > life.last):
            life.last = time
            if life.silent_since is not None:
                self.silences.append((name, "resolved", "recovered", life.silent_since, time, offset))
                life.silent_since = None
        if life.last is None:  # all that is known of it came too late: it is no series yet
            del self.live[name]
        self.move_clock(time)

    def move_clock(self, time: int) -> None:
        self.clock = max(self.clock, time)
        for name in list(self.live):
            self.settle(name)

    def decoded(
        self, value: bytes | None, stamp_s: float
    ) -> tuple[str, int, dict[int, float], int | None] | None:
        if value is None or len(value) > MAX_BYTES:
            return None
        try:
            event = json.loads(value)
        except ValueError:
            return None
        if self.events.when is not None and not isinstance(event.get("on"), bool):
            return None
        time = round(event["time"] * S)
        too_far = time > round((stamp_s + self.events.ahead) * S)
        if self.events.kind == "narrow":
            known = event["metric"] in self.names
            f = self.names.index(event["metric"]) if known else 0
            return None if too_far or not known else (event["series"], time, {f: event["value"]}, f)
        values = {f: event[name] for f, name in enumerate(self.names) if event.get(name) is not None}
        refused = self.events.missing == "reject" and len(values) < len(self.names)
        return None if too_far or refused else (event["series"], time, values, None)

    def placed(
        self, name: str, offset: int, event: tuple[str, int, dict[int, float], int | None], *, inside: bool
    ) -> str:
        life, (_, time, values, metric) = self.live[name], event
        if not inside:
            return "outside"
        if self.every is not None:
            return self.merge(life, offset, time, values, metric)
        if life.last is None or time > life.last:
            return self.push(name, time, offset, values, filled=False)
        return "duplicate" if time == life.last else "late"

    def inside(self, value: bytes | None) -> bool:
        return self.events.when is None or bool(json.loads(value or b"")["on"])

    def merge(self, life: Life, offset: int, time: int, values: dict[int, float], metric: int | None) -> str:
        assert self.every is not None
        index = time // self.every
        if (life.row is not None and index * self.every <= life.row) or self.end(index) <= self.clock:
            return "late"
        first = index not in life.cells
        cell = life.cells.setdefault(index, Cell(offset))
        held = (time, -1 if metric is None else metric)
        if held in cell.seen:
            return "duplicate"
        cell.seen.add(held)
        cell.offset = offset
        for f, value in values.items():
            cell.values.setdefault(f, []).append((time, value))
        return "pending" if first else "merged"

    def end(self, index: int) -> int:
        assert self.every is not None
        return (index + 1) * self.every + self.late

    def close(self, name: str, until: float) -> None:
        life = self.live[name]
        for index in sorted(life.cells):
            if self.end(index) <= until:
                cell = life.cells.pop(index)
                self.fill_hole(name, index)
                values = {f: self.combined(readings) for f, readings in cell.values.items()}
                assert self.every is not None
                self.bins["pending"] -= 1
                self.bins[self.push(name, index * self.every, cell.offset, values, filled=False)] += 1

    def fill_hole(self, name: str, index: int) -> None:
        life = self.live[name]
        if life.row is None:
            return
        assert self.every is not None
        before = life.row // self.every
        holes = index - before - 1
        if holes == 0:
            return
        span = (holes + 1) * self.every
        if self.events.missing == "reject" or holes >= self.window_rows or span > self.gap:
            life.window = 0
            return
        for hole in range(before + 1, index):
            self.push(name, hole * self.every, life.offset, {}, filled=True)

    def combined(self, readings: list[tuple[int, float]]) -> float:
        values = [value for _, value in readings]
        newest = max(range(len(readings)), key=lambda i: (readings[i][0], i))
        return {
            "mean": sum(values) / len(values),
            "last": values[newest],
            "min": min(values),
            "max": max(values),
            "sum": sum(values),
        }[self.events.combine]

    def push(self, name: str, time: int, offset: int, values: dict[int, float], *, filled: bool) -> str:
        life = self.live[name]
        if life.row is not None and time - life.row > self.gap:
            life.window = 0
        life.row = time
        for f, transform in enumerate(self.transforms):
            before = life.raw.get(f)
            if before is not None and time - before[0] > self.gap:
                before = None
            if f in values:
                life.out[f] = self.transformed(transform, values[f], before, time)
                life.raw[f] = (time, values[f])
            elif before is None or self.events.missing == "reject":
                life.out[f] = math.nan
        row = tuple(life.out[f] for f in range(len(self.transforms)))
        if any(math.isnan(value) for value in row):
            life.window = 0
            return "warming" if self.scoring else "waiting_model"
        self.gap_filled += len(values) < len(self.transforms)
        self.rows.append((name, time, row, life.window == 0))
        life.window = min(life.window + 1, self.window_rows)
        if not filled:
            life.offset = offset
        if not self.scoring:
            return "waiting_model"
        return "scored" if life.window == self.window_rows else "warming"

    @staticmethod
    def transformed(transform: str, value: float, before: tuple[int, float] | None, time: int) -> float:
        if transform == "none":
            return value
        if transform == "log":
            return math.copysign(math.log(1 + abs(value)), value)
        if before is None:
            return math.nan
        if transform == "diff":
            return value - before[1]
        rise = value - before[1] if value >= before[1] else value
        return rise / ((time - before[0]) / S)

    def settle(self, name: str) -> None:
        life = self.live[name]
        assert life.last is not None
        silent = life.last + self.silent
        if life.silent_since is None and silent <= self.clock:
            assert isinstance(silent, int)
            self.close(name, silent)
            life.silent_since = silent
            self.silences.append((name, "firing", "no events", silent, silent, life.offset))
        self.close(name, self.clock)
        gone = life.last + self.forget
        if gone <= self.clock:
            if life.silent_since is not None:
                self.silences.append((name, "resolved", "gone", life.silent_since, gone, life.offset))
            del self.live[name]


@st.composite
def settings_of_streams(draw: st.DrawFn) -> Stream:
    kind = draw(st.sampled_from(["wide", "wide on a grid", "narrow"]))
    features = {
        name: {"transform": draw(st.sampled_from(["none", "none", "rate", "diff", "log"]))}
        for name in FEATURES[: draw(st.integers(1, 3))]
    }
    more: dict[str, Any] = {}
    if kind != "wide":
        more["every"] = "10s"
        more["late"] = draw(st.sampled_from([None, "0s", "5s", "25s"]))
        more["combine"] = draw(st.sampled_from(["mean", "last", "min", "max", "sum"]))
    return stream(
        window=draw(st.integers(2, 4)),
        kind=kind.split()[0],
        features=features,
        missing=draw(st.sampled_from(["hold", "reject"])),
        gap=draw(st.sampled_from([None, "20s", "45s"])),
        silent_after=draw(st.sampled_from([None, "8s", "40s"])),
        forget_after=draw(st.sampled_from(["60s", "100s"])),
        max_series=draw(st.sampled_from([2, 3, 100])),
        max_bytes=MAX_BYTES,
        ahead="30s",
        labels=["site"],
        when=draw(st.sampled_from([None, None, "on"])),
        rules=draw(
            st.fixed_dictionaries(
                {
                    "for": st.integers(1, 2),
                    "recovery": st.integers(1, 3),
                    "recovery_line": st.sampled_from([0.5, 1.0]),
                    "recovery_for": st.sampled_from(["0s", "0s", "15s"]),
                    "refractory": st.sampled_from(["0s", "20s"]),
                    "min_deviation": st.sampled_from([0.0, 0.0, 2.5, {"x": 1.5}]),
                    "direction": st.sampled_from(["both", "both", "above", {"x": "below"}]),
                    "critical": st.sampled_from([1.0, 2.0, 5.0]),
                }
            )
        ),
        threshold=draw(
            st.sampled_from(
                [
                    {"policy": "static", "value": 3.3},
                    {"policy": "ewma", "k": 4, "memory": "1m", "adapt_after": "30s"},
                    {"policy": "quantile", "q": 0.9, "memory": "1m"},
                ]
            )
        ),
        **more,
    )


@st.composite
def values_of_records(draw: st.DrawFn, settings: Stream, time: float) -> bytes | None:
    kind = draw(st.integers(0, 40))
    if kind == 0:
        return None
    if kind == 1:
        return b'{"series": '
    event: dict[str, Any] = {"series": draw(st.sampled_from("abcd")), "time": time}
    if kind == 2:
        event["note"] = "x" * MAX_BYTES
    if settings.events.when is not None and kind != 3:
        event["on"] = draw(st.sampled_from([True, True, False]))
    value = st.sampled_from([0, 1, 1, -1, 2, 3, 50])
    names = settings.feature_names
    if settings.events.kind == "narrow":
        event["metric"] = draw(st.sampled_from([*names, *names, *names, "unheard"]))
        event["value"] = draw(value)
    else:
        event["site"] = draw(st.sampled_from(["north", "south"]))
        for name in names:
            event[name] = draw(st.one_of(value, value, value, st.none()))
    return encoded(event)


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[Stream, list[Record], bool]:
    """A stream's settings, its records, and whether there is a model."""
    settings = draw(settings_of_streams())
    records: list[Record] = []
    now = 1_000.0
    for _ in range(draw(st.integers(0, 60))):
        now += draw(st.sampled_from([0, 0.5, 1, 1, 2, 3, 5, 10, 10, 25, 70, 200]))
        # behind, on time, ahead of the record's timestamp, and too far ahead
        time = now + draw(st.sampled_from([0, 0, 0, 0, 0, -0.5, -4, -15, -80, 5, 30, 30.5]))
        records.append((draw(values_of_records(settings, time)), now))
    return settings, records, draw(st.booleans())


def cut(records: Sequence[Record], ends: Sequence[int]) -> Iterator[RecordBatch]:
    """The records as batches that end before each of ``ends``; offsets are rows times two."""
    first = 0
    for end in [*sorted(ends), len(records)]:
        stamped = [(None, value, round(stamp * 1_000)) for value, stamp in records[first:end]]
        made = RecordBatch.of(PARTITION, 0, stamped)
        offset = np.arange(first, end, dtype=np.int64) * 2
        yield RecordBatch(
            PARTITION,
            made.buffer,
            offset,
            made.timestamp_ms,
            made.key_start,
            made.key_length,
            made.value_start,
            made.value_length,
            end * 2,
        )
        first = end


def some_ends(draw: st.DataObject, records: Sequence[Record]) -> list[int]:
    """Where batches end; empty ones, too."""
    return draw.draw(st.lists(st.integers(0, len(records)), max_size=8))


def rows_by_series(state: PartitionState) -> dict[str, str]:
    """All that is stored of each live series, as text: NaN equals NaN, and a difference can be read."""
    return {
        f"{name} {state.labels[slot]}, {part}": repr(
            dict(zip(array.dtype.names, array[slot].item(), strict=True))
            if part == "rows"
            else array[slot].tolist()
        )
        for slot, name in enumerate(state.names)
        if name is not None
        for part, array in state.series._asdict().items()
    }


def bytes_by_series(state: PartitionState) -> dict[bytes, bytes]:
    packed = state.pack(whole=True)
    return {name: row.tobytes() for name, row in zip(packed.series, packed.rows, strict=True)}


def by_series(alerts: Sequence[Alert]) -> dict[str, list[Alert]]:
    found: dict[str, list[Alert]] = {}
    for alert in alerts:
        found.setdefault(alert.series, []).append(alert)
    return found


def same(one: Feed, other: Feed) -> None:
    assert one.bins == other.bins
    assert one.state.counters.attributes.tolist() == other.state.counters.attributes.tolist()
    assert by_series(one.alerts) == by_series(other.alerts)
    assert one.dead_letters == other.dead_letters
    assert rows_by_series(one.state) == rows_by_series(other.state)
    assert bytes_by_series(one.state) == bytes_by_series(other.state)
    assert (one.state.clock_ns, one.state.live) == (other.state.clock_ns, other.state.live)
    assert one.state.next_offset == other.state.next_offset


def feed_of(settings: Stream, *, scoring: bool) -> Feed:
    return Feed(settings, FakeScorer() if scoring else None)


property_test = settings(
    max_examples=150 if COMPILED else 25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@property_test
@given(scenario=scenarios(), draw=st.data())
def test_each_record_ends_in_one_bin_and_the_bins_sum_to_the_records_read_after_every_batch(
    scenario: tuple[Stream, list[Record], bool], draw: st.DataObject
) -> None:
    settings, records, scoring = scenario
    feed = feed_of(settings, scoring=scoring)

    for made in cut(records, some_ends(draw, records)):
        feed.take(made)

        assert feed.state.counters.records_read == made.next_offset // 2
        assert min(feed.state.counters.bins) >= 0


@property_test
@given(scenario=scenarios(), draw=st.data())
def test_the_kernels_agree_with_a_plain_model_of_the_rules_after_every_batch(
    scenario: tuple[Stream, list[Record], bool], draw: st.DataObject
) -> None:
    settings, records, scoring = scenario
    feed, model = feed_of(settings, scoring=scoring), Model(settings, scoring=scoring)

    done = 0
    for made in cut(records, some_ends(draw, records)):
        feed.take(made)
        for i in range(done, made.next_offset // 2):
            model.read(i * 2, *records[i])
        done = made.next_offset // 2

        assert feed.bins == {name: count for name, count in model.bins.items() if count}
        assert feed.state.counters.gap_filled == model.gap_filled
        assert sorted(filter(None, feed.state.names)) == sorted(model.live)
    silences = [
        (a.series, a.state, a.reason, a.started_at.timestamp() * S, a.at.timestamp() * S, a.source.offset)
        for a in feed.alerts
        if a.kind == "silent"
    ]
    assert sorted(silences) == sorted(model.silences)


@property_test
@given(scenario=scenarios(), draw=st.data())
def test_rows_handed_to_training_are_those_of_the_plain_model(
    scenario: tuple[Stream, list[Record], bool], draw: st.DataObject
) -> None:
    settings, records, _ = scenario
    detector, model = Detector("test", "machines", settings), Model(settings, scoring=False)
    state = detector.fresh("topic-1", 0)

    rows: dict[str, list[Any]] = {}
    for made in cut(records, some_ends(draw, records)):
        for found in detector.rows(state, made):
            for slot, time, fresh, values in zip(
                found.slot, found.time_ns, found.fresh, found.values, strict=True
            ):
                rows.setdefault(state.names[slot] or "", []).append((time, fresh, values.tolist()))
    for i, (value, stamp) in enumerate(records):
        model.read(i * 2, value, stamp)

    expected: dict[str, list[Any]] = {}
    for name, time, row, fresh in model.rows:
        expected.setdefault(name, []).append((time, fresh, np.array(row)))
    assert rows.keys() == expected.keys()
    for name, series in rows.items():
        assert [row[:2] for row in series] == [row[:2] for row in expected[name]]
        np.testing.assert_allclose([row[2] for row in series], [row[2] for row in expected[name]], rtol=1e-12)
    assert state.counters.named() == {name.name.lower(): model.bins[name.name.lower()] for name in Bin}


@property_test
@given(scenario=scenarios(), draw=st.data())
def test_any_two_batchings_of_the_same_records_come_to_the_same(
    scenario: tuple[Stream, list[Record], bool], draw: st.DataObject
) -> None:
    settings, records, scoring = scenario
    some, others = feed_of(settings, scoring=scoring), feed_of(settings, scoring=scoring)

    for made in cut(records, some_ends(draw, records)):
        some.take(made)
    for made in cut(records, range(len(records))):
        others.take(made)

    same(some, others)
    live_in_order(some)


def live_in_order(feed: Feed) -> None:
    """Each alert fires once, and resolves once or is open; of a series and kind one is open at a time."""
    open_: dict[tuple[str, str], Alert] = {}
    ended = set()
    for alert in feed.alerts:
        assert alert.id not in ended
        before = open_.pop((alert.series, alert.kind), None)
        if alert.revision == 1:
            assert (before, alert.state) == (None, "firing")
        else:
            assert before is not None
            assert (alert.id, alert.revision) == (before.id, before.revision + 1)
            assert alert.started_at == before.started_at
        if alert.state == "firing":
            open_[alert.series, alert.kind] = alert
        else:
            ended.add(alert.id)
    state = feed.state
    rows = {name: state.rows[slot] for slot, name in enumerate(state.names) if name is not None}
    held = {(name, "anomaly") for name, row in rows.items() if row["episode"] == FIRING}
    held |= {(name, "silent") for name, row in rows.items() if row["silent"]}
    assert open_.keys() == held


class Stored:
    """What a store keeps: rows by bucket and series."""

    def __init__(self) -> None:
        self.header = b""
        self.rows: dict[bytes, tuple[int, bytes]] = {}

    def put(self, packed: PackedRows, *, whole: bool) -> None:
        if whole:
            self.rows.clear()
        for _, name in packed.removed:
            self.rows.pop(name, None)
        self.header = packed.header
        for slot, name, row in zip(packed.slots.tolist(), packed.series, packed.rows, strict=True):
            self.rows[name] = (slot, row.tobytes())

    def read(self, row_bytes: int) -> PackedRows:
        slots = np.array([slot for slot, _ in self.rows.values()], np.int32)
        raw = b"".join(row for _, row in self.rows.values())
        rows = np.frombuffer(raw, np.uint8).reshape(len(slots), row_bytes)
        return PackedRows(self.header, slots, list(self.rows), rows)


@property_test
@given(scenario=scenarios(), draw=st.data())
def test_a_restart_from_what_was_stored_after_any_batch_changes_nothing(
    scenario: tuple[Stream, list[Record], bool], draw: st.DataObject
) -> None:
    settings, records, scoring = scenario
    steady, restarted = feed_of(settings, scoring=scoring), feed_of(settings, scoring=scoring)
    stored = Stored()

    whole = True
    for made in cut(records, some_ends(draw, records)):
        steady.take(made)
        restarted.take(made)
        if draw.draw(st.booleans()):
            stored.put(restarted.state.pack(whole=whole), whole=whole)
            restarted.state.stored()
            whole = False
            if draw.draw(st.booleans()):
                read = PartitionState.unpack(
                    restarted.detector.layout, stored.read(restarted.detector.layout.row_bytes)
                )
                assert read is not None
                restarted.state = read
                if restarted.scorer is not None:
                    restarted.state.adopt(restarted.scorer, "bundle-1")

    same(steady, restarted)


def test_the_model_of_the_rules_sees_every_bin_in_these_scenarios() -> None:
    """A generator that never makes a late record would prove nothing about lateness."""
    seen: Counter[str] = Counter()

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(scenario=scenarios())
    def gather(scenario: tuple[Stream, list[Record], bool]) -> None:
        stream_settings, records, scoring = scenario
        model = Model(stream_settings, scoring=scoring)
        for i, (value, stamp) in enumerate(records):
            model.read(i, value, stamp)
        seen.update({name for name, count in model.bins.items() if count})
        seen.update(reason for _, _, reason, *_ in model.silences)
        seen["gap_filled"] += model.gap_filled > 0

    gather()

    assert not {name.name.lower() for name in Bin if name is not Bin.CORRUPT} - set(seen)
    assert min(seen[name] for name in ("no events", "recovered", "gone", "gap_filled")) > 10


BINS_PAGE = Path(__file__).resolve().parents[2] / "docs" / "bins.md"


def table_rows(heading: str) -> list[list[str]]:
    """The cells of the tables under a heading of docs/bins.md, without their head."""
    page = BINS_PAGE.read_text(encoding="utf-8")
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in row] for row in rows if not row[0].startswith(("---", " A re", " A ro"))
    ]


def quoted(text: str) -> set[str]:
    return set(re.findall(r"`([a-z_]+)`", text))


def test_the_page_names_every_bin_and_no_other() -> None:
    rows = table_rows("A record, from its bytes to its bin")

    assert {name for row in rows for name in quoted(row[1])} == {name.name.lower() for name in Bin}
    assert all(quoted(row[1]) or row[1] == "as its row, below" for row in rows)


def test_the_page_names_every_setting_of_events_and_no_other() -> None:
    rows = [
        row
        for heading in (
            "A record, from its bytes to its bin",
            "Time",
            "Holes",
            "Silence and forgetting",
        )
        for row in table_rows(heading)
    ]

    assert {name for row in rows for name in quoted(row[-1])} == set(Events.model_fields)


def test_the_page_states_the_bounds_that_hold() -> None:
    page = BINS_PAGE.read_text(encoding="utf-8")
    narrow = Layout.of(stream(kind="narrow", every="10s", features=list(FEATURES)))

    assert f"the newest {Layout.of(stream(every='10s')).held} are known" in page
    assert "narrow: four for each feature" in page
    assert narrow.held == 4 * len(FEATURES)
    assert f"the first {LETTER_BYTES >> 10} KiB" in page
    assert f"From the {LETTERS_PER_S + 1:,}st in one second" in page
    assert f"longer than {MAX_SERIES_CHARS} characters" in page
