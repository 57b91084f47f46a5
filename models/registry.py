"""The registry: bundles of every stream in one folder. Which one is in use, the control topic says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from models.bundle import Bundle, load, save
from pipeline.errors import BundleError, NotFound

_ID: Final = re.compile(r"[0-9a-f]{64}")
_STREAM: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


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

    def _stream(self, stream: str) -> Path:
        if not _STREAM.fullmatch(stream):
            raise NotFound(f"{stream!r} is no name of a stream; letters, digits, '_', '-' and '.' make one")
        return self.root / stream

    def _bundle(self, stream: str, bundle_id: str) -> Path:
        if not _ID.fullmatch(bundle_id):
            raise NotFound(f"{bundle_id!r} is no id of a bundle; an id is 64 hexadecimal digits")
        return self._stream(stream) / bundle_id
