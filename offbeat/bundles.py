"""The bundles of a stream, for whoever looks after them: listed, compared, moved and removed."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from models.bundle import load
from models.manifest import MANIFEST_FILE, MAX_REPORT_BYTES, MODEL_FILE, REPORT_FILES, Manifest
from models.registry import Registry
from pipeline.errors import BundleError, InputError, NotFound
from pipeline.journal import InForce, JournalLog

if TYPE_CHECKING:
    from models.bundle import Bundle
    from pipeline.config import Config
    from pipeline.control import ControlView
    from pipeline.ports import Broker

_MEMBERS: Final = (*REPORT_FILES, MODEL_FILE, MANIFEST_FILE)
_MOST_BYTES: Final = (4 << 30) + (1 << 20) + len(REPORT_FILES) * MAX_REPORT_BYTES + (1 << 20)


@dataclass(frozen=True, slots=True)
class Listed:
    """One bundle of a registry.

    Attributes:
        bundle: its id.
        role: what it is to the stream, see :func:`roles`; else empty.
        manifest: None where it is damaged.
        damage: what is wrong with it, else empty.
    """

    bundle: str
    role: str
    manifest: Manifest | None
    damage: str


def listed(registry: Registry, view: ControlView, stream: str) -> list[Listed]:
    """The bundles of a stream, the oldest first."""
    role, found = roles(view, stream), []
    for bundle, what in registry.manifests(stream).items():
        damaged = isinstance(what, BundleError)
        manifest = None if isinstance(what, BundleError) else what
        found.append(Listed(bundle, role.get(bundle, ""), manifest, str(what) if damaged else ""))
    return found


def roles(view: ControlView, stream: str) -> dict[str, str]:
    """``champion``; ``before``, which a rollback brings back; ``pinned``, the reference of challengers."""
    champions, pinned = view.succession(stream), view.pinned.get(stream)
    named = [*zip(champions[-1:-3:-1], ("champion", "before"), strict=False)]
    if pinned is not None:
        named.append((pinned, "pinned"))
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


def bring(registry: Registry, stream: str, path: Path) -> str:
    """Take in a bundle from a tar file that `export` wrote, or from a folder; returns its id.

    It is checked whole, outside the registry, before it appears there.

    Raises:
        NotFound: there is no such file.
        BundleError: it holds no bundle, or one that is damaged or hostile.
    """
    if path.is_dir():
        return registry.save(stream, load(path))
    with tempfile.TemporaryDirectory() as folder:
        try:
            with tarfile.open(path, mode="r:") as tar:
                for name, content in _members(tar):
                    (Path(folder) / name).write_bytes(content)
        except FileNotFoundError as error:
            raise NotFound(f"{path} is not there") from error
        except (OSError, tarfile.TarError, ValueError) as error:
            raise BundleError(
                f"{path} is refused: {error}; a bundle is a tar file that `offbeat models export` wrote, "
                "or a bundle's folder"
            ) from error
        try:
            return registry.save(stream, load(folder))
        except BundleError as error:
            raise BundleError(str(error).replace(folder, str(path))) from error


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    """The files of a bundle; nothing is unpacked to where its name says.

    Raises:
        ValueError: it holds something else.
    """
    seen, total = set[str](), 0
    for entry in tar:
        name = entry.name.rsplit("/", 1)[-1]
        if not entry.isreg() or name not in _MEMBERS or name in seen or entry.name.count("/") > 1:
            raise ValueError(f"it holds {entry.name!r}, and a bundle holds {', '.join(_MEMBERS)} once each")
        seen.add(name)
        total += entry.size
        if total > _MOST_BYTES:
            raise ValueError(f"it holds more than {_MOST_BYTES:,} bytes")
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


def superfluous(every: Sequence[Listed], needed: Container[str], keep: int) -> list[Listed]:
    """The bundles that nothing needs, but for the ``keep`` newest of them."""
    others = [each for each in every if each.bundle not in needed]
    return others[: max(len(others) - keep, 0)]
