"""Copies of partitions' states in a folder, any that fsspec opens: for a store that is lost, and for replays.

One file a copy, ``<namespace>/<stream>/<topic id>/<partition>/<next offset>-<partition clock, ms>.snapshot``,
so that a listing finds the newest that fits. A file is a digest and what it is of: the rows, compressed.
"""

from __future__ import annotations

import hashlib
import logging
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

import cramjam
import msgspec
import numpy as np

from pipeline.errors import StoreDown
from pipeline.records import PackedRows, TopicPartition
from pipeline.state.folders import open_folder

RECENT_MS = 24 * 3600 * 1_000
"""Of the newest copy's last day every copy is kept, before it the first of each day ..."""
KEPT_DAYS = 30
"""... for so many days."""
_MAGIC: Final = b"offbeat snapshot 1\n"
_DIGEST_BYTES: Final = 32
_NAME = re.compile(r"(\d{19})-(\d{13,19})\.snapshot")

_log = logging.getLogger(__name__)


class _Packed(msgspec.Struct, frozen=True, array_like=True):
    header: bytes
    slots: bytes
    series: list[bytes]
    rows: bytes


class _Copy(NamedTuple):
    """What a file's name says."""

    next_offset: int
    clock_ms: int
    path: str


class FolderSnapshots:
    """The :class:`pipeline.ports.Snapshots` of one stream.

    Raises:
        ConfigError: the URL names no kind of folder that can be opened here.
    """

    def __init__(self, url: str, *, namespace: str, stream: str) -> None:
        self._files, root = open_folder("snapshots", url)
        self._url, self._root = url, f"{root}/{namespace}/{stream}"

    def save(
        self, partition: TopicPartition, topic_id: str, next_offset: int, clock_ns: int, rows: PackedRows
    ) -> None:
        """See :meth:`pipeline.ports.Snapshots.save`."""
        folder = self._folder(partition, topic_id)
        clock_ms = max(clock_ns // 1_000_000, 0)
        path = f"{folder}/{next_offset:019}-{clock_ms:013}.snapshot"
        draft = f"{folder}/.{uuid.uuid4().hex}"
        with self._doing("write"):
            self._files.makedirs(folder, exist_ok=True)
            try:
                self._files.pipe_file(draft, encode(rows))
            except OSError:
                with suppress(OSError):  # half a draft would take the last room of a disk that is full
                    self._files.rm_file(draft)
                raise
            self._files.mv(draft, path)
            for left in self._listed(folder):
                if left.rsplit("/", 1)[-1].startswith("."):  # of a writer that was killed
                    self._files.rm_file(left)
            for each in _superfluous(self._copies(folder)):
                self._files.rm_file(each.path)

    def newest(
        self, partition: TopicPartition, topic_id: str, at_most: int, fits: Callable[[PackedRows], bool]
    ) -> PackedRows | None:
        """See :meth:`pipeline.ports.Snapshots.newest`."""
        with self._doing("read"):
            for each in sorted(self._copies(self._folder(partition, topic_id)), reverse=True):
                if each.next_offset <= at_most:
                    rows = self._read(each.path)
                    if rows is not None and fits(rows):
                        return rows
        return None

    def drop_after(self, partition: TopicPartition, topic_id: str, next_offset: int) -> None:
        """See :meth:`pipeline.ports.Snapshots.drop_after`."""
        with self._doing("change"):
            for each in self._copies(self._folder(partition, topic_id)):
                if each.next_offset > next_offset:
                    self._files.rm_file(each.path)

    def _folder(self, partition: TopicPartition, topic_id: str) -> str:
        return f"{self._root}/{topic_id}/{partition.partition}"

    def _copies(self, folder: str) -> list[_Copy]:
        found = ((_NAME.fullmatch(path.rsplit("/", 1)[-1]), path) for path in self._listed(folder))
        return [_Copy(int(name[1]), int(name[2]), path) for name, path in found if name]

    def _listed(self, folder: str) -> list[str]:
        self._files.invalidate_cache()
        try:
            return list(self._files.ls(folder, detail=False))
        except FileNotFoundError:
            return []

    def _read(self, path: str) -> PackedRows | None:
        try:
            return decode(self._files.cat_file(path))
        except FileNotFoundError:  # thinned out meanwhile
            return None
        except ValueError as error:
            _log.warning("the snapshot %s is damaged and is left out: %s", path, error)
            return None

    @contextmanager
    def _doing(self, doing: str) -> Iterator[None]:
        """Turn what file systems raise into StoreDown."""
        try:
            yield
        except OSError as error:
            raise StoreDown(
                f"cannot {doing} the snapshots in {self._url} ({error}); see that the folder is there, "
                "writable, and has room"
            ) from error


def encode(rows: PackedRows) -> bytes:
    """A file's bytes."""
    table = np.ascontiguousarray(rows.rows)
    packed = _Packed(rows.header, rows.slots.astype("<i4").tobytes(), rows.series, table.tobytes())
    body = bytes(cramjam.zstd.compress(msgspec.msgpack.encode(packed), level=1))
    return _MAGIC + hashlib.sha256(body).digest() + body


def decode(data: bytes) -> PackedRows:
    """The rows of a file.

    Raises:
        ValueError: it is none of ours, of another version, or damaged.
    """
    if not data.startswith(_MAGIC):
        raise ValueError("it does not begin as a snapshot of this version does")
    at = len(_MAGIC) + _DIGEST_BYTES
    digest, body = data[len(_MAGIC) : at], data[at:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError("its bytes are not those that were written")
    try:
        packed = msgspec.msgpack.decode(bytes(cramjam.zstd.decompress(body)), type=_Packed)
    except cramjam.DecompressionError as error:
        raise ValueError(f"its rows are not compressed as they should be: {error}") from error
    slots = np.frombuffer(packed.slots, "<i4")
    rows = np.frombuffer(packed.rows, np.uint8).reshape(len(slots), -1 if len(slots) else 0)
    return PackedRows(packed.header, slots, packed.series, rows)


def _superfluous(copies: Iterable[_Copy]) -> list[_Copy]:
    """The copies that retention no longer keeps; by the partition clock, which replays go by."""
    ordered = sorted(copies, key=lambda each: (each.clock_ms, each.next_offset))
    if not ordered:
        return []
    newest, days, gone = ordered[-1].clock_ms, set[int](), []
    for each in ordered:
        day = each.clock_ms // RECENT_MS
        if newest - each.clock_ms < RECENT_MS:
            continue
        if day in days or newest - each.clock_ms > KEPT_DAYS * RECENT_MS:
            gone.append(each)
        days.add(day)
    return gone
