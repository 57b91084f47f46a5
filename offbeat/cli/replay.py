"""``offbeat replay``: a range of a stream's topic once more, as it was judged then, for its alerts."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offbeat.cli.columns import counted
from offbeat.cli.meter import meter
from offbeat.cli.options import (
    DEFAULT_CONFIG,
    ConfigFile,
    Json,
    StreamArgument,
    chosen_stream,
    load_config,
    parsed_time,
    print_json,
)
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from consumers.replayer import Comparison, Parts, Replay
    from offbeat.cli.meter import Show
    from pipeline.alerts import Alert

_SHOWN = 20


class Against(StrEnum):
    """What replayed alerts are held against."""

    LIVE = "live"


def replay(
    *,
    stream: StreamArgument = None,
    config: ConfigFile = DEFAULT_CONFIG,
    since: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="From records of this time on (ISO 8601).")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="Up to, and without, records of this time.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the alerts into this file, as JSONL."),
    ] = None,
    against: Annotated[
        Against | None, typer.Option("--against", help="Compare with the alerts that live work published.")
    ] = None,
    json: Json = False,
) -> None:
    """Run a range of a stream's topic through detection once more, and notify nobody.

    Each record is judged under the settings and the model that were in force for it. Alerts go to standard
    output, a line each on a terminal and a JSON object each into a pipe; the summary to standard error, or
    with --out to standard output.
    """
    from offbeat import app

    loaded = load_config(config)
    name = chosen_stream(loaded, stream)
    first_ms, end_ms = _ms(since, "--from"), _ms(until, "--to")
    if first_ms is not None and end_ms is not None and first_ms >= end_ms:
        raise ConfigError(f"--from {since} is not before --to {until}; give a range that holds something")
    began = time.monotonic()
    with app.open_replay(loaded, name) as parts:
        replays, left_out = _prepared(parts, first_ms, end_ms)
        for sentence in left_out:
            typer.echo(f"left out: {sentence}", err=True)
        with _writing(out) as write, meter() as show:
            _run(replays, write, show)
        compared = _compared(parts, replays) if against else None
    if json:
        summary = _as_json(name, replays, compared, time.monotonic() - began)
        print_json(summary, err=out is None)
    else:
        _tell(name, replays, compared, time.monotonic() - began, err=out is None)
    if compared is not None and compared.differences:
        raise typer.Exit(1)


def _ms(text: str | None, option: str) -> int | None:
    return None if text is None else round(parsed_time(text, option).timestamp() * 1000)


def _prepared(parts: Parts, first_ms: int | None, end_ms: int | None) -> tuple[list[Replay], list[str]]:
    from consumers.replayer import Replayer
    from models.history import topic_bounds

    topic = parts.config.stream(parts.stream).topic
    return Replayer(parts).prepare(topic_bounds(parts.reader, topic, first_ms, end_ms))


@contextmanager
def _writing(path: Path | None) -> Iterator[Callable[[Alert], object]]:
    """Where alerts go; standard output is kept as it is, because a meter on a terminal redirects it."""
    from offbeat.show import line

    if path is None:
        output = sys.stdout
        if output.isatty():
            yield lambda alert: typer.echo(line(alert))
        else:
            yield lambda alert: output.write(f"{alert.model_dump_json()}\n")
        return
    try:
        with path.open("w", encoding="utf-8") as file:
            yield lambda alert: file.write(f"{alert.model_dump_json()}\n")
    except OSError as error:
        raise ConfigError(
            f"{path}: the alerts cannot be written ({error.strerror}); name another file"
        ) from error


def _run(replays: Sequence[Replay], write: Callable[[Alert], object], show: Show) -> None:
    total = max(sum(each.end_offset - each.start_offset for each in replays), 1)
    records = alerts = done = 0
    for each in replays:
        for read in each.run():
            for alert in read.alerts:
                write(alert)
            records, alerts = records + read.records, alerts + len(read.alerts)
            fraction = (done + each.state.next_offset - each.start_offset) / total
            show("replaying", min(fraction, 1.0), f"{counted(records, 'record')}, {counted(alerts, 'alert')}")
        done += each.end_offset - each.start_offset


def _compared(parts: Parts, replays: Sequence[Replay]) -> Comparison:
    from consumers.replayer import compare
    from offbeat.stored_alerts import StoredAlerts

    return compare(replays, StoredAlerts(parts.reader, parts.config.alerts_topic).past())


def _bins(replays: Sequence[Replay]) -> dict[str, int]:
    every = [each.bins for each in replays]
    return {name: sum(bins[name] for bins in every) for name in every[0]}


def _counts(compared: Comparison) -> dict[str, int]:
    kinds = [each.kind for each in compared.differences]
    return {"same": compared.same} | {kind: kinds.count(kind) for kind in ("missing", "new", "changed")}


def _tell(
    name: str, replays: Sequence[Replay], compared: Comparison | None, seconds: float, *, err: bool
) -> None:
    """What a person wants to know first: whether it can be relied on, and what came of it."""
    exact = all(each.exact for each in replays)
    records = counted(sum(each.records for each in replays), "record")
    said = [
        f"replayed {records} of stream {name!r} in {seconds:.1f} s: {'exact' if exact else 'approximate'}"
    ]
    for each in replays[:_SHOWN]:
        said.append(
            f"  {each.partition}: offsets {each.first_offset:,} to {each.end_offset - 1:,}, {each.basis}"
        )
        said += [f"    {note}" for note in each.notes]
    if len(replays) > _SHOWN:
        said.append(f"  ... and {counted(len(replays) - _SHOWN, 'more partition')}")
    bins = ", ".join(f"{count:,} {bin_}" for bin_, count in _bins(replays).items() if count)
    fired, revisions = (sum(getattr(each, what) for each in replays) for what in ("fired", "revisions"))
    letters = sum(each.dead_letters for each in replays)
    said.append(f"bins: {bins or 'none'}")
    said.append(f"alerts: {fired:,} fired, {revisions:,} revisions in all; dead letters: {letters:,}")
    said.append(_ties(replays))
    if compared is not None:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in _counts(compared).items())
        said.append(f"against live: {counts}")
        if compared.unpublished:
            said.append(
                f"  {compared.unpublished:,} of the same are known from the journal only, not their scores"
            )
        said += [
            f"  {each.kind}: {each.series} {each.state}, partition {each.partition} offset {each.offset}, "
            f"{each.id[:12]}: {each.says}"
            for each in compared.differences[:_SHOWN]
        ]
        if len(compared.differences) > _SHOWN:
            said.append(f"  ... and {len(compared.differences) - _SHOWN:,} more; --json shows all")
    typer.echo("\n".join(said), err=err)


def _ties(replays: Sequence[Replay]) -> str:
    from consumers.replayer import TIE
    from pipeline.alerts import timestamp

    count = sum(each.tie_count for each in replays)
    shown = [
        f"{tie.series or 'a forgotten series'} at {timestamp(tie.time_ns):%Y-%m-%d %H:%M:%S}"
        for each in replays
        for tie in each.ties[:5]
    ][:5]
    return f"rows within {TIE:g} of the line: " + ", ".join(
        [f"{count:,}", *shown, *(["..."] if count > len(shown) else [])]
    )


def _as_json(
    name: str, replays: Sequence[Replay], compared: Comparison | None, seconds: float
) -> dict[str, Any]:
    from pipeline.alerts import timestamp

    against = None
    if compared is not None:
        against = _counts(compared) | {
            "unpublished": compared.unpublished,
            "differences": [dataclasses.asdict(each) for each in compared.differences],
        }
    return {
        "stream": name,
        "exact": all(each.exact for each in replays),
        "records": sum(each.records for each in replays),
        "bins": _bins(replays),
        "fired": sum(each.fired for each in replays),
        "revisions": sum(each.revisions for each in replays),
        "dead_letters": sum(each.dead_letters for each in replays),
        "ties": sum(each.tie_count for each in replays),
        "ties_shown": [
            {
                "series": tie.series,
                "time": timestamp(tie.time_ns).isoformat(),
                "score": tie.score,
                "last_score": tie.last_score,
            }
            for each in replays
            for tie in each.ties
        ],
        "partitions": [
            {
                "partition": each.partition.partition,
                "first_offset": each.first_offset,
                "end_offset": each.end_offset,
                "start_offset": each.start_offset,
                "live_to": each.live_to,
                "exact": each.exact,
                "basis": each.basis,
                "notes": each.notes,
            }
            for each in replays
        ],
        "against": against,
        "seconds": round(seconds, 3),
    }


def add_to(cli: typer.Typer) -> None:
    """Register the command."""
    cli.command(
        epilog="Examples: `offbeat replay pumps --against live --out replayed.jsonl`; "
        "`offbeat replay pumps --from 2026-03-01 --to 2026-03-02 | jq .series`"
    )(replay)
