"""Alerts as people read them: one line, or all of one with its evidence and a small picture."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.alerts import Alert, FeatureEvidence

_BARS = "▁▂▃▄▅▆▇█"


def number(value: float) -> str:
    """A value with the digits that matter, thousands apart."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def measured(value: float, unit: str) -> str:
    """A value with its unit."""
    return f"{number(value)} {unit}".rstrip()


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


def facts(alert: Alert) -> list[tuple[str, str]]:
    """All of an alert but its features, as names and texts."""
    found = [
        ("alert", f"{alert.id}, revision {alert.revision}"),
        ("state", f"{alert.state}: {alert.reason}"),
        ("kind", alert.kind),
        ("stream", f"{alert.stream} (namespace {alert.namespace})"),
        ("series", alert.series),
        ("labels", ", ".join(f"{name}={value}" for name, value in alert.labels.items()) or "none"),
        ("started", f"{alert.started_at:%Y-%m-%d %H:%M:%S.%f UTC}"),
        ("this revision", f"{alert.at:%Y-%m-%d %H:%M:%S.%f UTC}"),
    ]
    if alert.score is not None and alert.error is not None and alert.threshold is not None:
        found.append(
            (
                "score",
                f"{alert.score:.3f}: error {alert.error:.4g} over threshold {alert.threshold:.4g}",
            )
        )
    if alert.peak_score is not None:
        found.append(("peak score", f"{alert.peak_score:.3f}"))
    source = alert.source
    found.append(("record", f"{source.topic}[{source.partition}] offset {source.offset}"))
    found.append(("model", alert.bundle or "none"))
    return found
