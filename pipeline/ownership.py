"""What a worker holds of a partition: its state, the claim on what is stored of it, how it came by both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.detect import Detector
from pipeline.errors import OffbeatError
from pipeline.ports import Models, PutResult, Scorer, StateStore
from pipeline.records import Assigned, Claim, TopicPartition
from pipeline.series import PartitionState

REBUILD_RECORDS = 2_000_000
"""Records read again, at most, where nothing usable is stored: several half-lives of any threshold."""
_KEPT_SCORERS = 3


@dataclass(slots=True, eq=False)
class Owned:
    """A partition in this worker's hands.

    Attributes:
        claim: proof towards the store.
        state: everything up to ``state.next_offset``.
        live_from: records below it were committed by an earlier owner: they are read again in silence.
        stored_offset: what the store holds, None when nothing.
        tried_offset, tried_at: where and when a write was last tried, on the loop's clock.
        scorer: of the bundle that the state belongs to.
    """

    claim: Claim
    state: PartitionState
    live_from: int
    stored_offset: int | None
    tried_offset: int
    tried_at: float
    scorer: Scorer | None

    @property
    def rereading(self) -> bool:
        """Whether earlier owners' records are still being read again."""
        return self.state.next_offset < self.live_from


class ScorerCache:
    """The few scorers that a worker needs at once."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._kept: dict[str, Scorer] = {}

    def champion(self) -> str | None:
        """As :meth:`pipeline.ports.Models.champion`."""
        return self._models.champion()

    def get(self, bundle_id: str) -> Scorer:
        """As :meth:`pipeline.ports.Models.scorer`, without loading twice."""
        if bundle_id not in self._kept:
            scorer = self._models.scorer(bundle_id)
            while len(self._kept) >= _KEPT_SCORERS:
                del self._kept[next(iter(self._kept))]
            self._kept[bundle_id] = scorer
        return self._kept[bundle_id]


@dataclass(frozen=True, slots=True)
class Takeover:
    """How partitions are taken over; see docs/exactly-once.md for every case."""

    detector: Detector
    store: StateStore
    scorers: ScorerCache
    start: str
    notice: Callable[[str], None]

    def take(self, assigned: Assigned, now: float) -> Owned:
        """Claim a partition and find the state to go on from; the caller seeks to its ``next_offset``.

        Raises:
            StoreDown: the store cannot be asked; "not reachable" is never taken for "nothing stored".
        """
        claim = self.store.claim(assigned.partition)
        state = PartitionState.unpack(self.detector.layout, claim.rows) if claim.rows is not None else None
        again = state is not None and state.topic_id != assigned.topic_id
        live_from = self._live_from(assigned, again=again)
        unfit = self._unfit(assigned, claim, state, live_from)
        if unfit is None and state is not None:
            scorer = self._scorer(assigned.partition, state.bundle_id)
            if scorer is not None and state.bundle_id is not None:
                state.adopt(scorer, state.bundle_id)
            return Owned(claim, state, live_from, claim.next_offset, state.next_offset, now, scorer)
        if unfit:
            self.notice(f"{assigned.partition}: {unfit}")
            claim = self.store.claim(assigned.partition, reset=True)
        return self._rebuild(assigned, claim, live_from, now)

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
    def _unfit(assigned: Assigned, claim: Claim, state: PartitionState | None, live_from: int) -> str | None:
        """Why what is stored cannot be used; None when it can, or when there is nothing."""
        if claim.rows is None:
            return None
        if state is None:
            return "the stored state has another window, feature set or schema version; it is rebuilt"
        if state.topic_id != assigned.topic_id:
            return "the stored state belongs to a topic that was deleted; it is rebuilt"
        if state.next_offset > live_from:
            return (
                f"the stored state is at {state.next_offset}, the group was set back to {live_from}; rebuilt"
            )
        if state.next_offset < assigned.first_offset:
            return f"retention overtook the stored state at {state.next_offset}; it is rebuilt"
        return None

    def _scorer(self, partition: TopicPartition, bundle_id: str | None) -> Scorer | None:
        """The scorer that read the records before; without it the champion takes over where they end."""
        if bundle_id is None:
            return None
        try:
            return self.scorers.get(bundle_id)
        except OffbeatError as error:
            self.notice(
                f"{partition}: the bundle of the stored state is not usable ({error}); rows only fill windows"
            )
            return None

    def _champion(self, partition: TopicPartition) -> str | None:
        try:
            return self.scorers.champion()
        except OffbeatError as error:
            self.notice(f"{partition}: {error}; rows only fill windows")
            return None

    def _rebuild(self, assigned: Assigned, claim: Claim, live_from: int, now: float) -> Owned:
        """Nothing usable is stored: read what is retained again, in silence, with today's champion."""
        first = max(assigned.first_offset, live_from - REBUILD_RECORDS)
        state = self.detector.fresh(assigned.topic_id, first)
        bundle_id = self._champion(assigned.partition)
        scorer = self._scorer(assigned.partition, bundle_id)
        if scorer is not None and bundle_id is not None:
            state.adopt(scorer, bundle_id)
        if first < live_from:
            self.notice(
                f"{assigned.partition}: no stored state; reading {live_from - first} records again in silence"
            )
        return Owned(claim, state, live_from, None, first, now, scorer)


def checkpoint(store: StateStore, owned: Owned, now: float) -> PutResult:
    """Write the state, whose offset must be committed; whole where a delta does not fit.

    Raises:
        StoreDown: not written; the state stays dirty, and the next checkpoint carries it.
    """
    state = owned.state
    whole = owned.stored_offset is None
    owned.tried_offset, owned.tried_at = state.next_offset, now
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
            whole = True
            continue
        return result
