"""What a worker says of itself: its status, its troubles, and how far a stream is from having a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.accounting import Bin
from pipeline.config import TRAINING_WINDOWS
from pipeline.detect import Outputs
from pipeline.drift import Drift
from pipeline.ownership import Owned
from pipeline.records import Assigned, Send, TopicPartition
from pipeline.series import PartitionState

BUS, STORE, JOURNAL = "waiting for the bus", "waiting for Redis", "waiting for the journal"
DAMAGE = "stopped at damage"
MODEL, SNAPSHOTS = "waiting for a model", "waiting for the snapshots"
SIZE = "leaving evidence out of "
"""And the name of the topic that asks for it."""


@dataclass(frozen=True, slots=True)
class Status:
    """What a worker is doing, for people and metrics.

    Attributes:
        doing: ``starting``, ``waiting for a model``, ``reading again``, ``live``, ``waiting for Redis``,
            ``waiting for the bus``, ``waiting for the journal``, ``stopped at damage``, ``standing by`` or
            ``stopped``.
        message: the same as a sentence with numbers, and what to do where something is to be done.
        lag: records not yet read, over the owned partitions and those that wait to be taken over.
        bins: records by bin, over the owned partitions, since each was first read.
        gap_filled, frozen: see :class:`pipeline.accounting.Counters`.
        alerts, dead_letters: committed by this worker.
        cut: of these, committed with less in them, or alerts as dead letters: their topic takes no more.
        columnar: whether records come as columns, see :class:`pipeline.records.Polled`.
        drift: share of the newest errors that are far from their calibration, see :mod:`pipeline.drift`.
    """

    doing: str
    message: str
    partitions: tuple[int, ...] = ()
    lag: int = 0
    bins: Mapping[str, int] = field(default_factory=dict)
    gap_filled: int = 0
    frozen: int = 0
    series: int = 0
    bundle_id: str | None = None
    alerts: int = 0
    dead_letters: int = 0
    cut: int = 0
    columnar: bool = True
    drift: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Processed:
    """One batch's outputs, after their commit; ``names`` gives a slot its series."""

    partition: TopicPartition
    outputs: Outputs
    names: list[str | None]


class Report:
    """What there is to say; one thread uses it.

    Attributes:
        columnar: as the last poll told.
    """

    def __init__(self, stream: str, clock: Callable[[], float], notice: Callable[[str], None]) -> None:
        self._stream, self._clock, self._notice = stream, clock, notice
        self.columnar = True
        self._drift = Drift()
        self._troubles: dict[str, str] = {}
        self._about: dict[str, object] = {}
        self._damage = ""
        self._alerts = self._dead_letters = self._cut = 0
        self._first_waiting: tuple[float, int] | None = None

    def notice(self, message: str) -> None:
        """Tell something that a person should know."""
        self._notice(message)

    def trouble(self, doing: str, message: str, about: object = None) -> None:
        """A trouble is told once, when it begins; the status has its last message.

        One that is ``about`` something else is another. The same damage is told once, however often it is
        met again: it names its place.
        """
        began = doing not in self._troubles or about != self._about[doing]
        if began and message != self._damage:
            self._notice(message)
        self._troubles[doing], self._about[doing] = message, about
        if doing == DAMAGE:
            self._damage = message

    def mended(self, doing: str) -> None:
        """It is over."""
        self._troubles.pop(doing, None)

    def scored(self, state: PartitionState, outputs: Outputs) -> None:
        """Count how far errors are from their calibration, but for rows that somebody froze."""
        for scores in outputs.scores:
            kept = ~scores.silenced & (state.calibration[scores.slot, 4] > 0)  # else it is gone by now
            calibration = state.calibration[scores.slot[kept]]
            self._drift.add(state.bundle_id, scores.time_ns[kept], scores.error[kept], calibration)

    def published(self, processed: Iterable[Processed]) -> None:
        """Count what was committed."""
        for one in processed:
            self._alerts += len(one.outputs.alerts)
            self._dead_letters += len(one.outputs.dead_letters)

    def cut(self, wanted: Sequence[Send], committed: Sequence[Send]) -> None:
        """Count what was committed otherwise than was wanted."""
        for was, now in zip(wanted, committed, strict=True):
            self._cut += was is not now
            self._alerts -= was.topic != now.topic
            self._dead_letters += was.topic != now.topic

    def status(
        self,
        owned: Mapping[TopicPartition, Owned],
        arriving: Mapping[TopicPartition, Assigned],
        ends: Mapping[TopicPartition, int],
    ) -> Status:
        """What a worker is doing that owns these partitions, waits for those, and knows where they end."""
        doing, message = self._doing(list(owned.values()), waiting=bool(arriving))
        states = [each.state for each in owned.values()]
        bins = {one.name.lower(): sum(int(state.counters.bins[one]) for state in states) for one in Bin}
        left = [ends.get(partition, 0) - each.state.next_offset for partition, each in owned.items()]
        left += [
            each.end_offset - max(each.committed_offset or 0, each.first_offset) for each in arriving.values()
        ]
        return Status(
            doing=doing,
            message=message,
            partitions=tuple(sorted(partition.partition for partition in owned)),
            lag=sum(max(records, 0) for records in left),
            bins=bins,
            gap_filled=sum(state.counters.gap_filled for state in states),
            frozen=sum(state.counters.frozen for state in states),
            series=sum(state.live for state in states),
            bundle_id=next((state.bundle_id for state in states), None),
            alerts=self._alerts,
            dead_letters=self._dead_letters,
            cut=self._cut,
            columnar=self.columnar,
            drift=self._drift.share,
        )

    def _doing(self, owned: list[Owned], *, waiting: bool) -> tuple[str, str]:
        for trouble in (BUS, DAMAGE):
            if trouble in self._troubles:
                return trouble, self._troubles[trouble]
        for trouble in (STORE, JOURNAL):
            if trouble in self._troubles and (owned or waiting):
                return trouble, self._troubles[trouble]
        if not owned:
            return "standing by", "no partition is assigned to this worker yet"
        if left := sum(max(one.live_from - one.state.next_offset, 0) for one in owned):
            return "reading again", f"{left} records to read again before going live"
        if all(one.scorer is None for one in owned):
            return MODEL, self._troubles.get(MODEL) or self._model_needs(owned)
        return "live", self._troubles.get(MODEL, "scoring")

    def _model_needs(self, owned: list[Owned]) -> str:
        """How far the stream is from being trained, and about how long it takes at the present rate."""
        need = TRAINING_WINDOWS * owned[0].detector.stream.model.window
        series = max(sum(one.state.live for one in owned), 1)
        have = sum(int(one.state.counters.bins[Bin.WAITING_MODEL]) for one in owned) // series
        now = self._clock()
        if self._first_waiting is None:
            self._first_waiting = (now, have)
        if have >= need:
            return f"{have} of {need} rows a series; train it: offbeat train {self._stream}"
        since, first = self._first_waiting
        left = (
            f"about {(need - have) * (now - since) / (have - first):.0f} s left"
            if have > first
            else "no rate yet"
        )
        return f"waiting for a model: {have} of {need} rows a series, {left}"
