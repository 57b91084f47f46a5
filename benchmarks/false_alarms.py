"""Measures what each rule of alerts is worth on labelled series, for build/ and docs/false-alarms.md.

`make false-alarms` runs it whole, in a minute on two cores: the autoencoders of all series are trained by the
program's own training, on the first 15 % of each; then its detect step goes over every row of them, once for
each way to set a rule. It wants the Numenta Anomaly Benchmark: a folder with `nab/` in OFFBEAT_DATA.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
from collections.abc import Sequence
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

from models import Registry, StackScorer  # noqa: E402
from models.episodes import LeftOut  # noqa: E402
from models.history import Part  # noqa: E402
from models.learning import Source  # noqa: E402
from offbeat.training import learn  # noqa: E402
from pipeline.alerts import nanoseconds  # noqa: E402
from pipeline.config import Config, Ewma, Stream  # noqa: E402
from pipeline.control import Decisions  # noqa: E402
from pipeline.detect import Detector  # noqa: E402
from pipeline.ports import Calibrated, Errors, Explanation, Windows  # noqa: E402
from pipeline.records import RecordBatch, TopicPartition  # noqa: E402

BEGIN, END = "<!-- written by make false-alarms -->", "<!-- until here -->"
LEARNED, LEARNED_ROWS = 0.15, 750
"""The benchmark's protocol: a detector may learn from this share of a series, and from no more rows."""
DRAWS, SEED = 2_000, 0
FOR_EVER, HOUR_NS, DAY_NS = "3650d", 3_600 * 10**9, 86_400 * 10**9

Settings: TypeAlias = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Series:
    """One file.

    Attributes:
        records: its rows as events; those below ``learned`` may be learned from.
        time_ns: int64[rows].
        windows: int64[windows, 2], the first and last times of each labelled one.
        spread: a robust standard deviation of the values that may be learned from.
    """

    name: str
    records: RecordBatch
    learned: int
    time_ns: NDArray[np.int64]
    windows: NDArray[np.int64]
    spread: float

    @property
    def days(self) -> float:
        """From the first row that is watched to the last."""
        return float(self.time_ns[-1] - self.time_ns[self.learned]) / DAY_NS


@dataclass(frozen=True, slots=True)
class Variation:
    """One way to judge the same errors.

    Attributes:
        settings: sections of a stream that differ from the defaults.
        spreads: `min_deviation` in robust standard deviations of each series, whose units differ.
        unmoved: the line is fixed where `ewma` would begin it.
        false_alarms: so many alerts were called false alarms before.
    """

    rule: str
    value: str
    settings: Settings = field(default_factory=dict)
    spreads: float = 0.0
    unmoved: bool = False
    false_alarms: int = 0


def _alerts(rule: str, value: str, **rules: Any) -> Variation:  # noqa: ANN401 - whatever YAML holds
    return Variation(f"`{rule}`", value, {"alerts": {rule: rules.get("to", value)}})


def _threshold(rule: str, value: str, **threshold: Any) -> Variation:  # noqa: ANN401
    return Variation(rule, value, {"threshold": threshold})


VARIATIONS = (
    Variation("as it comes", ""),
    *(_alerts("for", str(rows), to=rows) for rows in (2, 3, 5)),
    *(_alerts("recovery", str(rows), to=rows) for rows in (1, 8, 16)),
    *(_alerts("recovery_line", str(line), to=line) for line in (0.8, 0.6)),
    *(_alerts("recovery_for", each) for each in ("2h", "6h")),
    *(_alerts("refractory", each) for each in ("2h", "6h", "24h")),
    *(Variation("`min_deviation`", f"{n} spreads", spreads=n) for n in (1, 2, 3, 4)),
    *(_alerts("direction", each) for each in ("above", "below")),
    *(_threshold("`adapt_after`", each, adapt_after=each) for each in ("0s", "1h", "24h")),
    _threshold("`adapt_after`", "never", adapt_after=FOR_EVER),
    *(_threshold("`memory`", each, memory=each) for each in ("7d", "30d")),
    *(_threshold("`ewma`, `k`", str(k), k=k) for k in (3, 4, 6, 8)),
    *(
        _threshold("`quantile`, `q` and `margin`", f"{q}, {margin}", policy="quantile", q=q, margin=margin)
        for q, margin in ((0.99, 1.25), (0.99, 1.5), (0.99, 2.0), (0.999, 1.25), (0.95, 2.0))
    ),
    Variation("`static`", "where `ewma` begins", unmoved=True),
    *(
        Variation("alerts called false alarms", f"{n}: the line {2 * n} % higher", false_alarms=n)
        for n in (2, 5, 10)
    ),
    Variation(
        "together",
        "`ewma`, `k` 4, `adapt_after` 1h",
        {"threshold": {"k": 4, "adapt_after": "1h"}},
    ),
)


class Remembering:
    """A scorer that scores the same windows once: every variation judges the same errors."""

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


@dataclass(frozen=True, slots=True)
class Found:
    """What came of one variation on one series; delays in hours from the beginning of a window."""

    alerts: int
    false_alarms: int
    delays: list[float]


def main() -> int:
    """Measure, print the table, write the file and the page."""
    options = _options()
    folder = os.environ.get("OFFBEAT_DATA")
    if not folder:
        print("no real data: set OFFBEAT_DATA to a folder with nab/", file=sys.stderr)
        return 2
    every = read(Path(folder) / "nab", options.series)
    print(f"training on the first {LEARNED:.0%} of {len(every)} series", flush=True)
    scorer = Remembering(train(every))
    rows = [_row(each, [judge(each, one, scorer) for one in every], every) for each in VARIATIONS]
    rows.insert(1, _by_chance(every, rows[0]["alerts_by_series"]))
    report = {
        "series": [each.name for each in every],
        "days": sum(each.days for each in every),
        "windows": sum(len(each.windows) for each in every),
        "rows": rows,
    }
    table = _table(report)
    print(table)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written: {options.output}")
    if options.page:
        write_page(options.page, table)
        print(f"written: {options.page}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--series", default="*", help="files under nab/, a pattern with * and ?")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "false-alarms.json")
    parser.add_argument("--page", type=Path, help="write the table into this page; make false-alarms does")
    return parser.parse_args()


def read(folder: Path, pattern: str) -> list[Series]:
    """The series of the benchmark whose file names fit a pattern."""
    labels = json.loads((folder / "windows.json").read_text())
    return [_series(folder, name, labels[name]) for name in sorted(labels) if fnmatch(name, pattern)]


def _series(folder: Path, name: str, labels: list[list[str]]) -> Series:
    with (folder / name).open(newline="") as file:
        rows = [(_ns(row["timestamp"]), float(row["value"])) for row in csv.DictReader(file)]
    times, values = np.array([time for time, _ in rows], np.int64), np.array([value for _, value in rows])
    records = [
        (None, json.dumps({"series": name, "time": time / 1e9, "value": value}).encode(), time // 10**6)
        for time, value in rows
    ]
    learned = min(int(LEARNED * len(rows)), LEARNED_ROWS)
    low, high = np.quantile(values[:learned], (0.25, 0.75))
    return Series(
        name,
        RecordBatch.of(TopicPartition("nab", 0), 0, records),
        learned,
        times,
        np.array([[_ns(first), _ns(last)] for first, last in labels], np.int64).reshape(-1, 2),
        float(high - low) / 1.349 or float(values[:learned].std()),
    )


def _ns(text: str) -> int:
    return nanoseconds(datetime.fromisoformat(text).replace(tzinfo=UTC))


def stream(**sections: Any) -> Stream:  # noqa: ANN401 - whatever YAML holds
    """A stream as it comes, but for some sections."""
    return Stream.model_validate({"topic": "nab", "events": {"features": ["value"]}, **sections})


def train(every: Sequence[Series]) -> StackScorer:
    """What `offbeat train` makes of the rows that may be learned from."""
    with tempfile.TemporaryDirectory() as folder:
        config = Config(registry=folder, streams={"nab": stream()})
        batches = [partial(_learned, each) for each in every]
        source = Source(batches, None, {"files": [each.name for each in every]})
        part = Part(config.streams["nab"].training.rows)
        learned = learn(config, "nab", source, part, _ignore, left_out=LeftOut(), promote=_ignore)
        return StackScorer(Registry(folder).load("nab", learned.bundle_id))


def _learned(series: Series) -> Any:  # noqa: ANN401 - an iterator, as histories are read
    return iter([series.records.before(series.learned)])


def _ignore(_: object) -> None:
    return None


def judge(variation: Variation, series: Series, scorer: Remembering) -> Found:
    """Run the detect step over all rows of a series; what fires in those learned from does not count.

    A window is found by an alert that fires within it; an alert that fires outside all of them is false.
    """
    settings: Settings = dict(variation.settings)
    if variation.spreads:
        settings["alerts"] = {"min_deviation": variation.spreads * series.spread}
    if variation.unmoved:
        mean, deviation = scorer.assign([series.name]).calibration[0, :2].tolist()
        settings["threshold"] = {"policy": "static", "value": mean + Ewma().k * deviation}
    detector = Detector("benchmark", "nab", stream(**settings))
    state = detector.fresh("", 0)
    state.adopt(scorer, "bundle")
    state.decisions = Decisions(false_alarms=variation.false_alarms)
    changes = detector.step(state, series.records, scorer).changes
    fired = [each.at_ns for each in changes if (each.alert, each.revision) == ("anomaly", 1)]
    return _counted(series, np.array(fired, np.int64))


def _counted(series: Series, fired: NDArray[np.int64]) -> Found:
    fired = fired[fired >= series.time_ns[series.learned]]
    inside = (fired[:, None] >= series.windows[:, 0]) & (fired[:, None] <= series.windows[:, 1])
    delays = [
        float(fired[inside[:, n]].min() - start) / HOUR_NS
        for n, start in enumerate(series.windows[:, 0])
        if inside[:, n].any()
    ]
    return Found(len(fired), int((~inside.any(axis=1)).sum()), delays)


def _row(variation: Variation, found: Sequence[Found], every: Sequence[Series]) -> dict[str, Any]:
    """All series together; the interval is of series drawn again with replacement."""
    false_alarms, days = (
        np.array([each.false_alarms for each in found]),
        np.array([each.days for each in every]),
    )
    drawn = np.random.default_rng(SEED).integers(len(every), size=(DRAWS, len(every)))
    rates = false_alarms[drawn].sum(axis=1) / days[drawn].sum(axis=1)
    delays = [delay for each in found for delay in each.delays]
    return {
        "rule": variation.rule,
        "value": variation.value,
        "alerts": sum(each.alerts for each in found),
        "alerts_by_series": [each.alerts for each in found],
        "false_alarms": int(false_alarms.sum()),
        "false_alarms_per_day": float(false_alarms.sum() / days.sum()),
        "interval": np.quantile(rates, (0.025, 0.975)).tolist(),
        "found": len(delays),
        "found_by_series": [len(each.delays) for each in found],
        "false_alarms_by_series": false_alarms.tolist(),
        "median_delay_h": float(np.median(delays)) if delays else None,
    }


def _by_chance(every: Sequence[Series], alerts: Sequence[int]) -> dict[str, Any]:
    """As many alerts as the defaults raise, in rows that were drawn: what figures are to be held against."""
    luck, times = np.random.default_rng(SEED), []
    for _ in range(100):
        drawn = [luck.choice(each.time_ns[each.learned :], n) for each, n in zip(every, alerts, strict=True)]
        found = [_counted(each, fired) for each, fired in zip(every, drawn, strict=True)]
        times.append(_row(Variation("by chance", "as many alerts in rows drawn at random"), found, every))
    rates = [each["false_alarms_per_day"] for each in times]
    return times[0] | {
        "false_alarms_per_day": float(np.mean(rates)),
        "interval": np.quantile(rates, (0.025, 0.975)).tolist(),
        "found": float(np.mean([each["found"] for each in times])),
        "median_delay_h": float(np.mean([each["median_delay_h"] or 0.0 for each in times])),
    }


def _table(report: dict[str, Any]) -> str:
    windows = report["windows"]
    lines = [
        "| Rule | Set to | Alerts | False alarms per day and series | Windows found | Median delay |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        low, high = row["interval"]
        delay = "" if row["median_delay_h"] is None else f"{row['median_delay_h']:.0f} h"
        lines.append(
            f"| {row['rule']} | {row['value']} | {row['alerts']:,} | {row['false_alarms_per_day']:.3f} "
            f"({low:.3f} to {high:.3f}) | {row['found']:.0f} of {windows} | {delay} |"
        )
    return "\n".join(lines)


def write_page(page: Path, table: str) -> None:
    """Put the table between the marks of a page.

    Raises:
        ValueError: the page has not both marks.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no place for a table: write {BEGIN} and {END} into it")
    page.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
