"""When the state of owned partitions is written: checkpoints to the store, copies to the snapshots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipeline.errors import BusDown, StoreDown
from pipeline.journal import InForce, JournalLog
from pipeline.ownership import Owned, checkpoint
from pipeline.ports import Snapshots, StateStore
from pipeline.status import SNAPSHOTS, STORE, Report

CHECKPOINT_S, CHECKPOINT_RECORDS = 5.0, 1_000_000
CHECKPOINT_SHARE = 0.2
"""Of a worker's time that writing one partition's state may take: with very many series that is seconds, and
reading records again takes less."""
SNAPSHOT_NS = 15 * 60 * 1_000_000_000
"""A snapshot after so much of the partition clock ..."""
SNAPSHOT_S = 30.0
"""... and never sooner: a year that is read in a minute is worth two."""


@dataclass(frozen=True, slots=True)
class Keeper:
    """Writes states whose offsets are committed. What cannot be written now is written with the next."""

    store: StateStore
    snapshots: Snapshots
    journal: JournalLog
    clock: Callable[[], float]
    report: Report

    def due(self, live: Iterable[Owned]) -> bool:
        """Whether a checkpoint is due, before which positions have to be committed."""
        now = self.clock()
        return any(_due(owned, now) for owned in live)

    def checkpoint(self, live: Iterable[Owned], *, every: bool = False) -> None:
        """Write the states that are due (or every one that changed)."""
        now = self.clock()
        chosen = [
            owned
            for owned in live
            if owned.state.next_offset != owned.stored_offset and (every or _due(owned, now))
        ]
        self._note_journal(chosen)
        for owned in chosen:
            began = self.clock()
            try:
                checkpoint(self.store, owned, now, self.report.notice)
                self.report.mended(STORE)
            except StoreDown as error:
                # Detection goes on from memory; the commit holds, the next checkpoint carries more.
                self.report.trouble(STORE, f"{error}; detection goes on, checkpoints wait")
            ended = self.clock()
            owned.rest_until = ended + (ended - began) * (1 / CHECKPOINT_SHARE - 1)

    def store_change(self, owned: Owned, before: InForce) -> None:
        """Store the state under what is in force now; the journal has it already, should that fail."""
        after = owned.state.in_force
        if after is None or after.same(before):
            return
        self._note_journal([owned])
        owned.stored_offset = None  # what is stored may be of this offset, and is not this state
        try:
            checkpoint(self.store, owned, self.clock())
        except StoreDown as error:
            self.report.trouble(STORE, f"{error}; detection goes on, checkpoints wait")
        at = f"from offset {after.next_offset} on"
        if before.bundle_sha != after.bundle_sha:
            self.report.notice(f"{owned.partition}: model {(after.bundle_sha or 'none')[:12]} {at}")
        if before.policy_sha != after.policy_sha:
            self.report.notice(f"{owned.partition}: policy {after.policy_sha[:12]} {at}")

    def copy(self, live: Iterable[Owned], changed: Sequence[Owned] = ()) -> None:
        """Take the snapshots that are due, and those of partitions where something else came into force."""
        now = self.clock()
        chosen = [
            *changed,
            *(
                owned
                for owned in live
                if now - owned.copied_at >= SNAPSHOT_S
                and owned.state.clock_ns - owned.copied_clock_ns >= SNAPSHOT_NS
            ),
        ]
        self._note_journal(chosen)
        for owned in chosen:
            state = owned.state
            owned.copied_clock_ns, owned.copied_at = state.clock_ns, now
            try:
                rows = state.pack(whole=True)
                self.snapshots.save(owned.partition, state.topic_id, state.next_offset, state.clock_ns, rows)
                self.report.mended(SNAPSHOTS)
            except StoreDown as error:
                self.report.trouble(SNAPSHOTS, f"{error}; detection goes on without this snapshot")

    def _note_journal(self, owned: Iterable[Owned]) -> None:
        """Let states know how far their journals are; all that is in them is committed."""
        behind = [each for each in owned if each.journaled]
        if not behind:
            return
        try:
            ends = self.journal.end_offsets()
        except BusDown:  # the next owner reads a little more of it
            return
        for each in behind:
            each.state.journal_offset = ends[each.partition.partition]
            each.journaled = False


def _due(owned: Owned, now: float) -> bool:
    if owned.state.next_offset == owned.stored_offset or now < owned.rest_until:
        return False
    behind = owned.state.next_offset - owned.tried_offset
    return now - owned.tried_at >= CHECKPOINT_S or behind >= CHECKPOINT_RECORDS
