"""Reading a stretch of one partition to its end, by whoever reads outside a consumer group."""

from __future__ import annotations

import time
from collections.abc import Iterator

from pipeline.errors import BusDown, Unreadable
from pipeline.ports import Reader
from pipeline.records import RecordBatch, TopicPartition

READ_RECORDS = 20_000
READ_S = 1.0
STALLED_S = 30.0


def stretch(
    reader: Reader, partition: TopicPartition, first_offset: int, end_offset: int, records: int = READ_RECORDS
) -> Iterator[RecordBatch]:
    """The records in ``[first_offset, end_offset)``, about ``records`` a batch.

    Raises:
        NotFound: the partition does not exist.
        BusDown: the bus cannot be reached, or nothing comes although something is there.
        Unreadable: damage comes next, and the bus is set to stop there; otherwise batches name it.
    """
    offset, moved_at = first_offset, time.monotonic()
    while offset < end_offset:
        batch = reader.read(partition, offset, records, READ_S)
        if batch.next_offset > offset:
            offset, moved_at = batch.next_offset, time.monotonic()
            yield batch.before(end_offset)
        elif time.monotonic() - moved_at > STALLED_S:
            raise BusDown(
                f"{partition}: nothing came from offset {offset} on for {STALLED_S:g} s, although the "
                f"partition ends at {end_offset}; see that the bus is well and try again"
            )


def intact(batch: RecordBatch) -> RecordBatch:
    """A batch of a topic that must be read whole, because others follow what stands in it.

    Raises:
        Unreadable: part of it is damaged; however the bus is set, this is not passed over.
    """
    for damage in batch.corrupt:
        raise Unreadable(
            f"{damage.partition} cannot be read from offset {damage.offset} to {damage.next_offset - 1}: "
            f"{damage.reason}; what stands there decides how records are judged, so it is never skipped: "
            "restore that replica of the partition, or the topic from a copy"
        )
    return batch
