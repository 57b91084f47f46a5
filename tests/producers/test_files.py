"""Files as events: what each format says arrives, merged by time, and nothing bad passes in silence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collecting import TOPIC, Collector, HandClock, read_all
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, InputError, NotFound
from pipeline.ports import Broker
from producers import files, layouts, tables
from producers.files import FileOptions, FilesReport
from producers.pacing import Recorded

T0 = 1_773_058_476  # 2026-03-09 12:14:36 UTC


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def produced(path: Path | str, **options: Any) -> tuple[list[dict[str, Any]], FilesReport]:  # noqa: ANN401 - any option
    collector = Collector()
    report = files.produce(collector, TOPIC, FileOptions(paths=[path], **options))
    return collector.events, report


def test_csv_arrives_on_the_bus(broker: Broker, tmp_path: Path) -> None:
    path = write(
        tmp_path / "pumps.csv",
        "datetime;unit;Pressure;comment;Flow",
        "2026-03-09 12:14:36;p1;1.5;ok;3",
        "2026-03-09 12:14:37;p2;;;4e2",
    )

    report = files.produce(broker.producer(), TOPIC, FileOptions(paths=[path], series_column="unit"))

    assert read_all(broker) == [
        (b"p1", {"time": T0, "series": "p1", "Pressure": 1.5, "Flow": 3.0}, T0 * 1000),
        (b"p2", {"time": T0 + 1, "series": "p2", "Pressure": None, "Flow": 400.0}, (T0 + 1) * 1000),
    ]
    assert report == FilesReport(series={"p1": 1, "p2": 1})


def as_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = [
        ",".join(rows[0]),
        *(",".join("" if v is None else str(v) for v in row.values()) for row in rows),
    ]
    return write(path.with_suffix(".csv"), *lines)


def as_tsv(path: Path, rows: list[dict[str, Any]]) -> Path:
    return as_csv(path, rows).rename(path.with_suffix(".tsv"))


def as_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    return write(path.with_suffix(".jsonl"), *(msgspec.json.encode(row).decode() for row in rows))


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


# One contract for all formats: the same rows give the same events.
@pytest.mark.parametrize("save", [as_csv, as_tsv, as_jsonl, as_parquet])
def test_every_format_says_the_same(
    save: Callable[[Path, list[dict[str, Any]]], Path], tmp_path: Path
) -> None:
    rows = [
        {"time": "2026-03-09T12:14:36Z", "name": "a", "level": 1.25, "count": 7},
        {"time": "2026-03-09T12:14:36.5Z", "name": "b", "level": None, "count": 8},
        {"time": "2026-03-09T12:14:37Z", "name": "c", "level": -3e-7, "count": None},
    ]

    events, report = produced(save(tmp_path / "plant", rows))

    assert events == [
        {"time": T0, "series": "plant", "level": 1.25, "count": 7},
        {"time": T0 + 0.5, "series": "plant", "level": None, "count": 8},
        {"time": T0 + 1, "series": "plant", "level": -3e-7, "count": None},
    ]
    assert report.series == {"plant": 3}


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "+02:00"])
def test_parquet_timestamps_of_every_unit(unit: str, zone: str | None, tmp_path: Path) -> None:
    at = pa.array([T0 * 10**9 + 123_456_789, None], pa.timestamp("ns")).cast(
        pa.timestamp(unit, zone), safe=False
    )
    pq.write_table(pa.table({"ts": at, "x": [1, 2]}), tmp_path / "a.parquet")

    events, report = produced(tmp_path / "a.parquet", on_error="skip")

    digits = {"s": 0, "ms": 3, "us": 6, "ns": 6}[unit]
    fraction = int(0.123456789 * 10**digits) / 10**digits
    assert [event["time"] for event in events] == pytest.approx([T0 + fraction], abs=1e-6)
    assert [str(bad).split("parquet, ")[1] for bad in report.bad_rows_shown] == [
        "line 2: column 'ts': the time is empty"
    ]


def test_layouts_say_what_each_column_is_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ",Timestamp,unit,x,y,note", f"0,{T0}000,u,1,,hot", f"1,{T0}001,u,nan,2,")

    (layout,) = layouts.inspect(FileOptions(paths=[path], series_column="unit"))

    assert layout.time_column == "Timestamp"
    assert layout.time_format == "ms"
    assert layout.value_columns == ("x", "y")
    assert layout.left_out == ("", "note")
    assert layout.first_time == T0
    assert "time from 'Timestamp' (ms), series from 'unit', values: x, y" in str(layout)


def test_names_and_columns_can_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "when,x,y", "09.03.2026 12:14,1,2")

    events, report = produced(
        path,
        time_column="when",
        time_format="%d.%m.%Y %H:%M",
        series="boiler",
        value_columns=["y"],
        time_field="at",
        series_field="asset",
    )

    assert events == [{"at": T0 - 36, "asset": "boiler", "y": 2}]
    assert report.series == {"boiler": 1}


def test_the_column_that_is_called_as_the_event_calls_the_series_names_it(tmp_path: Path) -> None:
    """What holds a stream's own events is read as such, and not as one series of the file's name."""
    path = write(tmp_path / "week.csv", "time,asset,series,x", f"{T0},b1,7,1", f"{T0 + 1},b2,8,2")

    events, report = produced(path, series_field="asset")

    assert [event["asset"] for event in events] == ["b1", "b2"]
    assert report.series == {"b1": 1, "b2": 1}
    assert produced(path, series_field="asset", series_column="series")[1].series == {"7": 1, "8": 1}
    assert produced(path, series_field="asset", series="all")[1].series == {"all": 2}
    assert produced(path, series_field="unit")[1].series == {"week": 2}


def test_a_number_in_quotes_is_text_in_jsonl(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"time": {T0}, "id": "007", "up": true, "x": 1}}')

    assert produced(path)[0] == [{"time": T0, "series": "a", "x": 1}]


def test_quoted_cells_may_hold_delimiters_and_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbf"time","note","x"\r\n%d,"a, b\nc",1\r\n\r\n%d,"\xff",2\r\n' % (T0, T0 + 1))

    assert [event["x"] for event in produced(path)[0]] == [1, 2]


BAD_ROWS = [
    ("a.csv", "time,x", f"{T0},1", f"{T0 + 1},oops", "line 3: column 'x': 'oops' is not a number"),
    ("a.csv", "time,x", f"{T0},1", f"{T0 + 1},inf", "line 3: column 'x': 'inf' is not a finite number"),
    ("a.csv", "time,x", f"{T0},1", f"{T0 + 1},1,2", "line 3: 3 cells under a header of 2"),
    ("a.csv", "time,x", f"{T0},1", "soon,1", "line 3: column 'time': 'soon' is not a number"),
    ("a.csv", "time,x", f"{T0},1", f"{T0 + 1},{'9' * 200_000}", "line 3: not CSV"),
    ("a.jsonl", "", f'{{"time":{T0},"x":1}}', "[1]", "line 3: not a JSON object"),
    ("a.jsonl", "", f'{{"time":{T0},"x":1}}', '{"x":1}', "line 3: column 'time': the time is empty"),
    ("a.jsonl", "", f'{{"time":{T0},"x":1}}', f'{{"time":{T0},"x":true}}', "line 3: column 'x': True is not"),
    (
        "a.jsonl",
        "",
        f'{{"time":{T0},"x":1}}',
        f'{{"time":{T0},"x":{"9" * 3_000_000}}}',
        "line 3: longer than",
    ),
]


@pytest.mark.parametrize(("name", "header", "good", "bad", "reason"), BAD_ROWS)
def test_a_bad_row_stops_with_file_line_and_value(
    name: str, header: str, good: str, bad: str, reason: str, tmp_path: Path
) -> None:
    # The sample that finds the layout ends before the bad row, as it does in a long file.
    path = write(tmp_path / name, header, good, bad)

    with pytest.raises(InputError) as raised:
        produced(path, value_columns=["x"])

    assert f"{path}, {reason}" in str(raised.value)


@pytest.mark.parametrize(("name", "header", "good", "bad", "reason"), BAD_ROWS)
def test_a_bad_row_is_skipped_and_counted_on_request(
    name: str, header: str, good: str, bad: str, reason: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name, header, good, bad, good)

    events, report = produced(path, value_columns=["x"], on_error="skip")

    assert [event["x"] for event in events] == [1, 1]
    assert report.bad_rows == 1
    assert [reason in str(row) for row in report.bad_rows_shown] == [True]


def test_a_series_that_is_no_name_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"time,unit,x\n%d,ok,1\n%d,,2\n%d,\xff,3\n" % (T0, T0, T0))

    events, report = produced(path, series_column="unit", on_error="skip")

    assert [event["series"] for event in events] == ["ok"]
    assert [row.line for row in report.bad_rows_shown] == [3, 4]


def test_only_the_first_bad_rows_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "time,x", f"{T0},1", *["?,1"] * 500)

    _, report = produced(path, on_error="skip")

    assert report.bad_rows == 500
    assert len(report.bad_rows_shown) == files.BAD_ROWS_SHOWN


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["time,x", "17,1"], {}, "line 2, column 'time': '17' is no epoch time"),
        (["time,x", "soon,1"], {}, "line 2, column 'time': 'soon' is neither"),
        (["a,b", "1,2"], {}, "which column is the time"),
        (["time,x", f"{T0},1"], {"time_column": "at"}, "no column 'at'; it has time, x"),
        (["time,x", f"{T0},1"], {"series_column": "unit"}, "no column 'unit'"),
        (["time,x", f"{T0},1"], {"value_columns": ["y"]}, "no column 'y'"),
        (["time,x", f"{T0},hot"], {}, "no column of numbers"),
        ([f"{T0},1", f"{T0},2"], {}, "line 1: all numbers"),
        (["time,x,x", f"{T0},1,2"], {}, "line 1: columns named twice: 'x'"),
        (["time,x"], {}, "no file holds a row"),
        ([], {}, "no file holds a row"),
    ],
)
def test_files_that_cannot_be_understood(
    lines: list[str], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        produced(write(tmp_path / "a.csv", *lines), **options)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.xlsx is not one of \.csv"):
        produced(write(tmp_path / "a.xlsx", "x"))
    with pytest.raises(InputError, match="not readable as Parquet"):
        produced(write(tmp_path / "a.parquet", "this is text, not Parquet"))
    with pytest.raises(NotFound, match="no such file"):
        produced(tmp_path / "missing.csv")
    with pytest.raises(NotFound, match="no such file"):
        produced(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"series": "a", "series_column": "b"}, "one of them"),
        ({"time_format": "hours"}, "no time format"),
        ({"on_error": "ignore"}, "stop or skip"),
        ({"time_field": "series"}, "name them apart"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FileOptions(paths=["a.csv"], **options)


def test_a_value_column_cannot_hide_the_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "timestamp,time,x", f"{T0},5,1")

    with pytest.raises(ConfigError, match="'time' has the name of the event's time"):
        produced(path, time_column="timestamp")


def test_a_missing_pyarrow_is_named(tmp_path: Path) -> None:
    path = as_parquet(tmp_path / "a", [{"time": T0, "x": 1}])
    script = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from producers import layouts\n"
        f"layouts.inspect(layouts.FileOptions(paths=[{str(path)!r}]))"
    )

    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert "ConfigError" in run.stderr
    assert "pip install 'offbeat[parquet]'" in run.stderr


def test_a_pattern_takes_many_files_each_a_series(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name, first in (("b", 2), ("a", 1), ("deep/c", 0)):
        write(tmp_path / f"{name}.csv", "time,x", *(f"{T0 + first + 3 * row},{row}" for row in range(3)))

    events, report = produced(tmp_path / "**" / "*.csv")

    assert [event["series"] for event in events] == ["c", "a", "b"] * 3
    assert report.series == {"a": 3, "b": 3, "c": 3}


def test_rows_out_of_order_keep_their_place_and_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "time,x", f"{T0},0", f"{T0 + 5},1", f"{T0 + 2},2", f"{T0 + 6},3")

    events, report = produced(path)

    assert [event["x"] for event in events] == [0, 1, 2, 3]
    assert report.out_of_order == 1


def test_files_play_at_their_recorded_pace(tmp_path: Path, clock: HandClock) -> None:
    write(tmp_path / "a.csv", "time,x", *(f"{T0 + 60 * row},{row}" for row in range(5)))
    write(tmp_path / "b.csv", "time,x", *(f"{T0 + 30 + 60 * row},{row}" for row in range(5)))
    collector = Collector(clock)

    files.produce(
        collector,
        TOPIC,
        FileOptions(paths=[tmp_path / "*.csv"]),
        pace=Recorded(speed=30),
        clock=clock,
        sleep=clock.sleep,
    )

    assert [at - 1_000 for at in collector.sent_at] == pytest.approx(list(range(10)), abs=0.02)


def test_a_stop_counts_only_what_was_sent(tmp_path: Path, clock: HandClock) -> None:
    path = write(tmp_path / "a.csv", "time,x", *(f"{T0 + row},{row}" for row in range(100)))
    collector = Collector(clock)

    report = files.produce(
        collector,
        TOPIC,
        FileOptions(paths=[path]),
        pace=Recorded(),
        should_stop=lambda: len(collector.sent) == 7,
        clock=clock,
        sleep=clock.sleep,
    )

    assert report.series == {"a": 7}
    assert len(collector.sent) == 7


Item = tuple[float, int, int]

streams_strategy = st.lists(st.lists(st.integers(0, 20), max_size=12), max_size=6)


def merged(streams: list[list[Item]]) -> list[Item]:
    return list(
        files.merge_by_time([(stream[0][0], lambda stream=stream: iter(stream)) for stream in streams])  # type: ignore[misc]
    )


def items(streams: list[list[int]]) -> list[list[Item]]:
    filled = [times for times in streams if times]
    return [[(float(at), which, row) for row, at in enumerate(times)] for which, times in enumerate(filled)]


# Sorted files give a sorted whole, with every row once and each file's rows in their order.
@given(streams_strategy)
def test_merging_sorts_by_time_and_loses_nothing(streams: list[list[int]]) -> None:
    sources = items([sorted(times) for times in streams])

    found = merged(sources)

    assert [at for at, _, _ in found] == sorted(at for at, _, _ in found)
    assert [item[:2] for item in found] == sorted(item[:2] for item in found)
    for which, source in enumerate(sources):
        assert [item for item in found if item[1] == which] == source
    assert len(found) == sum(map(len, sources))


@given(streams_strategy)
def test_merging_unsorted_files_keeps_the_order_of_each(streams: list[list[int]]) -> None:
    sources = items(streams)

    found = merged(sources)

    for which, source in enumerate(sources):
        assert [item for item in found if item[1] == which] == source
    assert len(found) == sum(map(len, sources))


def test_files_of_a_day_each_are_open_one_at_a_time() -> None:
    open_now = 0
    most = 0

    def day(number: int) -> Iterator[tuple[float, int]]:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        yield from ((number * 24.0 + hour, number) for hour in range(24))
        open_now -= 1

    found = list(files.merge_by_time([(n * 24.0, lambda n=n: day(n)) for n in range(50)]))  # type: ignore[misc]

    assert len(found) == 50 * 24
    assert most <= 2


def test_times_without_a_zone_are_utc(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "time,x", "2026-03-09 12:14:36,1")

    assert produced(path)[0][0]["time"] == datetime(2026, 3, 9, 12, 14, 36, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
def test_columns_that_were_written_are_rows_that_are_read(name: str, tmp_path: Path) -> None:
    tables.write(tmp_path / name, {"series": ["a", "b, c"], "x": np.array([0.1, 2], np.float32)})

    found = [row.cells for row in tables.rows(tmp_path / name)]

    assert [row["series"] for row in found] == ["a", "b, c"]
    assert [layouts.number(row["x"]) for row in found] == pytest.approx([0.1, 2])


def test_columns_are_written_as_csv_or_parquet_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.jsonl: results are written as CSV or Parquet"):
        tables.write(tmp_path / "a.jsonl", {"x": [1]})
