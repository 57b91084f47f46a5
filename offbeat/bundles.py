"""The bundles of a stream, for whoever looks after them: listed, compared, moved and removed."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from models.manifest import MANIFEST_FILE, MAX_REPORT_BYTES, MODEL_FILE, REPORT_FILES, Manifest
from models.places import Place
from models.registry import Registry
from models.report import Report
from pipeline.errors import BundleError, InputError, NotFound
from pipeline.journal import InForce, JournalLog

if TYPE_CHECKING:
    from models.bundle import Bundle
    from pipeline.config import Config
    from pipeline.control import ControlView
    from pipeline.ports import Broker

MISSING: Final = "it is not in the registry"
_MEMBERS: Final = (*REPORT_FILES, MODEL_FILE, MANIFEST_FILE)
_WRITING: Final = timedelta(days=1)  # longer than any bundle takes to be written
_MOST_BYTES: Final = (4 << 30) + (1 << 20) + len(REPORT_FILES) * MAX_REPORT_BYTES + (1 << 20)


@dataclass(frozen=True, slots=True)
class Listed:
    """One bundle of a registry.

    Attributes:
        bundle: its id.
        role: what it is to the stream, see :func:`roles`; else empty.
        manifest: None where it is damaged, or not there.
        damage: what is wrong with it, else empty.
    """

    bundle: str
    role: str
    manifest: Manifest | None
    damage: str


def listed(registry: Registry, view: ControlView, stream: str) -> list[Listed]:
    """The bundles of a stream, the oldest first; before them those that it needs and are not there."""
    role, manifests = roles(view, stream), registry.manifests(stream)
    needed = {*view.succession(stream)[-2:], view.pinned.get(stream)}
    missing = [bundle for bundle in role if bundle in needed and bundle not in manifests]
    found = [Listed(bundle, role[bundle], None, MISSING) for bundle in missing]
    for bundle, what in manifests.items():
        manifest, damage = (None, str(what)) if isinstance(what, BundleError) else (what, "")
        found.append(Listed(bundle, role.get(bundle, ""), manifest, damage))
    return found


def roles(view: ControlView, stream: str) -> dict[str, str]:
    """What bundles are to a stream, those that are anything.

    ``champion``; ``before``, which a rollback brings back; ``pinned``, the reference of challengers;
    ``refused``, a challenger that never became the champion.
    """
    champions, pinned = view.succession(stream), view.pinned.get(stream)
    named = [*zip(champions[-1:-3:-1], ("champion", "before"), strict=False)]
    if pinned is not None:
        named.append((pinned, "pinned"))
    promoted = {each.bundle for each in view.promotions.get(stream, [])}
    refused = {each.bundle: None for each in view.refusals.get(stream, [])}
    named += [(bundle, "refused") for bundle in refused if bundle is not None and bundle not in promoted]
    return {
        bundle: ", ".join(role for other, role in named if other == bundle)
        for bundle in dict.fromkeys(bundle for bundle, _ in named)
    }


def before(view: ControlView, stream: str) -> str:
    """The champion that a rollback brings back.

    Raises:
        NotFound: the stream has no champion, or it is the first one.
    """
    champions = view.succession(stream)
    if not champions:
        raise NotFound(f"stream {stream!r} has no model in use; train one (`offbeat train {stream}`)")
    if len(champions) == 1:
        raise NotFound(
            f"the champion {champions[0][:12]} of stream {stream!r} is its first; there is none to go back to"
        )
    return champions[-2]


class Span(msgspec.Struct, frozen=True):
    """Records of one partition."""

    first_offset: int
    next_offset: int


class Source(msgspec.Struct, frozen=True):
    """Where a bundle's rows come from, as far as its manifest says in a way that is read here."""

    topic: str = ""
    partitions: dict[str, Span] = {}
    files: list[str] = []

    @classmethod
    def of(cls, manifest: Manifest) -> Source:
        """That of a bundle, which may be anybody's."""
        try:
            return msgspec.convert(manifest.source, cls)
        except msgspec.ValidationError:
            return cls()

    @property
    def records(self) -> int:
        """Of its topic."""
        return sum(each.next_offset - each.first_offset for each in self.partitions.values())


def report_of(bundle: Bundle) -> Report | None:
    """What a bundle tells of its training; None where it has no report, or not one that is read here."""
    try:
        return msgspec.json.decode(bundle.reports["report.json"], type=Report)
    except (KeyError, msgspec.DecodeError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class Difference:
    """How a bundle differs from another.

    Attributes:
        settings: of the networks, and where they come from: name, before, after; only those that differ.
        gained, lost: series with an entry of their own in one alone are only counted: names are not kept.
        series: with an entry in both.
        error_ratio: over those, quantiles 5, 50 and 95 % of the calibrated mean error, after over before.
        median_shift: the same of how far the median moved, in spreads of the one before; the worst feature.
        weights: the root mean square difference of the shared fallback's weights; None for other shapes.
    """

    settings: list[tuple[str, str, str]]
    gained: int
    lost: int
    series: int
    error_ratio: list[float]
    median_shift: list[float]
    weights: float | None


def difference(one: Bundle, other: Bundle) -> Difference:
    """How the second differs from the first."""
    was, now = _described(one.manifest), _described(other.manifest)
    settings = [
        (name, was.get(name, "-"), now.get(name, "-"))
        for name in dict.fromkeys([*was, *now])
        if was.get(name) != now.get(name)
    ]
    _, left, right = np.intersect1d(one.hashes, other.hashes, return_indices=True)
    ratio, shift = np.ones(0), np.zeros(0)
    same_rows = one.manifest.spec.features == other.manifest.spec.features
    if len(left) and same_rows:
        ratio = other.calibration[right, 0] / one.calibration[left, 0].clip(1e-9)
        apart = np.abs(other.scaling.median[right] - one.scaling.median[left]) / one.scaling.spread[left]
        shift = apart.max(axis=1)
    weights = None
    pairs = list(zip(one.network.weights, other.network.weights, strict=False))
    if len(one.network.weights) == len(other.network.weights) and all(
        a.shape[1:] == b.shape[1:] for a, b in pairs
    ):
        squares = np.concatenate([((a[-1] - b[-1]) ** 2).numpy().ravel() for a, b in pairs])
        weights = float(np.sqrt(squares.mean()))
    return Difference(
        settings=settings,
        gained=len(other.hashes) - len(left),
        lost=len(one.hashes) - len(left),
        series=len(left),
        error_ratio=_spread(ratio),
        median_shift=_spread(shift),
        weights=weights,
    )


def _spread(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
    return np.quantile(values, (0.05, 0.5, 0.95)).tolist() if len(values) else []


def _described(manifest: Manifest) -> dict[str, str]:
    """What a manifest says, by name."""
    spec = manifest.spec
    said = {
        "made at": manifest.created_at,
        "kind": spec.kind,
        "features": ", ".join(spec.features),
        "window": f"{spec.window_rows} rows",
        "layers": "-".join(map(str, spec.widths())),
        "rows made as": spec.transforms,
        "seed": str(spec.seed),
        "models": f"{manifest.models:,}",
        "networks": f"{manifest.networks:,}",
    }
    return said | {f"source {name}": str(value) for name, value in manifest.source.items()}


def export(registry: Registry, stream: str, bundle_id: str, path: Path) -> None:
    """Write a bundle into one tar file, the same bytes each time; a file that is there is not written over.

    Raises:
        NotFound, BundleError: there is no such bundle, or it is damaged.
        InputError: the file is there, or cannot be written.
    """
    registry.load(stream, bundle_id)  # a damaged one is not handed on
    contents = {
        name: content
        for name in _MEMBERS
        if (content := _content(registry, stream, bundle_id, name)) is not None
    }
    try:
        with path.open("xb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, content in contents.items():
                entry = tarfile.TarInfo(f"{bundle_id}/{name}")
                entry.size = len(content)
                entry.mode = 0o644
                tar.addfile(entry, io.BytesIO(content))
    except FileExistsError as error:
        raise InputError(f"{path} is there already; choose another name, or remove it") from error
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); choose another folder") from error


def _content(registry: Registry, stream: str, bundle_id: str, name: str) -> bytes | None:
    try:
        return registry.file(stream, bundle_id, name)
    except NotFound:
        return None


def bring(registry: Registry, stream: str, path: Path) -> Bundle:
    """Take in a bundle from a tar file that `export` wrote, or from a folder; returns it.

    It is checked whole, outside the registry, before it appears there.

    Raises:
        NotFound: there is no such file.
        BundleError: it holds no bundle, or one that is damaged or hostile.
    """
    if not path.exists():
        raise NotFound(f"{path} is not there")
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, content in _files(path):
                (Path(folder) / name).write_bytes(content)
        except (OSError, tarfile.TarError, ValueError, RecursionError) as error:  # headers may nest
            raise BundleError(
                f"{path} is refused: {error}; a bundle is a tar file that `offbeat models export` wrote, "
                "or a bundle's folder"
            ) from error
        try:
            return registry.take(stream, folder)
        except BundleError as error:
            raise BundleError(str(error).replace(folder, str(path))) from error


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """The files of a bundle in a tar file or a folder.

    Raises:
        OSError, TarError, ValueError, RecursionError: it cannot be read, or holds something else.
    """
    if path.is_dir():
        place = Place.at(path)
        for name in place.names():
            if name in _MEMBERS:
                yield name, place.read(name, _MOST_BYTES)
        return
    size = path.stat().st_size
    if not path.is_file() or size > _MOST_BYTES:
        raise ValueError(f"it is no regular file of up to {_MOST_BYTES:,} bytes")
    with tarfile.open(path, mode="r:") as tar:
        yield from _members(tar, size)


def _members(tar: tarfile.TarFile, size: int) -> Iterator[tuple[str, bytes]]:
    """The files of a bundle in a tar file of ``size`` bytes; nothing is unpacked to where its name says.

    Raises:
        ValueError: it holds something else.
    """
    seen = set[str]()
    for entry in tar:
        name = entry.name.rsplit("/", 1)[-1]
        plain = entry.isreg() and not entry.issparse()
        if not plain or name not in _MEMBERS or name in seen or entry.name.count("/") > 1:
            raise ValueError(f"it holds {entry.name!r}, and a bundle holds {', '.join(_MEMBERS)} once each")
        if entry.size > size:  # memory would be taken for it
            raise ValueError(
                f"{entry.name!r} would have {entry.size:,} bytes, and the whole file has {size:,}"
            )
        seen.add(name)
        content = tar.extractfile(entry)
        yield name, content.read() if content is not None else b""


def replayed(config: Config, broker: Broker, stream: str) -> set[str]:
    """The bundles that judged records of a stream, as its journal says; replays need them.

    Raises:
        BusDown: the bus cannot be reached.
    """
    topic = config.journal_topic(stream)
    if topic not in broker.admin().describe().topics:
        return set()
    log = JournalLog(broker.reader(), topic)
    entries = (each for number in log.end_offsets() for each in log.entries(number)[0])
    return {each.bundle_sha for each in entries if isinstance(each, InForce) and each.bundle_sha}


@dataclass(frozen=True, slots=True)
class Rubbish:
    """What a stream's part of the registry can do without.

    Attributes:
        bundles: when each was made, by id, the oldest first.
        leftovers: see :meth:`models.Registry.leftovers`.
        kept: how many other bundles there are.
        promotions: how many the stream had seen when they were looked for.
    """

    bundles: dict[str, str]
    leftovers: list[str]
    kept: int
    promotions: int


def rubbish(
    registry: Registry, view: ControlView, stream: str, *, replayed: Container[str], keep: int
) -> Rubbish:
    """What nothing needs, but for the ``keep`` newest bundles of it.

    Raises:
        NotFound: the champion itself is not there, and one of the others will have to stand in for it.
        StoreDown: the registry cannot be reached.
    """
    leftovers = registry.leftovers(stream, datetime.now(UTC) - _WRITING)
    manifests, champion = registry.manifests(stream), view.champions.get(stream)
    if champion is not None and champion not in manifests:
        raise NotFound(
            f"the champion {champion[:12]} of stream {stream!r} is not in the registry: bring it back "
            "(`offbeat models import`) or promote another one before others are removed"
        )
    needed = {*view.succession(stream), view.pinned.get(stream)}
    others = [bundle for bundle in manifests if bundle not in needed and bundle not in replayed]
    going = others[: max(len(others) - keep, 0)]
    return Rubbish(
        {bundle: _made(manifests[bundle]) for bundle in going},
        leftovers,
        len(manifests) - len(going),
        len(view.promotions.get(stream, ())),
    )


def remove(registry: Registry, look: Callable[[], ControlView], stream: str, found: Rubbish) -> Rubbish:
    """Remove what nothing needs; returns what was removed. What is needed by then stays.

    A bundle is withdrawn before the control topic is looked at for the last time, and whoever promotes or
    pins looks for the bundle after its record is written: one of the two finds the other. ``look`` says
    what stands now.

    Raises:
        BusDown: the bus cannot be reached; the bundle at hand stays.
        StoreDown: the registry cannot be changed.
    """

    def needed(bundle: str) -> bool:
        view = look()
        promoted = {each.bundle for each in view.promotions.get(stream, [])[found.promotions :]}
        return bundle in promoted or bundle == view.pinned.get(stream)

    gone = {
        bundle: made
        for bundle, made in found.bundles.items()
        if registry.delete(stream, bundle, partial(needed, bundle))
    }
    for name in found.leftovers:
        registry.delete(stream, name)
    return replace(found, bundles=gone, kept=found.kept + len(found.bundles) - len(gone))


def _made(what: Manifest | BundleError) -> str:
    return "damaged" if isinstance(what, BundleError) else f"made {what.created_at}"
