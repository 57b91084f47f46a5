"""The loop of one worker: poll, detect, commit outputs and positions in one step, then checkpoint the state.

Order is what makes it exact (docs/exactly-once.md): alerts, dead letters and positions are one commit of the
bus; state is written after it, at an offset that is committed; no outputs are pending when it polls again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from pipeline import journal
from pipeline.accounting import Bin
from pipeline.adoption import reconcile
from pipeline.alerts import DeadLetter
from pipeline.config import TRAINING_WINDOWS, Config, Stream
from pipeline.control import ControlLog
from pipeline.detect import Outputs
from pipeline.errors import BusDown, BusFull, OffbeatError, Refused, StoreDown
from pipeline.journal import Entry, InForce, JournalLog, Past
from pipeline.ownership import Owned, Shelf, Takeover, checkpoint
from pipeline.ports import Admin, Bus, Models, Reader, Snapshots, StateStore
from pipeline.records import Assigned, Corrupt, RecordBatch, Send, Token, TopicPartition

MAX_RECORDS = 20_000
POLL_S = 0.2
COMMIT_S, COMMIT_RECORDS = 1.0, 100_000
CHECKPOINT_S, CHECKPOINT_RECORDS = 5.0, 1_000_000
RETRY_S = 1.0
"""Pause before a takeover is tried again, and between looks at the control topic."""
SNAPSHOT_NS = 15 * 60 * 1_000_000_000
"""A snapshot after so much of the partition clock ..."""
SNAPSHOT_S = 30.0
"""... and never sooner: a year that is read in a minute is worth two."""
_BUS, _STORE, _MODEL = "waiting for the bus", "waiting for Redis", "waiting for a model"
_JOURNAL, _SNAPSHOT = "waiting for the journal", "waiting for the snapshots"


@dataclass(frozen=True, slots=True)
class Status:
    """What a worker is doing, for people and metrics.

    Attributes:
        doing: ``starting``, ``waiting for a model``, ``reading again``, ``live``, ``waiting for Redis``,
            ``waiting for the bus``, ``waiting for the journal``, ``standing by`` or ``stopped``.
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


@dataclass(frozen=True, slots=True, eq=False)
class _Changed:
    """A partition where something else came into force (``said`` to the journal), and what that ended."""

    owned: Owned
    before: InForce | None
    outputs: Outputs
    said: bool

    @property
    def worth_a_copy(self) -> bool:
        """Whether a replay of what follows needs a snapshot of its own."""
        now = self.owned.state.in_force
        return self.said and (self.before is not None or (now is not None and now.rebuilt_from is not None))


@dataclass(slots=True, eq=False)
class Parts:
    """What a worker is made of.

    Attributes:
        reader, admin: of the same broker, for the control topic and the journal.
        max_records: about so many records a poll.
        observe: told about each batch after its commit; must not raise.
        notice: told in a sentence about what a person should know.
        wait: waits so many seconds, or less when the worker is asked to stop, and then returns True.
    """

    config: Config
    stream: str
    bus: Bus
    reader: Reader
    admin: Admin
    store: StateStore
    snapshots: Snapshots
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
        config, name = parts.config, parts.stream
        self._control = ControlLog(parts.reader, config.control_topic, parts.notice)
        self._journal = JournalLog(parts.reader, config.journal_topic(name))
        self._shelf = Shelf(config.namespace, name, self._control, parts.models)
        self._takeover = Takeover(
            name,
            config.stream(name).start,
            parts.store,
            parts.snapshots,
            self._control,
            self._journal,
            self._shelf,
            parts.notice,
        )
        self._partitions = self._journaled_partitions = 0
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
            self._bring_into_force()
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
        self._partitions = max([self._partitions, *(count for _, count in polled.partitions)])
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
        outputs = Outputs()
        if owned.rereading:
            self._takeover.reread(owned, batch)
        elif owned.live:
            outputs = owned.detector.step(owned.state, batch, owned.scorer)
            self._uncommitted += max(len(batch), 1)
        return Processed(batch.partition, outputs, owned.state.names)

    def _skip(self, corrupt: Corrupt) -> Processed:
        """Count a damaged range and bury its place; the records behind it may have been read already."""
        owned, outputs = self._owned[corrupt.partition], Outputs()
        end = corrupt.next_offset if owned.live else min(corrupt.next_offset, owned.live_from)
        count = max(end - corrupt.offset, 0)
        owned.state.counters.bins[Bin.CORRUPT] += count
        owned.state.next_offset = max(owned.state.next_offset, end)
        if owned.live:
            self._uncommitted += count
            outputs.dead_letters.append(
                DeadLetter(
                    stream=self._parts.stream,
                    partition=corrupt.partition,
                    offset=corrupt.offset,
                    last_offset=end - 1,
                    count=count,
                    timestamp_ms=0,
                    reason=f"the stored batch is damaged: {corrupt.reason}",
                )
            )
        return Processed(corrupt.partition, outputs, owned.state.names)

    def _settle(self, processed: list[Processed]) -> None:
        """Commit and checkpoint as the rules ask, then tell the observer."""
        sends = self._sends(processed)
        now = self._parts.clock()
        due = any(self._checkpoint_due(owned, now) for owned in self._owned.values())
        idle = now - self._committed_at >= COMMIT_S and self._uncommitted
        if sends or due or idle or self._uncommitted >= COMMIT_RECORDS:
            if not self._commit(sends):
                return
            self._count(processed)
            self._checkpoint(every=False)
            self._copy()
        for one in processed:
            self._parts.observe(one)

    def _sends(self, processed: list[Processed], in_force: Iterable[Owned] = ()) -> list[Send]:
        """Alerts, dead letters and the journal; what came into force stands behind what it ended."""
        config, sends = self._parts.config, list[Send]()
        for one in processed:
            number = one.partition.partition
            owned = self._owned[one.partition]
            entries: list[Entry] = [*journal.transitions(owned.state.next_offset, one.outputs.changes)]
            sends += [alert.send(config.alerts_topic) for alert in one.outputs.alerts]
            sends += [letter.send(config.dead_letters_topic) for letter in one.outputs.dead_letters]
            sends += journal.sends(self._journal.topic, number, entries)
            owned.journaled |= bool(entries)
        for owned in in_force:
            if owned.state.in_force is not None:
                number = owned.partition.partition
                sends += journal.sends(self._journal.topic, number, [owned.state.in_force])
                owned.journaled = True
        return sends

    def _count(self, processed: list[Processed]) -> None:
        self._alerts += sum(len(one.outputs.alerts) for one in processed)
        self._dead_letters += sum(len(one.outputs.dead_letters) for one in processed)

    def _commit(self, sends: list[Send]) -> bool:
        """One atomic step of the bus; False when all state is dropped: ownership is lost, or time is up."""
        positions = {
            partition: owned.state.next_offset for partition, owned in self._owned.items() if owned.live
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
        if not owned.live or owned.state.next_offset == owned.stored_offset:
            return False
        behind = owned.state.next_offset - owned.tried_offset
        return now - owned.tried_at >= CHECKPOINT_S or behind >= CHECKPOINT_RECORDS

    def _checkpoint(self, *, every: bool) -> None:
        """Write the states that are due (or every one); their offsets are committed."""
        now = self._parts.clock()
        due = [
            owned
            for owned in self._owned.values()
            if owned.live
            and owned.state.next_offset != owned.stored_offset
            and (every or self._checkpoint_due(owned, now))
        ]
        self._note_journal(due)
        for owned in due:
            try:
                checkpoint(self._parts.store, owned, now)
                self._troubles.pop(_STORE, None)
            except StoreDown as error:
                # Detection goes on from memory; the commit holds, the next checkpoint carries more.
                self._tell(_STORE, f"{error}; detection goes on, checkpoints wait")

    def _note_journal(self, owned: Iterable[Owned]) -> None:
        """Let states know how far their journals are; all that is in them is committed."""
        behind = [each for each in owned if each.journaled]
        if not behind:
            return
        try:
            ends = self._journal.end_offsets()
        except BusDown:  # the next owner reads a little more of it
            return
        for each in behind:
            each.state.journal_offset = ends[each.partition.partition]
            each.journaled = False

    def _copy(self, changed: Iterable[Owned] = ()) -> None:
        """Take the snapshots that are due, and those of partitions where something else came into force."""
        now, chosen = self._parts.clock(), list(changed)
        for owned in self._owned.values():
            waited = now - owned.copied_at >= SNAPSHOT_S
            if owned.live and waited and owned.state.clock_ns - owned.copied_clock_ns >= SNAPSHOT_NS:
                chosen.append(owned)
        self._note_journal(chosen)
        for owned in chosen:
            state = owned.state
            owned.copied_clock_ns, owned.copied_at = state.clock_ns, now
            try:
                self._parts.snapshots.save(
                    owned.partition, state.topic_id, state.next_offset, state.clock_ns, state.pack(whole=True)
                )
                self._troubles.pop(_SNAPSHOT, None)
            except StoreDown as error:
                self._tell(_SNAPSHOT, f"{error}; detection goes on without this snapshot")

    def _bring_into_force(self) -> None:
        """Take control records in, between batches, once earlier owners' records are read."""
        now = self._parts.clock()
        ready = [owned for owned in self._owned.values() if not owned.rereading]
        arriving = [owned for owned in ready if not owned.live]
        if self._token is None or (now - self._looked_at < RETRY_S and not arriving):
            return
        self._looked_at = now
        view = self._control.look()
        forces = [owned.state.in_force for owned in ready]
        if any(force is not None and force.control_offset > view.next_offset for force in forces):
            self._control.refresh()  # a former owner has seen more of it
        changed = []
        for owned in ready:
            change = self._change(owned)
            if change.said or change.outputs.alerts:
                changed.append(change)
        for owned in arriving:
            owned.live = True  # its position is committed with what comes into force
        if self._say(changed):
            for owned in arriving:
                owned.past, owned.imposed, owned.rebuilt_from, owned.anew = Past(), None, None, False
                self._parts.bus.seek(owned.partition, owned.state.next_offset)

    def _change(self, owned: Owned) -> _Changed:
        """Bring into force what is wanted, and end what a rebuilt state knows nothing of."""
        if not owned.live:
            self._takeover.settle(owned)
        before, wanted, outputs = owned.state.in_force, self._wanted(owned), Outputs()
        said = not wanted.same(before) or (
            not owned.live and (owned.past.superseded or owned.rebuilt_from is not None)
        )
        if said or (owned.scorer is None) != (wanted.bundle_sha is None):
            outputs = self._takeover.bring(owned, wanted)
        if owned.anew and not owned.live:
            number, topic_id = owned.partition.partition, owned.state.topic_id
            published = self._journal.past(number, topic_id, owned.live_from).open
            lost = reconcile(owned.detector, owned.state, owned.partition, published)
            outputs.alerts += lost.alerts
            outputs.changes += lost.changes
        return _Changed(owned, before, outputs, said=said)

    def _wanted(self, owned: Owned) -> InForce:
        """What the control topic asks for; the model in use stays where another cannot be had."""
        view, name, before = self._control.view, self._parts.stream, owned.state.in_force
        policy_sha, bundle_sha = view.policies[name], view.champions.get(name)
        try:
            if bundle_sha is not None:
                self._shelf.scorer(bundle_sha, policy_sha)
            self._troubles.pop(_MODEL, None)
        except OffbeatError as error:
            self._tell(_MODEL, f"{error}; until then the worker goes on as it is")
            rows_as_before = self._shelf.detector(policy_sha).layout == owned.detector.layout
            in_use = before is not None and owned.scorer is not None and rows_as_before
            bundle_sha = before.bundle_sha if before is not None and in_use else None
        counts = before.partitions if before is not None else ()
        if not counts or self._partitions > counts[-1]:
            counts = (*counts, self._partitions)
        return InForce(
            topic_id=owned.state.topic_id,
            next_offset=owned.state.next_offset,
            control_offset=view.next_offset,
            bundle_sha=bundle_sha,
            policy_sha=policy_sha,
            partitions=counts,
            rebuilt_from=owned.rebuilt_from,
        )

    def _say(self, changed: list[_Changed]) -> bool:
        """Commit what came into force, and store from where on; False when all state is dropped."""
        if not changed:
            return True
        processed = [
            Processed(each.owned.partition, each.outputs, each.owned.state.names) for each in changed
        ]
        said = [each.owned for each in changed if each.said]
        if not self._commit(self._sends(processed, said)):
            return False
        self._count(processed)
        for each in changed:
            self._store_change(each)
        self._copy(each.owned for each in changed if each.worth_a_copy)
        for one in processed:
            if one.outputs.alerts:
                self._parts.observe(one)
        return True

    def _store_change(self, changed: _Changed) -> None:
        """Store the state under what is in force now; the journal has it already, should that fail."""
        owned, before, after = changed.owned, changed.before, changed.owned.state.in_force
        if before is None or after is None or after.same(before):
            return
        self._note_journal([owned])
        try:
            # A second write at one offset counts as a lost reply, unless it comes with a new claim.
            owned.claim = self._parts.store.claim(owned.partition)
            owned.stored_offset = None
            checkpoint(self._parts.store, owned, self._parts.clock())
        except StoreDown as error:
            self._tell(_STORE, f"{error}; detection goes on, checkpoints wait")
        if before.bundle_sha != after.bundle_sha:
            self._parts.notice(
                f"{owned.partition}: model {(after.bundle_sha or 'none')[:12]} from offset "
                f"{after.next_offset} on"
            )
        if before.policy_sha != after.policy_sha:
            self._parts.notice(
                f"{owned.partition}: policy {after.policy_sha[:12]} from offset {after.next_offset} on"
            )

    def _take_over(self) -> None:
        """Claim what is arriving; a partition whose state cannot be asked for stays paused."""
        now = self._parts.clock()
        if not self._arriving or now < self._retry_at:
            return
        for partition, assigned in list(self._arriving.items()):
            if self._journaled_partitions <= partition.partition:
                self._parts.admin.grow(self._journal.topic, partition.partition + 1)
                self._journaled_partitions = len(self._journal.end_offsets())
            try:
                owned = self._takeover.take(assigned, now)
            except (StoreDown, BusDown) as error:
                self._retry_at = now + RETRY_S
                doing = _STORE if isinstance(error, StoreDown) else _JOURNAL
                self._tell(doing, f"{error}; {partition} is taken over when it answers")
                return
            if owned.rereading:
                self._parts.bus.seek(partition, owned.state.next_offset)
            self._owned[partition] = owned
            self._ends.setdefault(partition, assigned.end_offset)
            del self._arriving[partition]
            self._looked_at = now - RETRY_S
        self._troubles.pop(_STORE, None)
        self._troubles.pop(_JOURNAL, None)

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
        for trouble in (_STORE, _JOURNAL):
            if trouble in self._troubles and (self._owned or self._arriving):
                return trouble, self._troubles[trouble]
        if not self._owned:
            return "standing by", "no partition is assigned to this worker yet"
        owned = list(self._owned.values())
        if left := sum(max(one.live_from - one.state.next_offset, 0) for one in owned):
            return "reading again", f"{left} records to read again before going live"
        if all(one.scorer is None for one in owned):
            return _MODEL, self._troubles.get(_MODEL) or self._model_needs(owned)
        return "live", self._troubles.get(_MODEL, "scoring")

    @staticmethod
    def _settings(owned: list[Owned]) -> Stream:
        return owned[0].detector.stream

    def _model_needs(self, owned: list[Owned]) -> str:
        """How far the stream is from being trained, and about how long it takes at the present rate."""
        need = TRAINING_WINDOWS * self._settings(owned).model.window
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
