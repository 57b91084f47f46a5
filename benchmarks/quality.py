"""Measures how well the program detects, on labelled series, for build/quality.json and docs/quality.md.

`make quality` runs it whole: autoencoders are trained by the program's own training on what the data's
protocol lets a detector learn from, and its detect step goes over every row; each kind, scope, threshold and
control stands beside the default. It wants `nab/`, `smd/` and `skab/` in a folder at OFFBEAT_DATA.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from changes import changed
from contamination import halved, poisoned, variants
from controls import always, by_chance, episodes, ewma_z
from labelled import (
    ROOT,
    DataSet,
    Float64s,
    Int64s,
    Remembering,
    Series,
    Settings,
    counted,
    data_folder,
    fired_ns,
    nab,
    publish,
    skab,
    smd,
    train,
    watch,
)
from made_up import made_up
from measures import average_precision, event_f1, hit_rate, nab_points, nab_score, vus_pr

from models import StackScorer
from pipeline.alerts import Alert
from pipeline.config import Stream
from pipeline.ports import Calibrated, Errors, Explanation, Scorer, Windows

READERS: dict[str, Callable[[Path, str], DataSet]] = {"nab": nab, "smd": smd, "skab": skab}
MADE_UP = "made-up"
KEPT = ROOT / "build" / "quality"
DRAWS, SEED = 2_000, 0
LINES = np.geomspace(0.02, 50, 400)[::-1]
"""Where a detector's line is put, in units of its own, to find the one that raises as many false alarms."""

COLUMNS = (
    "Detector", "Events", "False alarms a day", "Delay", "Event F1", "at equal false alarms", "NAB",
    "at equal false alarms", "AUC-PR", "VUS-PR", "FAR", "MAR", "F1 of rows",
)  # fmt: skip

CONTAMINATION_COLUMNS = (
    "Learned from anomalies", "Left out", "Events", "False alarms a day", "Event F1",
    "Events at equal false alarms",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """The program, set up in one way.

    Attributes:
        settings: sections of a stream that differ from the defaults.
        blind: its autoencoder sees no error.
    """

    name: str
    settings: Settings = field(default_factory=dict)
    blind: bool = False


@dataclass(frozen=True, slots=True)
class Control:
    """A detector that is none of the program's.

    Attributes:
        scores: of a series' rows.
        line: where they are high; None where they raise as many false alarms as the default.
    """

    name: str
    scores: Callable[[Series], Float64s]
    line: float | None = None


def _threshold(name: str, **threshold: Any) -> Entry:  # noqa: ANN401 - whatever YAML holds
    return Entry(name, {"threshold": threshold})


DEFAULT = Entry("as it comes")
ENTRIES = (
    DEFAULT,
    Control("by chance", by_chance),
    Control("always on", always, 1.0),
    Control("EWMA-z of the value", ewma_z, 5.0),
    *(
        Entry(f"`model.kind: {kind}`", {"model": {"kind": kind}})
        for kind in ("denoising", "sparse", "contractive", "variational", "pca")
    ),
    *(Entry(f"`model.scope: {scope}`", {"model": {"scope": scope}}) for scope in ("cohort", "global")),
    _threshold("`ewma`", policy="ewma"),
    _threshold("`quantile`", policy="quantile"),
    _threshold("`static`", policy="static", value=1.0),
    _threshold("`joint`", policy="joint"),
    _threshold("`joint` without the level", policy="joint", level=False),
    _threshold("`joint` without shapes", policy="joint", shapes=False),
    _threshold("`joint` without rarity", policy="joint", rarity=False),
    Entry("`joint` without the autoencoder", {"threshold": {"policy": "joint"}}, blind=True),
)


@dataclass(frozen=True, slots=True)
class Judged:
    """What one detector made of one series.

    Attributes:
        rows: int64[n], the rows that were judged.
        scores, last: float64[n], of the window and of its last row alone; 1 is the line.
        fired, ended: rows where alerts fired and ended.
        alerts: those that fired, with their evidence; empty for controls.
    """

    rows: Int64s
    scores: Float64s
    last: Float64s
    fired: Int64s
    ended: Int64s
    alerts: list[Alert] = field(default_factory=list)


class Blind:
    """A scorer whose autoencoder makes no errors: what is left is told by its companions alone."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def assign(self, series: Sequence[str]) -> Calibrated:
        """See :class:`pipeline.ports.Scorer`."""
        return self._scorer.assign(series)

    def score(self, windows: Windows) -> Errors:
        """No error anywhere."""
        return Errors(np.zeros(len(windows)), np.zeros(len(windows)))

    def explain(self, windows: Windows) -> Explanation:
        """See :class:`pipeline.ports.Scorer`."""
        return self._scorer.explain(windows)


def main() -> int:
    """Measure, print the tables, write the file and the page."""
    options = _options()
    real = [each for each in options.only if each != MADE_UP]
    folder = data_folder(*real)
    if folder is None:
        return 2
    report: dict[str, Any] = {}
    tables: list[str] = []
    sets = {each: READERS[each](folder / each, options.series) for each in real}
    for name, data in sets.items():
        began, shown = time.monotonic(), len(tables)
        print(f"{name}: {len(data.every)} series", flush=True)
        report[name] = measure(data, options.kept)
        tables.append(_table(data, report[name]))
        if not options.no_contamination and halved(data).every:
            report[name]["contamination"] = contaminate(data, options.kept)
            tables.append(_contamination_table(report[name]["contamination"]))
        if not options.no_changes and (found := changed(data, options.kept)):
            report[name]["changes"] = found
            tables.append(_changes_table(found))
        print("\n\n".join(tables[shown:]) + f"\n\n{time.monotonic() - began:.0f} s", flush=True)
    if MADE_UP in options.only:
        report[MADE_UP] = made_up(options.kept)
        tables.append(_made_up_table(report[MADE_UP]))
        print(tables[-1], flush=True)
    publish(report, options.output, options.page, "quality", "\n\n".join(tables))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = [*READERS, MADE_UP]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="parts to measure")
    parser.add_argument("--series", default="*", help="files of these parts, a pattern with * and ?")
    parser.add_argument(
        "--no-contamination", action="store_true", help="leave out what anomalies in training cost"
    )
    parser.add_argument("--no-changes", action="store_true", help="leave out what changes of model do")
    parser.add_argument("--kept", type=Path, default=KEPT, help="folder of bundles, kept by their content")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "quality.json")
    parser.add_argument("--page", type=Path, help="write the tables into this page; make quality does")
    return parser.parse_args()


def measure(data: DataSet, kept: Path) -> dict[str, Any]:
    """Every detector on one set of data."""
    scorers: dict[str, Remembering] = {}
    default = judge(data, DEFAULT, scorers, kept)
    at_most = sum(each["false_alarms"] for each in _counts(data, [one.fired for one in default]))
    rows = []
    for entry in ENTRIES:
        if isinstance(entry, Control):
            judged = judge_control(data, entry, at_most)
        else:
            judged = default if entry is DEFAULT else judge(data, entry, scorers, kept)
        rows.append({"detector": entry.name, **describe(data, judged, at_most)})
        print(f"  {entry.name}: {rows[-1]['found']} of {data.events} events", flush=True)
    report = {
        "series": [each.name for each in data.every],
        "events": data.events,
        "days": sum(each.days for each in data.every),
        "detectors": rows,
    }
    if data.every[0].causes:
        report["causes"] = causes(data, default)
    return report


def judge(data: DataSet, entry: Entry, scorers: dict[str, Remembering], kept: Path) -> list[Judged]:
    """The program on every series; bundles and errors are made once for all entries that share them."""
    stream = data.stream(entry.settings)
    key = stream.model_dump_json(include={"model", "training"})
    if key not in scorers:
        scorers[key] = Remembering(StackScorer(train(data, entry.settings, kept)))
    return judge_by(data, stream, Blind(scorers[key]) if entry.blind else scorers[key])


def judge_by(data: DataSet, stream: Stream, scorer: Scorer) -> list[Judged]:
    """The detect step with one scorer over every series."""
    judged = []
    for each in data.every:
        outputs = watch(data, each, scorer, stream)
        times, scores, last = (
            np.concatenate([getattr(part, name) for part in outputs.scores])
            for name in ("time_ns", "score", "last_score")
        )
        ended = [change.at_ns for change in outputs.changes if change.state == "resolved"]
        judged.append(
            Judged(
                np.searchsorted(each.time_ns, times),
                scores,
                last,
                np.searchsorted(each.time_ns, fired_ns(outputs.changes)),
                np.searchsorted(each.time_ns, np.array(ended, np.int64)),
                [alert for alert in outputs.alerts if alert.revision == 1],
            )
        )
    return judged


def judge_control(data: DataSet, entry: Control, at_most: int) -> list[Judged]:
    """A control on every series, its scores in units of its line."""
    nothing, judged = np.zeros(0, np.int64), []
    for series in data.every:
        scores = entry.scores(series) / (entry.line or 1.0)
        judged.append(Judged(np.arange(len(scores)), scores, scores, nothing, nothing))
    line = 1.0 if entry.line else equal_line(data, judged, at_most)
    return _moved(data, judged, line)


def _moved(data: DataSet, judged: Sequence[Judged], line: float) -> list[Judged]:
    """The same if the line stood at ``line`` times its place, under the rules of alerts as they come."""
    moved = []
    for series, each in zip(data.every, judged, strict=True):
        scores, last = each.scores / line, each.last / line
        fired, ended = episodes(scores, last, series.time_ns[each.rows], data.stream())
        moved.append(Judged(each.rows, scores, last, each.rows[fired], each.rows[ended]))
    return moved


def equal_line(data: DataSet, judged: Sequence[Judged], at_most: int) -> float:
    """The lowest line, coming from above, before more false alarms are raised than ``at_most``."""
    best = float(LINES[0])
    for line in LINES.tolist():
        counts = _counts(data, [each.fired for each in _moved(data, judged, line)])
        if sum(each["false_alarms"] for each in counts) > at_most:
            break
        best = line
    return best


def _counts(data: DataSet, fired: Sequence[Int64s]) -> list[dict[str, Any]]:
    """By series: windows found and which, false alarms, delays in the set's unit, points of NAB."""
    counts = []
    for series, rows in zip(data.every, fired, strict=True):
        found = counted(series, series.time_ns[rows])
        windows = np.stack(
            [
                np.searchsorted(series.time_ns, series.windows[:, 0]),
                np.searchsorted(series.time_ns, series.windows[:, 1], "right") - 1,
            ],
            axis=1,
        )
        counts.append(
            {
                "found": len(found.which),
                "which": found.which,
                "alerts": found.alerts,
                "false_alarms": found.false_alarms,
                "delays": [delay / data.unit_ns for delay in found.delays_ns],
                "points": nab_points(windows, rows[rows >= series.learned]),
            }
        )
    return counts


def describe(data: DataSet, judged: Sequence[Judged], at_most: int) -> dict[str, Any]:
    """The figures of one detector, as it comes and where it raises ``at_most`` false alarms."""
    line = equal_line(data, judged, at_most)
    counts, equal = (
        _counts(data, [each.fired for each in one]) for one in (judged, _moved(data, judged, line))
    )
    ranked = []
    for series, each in zip(data.every, judged, strict=True):
        watched = each.rows >= series.learned
        labels = series.labels[each.rows[watched]]
        if labels.any():
            scores = each.scores[watched]
            ranked.append((average_precision(scores, labels), vus_pr(scores, labels)))
    auc_pr, vus = np.mean(ranked, axis=0).tolist()
    return {
        **_summary(data, counts),
        "at_equal_false_alarms": {"line": line, **_summary(data, equal)},
        "auc_pr": auc_pr,
        "vus_pr": vus,
        **_rowwise(data, judged),
    }


def _summary(data: DataSet, counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All series together; intervals, 5 to 95 %, are of series drawn again with replacement."""
    found, false_alarms, points = (
        np.array([each[name] for each in counts], float) for name in ("found", "false_alarms", "points")
    )
    days = np.array([each.days for each in data.every])
    events = np.array([len(each.windows) for each in data.every])
    everything = np.arange(len(counts))
    drawn = np.random.default_rng(SEED).integers(len(counts), size=(DRAWS, len(counts)))

    def of(chosen: Int64s) -> tuple[float, float, float]:
        return (
            false_alarms[chosen].sum() / days[chosen].sum(),
            event_f1(found[chosen].sum(), false_alarms[chosen].sum(), events[chosen].sum()),
            nab_score(points[chosen].sum(), events[chosen].sum()),
        )

    whole, spread = of(everything), np.nanquantile([of(each) for each in drawn], (0.05, 0.95), axis=0)
    delays = [delay for each in counts for delay in each["delays"]]
    return {
        "alerts": sum(each["alerts"] for each in counts),
        "found": int(found.sum()),
        "found_by_series": [each["which"] for each in counts],
        "false_alarms": int(false_alarms.sum()),
        "false_alarms_by_series": false_alarms.astype(int).tolist(),
        "median_delay": float(np.median(delays)) if delays else None,
        **{
            name: {"value": float(whole[n]), "interval": spread[:, n].tolist()}
            for n, name in enumerate(("false_alarms_per_day", "event_f1", "nab"))
        },
    }


def _rowwise(data: DataSet, judged: Sequence[Judged]) -> dict[str, float]:
    """Rows in open alerts against labels: false alarm rate, missed alarm rate, and F1 of rows."""
    told, labels = [], []
    for series, each in zip(data.every, judged, strict=True):
        change = np.zeros(len(series.time_ns) + 1, np.int64)
        np.add.at(change, each.fired, 1)
        np.add.at(change, each.ended, -1)
        told.append(np.cumsum(change)[series.learned : -1] > 0)
        labels.append(series.labels[series.learned :])
    return rowwise(np.concatenate(told), np.concatenate(labels))


def rowwise(told: Int64s, labels: Int64s) -> dict[str, float]:
    """SKAB's measures of rows told, bool[n], against labels bool[n]; rates are shares from 0 to 1."""
    hits, false = int((told & labels).sum()), int((told & ~labels).sum())
    marked, calm = int(labels.sum()), int((~labels).sum())
    return {
        "far": false / max(calm, 1),
        "mar": (marked - hits) / max(marked, 1),
        "row_f1": 2 * hits / max(hits + false + marked, 1),
    }


def causes(data: DataSet, judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """How well the first alert of each window that was found names what caused it, beside other rankings."""
    rankings: dict[str, list[tuple[list[int], tuple[int, ...]]]] = {
        "contributions of the alert": [],
        "z-score of the row": [],
        "by chance": [],
    }
    luck = np.random.default_rng(SEED)
    place = {name: n for n, name in enumerate(data.features)}
    for series, each in zip(data.every, judged, strict=True):
        learned = series.values[: series.learned]
        spread = np.maximum(learned.std(axis=0), 1e-2)
        for n, (first, last) in enumerate(series.windows.tolist()):
            inside = np.flatnonzero(
                (series.time_ns[each.fired] >= first) & (series.time_ns[each.fired] <= last)
            )
            if not len(inside):
                continue
            alert, row = each.alerts[inside[0]], each.fired[inside[0]]
            z = np.abs(series.values[row] - learned.mean(axis=0)) / spread
            named = [place[feature.name] for feature in alert.features]
            rankings["contributions of the alert"].append((named, series.causes[n]))
            rankings["z-score of the row"].append((np.argsort(-z, kind="stable").tolist(), series.causes[n]))
            rankings["by chance"] += [
                (luck.permutation(len(place)).tolist(), series.causes[n]) for _ in range(100)
            ]
    return [
        {
            "ranking": name,
            **{
                f"hit_rate_{share:.0%}": float(np.mean([hit_rate(*each, share) for each in ranked]))
                for share in (1.0, 1.5)
            },
        }
        for name, ranked in rankings.items()
        if ranked
    ]


def contaminate(data: DataSet, kept: Path) -> dict[str, Any]:
    """What is found of later windows after learning from earlier ones, and when a slow push is noticed."""
    rows, at_most = [], 0
    for share, left_out, some, scorer in variants(data, kept):
        judged = judge_by(some, some.stream(), scorer)
        counts = _counts(some, [each.fired for each in judged])
        if not rows:
            at_most = sum(each["false_alarms"] for each in counts)
        line = equal_line(some, judged, at_most)
        equal = _counts(some, [each.fired for each in _moved(some, judged, line)])
        rows.append(
            {
                "share": share,
                "left_out": left_out,
                "events": some.events,
                **_summary(some, counts),
                "at_equal_false_alarms": _summary(some, equal),
            }
        )
    return {"rows": rows, "pushes": poisoned(data, kept)}


def _contamination_table(report: dict[str, Any]) -> str:
    lines = [
        f"| {' | '.join(CONTAMINATION_COLUMNS)} |",
        "|---" * len(CONTAMINATION_COLUMNS) + "|",
    ]
    lines += [
        f"| {row['share']} | {row['left_out']} | {row['found']} of {row['events']} "
        f"| {row['false_alarms_per_day']['value']:.3f} | {row['event_f1']['value']:.2f} "
        f"| {row['at_equal_false_alarms']['found']} |"
        for row in report["rows"]
    ]
    if report["pushes"]:
        lines += [
            "",
            "| Pushed at each retrain | Features | Noticed | At retrain | Of all retrains |",
            "|---|---|---|---|---|",
        ]
    lines += [
        f"| {row['push']:g} spreads | {row['features']} | {row['noticed']} of {row['series']} series "
        f"| {_at_retrain(row)} | {row['noticed_retrains']} of {row['retrains']} |"
        for row in report["pushes"]
    ]
    return "\n".join(lines)


def _changes_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| Windows after a change of model | Changes | Alerts | Without the change |",
        "|---|---|---|---|",
    ]
    lines += [f"| {row['windows']} | {row['changes']} | {row['with']} | {row['without']} |" for row in rows]
    return "\n".join(lines)


def _made_up_table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "### made-up machines of several features",
        "",
        "| Features | Threshold | Faults found | False alarms a day without faults |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['features']} | {row['threshold']} | {row['found']} of {row['faults']} "
        f"| {row['false_alarms_per_day']:.3f} |"
        for row in rows
    ]
    return "\n".join(lines)


def _at_retrain(row: dict[str, Any]) -> str:
    return f"{row['at_retrain']:g} ({row['first']} to {row['last']})" if row["noticed"] else ""


def _table(data: DataSet, report: dict[str, Any]) -> str:
    """The figures as people read them."""
    lines = [
        f"### {data.name}: {len(data.every)} series, {report['events']} events, {report['days']:,.0f} days",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for row in report["detectors"]:
        equal = row["at_equal_false_alarms"]
        delay = "" if row["median_delay"] is None else f"{row['median_delay']:.0f} {data.unit}"
        lines.append(
            f"| {row['detector']} | {row['found']} | {_with(row['false_alarms_per_day'], 3)} | {delay} "
            f"| {_with(row['event_f1'], 2)} | {_with(equal['event_f1'], 2)} | {_with(row['nab'], 1)} "
            f"| {_with(equal['nab'], 1)} | {row['auc_pr']:.3f} | {row['vus_pr']:.3f} "
            f"| {row['far']:.1%} | {row['mar']:.1%} | {row['row_f1']:.2f} |"
        )
    if "causes" in report:
        lines += ["", "| Causes ranked by | HitRate@100 % | HitRate@150 % |", "|---|---|---|"]
        lines += [
            f"| {row['ranking']} | {row['hit_rate_100%']:.2f} | {row['hit_rate_150%']:.2f} |"
            for row in report["causes"]
        ]
    return "\n".join(lines)


def _with(figure: dict[str, Any], digits: int) -> str:
    low, high = figure["interval"]
    return f"{figure['value']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


if __name__ == "__main__":
    sys.exit(main())
