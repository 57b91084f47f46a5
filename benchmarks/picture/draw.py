"""Draws the figures of build/bench.json: ``draw.py FIGURES PICTURE``; runs in an environment of its own.

The picture has no background, and its ink follows the reader's choice of light or dark.
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes

mpl.use("svg")
from matplotlib import pyplot as plt

INK, INK_IN_THE_DARK, GRID = "#24292f", "#e6edf3", "#8b949e"
OURS, OTHERS = "#2f81f7", "#8b949e"
SCOPES = {"shared": "#2f81f7", "stacked": "#db6d28"}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "offbeat",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor"),
        INK,
    ),
}
AWAKE = f"""<style>@media (prefers-color-scheme: dark) {{
 [style*="fill: {INK}"] {{ fill: {INK_IN_THE_DARK} !important }}
 [style*="stroke: {INK}"] {{ stroke: {INK_IN_THE_DARK} !important }} }}</style>"""


def engines(axes: Axes, report: dict) -> None:
    """Records a second of everybody on the same topic."""
    path = report["path"]
    kafka = {(row["stage"], row["models"]): row["records_per_s"] for row in path["buses"]["kafka"]}
    bars = {
        "offbeat, whole path, stacked": kafka["whole path", "stacked"],
        "offbeat, whole path, shared": kafka["whole path", "shared"],
        "offbeat, consuming alone": kafka["consume", ""],
    }
    for name, row in path["engines"].items():
        if "skipped" not in row:
            bars[f"{name}, {'consuming alone' if name == 'confluent-kafka' else 'a z-score'}"] = row[
                "records_per_s"
            ]
    rates = [bar["median"] / 1e6 for bar in bars.values()]
    spread = [
        [rate - bar["min"] / 1e6 for rate, bar in zip(rates, bars.values(), strict=True)],
        [bar["max"] / 1e6 - rate for rate, bar in zip(rates, bars.values(), strict=True)],
    ]
    colours = [OURS if name.startswith("offbeat") else OTHERS for name in bars]
    axes.barh(list(bars), rates, color=colours, xerr=spread, ecolor=GRID)
    axes.set_title("Million records a second, one process, Kafka")


def stages(axes: Axes, report: dict) -> None:
    """CPU of each stage: what it takes more than the one before it."""
    rows = {(row["stage"], row["models"]): row for row in report["path"]["buses"]["kafka"]}
    names = [
        "consume",
        "consume, decode",
        "consume, decode, windows",
        "consume, decode, windows, score",
        "whole path",
    ]
    labels = ["fetch", "decode", "windows, thresholds", "autoencoder", "commits, state"]
    shades = ["#0a3069", "#0969da", "#54aeff", "#db6d28", "#8b949e"]
    for scope in SCOPES:
        used = [
            rows[name, scope if (name, scope) in rows else ""]["cpu_s_per_million"]["median"]
            for name in names
        ]
        left = 0.0
        for before, after, label, shade in zip([0.0, *used[:-1]], used, labels, shades, strict=True):
            axes.barh(
                scope,
                max(after - before, 0),
                left=left,
                color=shade,
                label=label if scope == "shared" else None,
            )
            left += max(after - before, 0)
    axes.set_title("CPU seconds for a million records, Kafka")
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.45, -0.12), fontsize=8)


def latency(axes: Axes, report: dict) -> None:
    """Percentiles against the rate."""
    for scope, colour in SCOPES.items():
        rates = report["latency"][scope]
        at = [int(rate) / 1_000 for rate in rates]
        for key, line, name in (("p50_ms", ":", "p50"), ("p99_ms", "-", "p99")):
            values = [row[key] for row in rates.values()]
            axes.plot(at, values, line, color=colour, marker="o", markersize=3, label=f"{name} {scope}")
    axes.set_title("Milliseconds from produce to committed alert")
    axes.set_xlabel("thousand records a second")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)


def rates(axes: Axes, report: dict) -> None:
    """The rate against the number of series and the size of batches."""
    for what, colour in (("series", "#2f81f7"), ("batch", "#db6d28")):
        values = report["rates"][what]
        medians = [row["records_per_s"]["median"] / 1e6 for row in values.values()]
        axes.plot(
            [int(value) for value in values], medians, marker="o", markersize=3, color=colour, label=what
        )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_title("Million records a second against series, batch")
    axes.legend(frameon=False, fontsize=8)


def main() -> None:
    """Draw what was measured; a panel whose part was not stays out."""
    figures, picture = map(Path, sys.argv[1:])
    report = json.loads(figures.read_text())
    panels = [
        panel
        for panel, part in ((engines, "path"), (stages, "path"), (latency, "latency"), (rates, "rates"))
        if part in report
    ]
    with plt.rc_context(STYLE):
        rows = -(-len(panels) // 2)
        figure, grid = plt.subplots(rows, 2, figsize=(11, 3.2 * rows), squeeze=False, layout="constrained")
        for axes, panel in zip(grid.flat, panels, strict=False):
            axes.grid(color=GRID, alpha=0.25)
            axes.set_axisbelow(True)
            panel(axes, report)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        figure.savefig(picture, transparent=True, metadata={"Date": None})
    drawn = picture.read_text()
    first = drawn.index("<defs>")
    picture.write_text(drawn[:first] + AWAKE + drawn[first:])


main()
