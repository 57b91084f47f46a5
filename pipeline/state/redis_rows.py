"""Rows of state as fields of bucket hashes: the series key, and as value its slot (int32) and its row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.records import BUCKET_ROWS, PackedRows

_SLOT_BYTES = 4
Items = list[tuple[bytes, bytes]]


def by_bucket(rows: PackedRows) -> dict[int, Items]:
    """Fields and values of every bucket that has rows, or is named as whole without any."""
    n = len(rows.slots)
    slots = np.ascontiguousarray(rows.slots, "<i4").view(np.uint8).reshape(n, _SLOT_BYTES)
    values = np.concatenate([slots, rows.rows], axis=1)
    width, data = values.shape[1], values.tobytes()
    buckets: dict[int, Items] = {bucket: [] for bucket in sorted(rows.whole_buckets)}
    for row, bucket in enumerate((rows.slots // BUCKET_ROWS).tolist()):
        value = data[row * width : (row + 1) * width]
        buckets.setdefault(bucket, []).append((rows.series[row], value))
    return buckets


def joined(header: bytes, buckets: Mapping[int, Mapping[bytes, bytes]]) -> PackedRows:
    """The rows of all buckets, by rising slot.

    Raises:
        ValueError: a value is no row of its bucket, or rows differ in length.
    """
    values = [value for bucket in buckets.values() for value in bucket.values()]
    if not values:
        return PackedRows(header, np.zeros(0, np.int32), [], np.zeros((0, 0), np.uint8))
    width = len(values[0])
    if width < _SLOT_BYTES or any(len(value) != width for value in values):
        raise ValueError("rows differ in length")
    table: NDArray[np.uint8] = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), width)
    slots = table[:, :_SLOT_BYTES].copy().view("<i4")[:, 0].astype(np.int32)
    expected = np.repeat(list(buckets), [len(bucket) for bucket in buckets.values()])
    if np.any(slots // BUCKET_ROWS != expected):
        raise ValueError("a row lies in a bucket that is not its own")
    order = np.argsort(slots, kind="stable")
    series = [name for bucket in buckets.values() for name in bucket]
    return PackedRows(header, slots[order], [series[row] for row in order], table[order, _SLOT_BYTES:])
