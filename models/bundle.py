"""Bundles: a trained model as one folder of a few files, written whole and trusted only after checks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from models.autoencoder import Autoencoder, layer_shapes
from models.companions import layout as layout_of_companions
from models.companions import of_tensors, to_tensors
from models.manifest import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    MAX_REPORT_BYTES,
    MODEL_FILE,
    FileEntry,
    Manifest,
    describe,
    parse,
    with_reports,
)
from models.places import Place
from models.scaling import Scaling
from models.spec import ModelSpec
from models.stack import Stack
from pipeline.companions import Companions
from pipeline.errors import BundleError, NotFound
from pipeline.ports import Float64s, Int32s, Windows

MAX_MODEL_BYTES: Final = 4 << 30
CANARY_WINDOWS: Final = 8

_HEADER_ROOM: Final = 1 << 20  # what a model file may hold besides its tensors
_CANARY_RTOL: Final = 1e-3  # other processors round otherwise; a wrong weight shows far above this
_CANARY_ATOL: Final = 1e-4

Arrays = dict[str, NDArray[Any]]
Owner: TypeAlias = Literal["own", "cohort", "fallback"]


def series_hash(series: str) -> int:
    """The 64 bits by which a bundle knows a series."""
    return int.from_bytes(hashlib.blake2b(series.encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True, slots=True, eq=False)
class Canary:
    """Windows and the errors the bundle gave them when it was made.

    Attributes:
        windows: one each for at most ``CANARY_WINDOWS`` models.
        errors: float64[n, 2], of the window and of its last row.
    """

    windows: Windows
    errors: Float64s


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """N networks and the M models that use them; the last model is the fallback for series it has not seen.

    Attributes:
        manifest: what it is and where it comes from.
        sha: SHA-256 of the manifest, and through it of everything; the bundle's id.
        network: N networks; the last one is the fallback's.
        network_of: int32[M], the network of each model; models of a cohort share one.
        scaling: of the M models.
        calibration: float64[M, 5], as in :class:`pipeline.ports.Calibrated`.
        companions: of the M models, as their training rows left them.
        hashes: uint64[M - 1], rising: the series of each model but the last.
        canary: for the check on loading.
        reports: how it was made, for people: files by name, of ``manifest.REPORT_FILES``.
    """

    manifest: Manifest
    sha: str
    network: Autoencoder
    network_of: Int32s
    scaling: Scaling
    calibration: Float64s
    companions: Companions
    hashes: NDArray[np.uint64]
    canary: Canary
    reports: Mapping[str, bytes] = field(default_factory=dict)

    def stack(self) -> Stack:
        """What computes its errors."""
        return Stack(self.network, self.scaling, self.network_of)

    def owners(self) -> list[Owner]:
        """Whose the network of each model is: its series' own, its cohort's, or the fallback's."""
        users = np.bincount(self.network_of)
        return [*("own" if users[each] == 1 else "cohort" for each in self.network_of[:-1]), "fallback"]


def seal(
    spec: ModelSpec,
    *,
    network: Autoencoder,
    network_of: Int32s,
    scaling: Scaling,
    calibration: Float64s,
    companions: Companions,
    hashes: NDArray[np.uint64],
    canary: Canary,
    source: Mapping[str, object],
    created_at: str,
) -> Bundle:
    """Give a trained stack its manifest and its id."""
    encoder = spec.encoder_widths()
    spec = replace(spec, hidden=encoder[1:-1], code=encoder[-1])
    model = _encode(
        network=network,
        network_of=network_of,
        scaling=scaling,
        calibration=calibration,
        companions=companions,
        hashes=hashes,
        canary=canary,
    )
    manifest = describe(spec, model, source, created_at, models=len(network_of), networks=len(network))
    sha = hashlib.sha256(manifest.render()).hexdigest()
    return Bundle(manifest, sha, network, network_of, scaling, calibration, companions, hashes, canary)


def attach(bundle: Bundle, reports: Mapping[str, bytes]) -> Bundle:
    """The same model with reports, under another id.

    Raises:
        BundleError: a report is larger than is ever read again, or none of ``manifest.REPORT_FILES``.
    """
    manifest = with_reports(bundle.manifest, reports)
    sha = hashlib.sha256(manifest.render()).hexdigest()
    return replace(bundle, manifest=manifest, sha=sha, reports=dict(reports))


def save(bundle: Bundle, folder: str | Path | Place) -> None:
    """Write a bundle: the folder appears complete and durable, or not at all.

    A folder that already holds this bundle is left as it is.

    Raises:
        BundleError: the folder exists and holds something else; or the bundle was loaded, and its bytes come
            out otherwise here.
        StoreDown: it could not be written; trying again can help.
    """
    place = _place(folder)
    model = _encode(
        network=bundle.network,
        network_of=bundle.network_of,
        scaling=bundle.scaling,
        calibration=bundle.calibration,
        companions=bundle.companions,
        hashes=bundle.hashes,
        canary=bundle.canary,
    )
    if FileEntry.of(model) != bundle.manifest.files[MODEL_FILE]:
        raise BundleError(
            f"the bundle {bundle.sha[:12]} was written by another version of safetensors, and would come out "
            "otherwise here; copy its folder, or `offbeat models import` it"
        )
    _write(place, {**bundle.reports, MODEL_FILE: model, MANIFEST_FILE: bundle.manifest.render()})


def copy(source: Place, manifest: Manifest, target: Place) -> None:
    """Write the bundle that was loaded from a folder into another one, byte for byte; see :func:`save`.

    Another version of safetensors may write the same tensors otherwise, and their hash is part of the id.
    """
    contents = {name: _file(source, manifest, name, MAX_MODEL_BYTES) for name in manifest.files}
    _write(target, contents | {MANIFEST_FILE: manifest.render()})


def _write(place: Place, contents: Mapping[str, bytes]) -> None:
    if place.write(contents):
        return
    try:
        same = place.read(MANIFEST_FILE, MAX_MANIFEST_BYTES) == contents[MANIFEST_FILE]
    except ValueError:
        same = False
    if not same:
        raise BundleError(f"{place} exists and holds something else; choose another folder")


def load(folder: str | Path | Place) -> Bundle:
    """Read a bundle after checking its hashes, shapes, numbers and canary, in this order.

    Raises:
        NotFound: there is no such folder.
        BundleError: it is damaged, hostile, or computes something else here than where it was made.
        StoreDown: where it lies cannot be reached.
    """
    place = _place(folder)
    if not place.is_there():
        raise NotFound(f"there is no bundle at {place}; `offbeat models list` shows those that there are")
    try:
        return _load(place)
    except ValueError as error:
        raise BundleError(
            f"the bundle {place} is refused: {error}; train again or choose another bundle"
        ) from error


def manifest_of(folder: Place) -> Manifest:
    """The manifest of a bundle, held to its own hash; nothing else is read.

    Raises:
        BundleError: it is damaged, or of another version.
        StoreDown: where it lies cannot be reached.
    """
    try:
        return _manifest(folder.read(MANIFEST_FILE, MAX_MANIFEST_BYTES))
    except ValueError as error:
        raise BundleError(
            f"the bundle {folder} is refused: {error}; train again or choose another bundle"
        ) from error


def _place(folder: str | Path | Place) -> Place:
    return folder if isinstance(folder, Place) else Place.at(folder)


def _manifest(raw: bytes) -> Manifest:
    try:
        return parse(raw)
    except ValueError as error:
        raise ValueError(f"{MANIFEST_FILE} {error}") from error


def _load(folder: Place) -> Bundle:
    raw = folder.read(MANIFEST_FILE, MAX_MANIFEST_BYTES)
    manifest = _manifest(raw)
    layout = _layout(manifest)
    model = _file(folder, manifest, MODEL_FILE, _tensor_bytes(layout) + _HEADER_ROOM)
    reports = {
        name: _file(folder, manifest, name, MAX_REPORT_BYTES) for name in manifest.files if name != MODEL_FILE
    }
    arrays = _decode(model, layout)
    bundle = _assemble(manifest, hashlib.sha256(raw).hexdigest(), arrays)
    _check_canary(bundle)
    return replace(bundle, reports=reports)


def _file(folder: Place, manifest: Manifest, name: str, bound: int) -> bytes:
    """A file that the manifest names, held to its hash."""
    content, entry = folder.read(name, bound), manifest.files[name]
    if len(content) != entry.size or hashlib.sha256(content).hexdigest() != entry.sha256:
        raise ValueError(f"{name} does not match its hash in {MANIFEST_FILE}: it was changed or damaged")
    return content


def _layout(manifest: Manifest) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtype and shape of every tensor that a bundle with this manifest holds."""
    spec, models, networks = manifest.spec, manifest.models, manifest.networks
    if not models >= networks >= 1:
        raise ValueError(
            f"{MANIFEST_FILE} says {networks} networks for {models} models; there is at least the fallback, "
            "and no network without a model"
        )
    features, windows = len(spec.features), min(CANARY_WINDOWS, models)
    layout: dict[str, tuple[str, tuple[int, ...]]] = {
        "scaling.median": ("float64", (models, features)),
        "scaling.spread": ("float64", (models, features)),
        "calibration": ("float64", (models, 5)),
        "series": ("uint64", (models - 1,)),
        "network": ("int32", (models,)),
        "canary.tail": ("float32", (windows, spec.window_rows, features)),
        "canary.anchor": ("float64", (windows, features)),
        "canary.model": ("int32", (windows,)),
        "canary.errors": ("float64", (windows, 2)),
        **layout_of_companions(models, spec.window_rows, features),
    }
    for layer, (fan_in, fan_out) in enumerate(layer_shapes(spec.widths(), spec.family.heads)):
        layout[f"weight.{layer}"] = ("float32", (networks, fan_in, fan_out))
        layout[f"bias.{layer}"] = ("float32", (networks, 1, fan_out))
    size = _tensor_bytes(layout)
    if size > MAX_MODEL_BYTES:
        raise ValueError(f"{MANIFEST_FILE} describes {size} bytes of tensors; the bound is {MAX_MODEL_BYTES}")
    return layout


def _tensor_bytes(layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
    """Bytes of all tensors; in Python's integers, which do not overflow."""
    total = 0
    for dtype, shape in layout.values():
        count = np.dtype(dtype).itemsize
        for length in shape:
            count *= length
        total += count
    return total


def _encode(
    *,
    network: Autoencoder,
    network_of: Int32s,
    scaling: Scaling,
    calibration: Float64s,
    companions: Companions,
    hashes: NDArray[np.uint64],
    canary: Canary,
) -> bytes:
    """The model file."""
    arrays: Arrays = {
        "scaling.median": scaling.median,
        "scaling.spread": scaling.spread,
        "calibration": calibration,
        "series": hashes,
        "network": network_of,
        "canary.tail": canary.windows.tail,
        "canary.anchor": canary.windows.anchor,
        "canary.model": canary.windows.model,
        "canary.errors": canary.errors,
        **to_tensors(companions),
    }
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        arrays[f"weight.{layer}"] = weight.numpy()
        arrays[f"bias.{layer}"] = bias.numpy()
    encoded: bytes = safetensors.numpy.save(
        {name: np.ascontiguousarray(each) for name, each in arrays.items()}
    )
    return encoded


def _decode(model: bytes, layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> Arrays:
    """The tensors of a model file, exactly those of the layout, all finite."""
    try:
        arrays: Arrays = safetensors.numpy.load(model)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{MODEL_FILE} cannot be read ({error})") from error
    if set(arrays) != set(layout):
        raise ValueError(f"{MODEL_FILE} has other tensors: {sorted(set(arrays) ^ set(layout))}")
    for name, (dtype, shape) in layout.items():
        found = arrays[name]
        if found.dtype != dtype or found.shape != shape:
            raise ValueError(f"{name} is {found.dtype}{list(found.shape)}, not {dtype}{list(shape)}")
        if not np.isfinite(found).all():
            raise ValueError(f"{name} has numbers that are not finite")
    # Copies: torch takes only memory it may write to.
    return {name: array.copy() for name, array in arrays.items()}


def _assemble(manifest: Manifest, sha: str, arrays: Arrays) -> Bundle:
    """The bundle of tensors that fit the layout; what they mean is checked here."""
    hashes, model, network_of = arrays["series"], arrays["canary.model"], arrays["network"]
    if not (hashes[1:] > hashes[:-1]).all():
        raise ValueError("its table of series is not in rising order")
    if not (arrays["scaling.spread"] > 0).all() or not (arrays["calibration"][:, [1, 3]] > 0).all():
        raise ValueError("a spread or a deviation is not above 0")
    if not ((model >= 0) & (model < manifest.models)).all():
        raise ValueError("its canary names a model that is not there")
    if not ((network_of >= 0) & (network_of < manifest.networks)).all():
        raise ValueError("its table of series names a network that is not there")
    spec = manifest.spec
    layers = range(len(spec.widths()) - 1)
    network = Autoencoder(
        tuple(torch.from_numpy(arrays[f"weight.{layer}"]) for layer in layers),
        tuple(torch.from_numpy(arrays[f"bias.{layer}"]) for layer in layers),
        spec.family.bend,
    )
    canary = Canary(Windows(arrays["canary.tail"], arrays["canary.anchor"], model), arrays["canary.errors"])
    scaling = Scaling(arrays["scaling.median"], arrays["scaling.spread"])
    return Bundle(
        manifest,
        sha,
        network,
        network_of,
        scaling,
        arrays["calibration"],
        of_tensors(arrays),
        hashes,
        canary,
    )


def _check_canary(bundle: Bundle) -> None:
    """The bundle must compute here what it computed where it was made."""
    errors = bundle.stack().score(bundle.canary.windows)
    found = np.stack([errors.window, errors.last], axis=1)
    if not np.allclose(found, bundle.canary.errors, _CANARY_RTOL, _CANARY_ATOL):
        worst = np.abs(found - bundle.canary.errors).max()
        raise ValueError(f"its canary's errors differ by up to {worst:.3g} from those it was made with")
