"""Records as the stock client returns them, turned into columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.records import RecordBatch, TopicPartition


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
        np.fromiter((record.timestamp for record in records), np.int64, n),
        starts[0::2],
        lengths[0::2].astype(np.int32),
        starts[1::2],
        lengths[1::2].astype(np.int32),
        next_offset,
    )
