"""docs/performance.md: the figures between two marks, and their picture; the words round them stay."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from environments import ROOT, NotThere, python_of
from place import Place
from report import verdicts

BEGIN, END = "<!-- written by make bench -->", "<!-- until here -->"
DRAW = ROOT / "benchmarks" / "picture"


def write_page(report: dict[str, Any], figures: Path, page: Path, place: Place) -> None:
    """Put the figures of a report into the page, and draw its picture beside it.

    Raises:
        ValueError: the page has not both marks.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no place for figures: write {BEGIN} and {END} into it")
    picture = page.with_suffix(".svg")
    try:
        python = python_of(
            "picture", DRAW / "requirements.txt", place.say, make=place.sizes.makes_environments
        )
        subprocess.run([python, DRAW / "draw.py", figures, picture], check=True)
    except NotThere as error:
        place.say(f"the picture stays as it was: {error}")
    page.write_text(f"{before}{BEGIN}\n\n{_figures(report, picture.name)}\n{END}{after}")


def _figures(report: dict[str, Any], picture: str) -> str:
    machine = report["machine"]
    measured = (
        f"Measured on {machine['cores']} cores ({machine['architecture']}), Python {machine['python']}, "
        f"torch {machine['torch']} with {machine['torch_threads']} thread; the load before was "
        f"{machine['load_before'][0]:.1f}. Medians; in brackets the lowest and the highest of the rounds."
    )
    lines = [
        measured,
        f"![Rates, CPU and latency as in the tables below]({picture})",
        "## Held",
        _table(("What", "Hold", "Aim", "Measured", "So it is"), verdicts(report)),
    ]
    for part, write in (
        ("path", _path),
        ("rates", _rates),
        ("latency", _latency),
        ("memory", _memory),
        ("takeover_s", _takeover),
    ):
        if part in report:
            lines += write(report)
    return "\n\n".join(lines) + "\n"


def _path(report: dict[str, Any]) -> list[str]:
    path = report["path"]
    rows = [
        (
            bus,
            stage["stage"].rpartition(", ")[2],
            stage["models"],
            *_rate(stage),
            _brief(stage["ratio_to_consume"]),
        )
        for bus, stages in path["buses"].items()
        for stage in stages
    ]
    engines = [
        (name, *(_rate(row) if "skipped" not in row else ("left out: " + row["skipped"], "")))
        for name, row in path["engines"].items()
    ]
    return [
        "## Stage by stage",
        _table(("Bus", "Up to", "Models", "Records/s", "CPU s per million", "To consuming"), rows),
        "## Others on the same topic",
        _table(("Engine", "Records/s", "CPU s per million"), engines),
    ]


def _rates(report: dict[str, Any]) -> list[str]:
    rows = [
        (what, value, *_rate(row))
        for what, values in report["rates"].items()
        for value, row in values.items()
    ]
    return ["## What the rate depends on", _table(("Varied", "To", "Records/s", "CPU s per million"), rows)]


def _latency(report: dict[str, Any]) -> list[str]:
    rows = [
        (
            f"{int(rate):,}",
            scope,
            *(f"{row[each]:.0f}" for each in ("p50_ms", "p99_ms", "p999_ms", "max_ms")),
            f"{row['alerts']:,}",
            f"{row['core']:.2f}",
            f"{row['core_with_50_alerts_a_second']:.2f}",
        )
        for scope, rates in report["latency"].items()
        for rate, row in rates.items()
    ]
    headers = (
        "Records/s",
        "Models",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "Slowest",
        "Alerts",
        "Core, 1 alert/s",
        "Core, 50 alerts/s",
    )
    return ["## From produce to committed alert", _table(headers, rows)]


def _memory(report: dict[str, Any]) -> list[str]:
    worker, redis = (report[f"{where}_bytes_per_series"]["by_series"] for where in ("worker", "redis"))
    names = ("end_to_end_s", "records_per_s", "checkpoint_s", "load_s", "takeover_s", "snapshot_s")
    rows = [
        (
            f"{int(series):,}",
            *(f"{row[name]:,.0f}" if row[name] >= 100 else f"{row[name]:.2g}" for name in names),
            f"{worker[series]:,.0f}" if series in worker else "",
            f"{redis[series]:,.0f}" if series in redis else "",
        )
        for series, row in report["memory"].items()
    ]
    headers = (
        "Series", "Filled and read in s", "Records/s", "Checkpoint s", "Load s", "Takeover s", "Snapshot s",
        "Worker, B a series", "Redis, B a series",
    )  # fmt: skip
    return ["## What a series costs", _table(headers, rows)]


def _takeover(report: dict[str, Any]) -> list[str]:
    rows = [
        (kind.replace("_", " "), f"{row['median']:.1f} ({row['min']:.1f} to {row['max']:.1f})")
        for kind, row in report["takeover_s"].items()
    ]
    return ["## Killed workers", _table(("Worker", "Seconds until its partition goes on"), rows)]


def _rate(row: dict[str, Any]) -> tuple[str, str]:
    rate, cpu = row["records_per_s"], row["cpu_s_per_million"]
    low, high = _thousands(rate["min"]), _thousands(rate["max"])
    return f"{_thousands(rate['median'])} ({low} to {high})", f"{cpu['median']:.2f}"


def _thousands(rate: float) -> str:
    return f"{round(rate, -3):,.0f}"


def _brief(values: dict[str, float]) -> str:
    return f"{values['median']:.2f}"


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
