"""How the demo looks: a live view on a terminal, plain lines elsewhere, and the summary at the end."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from offbeat.demo.scene import KEPT_ROWS, Scene
from pipeline.alerts import Alert, FeatureEvidence

PHASES = {
    # phase: step it belongs to, what is said of it
    "starting": ("start", "starting"),
    "learning": ("learn", "learning what is normal here"),
    "training": ("train", "training the autoencoder"),
    "settling": ("train", "letting the load of training leave the window"),
    "quiet": ("watch", "detecting, in a quiet time"),
    "burst": ("burst", "causing a burst of load"),
    "after": ("resolve", "the burst is over; its alert resolves"),
    "closing": ("resolve", "closing"),
}
STEPS = tuple(dict.fromkeys(step for step, _ in PHASES.values()))
WIDTH, CHART_WIDTH, CHART_HEIGHT = 80, 38, 8
ROWS_A_COLUMN = 8
"""Scores of one column of the chart, about half a second of them; the highest is drawn."""
REFRESH_PER_SECOND = 4.0
PLAIN_S = 10.0
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_RIGHT_WIDTH, _SPARK_WIDTH = 30, 8
_SHOWN_ALERTS, _SHOWN_FEATURES = 2, 3


@contextmanager
def opened(scene: Scene, *, plain: bool) -> Iterator[Callable[[], None]]:
    """Show the scene until the context is left; gives what to call when something may have changed.

    ``plain`` asks for lines on standard error; without it standard output gets the view, or the lines where
    it is no terminal.
    """
    if plain or not sys.stdout.isatty():
        yield Lines(scene, sys.stderr if plain else sys.stdout).tick
        return
    console = Console(width=min(Console().width, WIDTH))
    with Live(
        console=console,
        get_renderable=lambda: screen(scene),
        refresh_per_second=REFRESH_PER_SECOND,
        transient=True,
    ):
        # The view draws by itself, as often in every phase.
        yield lambda: None


class Lines:
    """A line for each phase and each alert, and for progress now and then."""

    def __init__(self, scene: Scene, out: TextIO) -> None:
        self._scene, self._out = scene, out
        self._began = self._said_at = time.monotonic()
        self._phase: str | None = None
        self._alerts = 0

    def tick(self) -> None:
        """Say what is new."""
        scene, now = self._scene, time.monotonic()
        for alert in scene.alerts[self._alerts :]:
            self._say(f"alert {alert.state}: {alert_line(alert)}")
        self._alerts = len(scene.alerts)
        if scene.phase != self._phase or now - self._said_at >= PLAIN_S:
            self._phase, self._said_at = scene.phase, now
            self._say(f"{PHASES[scene.phase][1]}{figures(scene, separator=': ')}")

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {text}", file=self._out, flush=True)


def figures(scene: Scene, *, separator: str = "") -> str:
    """How far the phase is, in figures."""
    parts = [scene.detail] if scene.detail else []
    if scene.phase == "learning":
        parts.append(f"{scene.sent} readings")
    if scene.phase in {"quiet", "burst", "after"} and scene.scores:
        parts.append(f"score {scene.scores[-1]:.2f} (1 is the line)")
    return separator + ", ".join(parts) if parts else ""


def alert_line(alert: Alert) -> str:
    """An alert in one line."""
    peak = f", peak {alert.peak_score:.2f} times the line" if alert.peak_score is not None else ""
    return (
        f"{alert.series} since {alert.started_at.astimezone():%H:%M:%S}{peak}, {evidence(alert.features[0])}"
    )


def evidence(feature: FeatureEvidence) -> str:
    """What one feature had to do with it."""
    observed, expected = number(feature.observed), number(feature.expected)
    return f"{feature.name} at {observed} {feature.unit} where {expected} was expected"


def number(value: float) -> str:
    """Three digits that count, without exponents for everyday sizes."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def screen(scene: Scene) -> RenderableType:
    """The live view, about 22 lines of 80 columns."""
    middle = Table.grid(expand=True, padding=(0, 1, 0, 0))
    middle.add_column(width=CHART_WIDTH + 4)
    middle.add_column(ratio=1)
    middle.add_row(_chart(scene), _features(scene))
    return Group(_steps(scene), _progress(scene), middle, _alerts(scene))


def _steps(scene: Scene) -> Text:
    now = STEPS.index(PHASES[scene.phase][0])
    line = Text("offbeat demo   ", style="bold")
    for i, step in enumerate(STEPS):
        style = "green" if i < now else "bold reverse" if i == now else "dim"
        line.append(f" {step} ", style)
        line.append(" " if i == len(STEPS) - 1 else "─", "dim")
    return line


def _progress(scene: Scene) -> RenderableType:
    line = Table.grid(expand=True, padding=(0, 1, 0, 0))
    line.add_column(ratio=1, no_wrap=True)
    line.add_column(width=_RIGHT_WIDTH)
    bar = ProgressBar(total=1.0, completed=scene.fraction or 0.0, width=_RIGHT_WIDTH)
    line.add_row(Text(PHASES[scene.phase][1]), bar)
    line.add_row(Text(figures(scene) or " ", "dim"), Text(f"worker: {scene.status.doing}", "dim"))
    return line


def _chart(scene: Scene) -> RenderableType:
    """Bars of half a second each: the highest score, or the processors' use while there are no scores.

    Drawing costs the same either way, as what is drawn is part of the load that is learned.
    """
    if scene.judged:
        bars = _grouped(list(scene.scores), scene.judged, max)
        title, top, limit, colour = f"score {scene.scores[-1]:.2f}, 1 is the line", 2.0, 1.0, "green"
    else:
        bars = _grouped(scene.recent("cpu", KEPT_ROWS), scene.sent, _mean)
        title, top, limit, colour = "cpu, % (no scores without a model)", 100.0, math.inf, "blue"
    bars = bars[-CHART_WIDTH:]
    lines = []
    for level in reversed(range(CHART_HEIGHT)):
        # The line is the lower edge of this row; bars that reach it are red.
        on_line = level == CHART_HEIGHT * limit / top
        line = Text()
        for bar in bars:
            eighths = min(max(round((bar / top * CHART_HEIGHT - level) * 8), 0), 8)
            blank = "╌" if on_line else " "
            line.append(_EIGHTHS[eighths] if eighths else blank, _colour(bar, limit, colour, eighths))
        line.append(("╌" if on_line else " ") * (CHART_WIDTH - len(bars)), "yellow")
        lines.append(line)
    return Panel(Group(*lines), title=title, title_align="left", border_style="dim")


def _colour(bar: float, limit: float, colour: str, eighths: int) -> str:
    if not eighths:
        return "yellow"
    return "red" if bar >= limit else colour


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _grouped(values: list[float], last: int, join: Callable[[list[float]], float]) -> list[float]:
    """Each full group of rows as one value; ``last`` numbers the newest, so that groups do not wander."""
    first = -(last - len(values)) % ROWS_A_COLUMN
    groups = range(first, len(values) - ROWS_A_COLUMN + 1, ROWS_A_COLUMN)
    return [join(values[start : start + ROWS_A_COLUMN]) for start in groups]


def _features(scene: Scene) -> RenderableType:
    table = Table.grid(expand=True, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True, ratio=1)
    table.add_column(width=_SPARK_WIDTH, no_wrap=True)
    for feature in scene.features:
        values = scene.recent(feature.name, (_SPARK_WIDTH + 1) * ROWS_A_COLUMN)
        now = quantity(values[-1], feature.unit) if values else "-"
        table.add_row(feature.name, now, Text(_spark(values, scene.sent, feature.unit), "cyan"))
    return Panel(table, title="now", title_align="left", border_style="dim")


def quantity(value: float, unit: str) -> str:
    """A reading as people read it."""
    if unit == "%":
        return f"{value:.1f} %"
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f} {prefix}{unit.removeprefix('1')}"
    return f"{value:.0f} {unit.removeprefix('1')}"


def _spark(values: list[float], sent: int, unit: str) -> str:
    """Half a second a character; percentages on a scale of 100, others on their own."""
    means = _grouped(values, sent, _mean)[-_SPARK_WIDTH:]
    top = 100.0 if unit == "%" else max(means, default=0.0)
    return "".join(_EIGHTHS[max(round(8 * mean / max(top, mean, 1e-9)), 1)] for mean in means)


def _alerts(scene: Scene) -> RenderableType:
    """The newest revision of the newest alerts, as read from their topic."""
    newest = list({alert.id: alert for alert in scene.alerts}.values())[-_SHOWN_ALERTS:]
    lines = [line for alert in reversed(newest) for line in alert_lines(alert)]
    shown = Group(*lines) if lines else Text("none", "dim")
    return Panel(shown, title="alerts", title_align="left", border_style="red" if scene.firing else "dim")


def alert_lines(alert: Alert) -> list[RenderableType]:
    """An alert with its first features, observed against expected."""
    head = Text.assemble(
        (f" {alert.state} ", "bold white on red" if alert.state == "firing" else "black on green"),
        f" {alert.series}, since {alert.started_at.astimezone():%H:%M:%S}, ",
        f"peak {alert.peak_score or 0:.2f} times the line",
    )
    table = Table.grid(padding=(0, 2, 0, 0))
    for justify in ("left", "right", "right", "right"):
        table.add_column(justify=justify, no_wrap=True)
    for feature in alert.features[:_SHOWN_FEATURES]:
        table.add_row(
            f"  {feature.name}",
            f"{number(feature.observed)} {feature.unit}",
            f"expected {number(feature.expected)}",
            f"{feature.contribution:.0%} of the error",
        )
    return [head, table]


def summary(scene: Scene, settings: str, found: Sequence[Alert], *, kept: Sequence[str]) -> None:
    """What came of it, on standard output: settings, accounting, the burst's alert, what to try next."""
    console = Console(width=min(Console().width, WIDTH), highlight=False)
    console.print(Rule("what ran: its offbeat.yaml", align="left", style="dim"))
    console.print(Syntax(settings.rstrip(), "yaml", background_color="default", word_wrap=True))
    console.print(Rule("accounting: every record read is in one bin", align="left", style="dim"))
    console.print(_accounting(scene))
    console.print(Rule("the alert for the burst", align="left", style="dim"))
    # What it fired for; of the later revisions, what became of it.
    for line in (
        [*alert_lines(found[0]), *(alert_lines(each)[0] for each in found[1:])] if found else ["none"]
    ):
        console.print(line)
    if others := len({alert.id for alert in scene.alerts} - {alert.id for alert in found}):
        console.print(f"and {others} of other work: something else was going on here")
    for url in kept:
        console.print(f"{url} keeps what this run wrote under the namespace above", style="dim")
    console.print(Rule("try next", align="left", style="dim"))
    console.print(_next(), soft_wrap=True)


def _accounting(scene: Scene) -> RenderableType:
    table = Table.grid(padding=(0, 3, 0, 0))
    for justify in ("left", "right", "left", "right"):
        table.add_column(justify=justify)
    bins = [(name.replace("_", " "), f"{count:,}") for name, count in scene.bins.items()]
    half = (len(bins) + 1) // 2
    for left, right in zip_longest(bins[:half], bins[half:], fillvalue=("", "")):
        table.add_row(*left, *right)
    total = sum(scene.bins.values())
    equal = "=" if total == scene.records_read == scene.sent else "is not"
    said = (
        f"sum of the bins {total:,} {equal} {scene.records_read:,} records read {equal} {scene.sent:,} sent"
    )
    return Group(table, said)


def _next() -> Text:
    program = "offbeat" if shutil.which("offbeat") else sys.argv[0]
    commands = (
        ("config example > offbeat.yaml", "two streams to begin with"),
        ("produce synthetic --help", "made-up sensors with faults"),
        ("train --help", "learn from a topic or from files"),
    )
    wide = max(len(command) for command, _ in commands)
    lines = [Text.assemble(f"{program} {one:{wide}}", (f"  # {why}", "dim")) for one, why in commands]
    return Text("\n").join(lines)
