"""A decision trace in words: sentences first, then the facts they rest on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from math import isfinite

from consumers.tracer import Episode, Judgement, Line, SilenceAt, Trace
from pipeline.config import Ewma, Joint, Quantile, Static
from pipeline.figures import joined, measured, number

_WORTH_TELLING = 0.005


def when(time: datetime) -> str:
    """A time with as many digits as it has."""
    time = time.astimezone(UTC)
    return f"{time:%Y-%m-%d %H:%M:%S.%f}" if time.microsecond else f"{time:%Y-%m-%d %H:%M:%S}"


def sentences(trace: Trace) -> list[str]:
    """Why the row was judged as it was, or why it was not, the verdict first."""
    said = [] if trace.found else [_instead(trace)]
    if trace.judgement is None:
        said.append(f"{trace.series} at {when(trace.at)} UTC was not judged: {_why_not(trace)}.")
    else:
        said.append(f"{trace.series} at {when(trace.at)} UTC {_verdict(trace.judgement, trace.at)}.")
        said += _more(trace.judgement)
    if trace.silent is not None:
        said.append(
            f"At the time that was asked for it had sent nothing for longer than `silent_after`: the alert "
            f"{trace.silent.id[:12]} (silent) was open, from {when(trace.silent.started_at)} on."
        )
    said += [_silence(each) for each in trace.silences]
    return said


def _instead(trace: Trace) -> str:
    what = "row" if trace.cell_s is None else f"row of {trace.cell_s:g} s"
    return (
        f"There is no {what} of {trace.series} at {when(trace.asked)} UTC; this is about its newest record "
        f"before, of {when(trace.at)}."
    )


def _why_not(trace: Trace) -> str:
    needed = f"its window held {trace.window_filled} of the {trace.window_rows} rows that it takes"
    if trace.bin == "warming" and not trace.window_filled:
        return (
            "its row was not complete, or not made (`rate` and `diff` need a value before, a null is held "
            f"no longer than `gap`), so {needed}"
        )
    return {
        "warming": needed,
        "waiting_model": f"there was no model yet (`offbeat train {trace.stream}` makes one), and {needed}",
        "outside": f"its event was outside `when`, which is {trace.reason}",
        "late": "it came too late, when newer rows of its series had been made",
        "duplicate": "its series held a reading of that time already",
        "dead_lettered": f"its record could not be read, and is a dead letter: {trace.reason}",
        "over_limit": "the partition held as many series as `max_series` allows",
        "pending": f"its grid cell of {trace.cell_s or 0:g} s is still open, and may take more readings",
    }[trace.bin]


def _figures(found: Judgement) -> str:
    against = f"error {found.error:.4g} over threshold {found.line.value:.4g}"
    return f"score {found.score:.2f} ({joined(found.joined) if found.joined else against})"


def _verdict(found: Judgement, at: datetime) -> str:
    """What the row was taken for, and by which rule."""
    rules, after = found.rules, found.after
    too_little = found.deviation is not None and not found.deviation.enough
    if found.rule == "trivial" or (found.rule == "below" and found.score >= 1.0 and too_little):
        return f"was judged normal although it is above the line, {_figures(found)}: {_deviation(found)}"
    since = "" if after.since in {None, at} else f"; it began at {when(after.since or at)}"
    quiet = "" if after.quiet_until is None else f" until {when(after.quiet_until)}"
    return {
        "below": f"was judged normal: {_figures(found)}",
        "waits": f"was above the line, {_figures(found)}, and fired no alert yet: it is row {after.rows} of "
        f"the {rules.for_rows} that `for` asks for",
        "quiet": f"was above the line, {_figures(found)}, and fired no alert: the last one ended a short "
        f"time before, and `refractory` holds new ones back{quiet}",
        "stale": f"fired no alert: its window is above the line, {_figures(found)}, on account of earlier "
        f"rows, and its own row is not (score {found.last_score:.2f})",
        "fires": f"fired an alert: {_figures(found)}{since}",
        "open": f"was judged anomalous: {_figures(found)}, and its alert stayed open{since}",
        "recovers": f"was below the recovery line (its own row's score {found.last_score:.2f}), and its "
        f"alert stayed open: {_recovering(found)}{since}",
        "ends": f"ended its alert: its own row's score was {found.last_score:.2f}, the last of "
        f"{_rows(rules.recovery)} in a row below the recovery line of {rules.recovery_line:g}",
    }[found.rule]


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"


def _recovering(found: Judgement) -> str:
    rules, rows = found.rules, found.after.rows
    if rows < rules.recovery:
        return f"row {rows} of the {rules.recovery} that `recovery` asks for"
    begun = "" if found.after.calm_since is None else f", which began at {when(found.after.calm_since)}"
    return f"`recovery_for` asks for {rules.recovery_for:g} s of such rows{begun}"


def _deviation(found: Judgement) -> str:
    it = found.deviation
    if it is None:
        return ""
    way = "above" if it.by > 0 else "below"
    asks = []
    if abs(it.by) < it.least:
        asks.append(f"`min_deviation` asks for {measured(it.least, it.unit)}")
    if it.direction not in {"both", way}:
        asks.append(f"`direction` asks for values {it.direction}")
    apart = measured(abs(it.by), it.unit)
    return f"{it.feature} was {apart} {way} what was expected, and {' and '.join(asks)}"


def _more(found: Judgement) -> Iterator[str]:
    """What the threshold rested on, and whether it learned."""
    line = found.line
    if line.accepted:
        yield "Somebody accepted what the series does as its new normal: the threshold starts with this row."
    if line.carried:
        yield "The model changed: the threshold starts with what the new one makes of the rows before this."
    if line.raised != 1.0:
        alarms = f"{line.false_alarms} false alarm{'s' * (line.false_alarms != 1)}"
        yield f"The threshold is raised by {line.raised - 1:.0%} on account of {alarms}."
    if line.grown is not None and line.grown >= _WORTH_TELLING:
        yield f"The line is raised by {line.grown:.0%} on account of the series' own alerts before."
    if found.frozen_by is not None:
        each = found.frozen_by
        yield (
            f"The threshold learned nothing from it: the silence {each.id} of {each.who} froze it"
            f"{_because(each)}."
        )
    elif not found.taught:
        since = found.after.above_since
        begun = "" if since is None else f" since {when(since)}"
        yield (
            f"The threshold learned nothing from it: the series has been judged anomalous{begun}, which "
            "counts as normal only after `adapt_after`."
        )


def _silence(each: SilenceAt) -> str:
    does = "nobody is told" if each.mode == "mute" else "nobody is told, and nothing is learned"
    narrowed = [
        f"{name} {value}"
        for name, value in (("feature", each.matchers.feature), ("severity", each.matchers.severity))
        if value is not None
    ]
    only = f" of alerts with {' and '.join(narrowed)}" if narrowed else ""
    return (
        f"The silence {each.id} of {each.who} holds from {when(each.start)} to {when(each.end)} "
        f"({each.mode}: {does}{only}){_because(each)}."
    )


def _because(each: SilenceAt) -> str:
    return f", because: {each.why}" if each.why else ""


def facts(trace: Trace) -> list[tuple[str, str]]:
    """All of a trace but its features, as names and texts."""
    record = f"{trace.source.topic}[{trace.source.partition}] offset {trace.source.offset}"
    cell = "" if trace.cell_s is None else f" (the grid cell of {trace.cell_s:g} s from then on)"
    found = [
        ("series", trace.series),
        ("labels", ", ".join(f"{name}={value}" for name, value in trace.labels.items()) or "none"),
        ("time", f"{when(trace.at)} UTC{cell}"),
        ("record", f"{record}, bin {trace.bin}"),
        ("window", f"{trace.window_filled} of {trace.window_rows} rows"),
    ]
    if trace.judgement is not None:
        found += _judged(trace.judgement)
    return [
        *found,
        ("model", trace.bundle or "none yet"),
        ("policy", trace.policy),
        ("rests on", f"{'exact' if trace.exact else 'approximate'}: {trace.basis}"),
        *(("note", note) for note in trace.notes),
    ]


def _judged(found: Judgement) -> Iterator[tuple[str, str]]:
    line = found.line
    if found.joined is None:
        yield "error", f"{found.error:.4g}, the line at {line.value:.4g}: score {found.score:.4g}"
        last = f"{found.last_error:.4g}, the line at {line.last_value:.4g}: score {found.last_score:.4g}"
        yield "last row alone", last
    else:
        joint = found.score * line.value
        yield "joined score", f"{joint:.4g}, the line at {line.value:.4g}: score {found.score:.4g}"
        for each in found.joined.channels:
            apart = round(each.z, 4) + 0.0  # no -0
            yield each.name, f"{apart:.4g} sd from what is usual, {each.share:.0%} of the joined score"
        if found.joined.rarity is not None:
            root = found.joined.rarity**0.5
            yield "rarity", f"{found.joined.rarity:.4g}, which multiplies it by {root:.4g}"
        yield "error", f"{found.error:.4g} (last row alone: {found.last_error:.4g})"
        yield "last row alone", f"score {found.last_score:.4g}"
    yield "threshold", _line(line)
    yield "learned", "yes" if found.taught else "no"
    yield "rule", found.rule
    yield "episode", f"{_episode(found.before)} before, {_episode(found.after)} after"
    if found.alert is not None:
        alert = found.alert
        yield "alert", f"{alert.id} revision {alert.revision}, {alert.state}, {alert.severity}"


def _line(line: Line) -> str:
    rested = "" if line.rows is None else f", from {_rows(line.rows)}"
    raised = "" if line.raised == 1.0 else f", times {line.raised:.4g} for {line.false_alarms} false alarms"
    match line.policy:
        case Ewma(k=k):
            made = f"ewma: mean {number(line.mean or 0.0)} + {k:g} x sd {number(line.sd or 0.0)}"
        case Quantile(q=q, margin=margin):
            made = f"quantile: {margin:g} x the {q:g} quantile {number(line.quantile or 0.0)}"
        case Joint():
            grown = f" x {1 + line.grown:.4g} for its own alerts" if line.grown else ""
            made = f"joint: {line.value / line.raised / (1 + (line.grown or 0.0)):.4g}{grown}"
            made += f"; error {number(line.mean or 0.0)} ± {number(line.sd or 0.0)}"
        case Static(value=value):
            made = f"static: {value:g}"
    return f"{made}{rested}{raised}"


def _episode(at: Episode) -> str:
    if at.since is None:
        return at.state
    peak = "" if at.peak_score is None or not isfinite(at.peak_score) else f", peak score {at.peak_score:.2f}"
    return f"{at.state} since {when(at.since)}{peak}"
