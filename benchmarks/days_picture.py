"""Draws what benchmarks/three_days.py found as one SVG; its ink follows the choice of light or dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from models.pictures import Plot, bounds
from pipeline.drift import DRIFTED

WIDTH, PANEL, BAND, LAST, FOOT = 960, 108, 102, 130, 26
LEFT, RIGHT = 56, 12
"""As wide as the axes of a plot are from its edges."""
ROWS = 5
"""Of labels, each below those before it that it would touch, so that its line crosses none of them."""
SYMBOLS = {
    "promoted": "▲", "refused": "✕", "by hand": "▲", "rolled back": "◀", "accepted": "✓", "frozen": "■",
}  # fmt: skip
STYLE = """<style>
 svg { --ink: #24292f; --faint: #8b949e; --value: #2f81f7; --alert: #d1242f; --odd: #bf8700; --good: #1a7f37;
  font: 11px sans-serif; fill: var(--ink) }
 @media (prefers-color-scheme: dark) {
  svg { --ink: #e6edf3; --alert: #ff7b72; --odd: #d29922; --good: #3fb950 } }
 .line { fill: none; stroke: var(--value); stroke-width: 1 }
 .limit { stroke: var(--alert); stroke-dasharray: 4 3 }
 .grid { stroke: var(--faint); stroke-opacity: .25 }
 .axis { stroke: var(--faint) }
 .alert { fill: var(--alert); fill-opacity: .3 }
 .odd { fill: var(--odd); fill-opacity: .22 }
 .promoted, .rolled-back { stroke: var(--good) }
 .by-hand { stroke: var(--alert) }
 .refused, .accepted, .frozen { stroke: var(--faint); stroke-dasharray: 2 3 }
 text.promoted, text.rolled-back { fill: var(--good); stroke: none }
 text.by-hand { fill: var(--alert); stroke: none }
 text.refused, text.accepted, text.frozen, .small { fill: var(--faint); stroke: none }
</style>"""


def draw(report: Mapping[str, Any], shown: Sequence[int]) -> str:
    """The picture: decisions at the top, values of some series with their alerts, and the drift."""
    hours = (0.0, float(report["hours"]))
    ticks = [(float(hour), f"{hour} h") for hour in range(0, int(hours[1]), 6)]
    panels = []
    for n in shown:
        xs, ys = report["values"]["hours"], report["values"]["series"][str(n)]
        low, high = bounds(ys)
        plot = Plot(
            f"unit-{n}", hours, (low, high), ("", f"unit-{n}"), width=WIDTH, height=PANEL, x_ticks=[(0.0, "")]
        )
        for each in report["truth"]:
            if n in each["series"]:
                plot.bars([each["start"], each["end"]], [high], ["odd"])
        for each in report["alerts"]:
            if each["series"] == f"unit-{n}":
                end = hours[1] if each["end"] is None else each["end"]
                plot.bars([each["start"], max(end, each["start"] + 0.15)], [high], ["alert"])
        plot.line(xs, ys, "value")
        panels.append((PANEL, plot.svg()))
    drift = Plot(
        "drift", hours, (0.0, 1.0), ("since it is watched", "drift: share of errors that are far off"),
        width=WIDTH, height=LAST, x_ticks=ticks,
    )  # fmt: skip
    drift.line(*zip(*report["drift"], strict=True), "value")
    drift.line(hours, [DRIFTED, DRIFTED], "limit")
    panels.append((LAST, drift.svg()))
    height = BAND + sum(each for each, _ in panels) + FOOT
    parts, top = [_decisions(report["decisions"], hours[1], height - FOOT - 34)], BAND
    for tall, svg in panels:
        parts.append(svg.replace("<svg ", f'<svg x="0" y="{top}" width="{WIDTH}" height="{tall}" ', 1))
        top += tall
    parts.append(
        f'<text class="small" x="{LEFT}" y="{height - 8}">red: an alert is open · yellow: injected: a fault, '
        "polluted rows, or the new regime until it was accepted · lines: the model changes · "
        "dotted: it does not</text>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="Three simulated days of a stream that trains itself">{STYLE}{"".join(parts)}</svg>\n'
    )


def _decisions(decisions: Sequence[Mapping[str, Any]], hours: float, bottom: int) -> str:
    """A line for each decision, and its name above."""
    parts, free = [], [0.0] * ROWS
    for each in decisions:
        x = LEFT + each["hour"] / hours * (WIDTH - LEFT - RIGHT)
        style, text = each["what"].replace(" ", "-"), f"{SYMBOLS[each['what']]} {each['what']}"
        text += f" ({each['cause']})" * bool(each["cause"])
        wide = 6.2 * len(text) + 8
        left = x + wide > WIDTH - RIGHT
        begins, ends = (x - wide, x) if left else (x, x + wide)
        row = min(max((n + 1 for n, until in enumerate(free) if until > begins), default=0), ROWS - 1)
        free[row] = ends
        y = 22 + 18 * row
        parts.append(
            f'<path class="{style}" d="M{x:.1f} {y + 4}V{bottom}"><title>{escape(each["why"])}</title></path>'
            f'<text class="{style}" x="{x + (-2 if left else 2):.1f}" y="{y}" '
            f'text-anchor="{"end" if left else "start"}">{text}</text>'
        )
    return "".join(parts)
