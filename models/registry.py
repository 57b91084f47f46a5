"""The registry: bundles of every stream in one folder, and a pointer to each stream's champion."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Final

import msgspec

from models.bundle import Bundle, load, save, sync_folder, write_durably
from pipeline.errors import BundleError, NotFound

_POINTER: Final = "champion.json"
_ID: Final = re.compile(r"[0-9a-f]{64}")
_STREAM: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class _Champion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The pointer file."""

    bundle_id: str
    predecessor_id: str | None


class Registry:
    """Bundles under ``root/<stream>/<bundle id>``; any number of processes may use it at once.

    Attributes:
        root: the folder; made when something is first saved.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def save(self, stream: str, bundle: Bundle) -> str:
        """Keep a bundle; returns its id, which is its hash. Saving it again changes nothing."""
        save(bundle, self._stream(stream) / bundle.sha)
        return bundle.sha

    def bundles(self, stream: str) -> list[str]:
        """The ids of the stream's bundles, sorted."""
        folder = self._stream(stream)
        if not folder.is_dir():
            return []
        return sorted(each.name for each in folder.iterdir() if _ID.fullmatch(each.name))

    def load(self, stream: str, bundle_id: str) -> Bundle:
        """One bundle, checked.

        Raises:
            NotFound: the stream has no such bundle.
            BundleError: it is damaged, or another one stands under its id.
        """
        folder = self._bundle(stream, bundle_id)
        bundle = load(folder)
        if bundle.sha != bundle_id:
            raise BundleError(f"{folder} holds the bundle {bundle.sha}; train again or choose another bundle")
        return bundle

    def champion(self, stream: str) -> str | None:
        """The id of the bundle in use, None before the first promotion.

        Raises:
            BundleError: the pointer is damaged.
        """
        path = self._stream(stream) / _POINTER
        try:
            pointer = msgspec.json.decode(path.read_bytes(), type=_Champion)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise BundleError(f"the pointer {path} is damaged ({error}); promote a bundle again") from error
        return pointer.bundle_id

    def promote(self, stream: str, bundle_id: str) -> None:
        """Make a bundle the champion; the pointer keeps the id of its predecessor.

        The pointer is replaced in one step: readers see the old champion or the new one.

        Raises:
            NotFound: the stream has no such bundle.
        """
        folder = self._bundle(stream, bundle_id)
        if not folder.is_dir():
            raise NotFound(f"stream {stream!r} has no bundle {bundle_id}; it has {self.bundles(stream)}")
        try:
            predecessor = self.champion(stream)
        except BundleError:  # a damaged pointer names nobody, and promoting is what mends it
            predecessor = None
        if predecessor == bundle_id:
            return
        draft = folder.parent / f".{_POINTER}.{uuid.uuid4().hex}"
        try:
            write_durably(draft, msgspec.json.encode(_Champion(bundle_id, predecessor)))
            draft.replace(folder.parent / _POINTER)
        finally:
            draft.unlink(missing_ok=True)
        sync_folder(folder.parent)

    def _stream(self, stream: str) -> Path:
        if not _STREAM.fullmatch(stream):
            raise NotFound(f"{stream!r} is no name of a stream; letters, digits, '_', '-' and '.' make one")
        return self.root / stream

    def _bundle(self, stream: str, bundle_id: str) -> Path:
        if not _ID.fullmatch(bundle_id):
            raise NotFound(f"{bundle_id!r} is no id of a bundle; an id is 64 hexadecimal digits")
        return self._stream(stream) / bundle_id
