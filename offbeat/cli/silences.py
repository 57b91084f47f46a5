"""``offbeat silences``: say what is not to be told, when, and why."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offbeat.cli.columns import counted, print_columns
from offbeat.cli.options import DEFAULT_CONFIG, ConfigFile, Json, load_config, print_json
from offbeat.cli.stored import alerts_so_far

if TYPE_CHECKING:
    from offbeat.silencing import Muted
    from pipeline.control import Standing
    from pipeline.silences import Span

group = typer.Typer(no_args_is_help=True, help="Say what is not to be told, when, and why.")


class Mode(StrEnum):
    """What a silence does."""

    MUTE = "mute"
    FREEZE = "freeze"


class Severity(StrEnum):
    """How bad an alert is."""

    WARNING = "warning"
    CRITICAL = "critical"


StreamGlob = Annotated[
    str | None,
    typer.Option("--stream", "-s", metavar="GLOB", help="Of this stream; `*` and ? stand for any."),
]
SeriesGlob = Annotated[
    str | None, typer.Option("--series", metavar="GLOB", help="Of this series; `*` and ? stand for any.")
]
SeriesRegex = Annotated[
    str | None,
    typer.Option("--series-regex", metavar="REGEX", help="Of series whose whole name fits this expression."),
]
FeatureGlob = Annotated[
    str | None,
    typer.Option("--feature", metavar="GLOB", help="Where this feature has the largest share of the error."),
]
SeverityName = Annotated[Severity | None, typer.Option("--severity", help="Only alerts of this severity.")]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label", metavar="NAME=GLOB", help="With this label; may be given several times, and all must fit."
    ),
]
Start = Annotated[
    str | None,
    typer.Option("--start", metavar="TIME", help="ISO 8601, or from now such as +30m or -2h; default: now."),
]
End = Annotated[
    str | None, typer.Option("--end", metavar="TIME", help="When it ends, as --start; or give --for.")
]
Lasts = Annotated[
    str | None, typer.Option("--for", metavar="DURATION", help="How long it holds, such as 2h.")
]
Rule = Annotated[
    str | None,
    typer.Option("--rule", metavar="RRULE", help="Repeat it (RFC 5545), such as 'FREQ=WEEKLY;BYDAY=SU'."),
]
Zone = Annotated[
    str,
    typer.Option(
        "--zone",
        metavar="ZONE",
        help="Time zone of the rule, and of times that name none, such as Europe/Berlin.",
    ),
]


@group.command(
    epilog="Examples: `offbeat silences add --series 'web-*' --for 2h --why 'deploying'`; "
    "`offbeat silences add --stream pumps --start 2026-11-01T02:00 --for 2h --rule 'FREQ=WEEKLY;BYDAY=SU' "
    "--zone Europe/Berlin --mode freeze --why maintenance`"
)
def add(
    *,
    stream: StreamGlob = None,
    series: SeriesGlob = None,
    series_regex: SeriesRegex = None,
    feature: FeatureGlob = None,
    severity: SeverityName = None,
    label: Labels = None,
    start: Start = None,
    lasts: Lasts = None,
    end: End = None,
    rule: Rule = None,
    zone: Zone = "UTC",
    mode: Annotated[
        Mode,
        typer.Option(
            "--mode", help="`mute`: tell nobody. `freeze`: and neither threshold nor training learns from it."
        ),
    ] = Mode.MUTE,
    why: Annotated[str, typer.Option("--why", metavar="TEXT", help="The reason, kept with it for ever.")],
    config: ConfigFile = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Silence what fits all that is given, at least one of stream, series, feature, severity and label.

    Alerts are detected and kept all the same; one that is open when its silence ends is told then.
    """
    from offbeat import app
    from offbeat.controls import Control, who
    from offbeat.silencing import When, check_stream, during, open_alerts, planned, what, windows
    from pipeline.errors import ConfigError

    loaded, now = load_config(config), datetime.now(UTC)
    silence = planned(
        _matchers(
            label, stream=stream, series=series, series_regex=series_regex, feature=feature, severity=severity
        ),
        mode.value,
        When(start, end, lasts, rule, zone),
        now,
    )
    check_stream(loaded, silence.matchers.stream)
    if not why.strip():
        raise ConfigError("--why is empty; say why, for whoever wonders later")
    if mode is Mode.MUTE and next(silence.following(now), None) is None:
        raise ConfigError(
            "it is over already, so it mutes nothing; `--mode freeze` keeps rows of the past out of training"
        )
    with app.open_bus(loaded.bus) as broker:
        made = Control(loaded, broker, who("offbeat silences add")).silence(silence, why)
        is_open = open_alerts(silence, alerts_so_far(loaded, broker))
    soon = windows(silence, now)
    if json:
        shown = [[start_at.isoformat(), end_at.isoformat()] for start_at, end_at in soon]
        print_json({**_as_json(made, now), "windows": shown, "open_alerts": is_open})
        return
    typer.echo(f"silence {made.record.id} is set: {mode.value} {what(silence)}")
    for span in soon:
        utc = "" if zone == "UTC" else f" ({during(span, 'UTC')} UTC)"
        typer.echo(f"  {during(span, zone)} {zone}{utc}")
    typer.echo(f"it fits {counted(is_open, 'alert')} open now")


@group.command("list", epilog="Examples: `offbeat silences list`; `offbeat silences list --all --json`")
def list_silences(
    *,
    past: Annotated[bool, typer.Option("--all", help="Those that are over as well.")] = False,
    config: ConfigFile = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """List silences: those that hold now, those to come, and with --all those that are over."""
    from offbeat import app
    from offbeat.controls import standing
    from offbeat.silencing import what

    loaded, now = load_config(config), datetime.now(UTC)
    with app.open_bus(loaded.bus) as broker:
        silences = list(standing(loaded, broker).silences.values())
    found = [each for each in silences if past or not each.over(now)]
    never = datetime.max.replace(tzinfo=UTC)
    found.sort(key=lambda each: (each.window(now) or (never,))[0])
    if json:
        for each in found:
            print_json(_as_json(each, now))
        return
    if found:
        headers = ["id", "mode", "what", "when (UTC)", "repeats", "who", "why"]
        rows = [
            [
                each.record.id,
                each.record.silence.mode,
                what(each.record.silence),
                _when(each, now),
                _repeats(each),
                each.record.who,
                each.record.why,
                "" if each.expired_at is None else f"{each.expired_at:%Y-%m-%d %H:%M}",
            ]
            for each in found
        ]
        shown = len(headers) + past
        print_columns([*headers, "ended early (UTC)"][:shown], [row[:shown] for row in rows])
    elif len(silences) > len(found):
        typer.echo(
            f"none that hold now or are to come; --all lists {len(silences):,} that are over", err=True
        )
    else:
        typer.echo("no silences yet", err=True)


@group.command(epilog="Example: `offbeat silences expire 3f2a --why 'done early'`")
def expire(
    *,
    silence_id: Annotated[str, typer.Argument(metavar="ID", help="Its id, or the beginning of it.")],
    why: Annotated[
        str, typer.Option("--why", metavar="TEXT", help="The reason, kept with it for ever.")
    ] = "",
    config: ConfigFile = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """End a silence before its time, a recurring one for good.

    Alerts that it kept from being told, and that are still open, are told then.
    """
    from offbeat import app
    from offbeat.controls import Control, who
    from offbeat.silencing import chosen, what

    loaded = load_config(config)
    with app.open_bus(loaded.bus) as broker:
        control = Control(loaded, broker, who("offbeat silences expire"))
        ended = control.expire(chosen(control.view().silences, silence_id), why)
    if json:
        print_json(_as_json(ended, datetime.now(UTC)))
    else:
        typer.echo(
            f"silence {ended.record.id} has ended: {ended.record.silence.mode} {what(ended.record.silence)}"
        )


@group.command(
    epilog="Examples: `offbeat silences preview --series 'web-*'`; `offbeat silences preview --stream pumps "
    "--start 2026-11-01T02:00 --for 2h --rule 'FREQ=WEEKLY;BYDAY=SU' --days 28`"
)
def preview(
    *,
    stream: StreamGlob = None,
    series: SeriesGlob = None,
    series_regex: SeriesRegex = None,
    feature: FeatureGlob = None,
    severity: SeverityName = None,
    label: Labels = None,
    start: Start = None,
    lasts: Lasts = None,
    end: End = None,
    rule: Rule = None,
    zone: Zone = "UTC",
    days: Annotated[int, typer.Option("--days", metavar="N", min=1, max=30, help="So many days back.")] = 7,
    config: ConfigFile = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Show what a silence would have muted in the last days, by the event time at which alerts started.

    Without times it is taken to have held all along; a rule to have repeated before its start as well.
    """
    from offbeat import app
    from offbeat.silencing import When, check_stream, laid_over
    from offbeat.silencing import preview as muted_by
    from offbeat.stored_alerts import as_it_stands

    loaded, now = load_config(config), datetime.now(UTC)
    first = now - timedelta(days=days)
    matchers = _matchers(
        label, stream=stream, series=series, series_regex=series_regex, feature=feature, severity=severity
    )
    silence = laid_over(matchers, When(start, end, lasts, rule, zone), first, now)
    check_stream(loaded, silence.matchers.stream)
    with app.open_bus(loaded.bus) as broker:
        every = [as_it_stands(each) for each in alerts_so_far(loaded, broker).values()]
    recent = sorted(
        (each for each in every if first <= each.started_at <= now),
        key=lambda each: (each.started_at, each.id),
    )
    muted = muted_by(silence, recent, first, now)
    counts = Counter((each.alert.stream, each.alert.series) for each in muted).most_common()
    if json:
        print_json(
            {
                "from": first.isoformat(),
                "to": now.isoformat(),
                "alerts": len(recent),
                "muted": [_muted_json(each) for each in muted],
                "by_series": [
                    {"stream": stream, "series": series, "alerts": count}
                    for (stream, series), count in counts
                ],
            }
        )
        return
    of_all = f"{len(muted):,} of {counted(len(recent), 'alert')}"
    typer.echo(f"in the last {counted(days, 'day')} it would have muted {of_all}")
    if muted:
        print_columns(
            ["started (UTC)", "stream", "series", "severity", "told", "id"],
            [_muted_row(each) for each in muted],
        )
        typer.echo()
        print_columns(
            ["stream", "series", " muted"],
            [[stream, series, f"{count:,}"] for (stream, series), count in counts],
        )


def _matchers(label: list[str] | None, **given: str | None) -> dict[str, Any]:
    from offbeat.silencing import labels

    return {**given, "labels": labels(label or [])}


def _when(standing: Standing, now: datetime) -> str:
    """The window that holds, or the next one, or the one that it had."""
    from offbeat.silencing import during

    span: Span | None = standing.window(now)
    if span is None:
        silence = standing.record.silence
        return "over" if silence.rrule else f"over: {during((silence.start, silence.end), 'UTC')}"
    start, end = span
    return f"now, to {end:%a %Y-%m-%d %H:%M}" if start <= now else during(span, "UTC")


def _repeats(standing: Standing) -> str:
    silence = standing.record.silence
    return f"{silence.rrule} in {silence.zone}" if silence.rrule else ""


def _as_json(standing: Standing, now: datetime) -> dict[str, Any]:
    window = standing.window(now)
    return {
        **standing.record.model_dump(mode="json"),
        "active": standing.active(now),
        "over": window is None,
        "window": None if window is None else [each.isoformat() for each in window],
        "expired_at": None if standing.expired_at is None else standing.expired_at.isoformat(),
    }


def _muted_json(muted: Muted) -> dict[str, Any]:
    return {
        "id": muted.alert.id,
        "stream": muted.alert.stream,
        "series": muted.alert.series,
        "severity": muted.alert.severity,
        "state": muted.alert.state,
        "started_at": muted.alert.started_at.isoformat(),
        "window": [each.isoformat() for each in muted.window],
        "told_at": None if muted.told_at is None else muted.told_at.isoformat(),
    }


def _muted_row(muted: Muted) -> list[str]:
    alert = muted.alert
    told = "never" if alert.state == "resolved" else "not yet"
    if muted.told_at is not None:
        told = f"late, {muted.told_at:%Y-%m-%d %H:%M}"
    return [
        f"{alert.started_at:%Y-%m-%d %H:%M:%S}",
        alert.stream,
        alert.series,
        alert.severity,
        told,
        alert.id[:12],
    ]


def add_to(cli: typer.Typer) -> None:
    """Register the commands."""
    cli.add_typer(group, name="silences")
