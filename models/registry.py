"""The registry: bundles of every stream in one folder. Which one is in use, the control topic says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from models.bundle import MAX_MODEL_BYTES, Bundle, copy, load, manifest_of, save
from models.manifest import MANIFEST_FILE, Manifest
from models.places import Place
from pipeline.errors import BundleError, NotFound

_ID: Final = re.compile(r"[0-9a-f]{64}")
_STREAM: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_PREFIX: Final = re.compile(r"[0-9a-f]{4,64}")
_LEFT: Final = re.compile(r"[0-9a-f]{64}|\.[0-9a-f]{64}\.[0-9a-f]{32}")


class Registry:
    """Bundles under ``root/<stream>/<bundle id>``; any number of processes may use it at once.

    Args:
        url: the folder, on a disk or wherever fsspec opens one; made when something is first saved.

    Raises:
        ConfigError: the URL names no kind of folder that can be opened here.
    """

    def __init__(self, url: str | Path) -> None:
        self._root = Place.at(url)

    def save(self, stream: str, bundle: Bundle) -> str:
        """Keep a bundle; returns its id, which is its hash. Saving it again changes nothing.

        Raises:
            BundleError: something else stands in its place.
            StoreDown: the registry cannot be written; trying again can help.
        """
        save(bundle, self._stream(stream) / bundle.sha)
        return bundle.sha

    def take(self, stream: str, folder: str | Path) -> Bundle:
        """Keep the bundle in a folder that nobody else writes to, byte for byte; returns it.

        A damaged one of this id gives way to it.

        Raises:
            NotFound, BundleError: there is none, or it is damaged; then nothing is changed.
            StoreDown: the registry cannot be written; trying again can help.
        """
        bundle = load(folder)
        try:
            self.load(stream, bundle.sha)
        except BundleError:
            self.delete(stream, bundle.sha)
        except NotFound:
            pass
        copy(Place.at(folder), bundle.manifest, self._stream(stream) / bundle.sha)
        return bundle

    def bundles(self, stream: str) -> list[str]:
        """The ids of the stream's bundles, sorted; a folder without a manifest is none."""
        names = self._stream(stream).names()
        return [name for name in names if _ID.fullmatch(name) and self.holds(stream, name)]

    def holds(self, stream: str, bundle_id: str) -> bool:
        """Whether there is such a bundle; nothing of it is read."""
        return MANIFEST_FILE in self._bundle(stream, bundle_id).names()

    def leftovers(self, stream: str, before: datetime) -> list[str]:
        """Names of what writers that were killed left behind: no bundles, and untouched since ``before``."""
        folder, whole = self._stream(stream), set(self.bundles(stream))
        return [
            name
            for name in folder.names()
            if _LEFT.fullmatch(name) and name not in whole and (folder / name).last_written() < before
        ]

    def manifests(self, stream: str) -> Mapping[str, Manifest | BundleError]:
        """The manifest of each of the stream's bundles by its id, the newest last, or why there is none."""
        found: dict[str, Manifest | BundleError] = {}
        for each in self.bundles(stream):
            try:
                found[each] = manifest_of(self._bundle(stream, each))
            except BundleError as error:
                found[each] = error

        def age(item: tuple[str, Manifest | BundleError]) -> tuple[str, str]:
            return (item[1].created_at if isinstance(item[1], Manifest) else "", item[0])

        return dict(sorted(found.items(), key=age))

    def find(self, stream: str, start: str) -> str:
        """The id of the one bundle whose id begins so.

        Raises:
            NotFound: there is none, or more than one.
        """
        if not _PREFIX.fullmatch(start):
            raise NotFound(f"{start!r} is no id of a bundle; give at least 4 of its 64 hexadecimal digits")
        found = [each for each in self.bundles(stream) if each.startswith(start)]
        if not found:
            raise NotFound(
                f"stream {stream!r} has no bundle {start}; `offbeat models list {stream}` shows those it has"
            )
        if len(found) > 1:
            raise NotFound(f"{start} begins {len(found)} bundles of stream {stream!r}; give more digits")
        return found[0]

    def load(self, stream: str, bundle_id: str) -> Bundle:
        """One bundle, checked.

        Raises:
            NotFound: the stream has no such bundle.
            BundleError: it is damaged, or another one stands under its id.
            StoreDown: the registry cannot be reached.
        """
        folder = self._bundle(stream, bundle_id)
        bundle = load(folder)
        if bundle.sha != bundle_id:
            raise BundleError(f"{folder} holds the bundle {bundle.sha}; train again or choose another bundle")
        return bundle

    def file(self, stream: str, bundle_id: str, name: str) -> bytes:
        """One file of a bundle as it stands there, such as one of ``manifest.REPORT_FILES``.

        Raises:
            NotFound: the bundle has none of this name.
        """
        try:
            return self._bundle(stream, bundle_id).read(name, MAX_MODEL_BYTES)
        except ValueError as error:
            raise NotFound(f"bundle {bundle_id[:12]} of stream {stream!r}: {error}") from error

    def where(self, stream: str, bundle_id: str) -> str:
        """The folder of a bundle, for people."""
        return str(self._bundle(stream, bundle_id))

    def delete(self, stream: str, bundle_id: str, unless: Callable[[], bool] | None = None) -> bool:
        """Remove a bundle, or one of the :meth:`leftovers`; returns whether it was.

        Whether it stays after all, ``unless`` is asked while it is withdrawn and nobody finds it. So whoever
        needs it says so first, and then looks whether it is there (:meth:`holds`).

        Raises:
            StoreDown: the registry cannot be changed.
        """
        folder = self._stream(stream)
        if not _LEFT.fullmatch(bundle_id):
            raise NotFound(f"{bundle_id!r} is no id of a bundle; an id is 64 hexadecimal digits")
        return (folder / bundle_id).delete(MANIFEST_FILE, unless)

    def _stream(self, stream: str) -> Place:
        if not _STREAM.fullmatch(stream):
            raise NotFound(f"{stream!r} is no name of a stream; letters, digits, '_', '-' and '.' make one")
        return self._root / stream

    def _bundle(self, stream: str, bundle_id: str) -> Place:
        if not _ID.fullmatch(bundle_id):
            raise NotFound(f"{bundle_id!r} is no id of a bundle; an id is 64 hexadecimal digits")
        return self._stream(stream) / bundle_id
