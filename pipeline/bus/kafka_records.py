"""What the client returns of a partition, its own records or pieces of columns, as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.records import Corrupt, RecordBatch, TopicPartition


def columns(partition: TopicPartition, records: Sequence[Any], next_offset: int) -> RecordBatch:
    """The client's records of one partition as a batch; ``next_offset`` is where to read next."""
    n = len(records)
    parts = [part for record in records for part in (record.key, record.value)]
    null = np.fromiter((part is None for part in parts), bool, 2 * n)
    lengths = np.fromiter((len(part or b"") for part in parts), np.int64, 2 * n)
    starts = np.cumsum(lengths) - lengths
    lengths[null] = -1
    return RecordBatch(
        partition,
        b"".join(part or b"" for part in parts),
        np.fromiter((record.offset for record in records), np.int64, n),
        np.fromiter(
            (-1 if record.timestamp is None else record.timestamp for record in records), np.int64, n
        ),
        starts[0::2],
        lengths[0::2].astype(np.int32),
        starts[1::2],
        lengths[1::2].astype(np.int32),
        next_offset,
    )


def joined(partition: TopicPartition, fetched: Sequence[Any], next_offset: int) -> RecordBatch:
    """What was fetched of one partition as a batch, its buffer no longer than the records."""
    corrupt = tuple(piece for piece in fetched if isinstance(piece, Corrupt))
    pieces = [piece for piece in fetched if not isinstance(piece, Corrupt)]
    if not pieces or not isinstance(pieces[0], RecordBatch):
        return replace(columns(partition, pieces, next_offset), corrupt=corrupt)
    parts, shift, size = [], np.empty(len(pieces), np.int64), 0
    for i, piece in enumerate(pieces):
        begin = int(piece.key_start[0])
        end = int(piece.value_start[-1]) + max(int(piece.value_length[-1]), 0)
        parts.append(memoryview(piece.buffer)[begin:end])
        shift[i] = size - begin
        size += end - begin
    shift = np.repeat(shift, [len(piece) for piece in pieces])
    return RecordBatch(
        partition,
        b"".join(parts),
        np.concatenate([piece.offset for piece in pieces]),
        np.concatenate([piece.timestamp_ms for piece in pieces]),
        np.concatenate([piece.key_start for piece in pieces]) + shift,
        np.concatenate([piece.key_length for piece in pieces]),
        np.concatenate([piece.value_start for piece in pieces]) + shift,
        np.concatenate([piece.value_length for piece in pieces]),
        next_offset,
        corrupt,
    )
