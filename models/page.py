"""A training's report as one page that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final

from models.markup import figure, table, time
from models.pictures import Plot, bounds
from models.report import Curve, Drawn, Report, SeriesLine, Worst
from models.verdict_page import verdict_html
from pipeline.figures import number

_SERIES_SHOWN: Final = 200
_STYLE: Final = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2024;--soft:#60646c;--faint:#e4e6ea;--one:#0b68c4;
--two:#d9480f;--bar:#9bb8d6;--warn:#fff4e0;--edge:#e0a030}
@media(prefers-color-scheme:dark){:root{--paper:#15171a;--ink:#e6e8eb;--soft:#a0a6ae;--faint:#2c3036;
--one:#6cb4ff;--two:#ff9b62;--bar:#3f5f80;--warn:#33270f;--edge:#a87820}}
body{margin:0 auto;max-width:60rem;padding:2rem 1.25rem 4rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.5rem 0 .5rem}p{margin:.4rem 0;max-width:46rem}
.soft,figcaption,text{color:var(--soft);fill:var(--soft)}
ul.warn{margin:1rem 0;padding:.6rem 1rem .6rem 2rem;background:var(--warn);border-left:4px solid var(--edge)}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .75rem .25rem 0;text-align:right;border-bottom:1px solid var(--faint);white-space:nowrap}
th{color:var(--soft);font-weight:500}th:first-child,td:first-child,td.text,th.text{text-align:left}
td.text{white-space:normal;min-width:12rem}
.wide{overflow-x:auto}figure{margin:.75rem 0}figcaption{font-size:.875rem}
.two,.three{display:grid;gap:.25rem 1.5rem;
grid-template-columns:repeat(auto-fill,minmax(min(20rem,100%),1fr))}
.three{grid-template-columns:repeat(auto-fill,minmax(min(16rem,100%),1fr))}
h3{font-size:.95rem;margin:1.2rem 0 0}
svg{width:100%;height:auto;max-width:48rem;font:12px system-ui,sans-serif}
.grid{stroke:var(--faint)}.axis{stroke:var(--soft)}.line{fill:none;stroke-width:1.8;stroke-linejoin:round}
.one{stroke:var(--one)}.two-line{stroke:var(--two)}.dash{stroke-dasharray:5 4}.thin{stroke-width:1;opacity:.6}
.mark{stroke:var(--ink);stroke-width:1.2}text.mark{stroke:none;fill:var(--ink)}
.bar{fill:var(--bar)}.bar.over{fill:var(--two)}
.key{display:inline-block;width:1.6em;height:0;border-top:2px solid;margin:0 .35em .2em .9em;
vertical-align:middle}
.verdict{margin:.5rem 0 1rem;padding:.6rem 1rem;border-left:4px solid var(--soft);background:var(--faint)}
.verdict.worse{border-color:var(--two)}.verdict.within{border-color:var(--one)}.verdict p{max-width:none}
b.worse{color:var(--two)}b.within{color:var(--one)}svg.small{width:auto;max-width:none;display:block}
svg.small text{font-size:11px}.small .line.worse{stroke:var(--two)}.small .line.within{stroke:var(--one)}
.small .line.open{stroke:var(--soft)}.dot.worse{fill:var(--two)}.dot.within{fill:var(--one)}
.dot.open{fill:var(--soft)}td.picture,th.picture{padding:.25rem .75rem .25rem 0;vertical-align:middle}
.key.one{border-color:var(--one)}.key.two-line{border-color:var(--two)}.key.dash{border-top-style:dashed}
"""


def html(report: Report) -> bytes:
    """The page, UTF-8."""
    title = f"Training of {escape(report.stream)}"
    parts = [
        f"<h1>{title}</h1>",
        _facts(report),
        "" if report.gate is None else verdict_html(report.gate, report.champion, report.why),
        _warnings(report),
        _section("How it learned", _losses(report.curves)),
        _section("Errors on rows held out", _errors(report)),
        _section("Reconstructed worst", _worst(report.worst)),
        _section("What was learned from, and what was not", _counts(report)),
        _section("Features", _features(report)),
        _section("Series", _series(report)),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    return page.encode()


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content}"


def _facts(report: Report) -> str:
    span = f"{time(report.first_at)} to {time(report.last_at)}"
    layers = "-".join(map(str, report.layers))
    columns = "feature" if len(report.features) == 1 else "features"
    return (
        f'<p class="soft">Made {escape(report.created_at)} from {report.counts.learned:,} rows of '
        f"{report.series_count:,} series, {span} (event time, UTC). Windows of {report.window_rows} rows of "
        f"{len(report.features)} {columns}, kind {report.kind}, layers {layers}; {report.own_models:,} "
        "series have a model of their own.</p>"
    )


def _warnings(report: Report) -> str:
    remarks = "".join(f"<li>{escape(each)}.</li>" for each in report.remarks())
    return f'<ul class="warn">{remarks}</ul>' if remarks else ""


def _losses(curves: Sequence[Curve]) -> str:
    shown = "".join(map(_loss, curves))
    return (
        "<p>The loss at each check: the mean over networks, those that did worst on rows held out, and the "
        "shared model. Training ends when the held-out loss falls no more; the weights of its lowest point "
        'are kept.</p><p class="soft"><span class="key one"></span>rows learned from '
        f'<span class="key two-line"></span>rows held out</p><div class="two">{shown}</div>'
    )


def _loss(curve: Curve) -> str:
    train, held_out = _plain(curve.train), _plain(curve.held_out)
    numbers = [value for value in (*train, *held_out) if value > 0]
    low, high = min(numbers, default=0.1), max(numbers, default=1.0)
    plot = Plot(
        f"losses of {curve.name}",
        x=(1, max(len(train), 2)),
        y=(low / 1.2, high * 1.2),
        labels=("check", "loss"),
        log=True,
        width=420,
        height=200,
    )
    checks = range(1, len(train) + 1)
    plot.line(checks, train, "one", "rows learned from")
    plot.line(checks, held_out, "two-line", "rows held out")
    return figure(plot, f"<b>{escape(curve.name)}</b>")


def _errors(report: Report) -> str:
    found = report.errors
    if not found.windows:
        return "<p>No series has rows enough for any to be held out.</p>"
    plot = Plot(
        "errors of held-out windows over the line",
        x=(0.0, found.edges[-1]),
        y=(0.0, 1.05 * max(found.counts)),
        labels=("error over the line where each threshold starts", "windows"),
        height=260,
        width=760,
    )
    styles = ["over" if left >= 1 else "" for left in found.edges[:-1]]
    plot.bars(found.edges, found.counts, styles)
    plot.mark(1.0, "the line")
    return figure(
        plot,
        f"{found.above:,} of {found.windows:,} windows ({found.above / found.windows:.2%}) are above the "
        "line. The last bar holds all that are higher.",
    )


def _worst(worst: Sequence[Worst]) -> str:
    if not worst:
        return "<p>No rows were held out.</p>"
    figures = "".join(
        f"<h3>{escape(each.series)}, {time(each.at)}: {number(each.score)} times the line</h3>"
        f'<div class="three">{"".join(_window(each, drawn) for drawn in each.features)}</div>'
        for each in worst
    )
    return (
        "<p>The held-out windows with the highest errors, one of a series. Where these look like ordinary "
        "days, the model has not learned enough; where they do not, something happened then that it was not "
        'told to leave out.</p><p class="soft"><span class="key one"></span>observed '
        f'<span class="key two-line dash"></span>expected</p>{figures}'
    )


def _window(worst: Worst, drawn: Drawn) -> str:
    rows = len(drawn.observed)
    plot = Plot(
        f"{drawn.name} of {worst.series}, observed and expected",
        x=(1 - rows, 0),
        y=bounds(drawn.observed, drawn.expected),
        labels=("rows before the newest", drawn.unit),
        width=320,
        height=170,
    )
    at = range(1 - rows, 1)
    plot.line(at, drawn.observed, "one", "observed")
    plot.line(at, drawn.expected, "two-line dash", "expected")
    return figure(plot, f"<b>{escape(drawn.name)}</b>, {drawn.contribution:.0%} of the error")


def _counts(report: Report) -> str:
    counts = report.counts
    lines = [
        ("made of records in the range", counts.rows, ""),
        (
            "left out: more than are taken",
            counts.thinned,
            f"of a series {report.rows_limit:,} rows at most: the newest fifth, and slices of those before",
        ),
        ("left out: frozen", counts.frozen, "somebody said that nothing is to be learned from them"),
        ("left out: alerts", counts.alerts, "an anomaly was told, or its rows are in their windows"),
        ("learned from", counts.learned, ""),
        (
            "of these: called normal",
            counts.normal,
            "people called the alert false, or the new normal",
        ),
        ("of these: beyond a fifth", counts.over, "more of a series was told as an anomaly than is left out"),
        ("of these: too short", counts.short, "in stretches shorter than a window"),
    ]
    rows = [(name, f"{count:,}", why) for name, count, why in lines]
    kept = table(("rows", "count", "!why"), rows)
    bins = [(name.replace("_", " "), f"{count:,}") for name, count in report.bins.items()]
    records = table(("records by bin", "count"), [*bins, ("read", f"{report.records:,}")])
    return f'{kept}<p class="soft">The last fifth of each series was held out of training.</p>{records}'


def _features(report: Report) -> str:
    return table(
        ("feature", "!unit", "constant in series", "missing"),
        [
            (each.name, each.unit, f"{each.constant_series:,} of {each.series:,}", f"{each.held:.1%}")
            for each in report.features
        ],
    )


def _series(report: Report) -> str:
    shown = report.series[:_SERIES_SHOWN]
    lines = table(
        (
            "series",
            "!model",
            "learned",
            "left out",
            "alerts",
            "frozen",
            "stretches",
            "error",
            "sd",
            "line",
            "above",
            "!constant",
        ),
        [_series_row(each) for each in shown],
    )
    more = report.series_count - len(shown)
    if not more:
        return lines
    return f'{lines}<p class="soft">{more:,} more series; {len(report.series):,} stand in report.json.</p>'


def _series_row(each: SeriesLine) -> tuple[str, ...]:
    counts = each.counts
    return (
        each.series,
        each.model,
        f"{counts.learned:,}",
        f"{counts.rows - counts.learned:,}",
        f"{counts.alerts:,}",
        f"{counts.frozen:,}",
        f"{each.stretches:,}",
        number(each.error),
        number(each.error_sd),
        number(each.line),
        "" if each.above is None else f"{each.above:.1%}",
        ", ".join(each.constant),
    )


def _plain(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
