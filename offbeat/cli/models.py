"""``offbeat models``: the trained bundles of a stream, and which of them is in use."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offbeat.cli.columns import counted, plain, print_columns
from offbeat.cli.options import (
    DEFAULT_CONFIG,
    ConfigFile,
    Json,
    StreamArgument,
    chosen_stream,
    load_config,
    print_json,
)

if TYPE_CHECKING:
    from models import Bundle, Registry
    from models.gate import Ruling
    from models.manifest import Manifest
    from models.report import Report
    from offbeat.bundles import Difference, Listed
    from offbeat.controls import Control
    from pipeline.config import Config
    from pipeline.control import Champion, Refused
    from pipeline.ports import Broker

group = typer.Typer(no_args_is_help=True, help="Trained bundles: list, compare, promote, move, remove, use.")

StreamName = Annotated[str, typer.Argument(metavar="STREAM", help="The stream.")]
BundleId = Annotated[
    str, typer.Argument(metavar="BUNDLE", help="Its id, or the first digits of it (at least 4).")
]
Why = Annotated[str, typer.Option("--why", help="The reason, for the audit log.")]
_DIGITS = 12
_SERIES = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """What the commands work on."""

    config: Config
    stream: str
    registry: Registry
    broker: Broker
    control: Control


@contextmanager
def opened(path: Path, stream: str | None, command: str) -> Iterator[Opened]:
    """A stream's bundles, and what was decided about them."""
    from offbeat import app
    from offbeat.controls import Control, who

    config = load_config(path)
    name = chosen_stream(config, stream)
    with app.open_bus(config.bus) as broker:
        control = Control(config, broker, who(f"offbeat models {command}"))
        yield Opened(config, name, app.registry(config), broker, control)


@group.callback()
def _group() -> None:
    """List, compare, promote, move, remove and use trained bundles."""


@group.command("list", epilog="Examples: `offbeat models list`; `offbeat models list pumps --json`")
def list_(*, stream: StreamArgument = None, config: ConfigFile = DEFAULT_CONFIG, json: Json = False) -> None:
    """List a stream's bundles, the oldest first, and say which one is in use."""
    from offbeat.bundles import listed

    with opened(config, stream, "list") as at:
        found = listed(at.registry, at.control.view(), at.stream)
    if json:
        for each in found:
            print_json(_as_json(each))
        return
    if not found:
        typer.echo(
            f"stream {at.stream!r} has no bundle yet; train one (`offbeat train {at.stream}`)", err=True
        )
        return
    print_columns(
        ["bundle", "made at", "kind", " models", "layers", "learned from", "role"], list(map(_row, found))
    )


def _row(each: Listed) -> list[str]:
    from offbeat.bundles import MISSING

    if each.manifest is None:
        state = "missing" if each.damage == MISSING else "damaged"
        return [each.bundle[:_DIGITS], "-", state, "-", "-", "-", each.role]
    spec = each.manifest.spec
    models, layers = f"{each.manifest.models:,}", "-".join(map(str, spec.widths()))
    learned = _learned(each.manifest)
    return [each.bundle[:_DIGITS], each.manifest.created_at, spec.kind, models, layers, learned, each.role]


def _learned(manifest: Manifest) -> str:
    """Where a bundle's rows come from, in a few words."""
    from offbeat.bundles import Source

    source = Source.of(manifest)
    if source.topic:
        return f"{counted(source.records, 'record')} of {source.topic}"
    return counted(len(source.files), "file") if source.files else "-"


def _as_json(each: Listed) -> dict[str, Any]:
    value: dict[str, Any] = {"bundle": each.bundle, "role": each.role or None, "damage": each.damage or None}
    if each.manifest is not None:
        spec = dataclasses.asdict(each.manifest.spec)
        value |= {
            "made_at": each.manifest.created_at,
            "models": each.manifest.models,
            "networks": each.manifest.networks,
            "spec": spec,
            "source": each.manifest.source,
            "versions": each.manifest.versions,
        }
    return value


@group.command(epilog="Examples: `offbeat models show pumps`; `offbeat models show pumps 3f9a`")
def show(
    *,
    stream: StreamName,
    bundle: Annotated[
        str | None,
        typer.Argument(metavar="[BUNDLE]", help="Its id, or the first digits; default: the one in use."),
    ] = None,
    config: ConfigFile = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Show all of one bundle after checking it as a worker would: hashes, shapes, numbers, canary."""
    from offbeat.bundles import Listed, report_of, roles

    with opened(config, stream, "show") as at:
        view = at.control.view()
        bundle_id = chosen_bundle(at, bundle)
        loaded, lies_in = at.registry.load(at.stream, bundle_id), at.registry.where(at.stream, bundle_id)
        role = roles(view, at.stream).get(bundle_id, "")
        said: dict[str, Sequence[Champion | Refused]] = {
            "promoted": [each for each in view.promotions.get(at.stream, []) if each.bundle == bundle_id],
            "refused": [each for each in view.refusals.get(at.stream, []) if each.bundle == bundle_id],
        }
    report = report_of(loaded)
    if json:
        listed = _as_json(Listed(bundle_id, role, loaded.manifest, ""))
        decided = {
            what: [{"at": each.at, "who": each.who, "why": each.why} for each in some]
            for what, some in said.items()
        }
        gate = None if report is None or report.gate is None else report.gate.as_json()
        reports = {"reports": sorted(loaded.reports), "lies_in": lies_in}
        print_json(listed | decided | {"gate": gate} | reports)
        return
    lines = [
        ("bundle", bundle_id + (f" ({role})" if role else "")),
        ("stream", at.stream),
        *_described(loaded, report),
        ("reports", ", ".join(sorted(loaded.reports)) or "none"),
        ("lies in", lies_in),
    ]
    for what, some in said.items():
        lines += [(what, f"{each.at:%Y-%m-%d %H:%M UTC} by {each.who}: {each.why}") for each in some]
    for name, text in lines:
        typer.echo(f"{name:<13} {plain(text)}")
    if report is not None and report.gate is not None:
        _tell_gate(report.gate, report.champion)
    if report is not None and report.series:
        _tell_series(report)


def _described(bundle: Bundle, report: Report | None) -> list[tuple[str, str]]:
    """What a bundle is and where it comes from, by name."""
    manifest, spec = bundle.manifest, bundle.manifest.spec
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    error, deviation = bundle.calibration[-1, :2]
    learned = _learned(manifest)
    if report is not None:
        learned += f" ({report.counts.learned:,} of {counted(report.counts.rows, 'row')}"
        if report.first_at is not None and report.last_at is not None:
            learned += f", {report.first_at.isoformat()} to {report.last_at.isoformat()}"
        learned += ")"
    return [
        ("made at", f"{manifest.created_at} with {versions}"),
        ("kind", spec.kind),
        ("layers", "-".join(map(str, spec.widths()))),
        (
            "window",
            f"{spec.window_rows} rows x {counted(len(spec.features), 'feature')}: {', '.join(spec.features)}",
        ),
        ("rows made as", spec.transforms or "-"),
        ("models", f"{manifest.models:,} in all, with {counted(manifest.networks, 'network')}"),
        ("other series", f"begin with the error {error:.4f} ± {deviation:.4f}"),
        ("learned from", learned),
    ]


def _tell_gate(ruling: Ruling, champion: str) -> None:
    """How the gate judged a bundle, in numbers; the sentence stands in the control record."""
    from models.verdict import COMPARED, WORDS, compared, extent, faults, figures, found, verdict

    other = f", against the champion, {champion}" if champion else ""
    typer.echo(f"\nat the gate: {plain(verdict(ruling) + other)}; {plain(extent(ruling))}")
    rows = [[*compared(ruling, each), WORDS[each.verdict]] for each in ruling.comparisons]
    print_columns([*(f" {each}" if n > 1 else each for n, each in enumerate(COMPARED)), "verdict"], rows)
    typer.echo()
    did = [faults(each) for each in ruling.contenders.values()]
    rows = [*map(list, figures(ruling)), *([name, *(found(each[name]) for each in did)] for name in did[0])]
    print_columns(["", *(f" {role}" for role in ruling.contenders)], rows)
    if ruling.referenced:
        moved = ", ".join(plain(each.series) for each in ruling.drifted[:_SERIES]) or "none"
        count = f"{len(ruling.drifted):,} of {ruling.referenced:,} series"
        typer.echo(f"drifted from the pinned reference: {count} ({moved})")


def _tell_series(report: Report) -> None:
    """The first series of a bundle, as its report tells of them."""
    typer.echo()
    rows = [
        [each.series, each.model, f"{each.counts.learned:,}", f"{each.error:.4f}", f"{each.error_sd:.4f}"]
        for each in report.series[:_SERIES]
    ]
    print_columns(["series", "model", " rows learned", " error", " deviation"], rows)
    if report.series_count > len(rows):
        typer.echo(f"and {report.series_count - len(rows):,} more; report.html tells of them")


def chosen_bundle(at: Opened, bundle: str | None) -> str:
    """The id of the bundle that was named, or of the one in use.

    Raises:
        NotFound: there is none.
    """
    from pipeline.errors import NotFound

    if bundle is not None:
        return at.registry.find(at.stream, bundle)
    champion = at.control.view().champions.get(at.stream)
    if champion is None:
        raise NotFound(f"stream {at.stream!r} has no model in use; train one (`offbeat train {at.stream}`)")
    return champion


@group.command(epilog="Example: `offbeat models diff pumps 3f9a c01d`")
def diff(
    *,
    stream: StreamName,
    bundle: BundleId,
    other: Annotated[
        str | None,
        typer.Argument(metavar="[OTHER]", help="What it is compared with; default: the one in use."),
    ] = None,
    config: ConfigFile = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Say how one bundle differs from another, or from the one in use."""
    from offbeat.bundles import difference

    with opened(config, stream, "diff") as at:
        names = [chosen_bundle(at, each) for each in (other, bundle)]
        before, after = (at.registry.load(at.stream, each) for each in names)
    found = difference(before, after)
    if json:
        print_json({"before": names[0], "after": names[1], **dataclasses.asdict(found)})
    else:
        _tell_difference(names, found)


def _tell_difference(names: list[str], found: Difference) -> None:
    typer.echo(f"{names[0][:_DIGITS]} -> {names[1][:_DIGITS]}")
    if found.settings:
        print_columns(["what", "before", "after"], [list(each) for each in found.settings])
    typer.echo(
        f"series with a model of their own: {found.series:,} in both, {found.gained:,} only in the second, "
        f"{found.lost:,} only in the first"
    )
    if found.error_ratio:
        low, middle, high = found.error_ratio
        typer.echo(
            f"error where thresholds start: {middle:.2f} times ({low:.2f} to {high:.2f} for 90 % of series)"
        )
        low, middle, high = found.median_shift
        typer.echo(f"middle of the values: moved by {middle:.2f} spreads ({low:.2f} to {high:.2f})")
    if found.weights is not None:
        typer.echo(f"weights of the shared model: {found.weights:.3g} apart (root mean square)")


@group.command(epilog="Example: `offbeat models promote pumps 3f9a --why 'the new sensors'`")
def promote(
    *,
    stream: StreamName,
    bundle: BundleId,
    why: Why,
    config: ConfigFile = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Put a bundle to use, by your own decision: no gate is asked.

    Running workers take it up between two batches. It must fit the stream's settings.
    """
    with opened(config, stream, "promote") as at:
        _put_to_use(at, at.registry.find(at.stream, bundle), why, json=json)


def _put_to_use(at: Opened, bundle_id: str, why: str, *, json: bool) -> None:
    from models.spec import check_fits

    loaded = at.registry.load(at.stream, bundle_id)  # a damaged one would only be refused by the workers
    check_fits(loaded.manifest.spec, bundle_id, at.stream, at.config.stream(at.stream))
    was = at.control.promote(at.stream, bundle_id, why, lambda: at.registry.holds(at.stream, bundle_id))
    if json:
        print_json({"champion": bundle_id, "before": was})
    elif was == bundle_id:
        typer.echo(f"bundle {bundle_id[:_DIGITS]} is in use for stream {at.stream!r} already")
    else:
        earlier = f" (before: {was[:_DIGITS]})" if was else ""
        typer.echo(f"bundle {bundle_id[:_DIGITS]} is in use for stream {at.stream!r} now{earlier}")


@group.command(epilog="Example: `offbeat models rollback pumps --why 'alerts on every shift change'`")
def rollback(
    *, stream: StreamName, why: Why, config: ConfigFile = DEFAULT_CONFIG, json: Json = False
) -> None:
    """Go back to the champion before the one in use; again, and it is the one before that."""
    from offbeat.bundles import before

    with opened(config, stream, "rollback") as at:
        _put_to_use(at, before(at.control.view(), at.stream), f"rolled back: {why}", json=json)


@group.command(epilog="Example: `offbeat models pin pumps 3f9a --why 'the week after the overhaul'`")
def pin(
    *,
    stream: StreamName,
    bundle: BundleId,
    why: Why,
    config: ConfigFile = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Hold every new model against this bundle, too.

    A series that is pushed a little at each retrain never differs much from the model before.
    The gate refuses a model whose rows have moved too far from what the pinned bundle learned.
    """
    with opened(config, stream, "pin") as at:
        bundle_id = chosen_bundle(at, bundle)
        at.registry.load(at.stream, bundle_id)
        was = at.control.pin(at.stream, bundle_id, why, lambda: at.registry.holds(at.stream, bundle_id))
    if json:
        print_json({"pinned": bundle_id, "before": was})
    else:
        typer.echo(
            f"new models of stream {at.stream!r} are held against bundle {bundle_id[:_DIGITS]} from now on"
        )


@group.command(epilog="Example: `offbeat models unpin pumps --why 'new pumps'`")
def unpin(*, stream: StreamName, why: Why, config: ConfigFile = DEFAULT_CONFIG, json: Json = False) -> None:
    """Hold new models against no pinned bundle any more."""
    with opened(config, stream, "unpin") as at:
        was = at.control.pin(at.stream, None, why)
    if json:
        print_json({"pinned": None, "before": was})
    elif was is None:
        typer.echo(f"stream {at.stream!r} has no pinned bundle; nothing was changed")
    else:
        typer.echo(
            f"new models of stream {at.stream!r} are held against no pinned bundle any more "
            f"(before: {was[:_DIGITS]})"
        )


@group.command(epilog="Example: `offbeat models export pumps 3f9a pumps.tar`")
def export(
    *,
    stream: StreamName,
    bundle: BundleId,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The tar file to write.")],
    config: ConfigFile = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Write a bundle into one tar file, to keep it or to take it to another installation."""
    from offbeat import bundles

    with opened(config, stream, "export") as at:
        bundle_id = at.registry.find(at.stream, bundle)
        bundles.export(at.registry, at.stream, bundle_id, file)
    size = file.stat().st_size
    if json:
        print_json({"bundle": bundle_id, "file": str(file), "bytes": size})
    else:
        typer.echo(f"bundle {bundle_id[:_DIGITS]} is written to {file} ({size:,} bytes)")


@group.command("import", epilog="Example: `offbeat models import pumps pumps.tar`")
def import_(
    *,
    stream: StreamName,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A tar file of `export`, or a bundle's folder.")
    ],
    config: ConfigFile = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Take a bundle in after checking it whole; it is not put to use."""
    from models.spec import check_fits
    from offbeat import bundles
    from pipeline.errors import BundleError

    misfit = None
    with opened(config, stream, "import") as at:
        brought = bundles.bring(at.registry, at.stream, file)
        bundle_id = brought.sha
        try:
            check_fits(brought.manifest.spec, bundle_id, at.stream, at.config.stream(at.stream))
        except BundleError as error:
            misfit = str(error)
    if json:
        print_json({"bundle": bundle_id, "misfit": misfit})
        return
    typer.echo(
        f"bundle {bundle_id[:_DIGITS]} is in the registry; "
        + (
            f"`offbeat models promote {at.stream} {bundle_id[:_DIGITS]} --why ...` puts it to use"
            if misfit is None
            else f"it cannot be put to use as things are: {misfit}"
        )
    )


@group.command(epilog="Examples: `offbeat models gc pumps`; `offbeat models gc pumps --keep 10 --yes`")
def gc(
    *,
    stream: StreamArgument = None,
    keep: Annotated[
        int, typer.Option("--keep", metavar="N", min=0, help="Of the others keep the N newest.")
    ] = 3,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without it they are only named.")] = False,
    config: ConfigFile = DEFAULT_CONFIG,
    json: Json = False,
) -> None:
    """Remove bundles that nothing needs, and what killed writers left behind.

    The champion and those that lead to it stay, for rollbacks, the pinned one, and all that judged records
    which the stream's journal knows, for replays.
    """
    from offbeat import bundles

    with opened(config, stream, "gc") as at:
        replayed = bundles.replayed(at.config, at.broker, at.stream)
        found = bundles.rubbish(at.registry, at.control.view(), at.stream, replayed=replayed, keep=keep)
        if yes:
            found = bundles.remove(at.registry, at.control.view, at.stream, found)
    if json:
        said = {"bundles": list(found.bundles), "leftovers": found.leftovers, "kept": found.kept}
        print_json(said | {"removed": yes})
        return
    verb = "removed" if yes else "would remove"
    for bundle, made in found.bundles.items():
        typer.echo(f"{verb} {bundle[:_DIGITS]} ({plain(made)})")
    if found.leftovers:
        typer.echo(f"{verb} {counted(len(found.leftovers), 'unfinished bundle')} of writers that were killed")
    stay = f"{counted(found.kept, 'bundle')} of stream {at.stream!r}"
    if (found.bundles or found.leftovers) and not yes:
        typer.echo(f"{stay} would stay; --yes removes what is named")
    else:
        typer.echo(f"{stay} {'stays' if found.kept == 1 else 'stay'}")


def add_to(cli: typer.Typer) -> None:
    """Register the commands."""
    cli.add_typer(group, name="models")
