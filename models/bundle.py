"""Bundles: a trained model as one folder of two files, written whole and trusted only after checks."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from models.autoencoder import Autoencoder, ModelSpec
from models.companions import layout as layout_of_companions
from models.companions import of_tensors, to_tensors
from models.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, MODEL_FILE, Manifest, describe, parse
from models.scaling import Scaling
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
        network: N networks.
        network_of: int32[M], the network of each model; models of a cohort share one.
        scaling: of the M models.
        calibration: float64[M, 5], as in :class:`pipeline.ports.Calibrated`.
        companions: of the M models, as their training rows left them.
        hashes: uint64[M - 1], rising: the series of each model but the last.
        canary: for the check on loading.
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


def save(bundle: Bundle, folder: Path) -> None:
    """Write a bundle: the folder appears complete and durable, or not at all.

    A folder that already holds this bundle is left as it is.

    Raises:
        BundleError: the folder exists and holds something else.
    """
    manifest = bundle.manifest.render()
    model = _encode(
        network=bundle.network,
        network_of=bundle.network_of,
        scaling=bundle.scaling,
        calibration=bundle.calibration,
        companions=bundle.companions,
        hashes=bundle.hashes,
        canary=bundle.canary,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    draft.mkdir()
    try:
        write_durably(draft / MODEL_FILE, model)
        write_durably(draft / MANIFEST_FILE, manifest)
        sync_folder(draft)
        draft.rename(folder)
    except OSError:
        present = folder / MANIFEST_FILE
        if not folder.exists():
            raise
        if not present.is_file() or present.read_bytes() != manifest:
            raise BundleError(f"{folder} exists and holds something else; choose another folder") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    sync_folder(folder.parent)


def load(folder: Path) -> Bundle:
    """Read a bundle after checking its hashes, shapes, numbers and canary, in this order.

    Raises:
        NotFound: there is no such folder.
        BundleError: it is damaged, hostile, or computes something else here than where it was made.
    """
    if not folder.is_dir():
        raise NotFound(f"there is no bundle at {folder}; list the registry for the ones there are")
    try:
        return _load(folder)
    except ValueError as error:
        raise BundleError(
            f"the bundle {folder} is refused: {error}; train again or choose another bundle"
        ) from error


def _load(folder: Path) -> Bundle:
    raw = _read(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    try:
        manifest = parse(raw)
    except ValueError as error:
        raise ValueError(f"{MANIFEST_FILE} {error}") from error
    layout = _layout(manifest)
    entry = manifest.files[MODEL_FILE]
    model = _read(folder / MODEL_FILE, _tensor_bytes(layout) + _HEADER_ROOM)
    if len(model) != entry.size or hashlib.sha256(model).hexdigest() != entry.sha256:
        raise ValueError(
            f"{MODEL_FILE} does not match its hash in {MANIFEST_FILE}: it was changed or damaged"
        )
    arrays = _decode(model, layout)
    bundle = _assemble(manifest, hashlib.sha256(raw).hexdigest(), arrays)
    _check_canary(bundle)
    return bundle


def _read(path: Path, bound: int) -> bytes:
    """A file's bytes, at most ``bound`` of them."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > bound:
                raise ValueError(f"{path.name} has {size} bytes where at most {bound} make sense")
            return file.read(bound)
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror})") from error


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
    for layer, (fan_in, fan_out) in enumerate(pairwise(spec.widths())):
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
    layers = range(len(manifest.spec.widths()) - 1)
    network = Autoencoder(
        tuple(torch.from_numpy(arrays[f"weight.{layer}"]) for layer in layers),
        tuple(torch.from_numpy(arrays[f"bias.{layer}"]) for layer in layers),
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


def write_durably(path: Path, content: bytes) -> None:
    """Write a new file and wait until it is on the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make names written or renamed in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
