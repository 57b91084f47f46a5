"""What a worker holds of a partition: its state, the claim on what is stored of it, how it came by both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pipeline.adoption import adopt
from pipeline.control import ControlLog, Decisions
from pipeline.detect import Detector, Imposed, Outputs
from pipeline.errors import OffbeatError
from pipeline.journal import Entry, InForce, JournalLog, Past
from pipeline.ports import Models, PutResult, Scorer, Snapshots, StateStore
from pipeline.records import Assigned, Claim, PackedRows, RecordBatch, TopicPartition
from pipeline.series import Header, PartitionState

REBUILD_RECORDS = 2_000_000
"""Records read again, at most, where nothing usable is stored: several half-lives of any threshold."""
_KEPT_SCORERS = 3


@dataclass(slots=True, eq=False)
class Owned:
    """A partition in this worker's hands.

    Attributes:
        claim: proof towards the store.
        state: everything up to ``state.next_offset``.
        detector, scorer: of the policy and the bundle in force there.
        past: what the journal says of the records below ``live_from``.
        imposed: the alert changes among them that the state does not hold yet; None where it judges itself.
        live_from: records below it were committed by an earlier owner: they are read again in silence.
        stored_offset: what the store holds, None when nothing.
        tried_offset, tried_at: where and when a write was last tried, on the loop's clock.
        rest_until: no other is tried before, unless the partition is handed over.
        rebuilt_from: the state does not rest on all that came before, but on records from here on.
        anew: the journal may know of open alerts that the state does not.
        live: what is in force is settled, and records from ``live_from`` on are worked on.
        journaled: the journal holds entries of ours behind ``state.journal_offset``.
        copied_clock_ns, copied_at: the partition clock and the loop's when a snapshot was last tried.
    """

    claim: Claim
    state: PartitionState
    detector: Detector
    scorer: Scorer | None
    past: Past
    imposed: Imposed | None
    live_from: int
    stored_offset: int | None
    tried_offset: int
    tried_at: float
    copied_clock_ns: int
    copied_at: float
    rebuilt_from: int | None = None
    anew: bool = False
    live: bool = False
    rest_until: float = -math.inf
    journaled: bool = field(default=False)

    @property
    def partition(self) -> TopicPartition:
        """The partition."""
        return self.claim.partition

    @property
    def rereading(self) -> bool:
        """Whether earlier owners' records are still being read again."""
        return self.state.next_offset < self.live_from


class Shelf:
    """The detect steps and scorers that a worker needs, by policy and bundle."""

    def __init__(self, namespace: str, stream: str, control: ControlLog, models: Models) -> None:
        self._namespace, self._stream = namespace, stream
        self._control, self._models = control, models
        self._detectors: dict[str, Detector] = {}
        self._scorers: dict[tuple[str, str], Scorer] = {}

    def knows(self, policy_sha: str) -> bool:
        """Whether the control topic has this policy; one decided since it was read is looked up.

        An owner that does not know yet that it is one no more meets what its successor brought into force.

        Raises:
            BusDown: the bus cannot be reached.
        """
        if policy_sha not in self._control.view.settings:
            self._control.refresh()
        return policy_sha in self._control.view.settings

    def detector(self, policy_sha: str) -> Detector:
        """The detect step under a policy.

        Raises:
            OffbeatError: the control topic does not have it.
        """
        if policy_sha not in self._detectors:
            if not self.knows(policy_sha):
                raise OffbeatError(
                    f"the journal of stream {self._stream!r} names the policy {policy_sha[:12]}, which the "
                    "control topic does not have; was the control topic deleted? It is kept for ever"
                )
            settings = self._control.view.settings[policy_sha]
            self._detectors[policy_sha] = Detector(self._namespace, self._stream, settings)
        return self._detectors[policy_sha]

    def decisions(self, decided: int) -> Decisions:
        """What people decided, up to an offset of the control topic; one behind what was read is looked up.

        Raises:
            BusDown: the bus cannot be reached.
        """
        if decided > self._control.view.next_offset:
            self._control.refresh()
        return self._control.view.decisions(self._stream, decided)

    def scorer(self, bundle_sha: str, policy_sha: str) -> Scorer:
        """The scorer of a bundle for rows under a policy, without loading twice.

        Raises:
            NotFound, BundleError: as :meth:`pipeline.ports.Models.scorer`.
        """
        key = bundle_sha, policy_sha
        if key not in self._scorers:
            scorer = self._models.scorer(bundle_sha, self.detector(policy_sha).stream)
            while len(self._scorers) >= _KEPT_SCORERS:
                del self._scorers[next(iter(self._scorers))]
            self._scorers[key] = scorer
        return self._scorers[key]


@dataclass(frozen=True, slots=True)
class _Restored:
    """A state that was stored."""

    state: PartitionState
    detector: Detector


@dataclass(frozen=True, slots=True)
class Takeover:
    """How partitions are taken over; see docs/exactly-once.md for every case."""

    stream: str
    start: str
    store: StateStore
    snapshots: Snapshots
    control: ControlLog
    journal: JournalLog
    shelf: Shelf
    notice: Callable[[str], None]

    def take(self, assigned: Assigned, now: float) -> Owned:
        """Claim a partition and find the state to go on from; the caller seeks to its ``next_offset``.

        Raises:
            StoreDown: the store cannot be asked; "not reachable" is never taken for "nothing stored".
            BusDown: the control topic or the journal cannot be read now.
        """
        self.control.refresh()
        number = assigned.partition.partition
        claim = self.store.claim(assigned.partition)
        stored = self._restored(claim.rows)
        entries, _ = self.journal.entries(number, 0 if stored is None else stored.state.journal_offset)
        live_from = self._live_from(assigned, again=_made_again(assigned, stored, entries))
        unfit = self._unfit(assigned, claim, stored, live_from)
        if unfit is not None:
            self.notice(f"{assigned.partition}: {unfit}")
            claim, stored = self.store.claim(assigned.partition, reset=True), None
        stored_offset = None if stored is None else stored.state.next_offset
        past = self._past(assigned, live_from, 0 if stored is None else stored.state.journal_offset)
        stored = stored or self._from_snapshot(assigned, past, live_from)
        if stored is None:
            return self._rebuild(assigned, claim, past, live_from, now)
        state = stored.state
        owned = Owned(
            claim, state, stored.detector, None, past, past.imposed(state.next_offset), live_from,
            stored_offset, state.next_offset, now, state.clock_ns, now,
        )  # fmt: skip
        if state.in_force is not None:
            for change in past.due(state.in_force, state.next_offset) or [state.in_force]:
                self.bring(owned, change)
        return owned

    def reread(self, owned: Owned, batch: RecordBatch) -> None:
        """Read records of earlier owners again, each under what was in force for it then."""
        batch = batch.before(owned.live_from)
        while batch.next_offset > owned.state.next_offset:
            self.settle(owned)
            boundary = owned.past.boundary(owned.state.next_offset) or batch.next_offset
            owned.detector.step(owned.state, batch.before(boundary), owned.scorer, owned.imposed)
            batch = batch.since(boundary)

    def settle(self, owned: Owned) -> None:
        """Bring into force what the journal says for the next record."""
        for change in owned.past.due(owned.state.in_force, owned.state.next_offset):
            self.bring(owned, change)

    def bring(self, owned: Owned, change: InForce) -> Outputs:
        """Bring something into force at the state's offset."""
        owned.detector = self.shelf.detector(change.policy_sha)
        owned.scorer = None
        if change.bundle_sha is not None:
            try:
                owned.scorer = self.shelf.scorer(change.bundle_sha, change.policy_sha)
            except OffbeatError as error:
                self.notice(
                    f"{owned.partition}: the bundle that records were read with is not usable ({error}); "
                    "rows only fill windows"
                )
                owned.anew, owned.rebuilt_from = True, owned.state.next_offset
        before = owned.state
        layout = before.layout
        decisions = self.shelf.decisions(change.decided)
        owned.state, outputs = adopt(
            owned.detector, before, owned.partition, change, owned.scorer, decisions=decisions
        )
        if owned.state.layout != layout:
            owned.stored_offset = None  # rows of another layout: no delta fits on them
        return outputs

    def _restored(self, rows: PackedRows | None) -> _Restored | None:
        """The state in stored rows; None where it is none of this version, or of an unknown policy."""
        header = Header.of(rows) if rows is not None else None
        if rows is None or header is None:
            return None
        policy_sha = header.in_force.policy_sha if header.in_force else self.policy()
        if not self.shelf.knows(policy_sha):
            return None
        detector = self.shelf.detector(policy_sha)
        state = PartitionState.unpack(detector.layout, rows)
        return None if state is None else _Restored(state, detector)

    def policy(self) -> str:
        """The policy that the control topic has for the stream.

        Raises:
            OffbeatError: it has none.
        """
        policy_sha = self.control.view.policies.get(self.stream)
        if policy_sha is None:
            raise OffbeatError(
                f"stream {self.stream!r} has no policy on the control topic; `offbeat config apply` writes it"
            )
        return policy_sha

    def _live_from(self, assigned: Assigned, *, again: bool) -> int:
        """K: the first record that no owner has committed."""
        committed, first = assigned.committed_offset, assigned.first_offset
        if committed is None:
            return assigned.end_offset if self.start == "latest" else first
        if again or committed > assigned.end_offset:
            self.notice(
                f"{assigned.partition}: the topic was made again; reading the new one from its first record"
            )
            return first
        if committed < first:
            self.notice(
                f"{assigned.partition}: retention deleted the records {committed} to {first - 1} before "
                "they were read; give the topic a longer retention or add workers"
            )
            return first
        return committed

    @staticmethod
    def _unfit(assigned: Assigned, claim: Claim, stored: _Restored | None, live_from: int) -> str | None:
        """Why what is stored cannot be used; None when it can, or when there is nothing."""
        if claim.rows is None:
            return None
        if stored is None:
            return "the stored state is of another version, or of a policy that is not known; it is rebuilt"
        state = stored.state
        if state.topic_id != assigned.topic_id:
            return "the stored state belongs to a topic that was deleted; it is rebuilt"
        if state.next_offset > live_from:
            return (
                f"the stored state is at {state.next_offset}, the group was set back to {live_from}; rebuilt"
            )
        if state.next_offset < assigned.first_offset:
            return f"retention overtook the stored state at {state.next_offset}; it is rebuilt"
        return None

    def _from_snapshot(self, assigned: Assigned, past: Past, live_from: int) -> _Restored | None:
        def fits(rows: PackedRows) -> bool:
            stored = self._restored(rows)
            if stored is None or stored.state.next_offset < assigned.first_offset:
                return False
            return past.leads_to(stored.state.in_force, stored.state.next_offset)

        rows = self.snapshots.newest(assigned.partition, assigned.topic_id, live_from, fits)
        stored = self._restored(rows)
        if stored is not None:
            self.notice(
                f"{assigned.partition}: no stored state that can be used; going on from the snapshot at "
                f"{stored.state.next_offset}, {live_from - stored.state.next_offset} records are read again"
            )
        return stored

    def _past(self, assigned: Assigned, live_from: int, first_offset: int) -> Past:
        number = assigned.partition.partition
        past = self.journal.past(number, assigned.topic_id, live_from, first_offset)
        if past.superseded:
            self.snapshots.drop_after(assigned.partition, assigned.topic_id, live_from)
        return past

    def _rebuild(self, assigned: Assigned, claim: Claim, past: Past, live_from: int, now: float) -> Owned:
        """Nothing usable is stored: read what is retained again, in silence, as the journal says."""
        partition = assigned.partition
        first = max(assigned.first_offset, live_from - REBUILD_RECORDS)
        begin = past.at(first) or (past.changes[0] if past.changes else None)
        policy_sha = self.policy() if begin is None else begin.policy_sha
        detector = self.shelf.detector(policy_sha)
        state = detector.fresh(assigned.topic_id, first)
        exact = _whole(past, first) or (first == live_from and not past.changes)
        # Episodes of a state that lacks what came before are its own: nothing can be imposed on them.
        imposed = past.imposed(first) if exact else None
        owned = Owned(
            claim, state, detector, None, past, imposed, live_from, None, first, now,
            state.clock_ns, now, rebuilt_from=None if exact else first, anew=True,
        )  # fmt: skip
        if first < live_from:
            self.notice(f"{partition}: no stored state; reading {live_from - first} records again in silence")
        if begin is not None:
            self.bring(owned, begin)
        elif (bundle_sha := self.control.view.champions.get(self.stream)) is not None:
            self._warm(owned, bundle_sha, policy_sha)
        return owned

    def _warm(self, owned: Owned, bundle_sha: str, policy_sha: str) -> None:
        """Records from before the first owner teach today's champion."""
        try:
            owned.scorer = self.shelf.scorer(bundle_sha, policy_sha)
        except OffbeatError as error:
            self.notice(f"{owned.partition}: {error}; rows only fill windows")
        else:
            owned.state.adopt(owned.scorer, bundle_sha)


def _made_again(assigned: Assigned, stored: _Restored | None, entries: Iterable[Entry]) -> bool:
    """Whether what is known of the partition is of a topic that was deleted."""
    known = [each.topic_id for each in entries if isinstance(each, InForce)]
    if not known and stored is not None:
        known = [stored.state.topic_id]
    return bool(known) and known[-1] != assigned.topic_id


def _whole(past: Past, first: int) -> bool:
    """Whether a state made from records of ``first`` on is the one that owners had from their beginning."""
    if not past.changes or past.changes[0].next_offset != first:
        return False
    return all(each.rebuilt_from is None for each in past.changes)


def checkpoint(
    store: StateStore, owned: Owned, now: float, notice: Callable[[str], None] = lambda _: None
) -> PutResult:
    """Write the state, whose offset must be committed; whole where a delta does not fit, which is told.

    Raises:
        StoreDown: not written; the state stays dirty, and the next checkpoint carries it.
    """
    state = owned.state
    whole = owned.stored_offset is None
    owned.tried_offset, owned.tried_at = state.next_offset, now
    if whole:
        # A second write at one offset counts as a lost reply, unless it comes with a new claim.
        owned.claim = store.claim(owned.partition)
    while True:
        result = store.put(
            owned.claim, owned.stored_offset or 0, state.next_offset, state.pack(whole=whole), whole=whole
        )
        if result is PutResult.OK:
            state.stored()
            owned.stored_offset = state.next_offset
        elif result is PutResult.STALE_EPOCH and not whole:
            # The bus says who owns a partition; an evicted worker may have claimed it in passing.
            owned.claim, whole = store.claim(owned.claim.partition), True
            continue
        elif result is PutResult.NEED_WHOLE and not whole:
            notice(
                f"{owned.partition}: the state server does not hold what it last confirmed (it lost data, or "
                "an answer of it got lost); the whole state is written again"
            )
            whole = True
            continue
        return result
