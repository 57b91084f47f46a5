"""Columnar fetch: whole record batches in place of one object a record, by one private class of the client.

The client takes what it fetched of a partition from an object of that class. The one here hands out pieces
(:class:`RecordBatch`, and :class:`Corrupt` where a stretch of the log cannot be read); positions, commits,
rebalances and fetching stay the client's. What is proved of a batch by itself stands in ``kafka_batches``;
here it is held against its neighbours, because neither its offsets nor its length are under its checksum.
"""

from __future__ import annotations

import inspect
import logging
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import kafka
import kafka.errors as kafka_errors
from kafka.consumer.fetcher import Fetcher
from kafka.protocol.consumer import IsolationLevel
from kafka.record.memory_records import MemoryRecords

from pipeline.bus import kafka_batches as batches
from pipeline.bus.kafka_batches import Batch, CutOff, Damaged
from pipeline.errors import Unreadable
from pipeline.records import Corrupt, RecordBatch, TopicPartition

PROVED_VERSION = "3.0.12"
PARAMETERS = (
    "self fetch_offset tp records key_deserializer value_deserializer check_crcs isolation_level "
    "aborted_transactions metric_aggregator on_drain"
)
FETCH_BYTES = "max_partition_fetch_bytes"
MORE_BYTES = 1_048_576
MOST_BYTES = 33_554_432
UNKNOWN_END = 2**63 - 1
NOTHING_AHEAD = -1
"""No sound batch ahead is known, which the next one would have to begin behind."""
SILENT_S = 60.0
SILENT_ANSWERS = 10
PROBE_ANSWERS = 3
"""How long and how often answers may leave out what is there: partitions share the bytes of an answer."""
UNREADABLE_CODES = tuple(
    error.errno
    for error in (kafka_errors.CorruptRecordError, kafka_errors.InvalidRecordError, kafka_errors.UnknownError)
)
"""What brokers answer where the begin of a batch is damaged; the last one is any fault of theirs."""
FETCHER_NAMES = ("_parse_fetched_data", "PartitionRecords")
UNREADABLE = "the broker cannot read its log there"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Trace:
    """What was found out about a partition at ``offset``, for the fetch that begins there.

    Attributes:
        offset: of the next fetch; at another one this says nothing.
        sound: a sound batch ends here, so that none can begin below.
        step: how far the last damage was skipped without knowing where it ends; 0 where it was not.
        suspect: damage was skipped to here and does not say itself that it ends here, so that what begins
            here may not be in its place.
        doubted: what came could not be judged by what came with it, so that this fetch is the second look.
        silent_since: since then the broker says that it has records here, and gives none.
        silent_answers: and so often it has said so.
    """

    offset: int
    sound: bool = False
    step: int = 0
    suspect: bool = False
    doubted: bool = False
    silent_since: float | None = None
    silent_answers: int = 0

    def silence(self) -> bool:
        """One more such answer; whether that is enough to say that the broker cannot find them in its log."""
        now = time.monotonic()
        if self.silent_since is None:
            self.silent_since = now
        self.silent_answers += 1
        if self.step:  # behind damage there is more of it to be expected
            return self.silent_answers >= PROBE_ANSWERS
        return self.silent_answers >= SILENT_ANSWERS and now - self.silent_since >= SILENT_S


class Taken:
    """Pieces for one turn; as long as they have records, by which the client counts (damage is one)."""

    def __init__(self) -> None:
        self._pieces: list[RecordBatch | Corrupt] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[RecordBatch | Corrupt]:
        return iter(self._pieces)

    def add(self, piece: RecordBatch | Corrupt) -> None:
        """One more piece."""
        self._pieces.append(piece)
        self._size += len(piece) if isinstance(piece, RecordBatch) else 1


class Columns:
    """Gives one consumer's partitions as pieces.

    Attributes:
        in_use: whether the client is the one that this was proved with; otherwise records come as its own
            objects.
        skip_corrupt: damage is told and passed over; otherwise it is raised, again at each poll.
        gapless: whether the offsets of a topic's logs follow each other without a hole.
        fetch_bytes: what the next fetches of a partition should bring at least.
    """

    def __init__(self, *, skip_corrupt: bool, gapless: Callable[[str], bool]) -> None:
        self.in_use = False
        self.skip_corrupt = skip_corrupt
        self.gapless = gapless
        self.fetch_bytes = self._usual_bytes = 0
        self._fetcher: Any = None
        self._traces: dict[TopicPartition, _Trace] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._known_epoch: Callable[[Any], int | None] = lambda _: None

    def attach(self, consumer: Any) -> Columns:  # noqa: ANN401 - the client has no types
        """Take the place of the client's class in one consumer of committed records."""
        misfit = _misfit(consumer)
        if misfit:
            _warn_once(misfit)
            return self
        self._fetcher = fetcher = consumer._fetcher  # noqa: SLF001 - what this is about
        self._usual_bytes = fetcher.config[FETCH_BYTES]
        self._known_epoch = consumer._cluster.leader_epoch_for_partition  # noqa: SLF001 - no public way
        parse = fetcher._parse_fetched_data  # noqa: SLF001 - see above
        fetcher._parse_fetched_data = partial(self._parsed, parse)  # noqa: SLF001 - see above
        self.in_use = True
        return self

    def forget(self, partition: TopicPartition) -> None:
        """The position was set from outside, perhaps in another log: what was found out is void."""
        self._traces.pop(partition, None)

    def fetch(self, size: int) -> None:
        """Have the next fetches bring ``size`` bytes of a partition, or as many as usual."""
        self.fetch_bytes = min(size, MOST_BYTES)
        if self._fetcher is not None:
            self._fetcher.config[FETCH_BYTES] = max(self.fetch_bytes, self._usual_bytes)

    def trace(self, partition: TopicPartition, offset: int) -> _Trace:
        """What is known at ``offset``."""
        found = self._traces.get(partition)
        if found is None or found.offset != offset:
            found = self._traces[partition] = _Trace(offset)
        return found

    def records(
        self,
        fetch_offset: int,
        tp: Any,  # noqa: ANN401 - the client has no types
        records: Any,  # noqa: ANN401 - the client has no types
        *,
        end_offset: int = UNKNOWN_END,
        damage: str = "",
        **more: Any,  # noqa: ANN401 - the client has no types
    ) -> PartitionColumns:
        """What was fetched of one partition, by a broker that told ``end_offset`` as the end of its log."""
        return PartitionColumns(self, fetch_offset, tp, records, end_offset=end_offset, damage=damage, **more)

    def leader_epoch(self, partition: Any, claimed: int) -> int:  # noqa: ANN401 - the client has no types
        """The epoch that a batch names, -1 where it cannot be: a broker refuses positions with such."""
        known = self._known_epoch(partition)
        return claimed if known is not None and 0 <= claimed <= known else -1

    def reaches(self, partition: TopicPartition, end_offset: int) -> None:
        """The log can be read up to there: skipping damage never leads beyond."""
        self._ends[partition] = end_offset

    def _parsed(self, parse: Callable[[Any], Any], completed: Any) -> Any:  # noqa: ANN401 - no types
        """In place of the client's method: passes on where the log ends, and what the broker cannot read."""
        data, partition = completed.partition_data, TopicPartition(*completed.topic_partition)
        told = [end for end in (data.last_stable_offset, data.high_watermark) if end >= 0]
        if told:
            self.reaches(partition, min(told))
        end_offset = self._ends.get(partition, 0)
        trace = self.trace(partition, completed.fetched_offset)
        if data.records or end_offset <= trace.offset:
            unreadable = False
        elif data.error_code:
            unreadable = data.error_code in UNREADABLE_CODES
        else:
            unreadable = trace.silence()
        if unreadable:
            completed = completed._replace(partition_data=_Unreadable())
        damage = UNREADABLE if unreadable else ""
        self._fetcher.PartitionRecords = partial(self.records, end_offset=end_offset, damage=damage)
        return parse(completed)


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """The answer of a broker that cannot read its log, as one that brought nothing."""

    error_code: int = 0
    records: bytes = b""
    high_watermark: int = -1
    last_stable_offset: int = -1
    aborted_transactions: None = None
    diverging_epoch: None = None
    preferred_read_replica: int = -1


class _Unsure(Exception):  # noqa: N818 - no error
    """What follows has to be fetched once more before it can be told."""


class PartitionColumns(Fetcher.PartitionRecords):  # type: ignore[misc] # the client has no types
    """What was fetched of one partition at once, handed out in pieces."""

    def __init__(
        self,
        columns: Columns,
        fetch_offset: int,
        tp: Any,  # noqa: ANN401 - the client has no types
        records: Any,  # noqa: ANN401 - the client has no types
        *,
        end_offset: int,
        damage: str,
        **more: Any,  # noqa: ANN401 - the client has no types
    ) -> None:
        super().__init__(fetch_offset, tp, records, **more)
        self._columns = columns
        self._partition = TopicPartition(*tp)
        self._trace = columns.trace(self._partition, fetch_offset)
        if self._trace.doubted and columns.fetch_bytes:
            columns.fetch(0)
        self._end_offset = end_offset
        self._buffer = memoryview(records._buffer)  # noqa: SLF001 - no public way
        # The client refuses, again and again, what begins with a false length; so it sees nothing.
        records._buffer, records._next_slice = b"", None  # noqa: SLF001 - no public way
        self._pieces = iter((self._blindly(0, fetch_offset, damage),)) if damage else self._walk()
        self._held = next(self._pieces, None)

    def take(self, n: int | None = None) -> Taken:
        """Pieces of at most ``n`` records in all.

        Raises:
            Unreadable: damage comes next, and the policy is to stop.
        """
        taken, limit = Taken(), UNKNOWN_END if n is None else n
        while self._held is not None and len(taken) < limit:
            piece, self._held = self._held, None
            if isinstance(piece, RecordBatch):
                room = limit - len(taken)
                if len(piece) > room:
                    self._held = piece.rows(room, len(piece), next_offset=piece.next_offset)
                    piece = piece.rows(0, room, next_offset=int(piece.offset[room - 1]) + 1)
                self.records_read += len(piece)
            elif not self._columns.skip_corrupt:
                if taken:
                    self._held = piece
                    break
                self.drain()  # the next poll fetches it again: it may have been mended
                raise _stopped(piece)
            if isinstance(piece, Corrupt) or len(piece):
                taken.add(piece)
            self.next_fetch_offset = piece.next_offset
            if self._held is None:
                self._held = next(self._pieces, None)
        if self._held is None:
            self.drain()
        return taken

    def _walk(self) -> Iterator[RecordBatch | Corrupt]:
        """Every batch; what is cut off, or cannot be told yet, is left to a fetch that begins with it."""
        at, position = 0, self.fetch_offset
        floor = position if self._trace.sound else NOTHING_AHEAD
        while at < len(self._buffer):
            try:
                end = batches.framed(self._buffer, at)
                batch = batches.decoded(self._partition, self._buffer[at:end])
                next_offset = self._placed(batch, end, position, floor)
            except _Unsure:
                return
            except Damaged as damage:
                if (gone := self._past(damage, at, position)) is None:
                    return
                at, marker, floor = gone
                if marker is not None:
                    yield marker
                    position = marker.next_offset
                continue
            if hole := self._hole(batch, position):
                yield hole
                if self._aborting:
                    return
                position = hole.next_offset
            rows = self._readable(batch).since(position)
            self.bytes_read += end - at
            yield rows.rows(0, len(rows), next_offset=next_offset)
            at, position, floor = end, next_offset, next_offset
            self._columns.trace(self._partition, position).sound = True

    def _past(self, damage: Damaged, at: int, position: int) -> tuple[int, Corrupt | None, int] | None:
        """Where to go on in what was fetched, what is lost by that, and what ends there for sure.

        None where a new fetch will tell.
        """
        everything, first = len(self._buffer), position == self.fetch_offset
        if isinstance(damage, CutOff) and not first:
            return None
        found = batches.find(self._buffer, at + 1, position, self._end_offset)
        if found is None:
            if not first or self._doubt():
                return None
            return everything, self._blindly(at, position, str(damage)), NOTHING_AHEAD
        agreed = batches.claimed_end(self._buffer, at) == found[1]
        at, base = found
        if base <= position:
            return at, None, NOTHING_AHEAD
        if self._columns.skip_corrupt:
            trace = self._columns.trace(self._partition, base)
            trace.sound, trace.suspect = agreed, not agreed
        if self._aborting:
            at = everything
        return at, Corrupt(self._partition, position, base, str(damage)), base if agreed else NOTHING_AHEAD

    def _doubt(self) -> bool:
        """Ask for a second look, at more of the log; False where this is the second one."""
        if self._trace.doubted:
            return False
        self._trace.doubted = True
        self._columns.fetch(2 * len(self._buffer) + MORE_BYTES)
        return True

    @property
    def _aborting(self) -> bool:
        """Whether what is missing may have held the end of a transaction; a new fetch tells what is left."""
        return bool(self.aborted_producer_ids or self.aborted_transactions)

    def _hole(self, batch: Batch, position: int) -> Corrupt | None:
        """What is missing ahead of a batch that is in its place."""
        if batch.base_offset <= position:
            return None
        if self._trace.step and position == self.fetch_offset:
            reason = "it lies between a damaged batch and the next sound one"
        elif self._columns.gapless(self._partition.topic):
            reason = "nothing is stored up to the next batch, though the topic is not compacted"
        else:
            return None
        return Corrupt(self._partition, position, batch.base_offset, reason)

    def _must_meet(self, batch: Batch, end: int, position: int, floor: int) -> None:
        """Where nothing is compacted, hold a batch's offsets against the batch ahead, or else the one behind.

        Raises:
            Damaged: they do not meet.
            _Unsure: it has to be fetched again, with what follows.
        """
        begin, claimed = batch.base_offset, batch.claimed_end
        following = batches.base_offset(self._buffer, end)
        if following is None:
            met = claimed == self._end_offset
        else:
            met = batches.can_begin(self._buffer, end, claimed)
        if begin == floor or met or not self._columns.gapless(self._partition.topic):
            return
        if following is not None:
            raise Damaged(f"its offsets {begin} to {claimed - 1} do not meet the next batch, at {following}")
        # The next batch is beyond what was fetched; or, after a second look, in another segment.
        if position != self.fetch_offset or self._doubt():
            raise _Unsure
        if self._trace.suspect:
            raise Damaged(
                f"nothing proves its offsets {begin} to {claimed - 1}, and what lies ahead is damaged"
            )

    def _placed(self, batch: Batch, end: int, position: int, floor: int) -> int:
        """Where to go on behind a batch.

        Where it says to end counts only where nothing else can tell: the next batch, or the end of the log.

        Raises:
            Damaged: it is not in its place.
            _Unsure: it has to be fetched again, with what follows.
        """
        begin, claimed, first = batch.base_offset, batch.claimed_end, position == self.fetch_offset
        if begin < floor:
            raise Damaged(f"it begins at offset {begin}, below the end of the batch ahead of it")
        if claimed <= position:
            raise Damaged(f"it ends at offset {claimed}, before the one that was asked for")
        self._must_meet(batch, end, position, floor)
        known = max(int(batch.rows.offset[-1]) + 1 if len(batch.rows) else 0, position)
        gap = begin > position or claimed > known  # as compaction leaves one, or a false number
        following = batches.base_offset(self._buffer, end)
        if following is not None:
            if gap and position <= following < known:
                raise Damaged(f"its offsets {begin} to {known - 1} reach into the next batch, at {following}")
            claimed = min(claimed, max(following, known))
        elif gap and (not first or self._doubt()):
            raise _Unsure
        if claimed > self._end_offset:
            if not first or self._doubt():  # its end is read before the batches, so that they may be ahead
                raise _Unsure
            raise Damaged(f"it ends at offset {claimed}, and the log at {self._end_offset}")
        return claimed

    def _blindly(self, at: int, position: int, reason: str) -> Corrupt:
        """Skip damage with nothing sound behind it: to where it says to end if that can be, else by steps."""
        claimed = batches.claimed_end(self._buffer, at)
        step = 1
        if claimed is None or not position < claimed <= self._end_offset:
            step = max(2 * self._trace.step, 1)
            claimed = max(min(position + step, self._end_offset), position + 1)
        if self._columns.skip_corrupt:
            self._columns.trace(self._partition, claimed).step = step
        return Corrupt(self._partition, position, claimed, reason)

    def _readable(self, batch: Batch) -> RecordBatch:
        """The records of a batch, none where it is control or its transaction was aborted."""
        header = batch.header
        if header is None:
            return batch.rows
        self.leader_epoch = self._columns.leader_epoch(self.topic_partition, header.leader_epoch)
        hidden = header.is_control_batch
        if self.isolation_level == IsolationLevel.READ_COMMITTED and header.has_producer_id():
            self._consume_aborted_transactions_up_to(header.last_offset)
            if header.is_control_batch:
                if struct.unpack_from(">hh", batch.rows.key(0) or b"")[1] == 0:
                    self.aborted_producer_ids.discard(header.producer_id)
            else:
                hidden = self._is_batch_aborted(header)
        return batch.rows.rows(0, 0, next_offset=batch.claimed_end) if hidden else batch.rows


def _stopped(marker: Corrupt) -> Unreadable:
    return Unreadable(
        f"{marker.partition} cannot be read at offset {marker.offset}: {marker.reason}; restore that replica "
        "of the partition, or set corrupt=skip in the bus URL to go on behind the damage (what is skipped of "
        "a stream's topic is counted as corrupt and named in the dead letters)"
    )


def _misfit(consumer: Any) -> str:  # noqa: ANN401 - the client has no types
    """Why the client is not the one that this was proved with; empty where it is."""
    if kafka.__version__ != PROVED_VERSION:
        return f"its version is {kafka.__version__}"
    parameters = inspect.signature(Fetcher.PartitionRecords.__init__).parameters
    if " ".join(parameters) != PARAMETERS:
        return "PartitionRecords takes other arguments"
    for owner, names in (
        (getattr(consumer, "_fetcher", None), FETCHER_NAMES),
        (getattr(consumer, "_cluster", None), ("leader_epoch_for_partition",)),
        (Fetcher.PartitionRecords, ("drain", "_consume_aborted_transactions_up_to", "_is_batch_aborted")),
        (MemoryRecords(b""), ("_buffer", "_next_slice")),
    ):
        for name in names:
            if not hasattr(owner, name):
                return f"it has no {name}"
    return ""


_warned: set[str] = set()


def _warn_once(misfit: str) -> None:
    if misfit not in _warned:
        _warned.add(misfit)
        log.warning(
            "records of Kafka are read one by one, at a tenth of the speed: columnar fetch is made for "
            "kafka-python %s, and here %s",
            PROVED_VERSION,
            misfit,
        )
