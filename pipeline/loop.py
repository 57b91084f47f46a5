"""The loop of one worker: poll, detect, commit outputs and positions in one step, then checkpoint the state.

Order is what makes it exact (docs/exactly-once.md): alerts, dead letters and positions are one commit of the
bus; state is written after it, at an offset that is committed; no outputs are pending when it polls again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipeline.accounting import Bin
from pipeline.alerts import Alert, DeadLetter
from pipeline.config import TRAINING_WINDOWS, Config
from pipeline.detect import Detector, Outputs
from pipeline.errors import BusDown, BusFull, OffbeatError, Refused, StoreDown
from pipeline.ownership import Owned, ScorerCache, Takeover, checkpoint
from pipeline.ports import Bus, Models, Scorer, StateStore
from pipeline.records import Assigned, Corrupt, RecordBatch, Send, Token, TopicPartition

MAX_RECORDS = 20_000
POLL_S = 0.2
COMMIT_S, COMMIT_RECORDS = 1.0, 100_000
CHECKPOINT_S, CHECKPOINT_RECORDS = 5.0, 1_000_000
RETRY_S = 1.0
"""Pause before a takeover or a look at the registry is tried again."""
_BUS, _STORE, _MODEL = "waiting for the bus", "waiting for Redis", "waiting for a model"


@dataclass(frozen=True, slots=True)
class Status:
    """What a worker is doing, for people and metrics.

    Attributes:
        doing: ``starting``, ``waiting for a model``, ``reading again``, ``live``, ``waiting for Redis``,
            ``waiting for the bus``, ``standing by`` or ``stopped``.
        message: the same as a sentence with numbers, and what to do where something is to be done.
        lag: records not yet read, over the owned partitions and those that wait to be taken over.
        bins: records by bin, over the owned partitions, since each was first read.
        gap_filled, frozen: see :class:`pipeline.accounting.Counters`.
        alerts, dead_letters: committed by this worker.
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


@dataclass(frozen=True, slots=True, eq=False)
class Processed:
    """One batch's outputs, after their commit; ``names`` gives a slot its series."""

    partition: TopicPartition
    outputs: Outputs
    names: list[str | None]


@dataclass(slots=True, eq=False)
class Parts:
    """What a worker is made of.

    Attributes:
        max_records: about so many records a poll.
        observe: told about each batch after its commit; must not raise.
        notice: told in a sentence about what a person should know.
        wait: waits so many seconds, or less when the worker is asked to stop, and then returns True.
    """

    config: Config
    stream: str
    bus: Bus
    store: StateStore
    models: Models
    max_records: int = MAX_RECORDS
    observe: Callable[[Processed], None] = lambda _: None
    notice: Callable[[str], None] = lambda _: None
    wait: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic


class Worker:
    """One member of a stream's group. One thread uses it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._stream = parts.config.stream(parts.stream)
        self._detector = Detector(parts.config.namespace, parts.stream, self._stream)
        self._scorers = ScorerCache(parts.models)
        self._takeover = Takeover(
            self._detector, parts.store, self._scorers, self._stream.start, parts.notice
        )
        self._owned: dict[TopicPartition, Owned] = {}
        self._arriving: dict[TopicPartition, Assigned] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._token: Token | None = None
        self._uncommitted = 0
        self._committed_at = self._looked_at = self._retry_at = parts.clock()
        self._looked_at -= RETRY_S
        self._alerts = self._dead_letters = 0
        self._troubles: dict[str, str] = {}
        self._first_waiting: tuple[float, int] | None = None

    def turn(self) -> None:
        """One poll and all that follows from it; outside faults are waited out, never raised.

        Raises:
            OffbeatError: something that trying again cannot mend, such as a missing topic.
        """
        try:
            self._take_over()
            self._adopt_champion()
            polled = self._parts.bus.poll(self._parts.max_records, POLL_S)
        except (BusDown, BusFull) as error:
            self._wait_out(error)
            return
        self._troubles.pop(_BUS, None)
        for partition in polled.revoked:
            self._drop(partition)
        for assigned in polled.assigned:
            self._drop(assigned.partition)
            self._arriving[assigned.partition] = assigned
        self._ends.update(polled.end_offsets)
        self._token = polled.token
        processed = [self._process(batch) for batch in polled.batches if batch.partition in self._owned]
        processed += [self._skip(corrupt) for corrupt in polled.corrupt if corrupt.partition in self._owned]
        self._settle(processed)

    def stop(self) -> None:
        """Commit and checkpoint what is done; the caller closes the bus, which leaves the group."""
        if self._commit([]):
            self._checkpoint(every=True)

    def _process(self, batch: RecordBatch) -> Processed:
        """Run the detect step; what earlier owners have committed gives no outputs."""
        owned = self._owned[batch.partition]
        if owned.rereading:
            self._detector.step(owned.state, batch.before(owned.live_from), owned.scorer)
            batch = batch.since(owned.live_from)
        outputs = Outputs()
        if batch.next_offset > owned.state.next_offset:
            outputs = self._detector.step(owned.state, batch, owned.scorer)
            self._uncommitted += max(len(batch), 1)
        return Processed(batch.partition, outputs, owned.state.names)

    def _skip(self, corrupt: Corrupt) -> Processed:
        """Count a damaged range and bury its place; the records behind it may have been read already."""
        owned, outputs = self._owned[corrupt.partition], Outputs()
        owned.state.counters.bins[Bin.CORRUPT] += corrupt.next_offset - corrupt.offset
        owned.state.next_offset = max(owned.state.next_offset, corrupt.next_offset)
        first = max(corrupt.offset, owned.live_from)
        count = corrupt.next_offset - first
        if count > 0:
            self._uncommitted += count
            outputs.dead_letters.append(
                DeadLetter(
                    stream=self._parts.stream,
                    partition=corrupt.partition,
                    offset=first,
                    last_offset=corrupt.next_offset - 1,
                    count=count,
                    timestamp_ms=0,
                    reason=f"the stored batch is damaged: {corrupt.reason}",
                )
            )
        return Processed(corrupt.partition, outputs, owned.state.names)

    def _settle(self, processed: list[Processed]) -> None:
        """Commit and checkpoint as the rules ask, then tell the observer."""
        alerts = [alert for one in processed for alert in one.outputs.alerts]
        letters = [letter for one in processed for letter in one.outputs.dead_letters]
        now = self._parts.clock()
        due = any(self._checkpoint_due(owned, now) for owned in self._owned.values())
        idle = now - self._committed_at >= COMMIT_S and self._uncommitted
        if alerts or letters or due or idle or self._uncommitted >= COMMIT_RECORDS:
            if not self._commit(self._sends(alerts, letters)):
                return
            self._alerts += len(alerts)
            self._dead_letters += len(letters)
            self._checkpoint(every=False)
        for one in processed:
            self._parts.observe(one)

    def _sends(self, alerts: list[Alert], letters: list[DeadLetter]) -> list[Send]:
        config = self._parts.config
        return [alert.send(config.alerts_topic) for alert in alerts] + [
            letter.send(config.dead_letters_topic) for letter in letters
        ]

    def _commit(self, sends: list[Send]) -> bool:
        """One atomic step of the bus; False when all state is dropped: ownership is lost, or time is up."""
        positions = {
            partition: owned.state.next_offset
            for partition, owned in self._owned.items()
            if not owned.rereading
        }
        if self._token is None or not positions:
            return not sends
        while True:
            try:
                self._parts.bus.commit(self._token, positions, sends)
            except Refused as error:
                self._parts.notice(f"a commit was refused, partitions are taken over afresh: {error}")
                self._drop_all()
                return False
            except (BusDown, BusFull) as error:
                # Outputs never wait across a poll: the worker stands here until they can be written.
                if self._wait_out(error):
                    self._drop_all()
                    return False
                continue
            self._uncommitted, self._committed_at = 0, self._parts.clock()
            return True

    def _checkpoint_due(self, owned: Owned, now: float) -> bool:
        if owned.rereading or owned.state.next_offset == owned.stored_offset:
            return False
        behind = owned.state.next_offset - owned.tried_offset
        return now - owned.tried_at >= CHECKPOINT_S or behind >= CHECKPOINT_RECORDS

    def _checkpoint(self, *, every: bool) -> None:
        """Write the states that are due (or every one); their offsets are committed."""
        now = self._parts.clock()
        for owned in self._owned.values():
            changed = not owned.rereading and owned.state.next_offset != owned.stored_offset
            if changed and (every or self._checkpoint_due(owned, now)):
                try:
                    checkpoint(self._parts.store, owned, now)
                    self._troubles.pop(_STORE, None)
                except StoreDown as error:
                    # Detection goes on from memory; the commit holds, the next checkpoint carries more.
                    self._tell(_STORE, f"{error}; detection goes on, checkpoints wait")

    def _adopt_champion(self) -> None:
        """Change to the registry's champion between batches, once earlier owners' records are read."""
        now = self._parts.clock()
        if now - self._looked_at < RETRY_S:
            return
        self._looked_at = now
        try:
            bundle_id = self._scorers.champion()
            scorer = self._scorers.get(bundle_id) if bundle_id is not None else None
        except OffbeatError as error:
            self._tell(_MODEL, f"{error}; until then the worker goes on as it is")
            return
        self._troubles.pop(_MODEL, None)
        if scorer is None or bundle_id is None:
            return
        for owned in list(self._owned.values()):
            in_use = owned.state.bundle_id == bundle_id and owned.scorer is not None
            if not in_use and not owned.rereading and not self._change(owned, scorer, bundle_id):
                return

    def _change(self, owned: Owned, scorer: Scorer, bundle_id: str) -> bool:
        """Change the model of one partition, and store from where on before the next record is read.

        False when it has to wait: ownership is lost, or the store cannot be told.
        """
        if not self._commit([]):
            return False
        try:
            # A second write at one offset counts as a lost reply, unless it comes with a new claim.
            owned.claim = self._parts.store.claim(owned.claim.partition)
            owned.stored_offset = None
            owned.scorer = scorer
            owned.state.adopt(scorer, bundle_id)
            checkpoint(self._parts.store, owned, self._parts.clock())
        except StoreDown as error:
            self._tell(_STORE, f"{error}; detection goes on, a change of model waits")
            return False
        self._parts.notice(
            f"{owned.claim.partition}: model {bundle_id[:12]} from offset {owned.state.next_offset} on"
        )
        return True

    def _take_over(self) -> None:
        """Claim what is arriving; a partition whose state cannot be asked for stays paused."""
        now = self._parts.clock()
        if not self._arriving or now < self._retry_at:
            return
        for partition, assigned in list(self._arriving.items()):
            try:
                owned = self._takeover.take(assigned, now)
            except StoreDown as error:
                self._retry_at = now + RETRY_S
                self._tell(_STORE, f"{error}; {partition} is taken over when it answers")
                return
            self._parts.bus.seek(partition, owned.state.next_offset)
            self._owned[partition] = owned
            self._ends.setdefault(partition, assigned.end_offset)
            del self._arriving[partition]
            self._looked_at = now - RETRY_S
        self._troubles.pop(_STORE, None)

    def _drop(self, partition: TopicPartition) -> None:
        self._owned.pop(partition, None)
        self._arriving.pop(partition, None)
        self._ends.pop(partition, None)

    def _drop_all(self) -> None:
        for partition in [*self._owned, *self._arriving]:
            self._drop(partition)
        self._uncommitted = 0

    def _wait_out(self, error: OffbeatError) -> bool:
        """Pause; True when the worker was asked to stop meanwhile."""
        self._tell(_BUS, str(error))
        return self._parts.wait(RETRY_S) is True

    def _tell(self, doing: str, message: str) -> None:
        """A trouble is told once, when it begins; the status has its last message."""
        if doing not in self._troubles:
            self._parts.notice(message)
        self._troubles[doing] = message

    def status(self) -> Status:
        """What the worker is doing now."""
        doing, message = self._doing()
        states = [owned.state for owned in self._owned.values()]
        bins = {one.name.lower(): sum(int(state.counters.bins[one]) for state in states) for one in Bin}
        return Status(
            doing=doing,
            message=message,
            partitions=tuple(sorted(partition.partition for partition in self._owned)),
            lag=self._lag(),
            bins=bins,
            gap_filled=sum(state.counters.gap_filled for state in states),
            frozen=sum(state.counters.frozen for state in states),
            series=sum(state.live for state in states),
            bundle_id=next((state.bundle_id for state in states), None),
            alerts=self._alerts,
            dead_letters=self._dead_letters,
        )

    def _lag(self) -> int:
        left = [
            self._ends.get(partition, 0) - owned.state.next_offset for partition, owned in self._owned.items()
        ]
        left += [
            assigned.end_offset - max(assigned.committed_offset or 0, assigned.first_offset)
            for assigned in self._arriving.values()
        ]
        return sum(max(records, 0) for records in left)

    def _doing(self) -> tuple[str, str]:
        if _BUS in self._troubles:
            return _BUS, self._troubles[_BUS]
        if _STORE in self._troubles and (self._owned or self._arriving):
            return _STORE, self._troubles[_STORE]
        if not self._owned:
            return "standing by", "no partition is assigned to this worker yet"
        owned = list(self._owned.values())
        if left := sum(max(one.live_from - one.state.next_offset, 0) for one in owned):
            return "reading again", f"{left} records to read again before going live"
        if all(one.scorer is None for one in owned):
            return _MODEL, self._troubles.get(_MODEL) or self._model_needs(owned)
        return "live", self._troubles.get(_MODEL, "scoring")

    def _model_needs(self, owned: list[Owned]) -> str:
        """How far the stream is from being trained, and about how long it takes at the present rate."""
        need = TRAINING_WINDOWS * self._stream.model.window
        series = max(sum(one.state.live for one in owned), 1)
        have = sum(int(one.state.counters.bins[Bin.WAITING_MODEL]) for one in owned) // series
        now = self._parts.clock()
        if self._first_waiting is None:
            self._first_waiting = (now, have)
        if have >= need:
            return f"{have} of {need} rows a series; train it: offbeat train {self._parts.stream}"
        since, first = self._first_waiting
        left = (
            f"about {(need - have) * (now - since) / (have - first):.0f} s left"
            if have > first
            else "no rate yet"
        )
        return f"waiting for a model: {have} of {need} rows a series, {left}"
