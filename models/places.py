"""Folders of bundles on a disk or an object store, by one URL (fsspec)."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import StoreDown
from pipeline.state.folders import open_folder

_CHUNK: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """A folder.

    Attributes:
        files: the file system that it lies on.
        path: where, as the file system names it.
    """

    files: Any
    path: str

    @classmethod
    def at(cls, url: str | Path) -> Place:
        """The folder at a path or URL, whether it is there or not.

        Raises:
            ConfigError: the URL names no kind of folder that can be opened here.
        """
        return cls(*open_folder("registry", str(url)))

    def __str__(self) -> str:
        return self.path if self._is_local else str(self.files.unstrip_protocol(self.path))

    def __truediv__(self, name: str) -> Place:
        return Place(self.files, f"{self.path}/{name}")

    @property
    def _is_local(self) -> bool:
        return isinstance(self.files, LocalFileSystem)

    def is_there(self) -> bool:
        """Whether there is such a folder."""
        with self._reached():
            self.files.invalidate_cache()
            return bool(self.files.isdir(self.path))

    def names(self) -> list[str]:
        """The names of what lies in it, sorted; none where there is no such folder."""
        with self._reached():
            self.files.invalidate_cache()
            try:
                listed = self.files.ls(self.path, detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(each.rstrip("/").rsplit("/", 1)[-1] for each in listed)

    def read(self, name: str, bound: int) -> bytes:
        """The bytes of a file in it, at most ``bound`` of them.

        Raises:
            ValueError: it is larger, no regular file or not there, as the end of a sentence about the folder.
            StoreDown: it cannot be reached.
        """
        path = f"{self.path}/{name}"
        with self._reached():
            try:
                found = self.files.info(path)
                if found["type"] != "file":  # to open a pipe is to wait for ever
                    reason = "cannot be read (it is no regular file)"
                elif found["size"] > bound:
                    reason = f"has {found['size']} bytes where at most {bound} make sense"
                else:
                    with self.files.open(path, "rb", block_size=_CHUNK) as file:
                        return bytes(file.read(bound))
            except (FileNotFoundError, NotADirectoryError) as error:
                reason = f"cannot be read ({error.strerror or 'it is not there'})"
        raise ValueError(f"{name} {reason}")

    def write(self, contents: Mapping[str, bytes]) -> bool:
        """Make the folder with these files: it is there whole and durable, or not at all.

        Where folders cannot be renamed in one step the last file is what makes it one: it is written last,
        and readers ask for it first. Returns whether it was made; false where something stands there.

        Raises:
            StoreDown: it could not be written; trying again can help.
        """
        with self._reached():
            if self._is_local:
                return self._write_local(contents)
            *_, last = contents
            self.files.invalidate_cache()
            if self.files.exists(f"{self.path}/{last}"):
                return False
            for name, content in contents.items():
                self.files.pipe_file(f"{self.path}/{name}", content)
            return True

    def _write_local(self, contents: Mapping[str, bytes]) -> bool:
        folder = Path(self.path)
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
        draft.mkdir()
        try:
            for name, content in contents.items():
                _write_durably(draft / name, content)
            _sync(draft)
            draft.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            return False
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        _sync(folder.parent)
        return True

    def last_written(self) -> datetime:
        """When something in it was written last; in an object store a folder has no time of its own.

        Raises:
            StoreDown: it cannot be reached.
        """
        with self._reached():
            self.files.invalidate_cache()
            paths = [self.path] if self._is_local else []
            times = (self.files.modified(each) for each in [*paths, *self.files.find(self.path)])
            return max(times, default=datetime.min.replace(tzinfo=UTC))

    def delete(self, first: str, unless: Callable[[], bool] | None = None) -> bool:
        """Remove the folder, this file first: without it the folder counts for nothing.

        Args:
            first: set aside before the others go; where ``unless`` is given and it is not there, somebody
                else removes the folder.
            unless: asked then; where it says so, or fails, the file is put back and nothing is removed.

        Returns:
            Whether it was removed.

        Raises:
            StoreDown: it cannot be changed.
        """
        named, aside, removed = f"{self.path}/{first}", f"{self.path}/{first}.aside", False
        with self._reached():
            self.files.invalidate_cache()
            if self.files.exists(named):
                self.files.mv(named, aside)
            elif unless is not None:
                return False
        try:
            removed = unless is None or not unless()
        finally:
            with self._reached():
                if removed:
                    self.files.rm(self.path, recursive=True)
                else:
                    self.files.mv(aside, named)
        return removed

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Turn what file systems raise into StoreDown; clients of stores have errors of their own."""
        try:
            yield
        except Exception as error:
            raise StoreDown(
                f"the registry at {self} cannot be used ({error}); see that it can be reached, is writable, "
                "and has room"
            ) from error


def _write_durably(path: Path, content: bytes) -> None:
    """Write a new file and wait until it is on the disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make names written or renamed in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
