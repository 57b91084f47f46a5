"""Slots by the bytes of a series key: a table that kernels can ask, in front of ``PartitionState.index``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels import kernel
from pipeline.ports import Int32s
from pipeline.records import Int64s

Bytes = NDArray[np.uint8]
Entries: TypeAlias = Any
"""Records, whose fields read as attributes also where the kernels run uncompiled."""

_LEAST = 64
_BASIS, _PRIME, _BITS = 0x811C9DC5, 0x01000193, 0xFFFFFFFF
"""Of the hash FNV-1a (Fowler, Noll, Vo), 32 bits."""
_ENTRY = np.dtype([("hash", "i8"), ("begin", "i8"), ("length", "i4"), ("slot", "i4")])


@kernel
def _hash(text: Bytes, begin: int, length: int) -> int:
    found = _BASIS
    for at in range(begin, begin + length):
        found = ((found ^ int(text[at])) * _PRIME) & _BITS
    return found


@kernel
def _place(entries: Entries, names: Bytes, text: Bytes, begin: int, length: int, hashed: int) -> int:
    """Where a key stands, or the free place where it would."""
    mask = entries.shape[0] - 1
    place = hashed & mask
    while entries[place].slot >= 0:
        entry = entries[place]
        if entry.hash == hashed and entry.length == length:
            same, name = True, entry.begin
            for at in range(length):
                if names[name + at] != text[begin + at]:
                    same = False
                    break
            if same:
                break
        place = (place + 1) & mask
    return int(place)


@kernel
def _find(entries: Entries, names: Bytes, text: Bytes, begin: Int64s, length: Int32s, slots: Int32s) -> None:
    for row in range(begin.shape[0]):
        if length[row] >= 0:
            hashed = _hash(text, begin[row], length[row])
            slots[row] = entries[_place(entries, names, text, begin[row], length[row], hashed)].slot


@kernel
def _add(entries: Entries, names: Bytes, begin: Int64s, length: Int32s, slots: Int32s) -> None:
    for row in range(begin.shape[0]):
        hashed = _hash(names, begin[row], length[row])
        entry = entries[_place(entries, names, names, begin[row], length[row], hashed)]
        entry.hash = hashed
        entry.begin = begin[row]
        entry.length = length[row]
        entry.slot = slots[row]


def _empty(size: int) -> Entries:
    entries = np.zeros(size, np.dtype((np.record, _ENTRY)))
    entries["slot"] = -1
    return entries


@dataclass(slots=True, eq=False)
class KeyTable:
    """An open-addressed table, at most half full. It may lack keys, and holds none that is not so."""

    _entries: Entries = field(default_factory=lambda: _empty(_LEAST))
    _names: Bytes = field(default_factory=lambda: np.zeros(0, np.uint8))
    _used: int = 0
    _bytes: int = 0

    def find(self, text: Bytes, begin: Int64s, length: Int32s) -> Int32s:
        """int32[n]: the slot of each key in ``text``, -1 where it is not known or ``length`` is below 0."""
        slots = np.full(len(begin), -1, np.int32)
        _find(self._entries, self._names, text, begin, length, slots)
        return slots

    def add(self, slots: Mapping[bytes, int]) -> None:
        """Note the slots of keys; those that are there are set anew."""
        length = np.fromiter(map(len, slots), np.int32, len(slots))
        begin = self._bytes + np.cumsum(length, dtype=np.int64) - length
        joined = np.frombuffer(b"".join(slots), np.uint8)
        end = self._bytes + len(joined)
        if end > len(self._names):
            more = np.zeros(max(end, 2 * len(self._names)) - len(self._names), np.uint8)
            self._names = np.concatenate([self._names, more])
        self._names[self._bytes : end] = joined
        self._bytes, self._used = end, self._used + len(slots)
        if 2 * self._used > len(self._entries):
            before = self._entries[self._entries["slot"] >= 0]
            self._entries = _empty(1 << (2 * self._used - 1).bit_length())
            _add(self._entries, self._names, *(before[name].copy() for name in ("begin", "length", "slot")))
        values = np.fromiter(slots.values(), np.int32, len(slots))
        _add(self._entries, self._names, begin, length, values)

    def clear(self) -> None:
        """Forget all."""
        self._entries, self._names, self._used, self._bytes = _empty(_LEAST), np.zeros(0, np.uint8), 0, 0
