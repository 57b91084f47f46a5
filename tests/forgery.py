"""Bundles changed by somebody who knows the format: every hash fits, and only what they say is wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.numpy

from models.manifest import MANIFEST_FILE, MODEL_FILE


class Evil:
    """What runs where somebody unpickles it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def forge(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and give it a hash that fits."""
    document = json.loads((folder / MANIFEST_FILE).read_bytes())
    document["sha256"] = ""
    change(document)
    raw = (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
    document["sha256"] = hashlib.sha256(raw).hexdigest()
    (folder / MANIFEST_FILE).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def forge_tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the tensors, with hashes that fit."""
    path = folder / MODEL_FILE
    arrays = {name: array.copy() for name, array in safetensors.numpy.load(path.read_bytes()).items()}
    change(arrays)
    forge_model(folder, safetensors.numpy.save(arrays))


def forge_model(folder: Path, model: bytes) -> None:
    """Put other bytes in place of the model file, with hashes that fit."""
    (folder / MODEL_FILE).write_bytes(model)
    entry = {"sha256": hashlib.sha256(model).hexdigest(), "size": len(model)}
    forge(folder, lambda document: document["files"].update({MODEL_FILE: entry}))


def header(model: bytes) -> dict[str, Any]:
    """The header of a model file: dtype, shape and place of each tensor."""
    found: dict[str, Any] = json.loads(model[8 : 8 + int.from_bytes(model[:8], "little")])
    return found


def with_header(model: bytes, head: dict[str, Any]) -> bytes:
    """A model file under another header, of the length that it says."""
    data = model[8 + int.from_bytes(model[:8], "little") :]
    raw = json.dumps(head).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def filed(folder: Path) -> Path:
    """The folder under the id of its bundle, which is another one since it was forged."""
    bundle_id = hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).hexdigest()
    return folder.rename(folder.parent / bundle_id)
