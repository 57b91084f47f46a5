"""The manifest of a bundle: what the model is, where it comes from, and the hash of its file."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
import safetensors
import torch

from models.spec import ModelSpec
from pipeline.errors import BundleError, ConfigError

MANIFEST_FILE: Final = "manifest.json"
MODEL_FILE: Final = "model.safetensors"
MAX_MANIFEST_BYTES: Final = 1 << 20
REPORT_FILES: Final = ("report.json", "report.html")
"""What a bundle may hold besides its model."""
MAX_REPORT_BYTES: Final = 16 << 20

SCHEMA: Final = 3


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a bundle."""

    sha256: str
    size: int

    @classmethod
    def of(cls, content: bytes) -> FileEntry:
        """The entry of a file with this content."""
        return cls(hashlib.sha256(content).hexdigest(), len(content))


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``manifest.json``.

    Attributes:
        schema: version of this layout.
        spec: the network; ``hidden`` and ``code`` are filled in.
        models: one for each series that was learned, and the fallback.
        networks: in the stack; models of a cohort share one.
        created_at: ISO 8601.
        source: where the training rows come from.
        versions: of the libraries that made it.
        files: by plain name.
        sha256: of this manifest with this field empty.
    """

    schema: int
    spec: ModelSpec
    models: int
    networks: int
    created_at: str
    source: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, FileEntry]
    sha256: str = ""

    def render(self) -> bytes:
        """The one way this manifest is written."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    def signed(self) -> Manifest:
        """The same with its own hash filled in."""
        return msgspec.structs.replace(self, sha256=self._own_hash())

    def _own_hash(self) -> str:
        return hashlib.sha256(msgspec.structs.replace(self, sha256="").render()).hexdigest()


def describe(
    spec: ModelSpec,
    model: bytes,
    source: Mapping[str, object],
    created_at: str,
    *,
    models: int,
    networks: int,
) -> Manifest:
    """The manifest of a bundle made here and now whose model file is ``model``."""
    return Manifest(
        schema=SCHEMA,
        spec=spec,
        models=models,
        networks=networks,
        created_at=created_at,
        source=dict(source),
        versions={
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "safetensors": safetensors.__version__,
        },
        files={MODEL_FILE: FileEntry.of(model)},
    ).signed()


def with_reports(manifest: Manifest, reports: Mapping[str, bytes]) -> Manifest:
    """The manifest of the same bundle with these reports and no others.

    Raises:
        BundleError: a report is larger than is ever read again, or none of ``REPORT_FILES``.
    """
    for name, content in reports.items():
        if name not in REPORT_FILES or len(content) > MAX_REPORT_BYTES:
            raise BundleError(
                f"a bundle keeps {' and '.join(REPORT_FILES)} of up to {MAX_REPORT_BYTES >> 20} MiB; "
                f"{name} has {len(content):,} bytes"
            )
    entries = {name: FileEntry.of(content) for name, content in reports.items()}
    files = {MODEL_FILE: manifest.files[MODEL_FILE], **entries}
    return msgspec.structs.replace(manifest, files=files).signed()


def parse(raw: bytes) -> Manifest:
    """Read a manifest and hold it to its own hash.

    Raises:
        ValueError: what is wrong with it, as the end of a sentence about the manifest.
    """
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, ConfigError, RecursionError) as error:
        raise ValueError(f"cannot be read ({error})") from error
    if manifest.schema != SCHEMA:
        raise ValueError(f"has schema {manifest.schema}; this version reads {SCHEMA}")
    if not {MODEL_FILE} <= set(manifest.files) <= {MODEL_FILE, *REPORT_FILES}:
        raise ValueError(
            f"names files {sorted(manifest.files)}; {MODEL_FILE} beside it is read, and "
            f"{' and '.join(REPORT_FILES)}, and nothing else"
        )
    if manifest.render() != raw or manifest.signed() != manifest:
        raise ValueError("does not match its own hash: it was changed or damaged")
    return manifest
