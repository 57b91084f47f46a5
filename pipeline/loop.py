"""The loop of one worker: poll, detect, commit outputs and positions in one step, then checkpoint the state.

Order is what makes it exact (docs/exactly-once.md): alerts, dead letters and positions are one commit of the
bus; state is written after it, at an offset that is committed; no outputs are pending when it polls again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline import journal
from pipeline.adoption import reconcile
from pipeline.alerts import Alert, DeadLetter, Transition
from pipeline.config import Config
from pipeline.control import ControlLog
from pipeline.detect import Outputs
from pipeline.errors import BusDown, BusFull, OffbeatError, Refused, StoreDown, TooLarge, Unreadable
from pipeline.journal import Entry, InForce, JournalLog, Past
from pipeline.keeping import Keeper
from pipeline.ownership import Owned, Shelf, Takeover
from pipeline.ports import Admin, Bus, Models, Reader, Snapshots, StateStore
from pipeline.records import Assigned, RecordBatch, Send, Token, TopicPartition
from pipeline.status import BUS, DAMAGE, JOURNAL, MODEL, SIZE, STORE, Processed, Report, Status

MAX_RECORDS = 50_000
POLL_S = 0.2
COMMIT_S, COMMIT_RECORDS = 1.0, 100_000
RETRY_S = 1.0
"""Pause before a takeover is tried again, and between looks at the control topic."""


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """What is to come into force for a partition, and the open alerts that its state may know nothing of."""

    owned: Owned
    wanted: InForce
    published: Mapping[str, Transition]


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
        self._report = Report(name, parts.clock, parts.notice)
        self._keeper = Keeper(parts.store, parts.snapshots, self._journal, parts.clock, self._report)
        self._partitions = self._journaled_partitions = 0
        self._owned: dict[TopicPartition, Owned] = {}
        self._arriving: dict[TopicPartition, Assigned] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._token: Token | None = None
        self._uncommitted = 0
        self._committed_at = self._looked_at = self._retry_at = parts.clock()
        self._looked_at -= RETRY_S

    def turn(self) -> None:
        """One poll and all that follows from it; outside faults are waited out, never raised.

        Raises:
            OffbeatError: something that trying again cannot mend, such as a missing topic.
        """
        try:
            self._take_over()
            self._bring_into_force()
            polled = self._parts.bus.poll(self._parts.max_records, POLL_S)
        except (BusDown, BusFull, Unreadable) as error:
            self._wait_out(error)
            return
        self._report.mended(BUS)
        if polled.batches or polled.revoked:
            self._report.mended(DAMAGE)
        for partition in polled.revoked:
            self._drop(partition)
        for assigned in polled.assigned:
            self._drop(assigned.partition)
            self._arriving[assigned.partition] = assigned
        self._ends.update(polled.end_offsets)
        self._partitions = max([self._partitions, *(count for _, count in polled.partitions)])
        self._token = polled.token
        self._report.columnar = polled.columnar
        processed = [self._process(batch) for batch in polled.batches if batch.partition in self._owned]
        self._settle(processed)

    def stop(self) -> None:
        """Commit and checkpoint what is done; the caller closes the bus, which leaves the group."""
        if self._commit([]):
            self._keeper.checkpoint(self._live(), every=True)

    def status(self) -> Status:
        """What the worker is doing now."""
        return self._report.status(self._owned, self._arriving, self._ends)

    def _live(self) -> list[Owned]:
        return [owned for owned in self._owned.values() if owned.live]

    def _process(self, batch: RecordBatch) -> Processed:
        """Run the detect step; what earlier owners have committed gives no outputs."""
        owned = self._owned[batch.partition]
        outputs = Outputs()
        if owned.rereading:
            self._takeover.reread(owned, batch)
        elif owned.live:
            outputs = owned.detector.step(owned.state, batch, owned.scorer)
            self._report.scored(owned.state, outputs)
            self._uncommitted += max(len(batch), 1)
        return Processed(batch.partition, outputs, owned.state.names)

    def _settle(self, processed: list[Processed]) -> None:
        """Commit and checkpoint as the rules ask, then tell the observer."""
        sends = self._sends(processed)
        idle = self._parts.clock() - self._committed_at >= COMMIT_S and self._uncommitted
        due = self._keeper.due(self._live())
        if sends or due or idle or self._uncommitted >= COMMIT_RECORDS:
            if not self._commit(sends):
                return
            self._report.published(processed)
            self._keeper.checkpoint(self._live())
            self._keeper.copy(self._live())
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

    def _commit(self, sends: list[Send]) -> bool:
        """One atomic step of the bus; False when all state is dropped: ownership is lost, or time is up."""
        positions = {
            partition: owned.state.next_offset for partition, owned in self._owned.items() if owned.live
        }
        if self._token is None or not positions:
            return not sends
        wanted = sends
        while True:
            try:
                self._parts.bus.commit(self._token, positions, sends)
            except Refused as error:
                self._parts.notice(f"a commit was refused, partitions are taken over afresh: {error}")
                self._drop_all()
                return False
            except (BusDown, BusFull, TooLarge) as error:
                if isinstance(error, TooLarge) and (less := self._with_less(sends, error)):
                    sends = less
                # Outputs never wait across a poll: the worker stands here until they can be written.
                elif self._wait_out(error):
                    self._drop_all()
                    return False
                continue
            self._uncommitted, self._committed_at = 0, self._parts.clock()
            self._report.cut(wanted, sends)
            return True

    def _with_less(self, sends: Sequence[Send], refused: TooLarge) -> list[Send] | None:
        """The same with less in all that goes to the topic of a refused record; None where none is.

        Alerts without anything left to leave out become dead letters, if they are as large as that record.
        """
        config, topic, less = self._parts.config, refused.send.topic, dict[Send, Send]()
        kinds: dict[str, type[Alert | DeadLetter]] = {
            config.alerts_topic: Alert,
            config.dead_letters_topic: DeadLetter,
        }
        for send in sends:
            if send.topic == topic and topic in kinds:
                output = kinds[topic].model_validate_json(send.value or b"")
                smaller = output.with_less()
                if smaller is not None:
                    less[send] = smaller.send(topic)
                elif isinstance(output, Alert) and send.size >= refused.send.size:
                    less[send] = DeadLetter.of_alert(output, send).send(config.dead_letters_topic)
        if not less:
            return None
        self._report.trouble(
            SIZE + topic,
            f"{refused}; until then less evidence is published where one is too large, and a dead letter "
            "names an alert that is too large without any",
        )
        return [less.get(send, send) for send in sends]

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
        # All that may fail comes first: what is brought into force and not committed would be forgotten.
        asked = [self._ask(owned) for owned in ready]
        changed = [each for each in map(self._change, asked) if each.said or each.outputs.alerts]
        for owned in arriving:
            owned.live = True  # its position is committed with what comes into force
        if self._say(changed):
            for owned in arriving:
                owned.past, owned.imposed, owned.rebuilt_from, owned.anew = Past(), None, None, False
                self._parts.bus.seek(owned.partition, owned.state.next_offset)

    def _ask(self, owned: Owned) -> _Asked:
        """What is wanted of a partition, and, where its state was made anew, which alerts are open."""
        published: Mapping[str, Transition] = {}
        if not owned.live:
            self._takeover.settle(owned)
            if owned.anew:
                number, topic_id = owned.partition.partition, owned.state.topic_id
                published = self._journal.past(number, topic_id, owned.live_from).open
        return _Asked(owned, self._wanted(owned), published)

    def _change(self, asked: _Asked) -> _Changed:
        """Bring into force what is wanted, and end what a state that was made anew knows nothing of."""
        owned, wanted, outputs = asked.owned, asked.wanted, Outputs()
        before = owned.state.in_force
        said = not wanted.same(before) or (
            not owned.live and (owned.past.superseded or owned.rebuilt_from is not None)
        )
        if owned.anew and not owned.live:
            # First of all: what a policy ends is no more in the state, and is not lost.
            outputs = reconcile(owned.detector, owned.state, owned.partition, asked.published)
        if said or (owned.scorer is None) != (wanted.bundle_sha is None):
            ended = self._takeover.bring(owned, wanted)
            outputs.alerts += ended.alerts
            outputs.changes += ended.changes
        return _Changed(owned, before, outputs, said=said)

    def _wanted(self, owned: Owned) -> InForce:
        """What the control topic asks for; what is in use stays where another model cannot be had."""
        view, before = self._control.view, owned.state.in_force
        policy_sha, bundle_sha = self._takeover.policy(), view.champions.get(self._parts.stream)
        self._must_read(self._shelf.detector(policy_sha).stream.topic)
        try:
            if bundle_sha is not None:
                self._shelf.scorer(bundle_sha, policy_sha)
            self._report.mended(MODEL)
        except OffbeatError as error:
            about = bundle_sha, policy_sha, type(error)  # each champion that cannot be had is told of
            self._report.trouble(MODEL, f"{error}; until then the worker goes on as it is", about)
            bundle_sha, policy_sha = self._instead(owned, policy_sha)
        counts = before.partitions if before is not None else ()
        now = max(self._partitions, owned.partition.partition + 1)
        if not counts or now > counts[-1]:
            counts = (*counts, now)
        return InForce(
            topic_id=owned.state.topic_id,
            next_offset=owned.state.next_offset,
            control_offset=view.next_offset,
            bundle_sha=bundle_sha,
            policy_sha=policy_sha,
            decided=view.decided(self._parts.stream),
            partitions=counts,
            rebuilt_from=owned.rebuilt_from,
        )

    def _instead(self, owned: Owned, policy_sha: str) -> tuple[str | None, str]:
        """Model and policy where the champion cannot be had: a model in use fits no rows made otherwise."""
        before = owned.state.in_force
        if before is None or owned.scorer is None or before.bundle_sha is None:
            return None, policy_sha
        if self._shelf.detector(policy_sha).layout != owned.detector.layout:
            return None, policy_sha
        try:
            self._shelf.scorer(before.bundle_sha, policy_sha)
        except OffbeatError:  # nor can the one in use be had for other rules
            policy_sha = before.policy_sha
        return before.bundle_sha, policy_sha

    def _must_read(self, topic: str) -> None:
        stream = self._parts.config.stream(self._parts.stream)
        if topic != stream.topic:
            raise OffbeatError(
                f"the policy in force for stream {self._parts.stream!r} reads the topic {topic!r}, and this "
                f"worker {stream.topic!r}; start it again with the configuration that was applied"
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
        self._report.published(processed)
        for each in changed:
            if each.before is not None:
                self._keeper.store_change(each.owned, each.before)
        self._keeper.copy(self._live(), [each.owned for each in changed if each.worth_a_copy])
        for one in processed:
            if one.outputs.alerts:
                self._parts.observe(one)
        return True

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
            except (StoreDown, BusDown, Unreadable) as error:
                self._retry_at = now + RETRY_S
                doing = STORE if isinstance(error, StoreDown) else JOURNAL
                self._report.trouble(doing, f"{error}; {partition} is taken over when it answers")
                return
            if owned.rereading:
                self._parts.bus.seek(partition, owned.state.next_offset)
            self._owned[partition] = owned
            self._ends.setdefault(partition, assigned.end_offset)
            del self._arriving[partition]
            self._looked_at = now - RETRY_S
        self._report.mended(STORE)
        self._report.mended(JOURNAL)

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
        self._report.trouble(DAMAGE if isinstance(error, Unreadable) else BUS, str(error))
        return self._parts.wait(RETRY_S) is True
