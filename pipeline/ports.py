"""The seams: what the core asks of the outside world, at most three methods each.

Real parts stand under ``pipeline.bus``, ``pipeline.state`` and ``models``; ``offbeat.app`` wires them.
Unless said otherwise an object behind a seam is used from one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Stream
from pipeline.records import (
    Bounds,
    BusInfo,
    Claim,
    PackedRows,
    Polled,
    RecordBatch,
    Send,
    Token,
    TopicPartition,
    TopicSpec,
)

if TYPE_CHECKING:
    from pipeline.companions import Seeds

if TYPE_CHECKING:
    from pipeline.companions import Seeds

Float32s = NDArray[np.float32]
Float64s = NDArray[np.float64]
Int32s = NDArray[np.int32]


class Bus(Protocol):
    """Source and sink of one consumer group's member, in one object because the commit needs both.

    Promises: a newly assigned partition yields nothing until ``seek``; records of a partition come in
    offset order; ``commit`` writes all sends and positions or none of them. Leaves out: plain producing,
    reading outside a group and administration (seams of their own), and any retry of a refused commit.
    """

    def poll(self, max_records: int, timeout_s: float) -> Polled:
        """Wait up to ``timeout_s`` for records (about ``max_records`` at most) or changes of ownership.

        Raises:
            BusDown, BusFull: the bus cannot be reached, or has no room to keep this member; calling again
                is safe.
            Unreadable: damage comes next, and the bus is set to stop there; calling again meets it again, or
                what stands there once it is mended.
        """
        ...

    def seek(self, partition: TopicPartition, next_offset: int) -> None:
        """Read ``partition`` from ``next_offset`` on, nothing below it; valid only for an owned partition."""
        ...

    def commit(self, token: Token, next_offsets: Mapping[TopicPartition, int], sends: Sequence[Send]) -> None:
        """Write ``sends`` and the group's positions in one atomic step, proved by ``token``.

        Raises:
            Refused: ownership was lost or the step failed; nothing was written. The caller drops the
                state of all partitions, and the next polls announce again what it owns.
            TooLarge: a record of ``sends`` is larger than its topic takes; nothing was written, ownership and
                ``token`` stand, and the same step can be tried again with less in it.
            BusDown, BusFull: the bus is locked or has no room; nothing was written, ownership stands,
                trying again can help.
        """
        ...


class Producer(Protocol):
    """Plain producing, outside any transaction of a consumer group."""

    def send(self, sends: Iterable[Send]) -> None:
        """Queue records; may block for room.

        Raises:
            NotFound: a topic does not exist.
            BusDown, BusFull: nothing after the failing record was queued.
        """
        ...

    def flush(self) -> None:
        """Return when everything queued is durable.

        Raises:
            BusDown, BusFull: something queued was not written.
        """
        ...


class Reader(Protocol):
    """Plain reading by position, outside any consumer group."""

    def bounds(self, topic: str) -> Mapping[int, Bounds]:
        """What each partition of ``topic`` holds.

        Raises:
            NotFound: the topic does not exist.
            BusDown: the bus cannot be reached.
        """
        ...

    def offset_at(self, partition: TopicPartition, timestamp_ms: int) -> int:
        """The first offset whose record timestamp is at or after ``timestamp_ms``, or the end offset."""
        ...

    def read(
        self, partition: TopicPartition, next_offset: int, max_records: int, timeout_s: float
    ) -> RecordBatch:
        """Records from ``next_offset`` on, an empty batch when none came within ``timeout_s``.

        The batch's ``next_offset`` is where to read next, also when it is empty. Damage that was passed over
        stands in its ``corrupt``, and is the caller's to tell.

        Raises:
            Unreadable: damage comes next, and the bus is set to stop there.
        """
        ...


class Admin(Protocol):
    """What operators ask of a bus."""

    def describe(self) -> BusInfo:
        """Server and topics.

        Raises:
            BusDown: the bus cannot be reached.
        """
        ...

    def create(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Make the topics that are missing; returns the names of those made."""
        ...

    def grow(self, topic: str, partitions: int) -> None:
        """Give a topic the partitions that it lacks to have so many; it never loses any.

        Raises:
            NotFound: the topic does not exist.
        """
        ...

    def delete(self, topics: Sequence[str]) -> None:
        """Remove topics with all that they hold, and groups' positions in them.

        Raises:
            NotFound: one of them does not exist.
        """
        ...

    def committed(self, group: str, topic: str) -> Mapping[int, int]:
        """The group's next offsets by partition, without those never committed."""
        ...


class Broker(Protocol):
    """What a bus URL opens: the makers of the four seams above; closing it closes what it made."""

    def bus(self, *, group: str, topics: Sequence[str], transactional_id: str) -> Bus:
        """A member of ``group`` over ``topics``."""
        ...

    def producer(self) -> Producer:
        """A plain producer."""
        ...

    def reader(self) -> Reader:
        """A plain reader."""
        ...

    def admin(self) -> Admin:
        """The administration."""
        ...

    def close(self) -> None:
        """Leave the groups and end every connection; idempotent."""
        ...


class PutResult(Enum):
    """What became of a write of state."""

    OK = "ok"
    NEED_WHOLE = "need_whole"
    STALE_EPOCH = "stale_epoch"
    STALE_OFFSET = "stale_offset"


class StateStore(Protocol):
    """Where the state of partitions lives between owners.

    Promises: a claim's epoch is above every earlier one; a put is taken whole or not at all; a put whose
    offset is already stored under its own epoch is OK (a reply was lost). Leaves out: any knowledge of
    what the rows mean.
    """

    def claim(self, partition: TopicPartition, *, reset: bool = False) -> Claim:
        """Take ownership: raise the epoch and read what is stored (drop it first when ``reset``).

        Raises:
            StoreDown: not reachable now; this is not "nothing is stored".
        """
        ...

    def put(self, claim: Claim, base: int, offset: int, rows: PackedRows, *, whole: bool) -> PutResult:
        """Write the state valid at ``offset``.

        A delta (``whole`` false) is taken only on top of a stored offset equal to ``base``; otherwise
        NEED_WHOLE. STALE_EPOCH when somebody claimed later, STALE_OFFSET when a later offset is stored.

        Raises:
            StoreDown: not reachable now; the write may or may not have been taken.
        """
        ...


@dataclass(frozen=True, slots=True)
class Lease:
    """A hold of a piece of work.

    Attributes:
        work: its name.
        holder: told from all others who ever held it.
        token: above that of every hold before; what is written under a lower one comes too late.
    """

    work: str
    holder: str
    token: int


class Leases(Protocol):
    """Pieces of work that one program does at a time, each for as long as it says in advance.

    Promises: one holder at a time by the store's clock; tokens rise. Leaves out that a holder notices in time
    that it is none any more: whoever takes what it writes must compare tokens.
    """

    def take(self, work: str, length_s: float) -> Lease | None:
        """Hold a piece of work for so long; None while somebody else does.

        Raises:
            StoreDown: not reachable now; the work may be held until the time is over.
        """
        ...

    def keep(self, lease: Lease, length_s: float) -> bool:
        """Hold it for so long from now on; False where somebody took it since.

        Raises:
            StoreDown: not reachable now; the hold may end.
        """
        ...

    def give(self, lease: Lease) -> None:
        """Hold it no longer; nothing happens where somebody took it since.

        Raises:
            StoreDown: not reachable now; it is free when its time is over.
        """
        ...


class Snapshots(Protocol):
    """Copies of partitions' states beside the store, for when it is lost, and for replays.

    Promises: a copy is there whole or not at all; a damaged one is never handed out.
    """

    def save(
        self, partition: TopicPartition, topic_id: str, next_offset: int, clock_ns: int, rows: PackedRows
    ) -> None:
        """Keep a copy of the whole state valid at ``next_offset``; old copies are thinned out.

        ``clock_ns`` is the partition clock, by which copies are told apart in time.

        Raises:
            StoreDown: it could not be written; trying again can help.
        """
        ...

    def newest(
        self, partition: TopicPartition, topic_id: str, at_most: int, fits: Callable[[PackedRows], bool]
    ) -> PackedRows | None:
        """The newest copy whose offset is at most ``at_most`` and that ``fits``; None where there is none.

        Raises:
            StoreDown: the folder cannot be read.
        """
        ...

    def drop_after(self, partition: TopicPartition, topic_id: str, next_offset: int) -> None:
        """Delete the copies above an offset: the group was set back to it.

        Raises:
            StoreDown: the folder cannot be changed.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Windows of rows, ready to be scored.

    Attributes:
        tail: float32[n, W, F], values relative to ``anchor``; the last row is the newest.
        anchor: float64[n, F]; a value is ``anchor + tail``.
        model: int32[n], from :meth:`Scorer.assign`.
    """

    tail: Float32s
    anchor: Float64s
    model: Int32s

    def __len__(self) -> int:
        return len(self.model)


@dataclass(frozen=True, slots=True, eq=False)
class Errors:
    """Reconstruction errors, in units of the training rows' robust spread.

    Attributes:
        window: float64[n], the error of the whole window: its square is the mean over the rows' squares.
        last: float64[n], the error of the window's last row alone.
    """

    window: Float64s
    last: Float64s


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Why windows were scored as they were.

    Attributes:
        observed: float64[n, W, F] in the feature's own units (after its transform).
        expected: float64[n, W, F], the reconstruction in the same units.
        contribution: float64[n, F], each feature's share of the window's error; a row sums to 1.
    """

    observed: Float64s
    expected: Float64s
    contribution: Float64s


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """Which model judges each series, and where its threshold starts.

    Attributes:
        model: int32[n]; index of a stacked model, or of the shared fallback.
        calibration: float64[n, 5]: mean and standard deviation of the window error, the same of the last
            row's error, and the number of held-out rows they were measured on.
        seeds: what the bundle knows of the rows of all its models, by model; the same object each time.
    """

    model: Int32s
    calibration: Float64s
    seeds: Seeds


class Scorer(Protocol):
    """A trained bundle, as the detect step sees it. Deterministic; holds no state of the stream."""

    def assign(self, series: Sequence[str]) -> Calibrated:
        """The model and calibration of each series; the shared fallback for those never seen."""
        ...

    def score(self, windows: Windows) -> Errors:
        """Reconstruct every window and measure the error."""
        ...

    def explain(self, windows: Windows) -> Explanation:
        """Observed, expected and contributions; called only for rows that make or end an alert."""
        ...


class Models(Protocol):
    """The bundles of one stream, as a worker sees them."""

    def scorer(self, bundle_id: str, settings: Stream) -> Scorer:
        """The scorer of a bundle for rows as ``settings`` make them.

        Raises:
            NotFound, BundleError: it is missing, damaged, or does not fit such rows.
        """
        ...
