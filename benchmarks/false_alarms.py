"""Measures what each rule of alerts is worth on labelled series, for build/ and docs/false-alarms.md.

`make false-alarms` runs it whole, in a minute on two cores: the autoencoders of all series are trained by the
program's own training, on the first 15 % of each; then its detect step goes over every row of them, once for
each way to set a rule. It wants the Numenta Anomaly Benchmark: a folder with `nab/` in OFFBEAT_DATA.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from labelled import (
    HOUR_NS,
    LEARNED,
    ROOT,
    DataSet,
    Found,
    Remembering,
    Series,
    Settings,
    counted,
    data_folder,
    fired_ns,
    nab,
    publish,
    train,
    watch,
)

from models import StackScorer
from pipeline.config import Ewma
from pipeline.control import Decisions

DRAWS, SEED = 2_000, 0
FOR_EVER = "3650d"


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
    *(_threshold("`adapt_after`", each, adapt_after=each) for each in ("1h", "6h", "24h")),
    _threshold("`adapt_after`", "never", adapt_after=FOR_EVER),
    *(_threshold("`memory`", each, memory=each) for each in ("7d", "30d")),
    *(_threshold("`line`", str(line), line=line) for line in (0.35, 0.55, 0.7)),
    *(_threshold("`ewma`, `k`", str(k), k=k) for k in (3, 4, 5, 6, 8)),
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


def main() -> int:
    """Measure, print the table, write the file and the page."""
    options = _options()
    folder = data_folder("nab")
    if folder is None:
        return 2
    data = nab(folder / "nab", options.series)
    every = data.every
    print(f"training on the first {LEARNED:.0%} of {len(every)} series", flush=True)
    scorer = Remembering(StackScorer(train(data)))
    rows = [_row(each, [judge(each, data, one, scorer) for one in every], every) for each in VARIATIONS]
    rows.insert(1, _by_chance(every, rows[0]["alerts_by_series"]))
    report = {
        "series": [each.name for each in every],
        "days": sum(each.days for each in every),
        "windows": sum(len(each.windows) for each in every),
        "rows": rows,
    }
    table = _table(report)
    print(table)
    publish(report, options.output, options.page, "false-alarms", table)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--series", default="*", help="files under nab/, a pattern with * and ?")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "false-alarms.json")
    parser.add_argument("--page", type=Path, help="write the table into this page; make false-alarms does")
    return parser.parse_args()


def judge(variation: Variation, data: DataSet, series: Series, scorer: Remembering) -> Found:
    """Run the detect step over all rows of a series; what fires in those learned from does not count.

    A window is found by an alert that fires within it; an alert that fires outside all of them is false.
    """
    settings = dict(variation.settings)
    if variation.spreads:
        settings["alerts"] = {"min_deviation": variation.spreads * series.spread}
    if variation.unmoved:
        mean, deviation = scorer.assign([series.name]).calibration[0, :2].tolist()
        settings["threshold"] = {"policy": "static", "value": mean + Ewma().k * deviation}
    decisions = Decisions(false_alarms=variation.false_alarms)
    return counted(series, fired_ns(watch(data, series, scorer, data.stream(settings), decisions).changes))


def _row(variation: Variation, found: Sequence[Found], every: Sequence[Series]) -> dict[str, Any]:
    """All series together; the interval is of series drawn again with replacement."""
    false_alarms, days = (
        np.array([each.false_alarms for each in found]),
        np.array([each.days for each in every]),
    )
    drawn = np.random.default_rng(SEED).integers(len(every), size=(DRAWS, len(every)))
    rates = false_alarms[drawn].sum(axis=1) / days[drawn].sum(axis=1)
    delays = [delay / HOUR_NS for each in found for delay in each.delays_ns]
    return {
        "rule": variation.rule,
        "value": variation.value,
        "alerts": sum(each.alerts for each in found),
        "alerts_by_series": [each.alerts for each in found],
        "false_alarms": int(false_alarms.sum()),
        "false_alarms_per_day": float(false_alarms.sum() / days.sum()),
        "interval": np.quantile(rates, (0.025, 0.975)).tolist(),
        "found": len(delays),
        "found_by_series": [len(each.delays_ns) for each in found],
        "false_alarms_by_series": false_alarms.tolist(),
        "median_delay_h": float(np.median(delays)) if delays else None,
    }


def _by_chance(every: Sequence[Series], alerts: Sequence[int]) -> dict[str, Any]:
    """As many alerts as the defaults raise, in rows that were drawn: what figures are to be held against."""
    luck, times = np.random.default_rng(SEED), []
    for _ in range(100):
        drawn = [luck.choice(each.time_ns[each.learned :], n) for each, n in zip(every, alerts, strict=True)]
        found = [counted(each, fired) for each, fired in zip(every, drawn, strict=True)]
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


if __name__ == "__main__":
    sys.exit(main())
