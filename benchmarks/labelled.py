"""Labelled series for benchmarks: reading them, training and watching as the program does, counting alerts.

They stand at OFFBEAT_DATA: `nab/` (Numenta Anomaly Benchmark), `smd/` (Server Machine Dataset) and `skab/`
(Skoltech Anomaly Benchmark). Nothing here looks at a file's name but to read it.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - the path comes first
from numpy.typing import NDArray  # noqa: E402

from models import Bundle, StackScorer, load, save  # noqa: E402
from models.episodes import LeftOut  # noqa: E402
from models.history import Part  # noqa: E402
from models.learning import Source, learn  # noqa: E402
from models.spec import model_spec  # noqa: E402
from pipeline.alerts import Transition, nanoseconds  # noqa: E402
from pipeline.config import Stream  # noqa: E402
from pipeline.control import NO_DECISIONS, Decisions  # noqa: E402
from pipeline.detect import Detector, Outputs  # noqa: E402
from pipeline.ports import Calibrated, Errors, Explanation, Scorer, Windows  # noqa: E402
from pipeline.records import RecordBatch, TopicPartition  # noqa: E402

LEARNED, LEARNED_ROWS = 0.15, 750
"""NAB's protocol: a detector may learn from this share of a series, and from no more rows."""
SKAB_LEARNED_ROWS = 400
SMD_HISTORY_ROWS = 10_000
"""Rows of a machine's train part that are read: what `training.rows` takes, the newest."""
HOUR_NS, DAY_NS = 3_600 * 10**9, 86_400 * 10**9

Float64s = NDArray[np.float64]
Int64s = NDArray[np.int64]
NOTHING_LEFT_OUT = LeftOut()
Settings: TypeAlias = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Series:
    """One file.

    Attributes:
        records: its rows as events; those below ``learned`` may be learned from.
        time_ns: int64[rows].
        values: float64[rows, F].
        windows: int64[windows, 2], the first and last times of each labelled one.
        causes: for each window the features that caused it, counted from 0; empty where nobody says.
        history: what may be learned from, where that is not the rows below ``learned``.
    """

    name: str
    records: RecordBatch
    learned: int
    time_ns: Int64s
    values: Float64s
    windows: Int64s
    causes: tuple[tuple[int, ...], ...] = ()
    history: RecordBatch | None = None

    @property
    def lessons(self) -> RecordBatch:
        """The rows that may be learned from."""
        return self.records.before(self.learned) if self.history is None else self.history

    @property
    def days(self) -> float:
        """From the first row that is watched to the last."""
        return float(self.time_ns[-1] - self.time_ns[self.learned]) / DAY_NS

    @property
    def spread(self) -> float:
        """A robust standard deviation of the first feature's values that may be learned from."""
        values = self.values[: self.learned, 0]
        low, high = np.quantile(values, (0.25, 0.75))
        return float(high - low) / 1.349 or float(values.std())

    @property
    def labels(self) -> NDArray[np.bool_]:
        """bool[rows]: whether a row is within a window."""
        first, last = self.windows.T
        return np.asarray(
            np.searchsorted(np.sort(first), self.time_ns, "right")
            > np.searchsorted(np.sort(last), self.time_ns, "left")
        )


@dataclass(frozen=True, slots=True)
class DataSet:
    """Series of one kind, and the stream that they are.

    Attributes:
        unit_ns, unit: in what delays are told.
    """

    name: str
    features: tuple[str, ...]
    every: list[Series]
    unit_ns: int = HOUR_NS
    unit: str = "h"

    @property
    def events(self) -> int:
        """Labelled windows."""
        return sum(len(each.windows) for each in self.every)

    def stream(self, settings: Settings | None = None) -> Stream:
        """A stream as it comes, but for some sections."""
        return Stream.model_validate(
            {"topic": self.name, "events": {"features": list(self.features)}, **(settings or {})}
        )


def data_folder(*wanted: str) -> Path | None:
    """Where the data is, if it is: says on standard error what to set otherwise."""
    folder = os.environ.get("OFFBEAT_DATA")
    missing = [each for each in wanted if not folder or not (Path(folder) / each).is_dir()]
    if missing:
        print(f"no real data: set OFFBEAT_DATA to a folder with {'/, '.join(missing)}/", file=sys.stderr)
        return None
    return Path(folder or "")


def nab(folder: Path, pattern: str = "*") -> DataSet:
    """The series of the Numenta Anomaly Benchmark whose file names fit a pattern."""
    labels = json.loads((folder / "windows.json").read_text())
    every = [_nab_series(folder, name, labels[name]) for name in sorted(labels) if fnmatch(name, pattern)]
    return DataSet("nab", ("value",), every)


def _nab_series(folder: Path, name: str, labels: list[list[str]]) -> Series:
    with (folder / name).open(newline="") as file:
        rows = [(_ns(row["timestamp"]), float(row["value"])) for row in csv.DictReader(file)]
    times, values = np.array([time for time, _ in rows], np.int64), np.array([value for _, value in rows])
    windows = np.array([[_ns(first), _ns(last)] for first, last in labels], np.int64).reshape(-1, 2)
    learned = min(int(LEARNED * len(rows)), LEARNED_ROWS)
    records = as_records("nab", name, ("value",), times, values[:, None])
    return Series(name, records, learned, times, values[:, None], windows)


def smd(folder: Path, pattern: str = "*") -> DataSet:
    """The machines of the Server Machine Dataset whose names fit a pattern: train part, then test."""
    every = []
    for path in sorted(folder.glob(f"{pattern}.npz")):
        with np.load(path) as parts:
            train, test, label = parts["train"][-SMD_HISTORY_ROWS:], parts["test"], parts["label"]
        values = np.concatenate([train, test]).astype(np.float64)
        times = np.arange(len(values), dtype=np.int64) * 60 * 10**9
        windows = _stretches(np.concatenate([np.zeros(len(train), bool), label > 0]))
        blamed = dict(map(_cause, path.with_suffix(".causes.txt").read_text().split()))
        causes = tuple(blamed[first - len(train)] for first in windows[:, 0].tolist())
        features = tuple(f"metric-{n + 1}" for n in range(values.shape[1]))
        records = as_records("smd", path.stem, features, times, values)
        every.append(Series(path.stem, records, len(train), times, values, times[windows], causes))
    return DataSet("smd", features, every, 60 * 10**9, "min")


def _cause(line: str) -> tuple[int, tuple[int, ...]]:
    """Such as `246-252:1,2`: the first row of an anomaly, and the features that caused it, from 0."""
    rows, _, features = line.partition(":")
    return int(rows.partition("-")[0]), tuple(int(n) - 1 for n in features.split(","))


def skab(folder: Path, pattern: str = "*") -> DataSet:
    """The files of the Skoltech Anomaly Benchmark whose names fit a pattern, but for its long clean one."""
    every = []
    for path in sorted(folder.glob("valve*/*.csv")):
        name = f"{path.parent.name}/{path.name}"
        if not fnmatch(name, pattern):
            continue
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter=";"))
        features = tuple(column for column in rows[0] if column not in {"datetime", "anomaly", "changepoint"})
        times = np.array([_ns(row["datetime"]) for row in rows], np.int64)
        values = np.array([[float(row[each]) for each in features] for row in rows])
        windows = times[_stretches(np.array([float(row["anomaly"]) > 0 for row in rows]))]
        names = tuple(each.replace(" ", "-") for each in features)
        records = as_records("skab", name, names, times, values)
        every.append(Series(name, records, SKAB_LEARNED_ROWS, times, values, windows))
    return DataSet("skab", names, every, 10**9, "s")


def _stretches(marked: NDArray[np.bool_]) -> Int64s:
    """int64[n, 2]: the first and last of each stretch of marked rows."""
    edges = np.flatnonzero(np.diff(marked, prepend=False, append=False))
    return np.stack([edges[0::2], edges[1::2] - 1], axis=1)


def as_records(
    topic: str, name: str, features: Sequence[str], times: Int64s, values: Float64s
) -> RecordBatch:
    """Rows as the events of one series."""
    records = []
    for time, row in zip(times.tolist(), values.tolist(), strict=True):
        event = {"series": name, "time": time / 1e9, **dict(zip(features, row, strict=True))}
        records.append((None, json.dumps(event).encode(), time // 10**6))
    return RecordBatch.of(TopicPartition(topic, 0), 0, records)


def _ns(text: str) -> int:
    return nanoseconds(datetime.fromisoformat(text).replace(tzinfo=UTC))


def train(
    data: DataSet,
    settings: Settings | None = None,
    kept: Path | None = None,
    left_out: LeftOut = NOTHING_LEFT_OUT,
) -> Bundle:
    """What `offbeat train` makes of the rows that may be learned from.

    With a folder for bundles to be ``kept`` in, by the content of all that goes into them, each is made once.
    """
    stream = data.stream(settings)
    if kept is None:
        return _learn(data, stream, left_out)
    folder = kept / _content(data, stream, left_out)
    if not folder.is_dir():
        save(_learn(data, stream, left_out), folder)
    return load(folder)


def _content(data: DataSet, stream: Stream, left_out: LeftOut) -> str:
    """A digest of rows, settings and the code that learns."""
    digest = blake2b(f"{left_out}".encode(), digest_size=16)
    for path in (*sorted((ROOT / "models").glob("*.py")), *sorted((ROOT / "pipeline").glob("*.py"))):
        digest.update(path.read_bytes())
    digest.update(stream.model_dump_json(include={"events", "model", "training"}).encode())
    for each in data.every:
        digest.update(f"{each.name} {len(each.lessons)}".encode())
        digest.update(each.lessons.buffer)
    return digest.hexdigest()


def _learn(data: DataSet, stream: Stream, left_out: LeftOut) -> Bundle:
    batches: list[Callable[[], Iterator[RecordBatch]]] = [partial(_lessons, each) for each in data.every]
    return learn(
        Detector("benchmark", data.name, stream),
        model_spec(stream),
        Source(batches, None, {"files": [each.name for each in data.every]}),
        Part(stream.training.rows),
        _ignore,
        left_out=left_out,
        created_at="",
    ).bundle


def _lessons(series: Series) -> Iterator[RecordBatch]:
    return iter([series.lessons])


def _ignore(_: object) -> None:
    return None


class Remembering:
    """A scorer that scores the same windows once: whatever judges them judges the same errors."""

    def __init__(self, scorer: StackScorer) -> None:
        self._scorer, self._known = scorer, dict[bytes, Errors]()

    def assign(self, series: Sequence[str]) -> Calibrated:
        """See :class:`pipeline.ports.Scorer`."""
        return self._scorer.assign(series)

    def score(self, windows: Windows) -> Errors:
        """See :class:`pipeline.ports.Scorer`."""
        columns = (windows.tail, windows.anchor, windows.model)
        key = blake2b(b"".join(each.tobytes() for each in columns)).digest()
        if key not in self._known:
            self._known[key] = self._scorer.score(windows)
        return self._known[key]

    def explain(self, windows: Windows) -> Explanation:
        """See :class:`pipeline.ports.Scorer`."""
        return self._scorer.explain(windows)


def watch(
    data: DataSet, series: Series, scorer: Scorer, stream: Stream, decisions: Decisions = NO_DECISIONS
) -> Outputs:
    """What the detect step makes of all rows of a series, as they would have come."""
    detector = Detector("benchmark", data.name, stream)
    state = detector.fresh("", 0)
    state.adopt(scorer, "bundle")
    state.decisions = decisions
    return detector.step(state, series.records, scorer)


def fired_ns(changes: Sequence[Transition]) -> Int64s:
    """When anomalies fired, int64[alerts]."""
    return np.array(
        [each.at_ns for each in changes if (each.alert, each.revision) == ("anomaly", 1)], np.int64
    )


@dataclass(frozen=True, slots=True)
class Found:
    """What came of one detector on one series.

    Attributes:
        alerts: how many fired behind the rows that were learned from.
        false_alarms: of these, outside of all windows.
        delays_ns: from the beginning of each window that was found, in the windows' order.
        which: the windows that were found.
    """

    alerts: int
    false_alarms: int
    delays_ns: list[int] = field(default_factory=list)
    which: list[int] = field(default_factory=list)


def counted(series: Series, fired_ns: Int64s) -> Found:
    """A window is found by an alert that fires within it; one that fires outside all of them is false."""
    fired = fired_ns[fired_ns >= series.time_ns[series.learned]]
    inside = (fired[:, None] >= series.windows[:, 0]) & (fired[:, None] <= series.windows[:, 1])
    which = np.flatnonzero(inside.any(axis=0)).tolist()
    delays = [int(fired[inside[:, n]].min() - series.windows[n, 0]) for n in which]
    return Found(len(fired), int((~inside.any(axis=1)).sum()), delays, which)


def publish(report: dict[str, Any], output: Path, page: Path | None, mark: str, table: str) -> None:
    """Write a report to its file and, where there is a page, its table to that; says what was written.

    Raises:
        ValueError: as :func:`write_page`.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written: {output}")
    if page:
        write_page(page, mark, table)
        print(f"written: {page}")


def write_page(page: Path, mark: str, table: str) -> None:
    """Put a table between the marks of a page that belong to the make target ``mark``.

    Raises:
        ValueError: the page has not both marks.
    """
    begin_mark, end_mark = f"<!-- written by make {mark} -->", "<!-- until here -->"
    before, begin, rest = page.read_text().partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not begin or not end:
        raise ValueError(f"{page} has no place for a table: write {begin_mark} and {end_mark} into it")
    page.write_text(f"{before}{begin_mark}\n\n{table}\n\n{end_mark}{after}")
