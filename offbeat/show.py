"""Alerts as people read them: one line, or all of one with its evidence and a small picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.alerts import Alert, FeatureEvidence
from pipeline.control import Feedback, Standing
from pipeline.figures import joined, measured
from pipeline.silences import Span

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], low: float, high: float) -> str:
    """One bar a value between ``low`` and ``high``."""
    if high <= low:
        return _BARS[0] * len(values)
    top = len(_BARS) - 1
    return "".join(_BARS[round((value - low) / (high - low) * top)] for value in values)


def picture(evidence: FeatureEvidence) -> tuple[str, str]:
    """The window of one feature as observed and as expected, on one scale."""
    both = [*evidence.window_observed, *evidence.window_expected]
    low, high = min(both, default=0.0), max(both, default=0.0)
    return sparkline(evidence.window_observed, low, high), sparkline(evidence.window_expected, low, high)


def line(alert: Alert) -> str:
    """One revision on one line: when, what, where, how far, and why."""
    parts = [f"{alert.at:%Y-%m-%d %H:%M:%S}", f"{alert.state:<8}", alert.stream, alert.series, alert.kind]
    if alert.score is not None:
        parts.append(f"score {alert.score:.2f}")
    if alert.peak_score is not None and alert.state == "resolved":
        parts.append(f"peak {alert.peak_score:.2f}")
    if alert.features and alert.state == "firing":
        first = alert.features[0]
        parts.append(
            f"{first.name} {measured(first.observed, first.unit)} "
            f"(expected {measured(first.expected, first.unit)})"
        )
    else:
        parts.append(alert.reason)
    return "  ".join([*parts, alert.id[:12]])


LIST_HEADERS = (
    "started (UTC)",
    "lasted",
    "state",
    "severity",
    "stream",
    "series",
    "kind",
    " peak",
    "because",
    "feedback",
    "id",
)


def list_row(revisions: Sequence[Alert], said: Sequence[Feedback]) -> list[str]:
    """One alert as a row under ``LIST_HEADERS``: its revisions, the oldest first, and what was said of it."""
    first, last = revisions[0], revisions[-1]
    because: str = first.reason
    if first.features:
        worst = first.features[0]
        because = (
            f"{worst.name} {measured(worst.observed, worst.unit)} not {measured(worst.expected, worst.unit)}"
        )
    return [
        f"{last.started_at:%Y-%m-%d %H:%M:%S}",
        str(last.at - last.started_at).partition(".")[0] if last.state == "resolved" else "",
        last.state if last.reason != "gone" else "gone",
        last.severity,
        last.stream,
        last.series,
        last.kind,
        "" if last.peak_score is None else f"{last.peak_score:.2f}",
        because,
        said[-1].verdict if said else "",
        last.id[:12],
    ]


def facts(
    revisions: Sequence[Alert], said: Iterable[Feedback], silences: Iterable[tuple[Standing, Span]]
) -> list[tuple[str, str]]:
    """All of an alert but its features, as names and texts: also what was said of it, and its silences."""
    first, last = revisions[0], revisions[-1]
    found = [
        ("alert", last.id),
        ("stream", f"{last.stream} (namespace {last.namespace})"),
        ("series", last.series),
        ("labels", ", ".join(f"{name}={value}" for name, value in last.labels.items()) or "none"),
        ("kind", last.kind),
        ("severity", last.severity),
        ("started", f"{first.started_at:%Y-%m-%d %H:%M:%S.%f UTC}"),
    ]
    for each in revisions:
        figures = ""
        if each.score is not None and each.error is not None and each.threshold is not None:
            against = f"error {each.error:.4g} over threshold {each.threshold:.4g}"
            figures = f", score {each.score:.2f} ({joined(each.joined) if each.joined else against})"
        record = f"record {each.source.topic}[{each.source.partition}] offset {each.source.offset}"
        found.append((each.state, f"{each.at:%Y-%m-%d %H:%M:%S.%f UTC}: {each.reason}{figures}, {record}"))
    if last.peak_score is not None:
        found.append(("peak score", f"{last.peak_score:.2f}"))
    found.append(("model", last.bundle or "none"))
    found += [
        (each.verdict, f"{each.at:%Y-%m-%d %H:%M:%S UTC} by {each.who}{_because(each.why)}") for each in said
    ]
    for standing, (start, end) in silences:
        made = standing.record
        during = f"{start:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S UTC}"
        how = f"({made.silence.mode}, {made.id}) by {made.who}{_because(made.why)}"
        found.append(("silenced", f"{during} {how}"))
    return found


def _because(why: str) -> str:
    return f": {why}" if why else ""
