"""Takeover: every line of the table in docs/exactly-once.md, on a real store."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from redis import Redis
from working import AT, NORMAL, ODD, STREAM, Desk, Plant, assert_exactly_once, plant_at, settings

from pipeline.bus.sqlite import SqliteBroker
from pipeline.config import Config, Stream
from pipeline.control import ControlLog
from pipeline.detect import Detector
from pipeline.errors import OffbeatError
from pipeline.journal import Entry, InForce, JournalLog, Past, sends
from pipeline.ownership import REBUILD_RECORDS, Owned, Shelf, Takeover, checkpoint
from pipeline.ports import PutResult
from pipeline.records import Assigned, TopicSpec
from pipeline.series import PartitionState
from pipeline.state.embedded import EmbeddedServer
from pipeline.state.redis import RedisStore
from pipeline.state.snapshots import FolderSnapshots
from pipeline.testing import FakeScorer


@dataclass
class Case:
    """A store, and takeovers from it, on a bus of their own."""

    store: RedisStore
    broker: SqliteBroker
    folder: Path
    notices: list[str] = field(default_factory=list)
    config: Config = field(default_factory=settings)

    def __post_init__(self) -> None:
        self.broker.admin().create([TopicSpec(self.config.journal_topic(STREAM), 1)])
        self.desk = Desk(self.broker, self.config)
        self.desk.promote("bundle-1")
        self.policy = self.desk.apply()
        self.snapshots = FolderSnapshots(str(self.folder), namespace="test", stream=STREAM)
        self.producer = self.broker.producer()

    def detector(self) -> Detector:
        return Detector("test", STREAM, self.config.stream(STREAM))

    def in_force(
        self,
        offset: int,
        bundle_id: str | None = "bundle-1",
        topic_id: str = "topic-1",
        rebuilt_from: int | None = None,
    ) -> InForce:
        return InForce(
            topic_id=topic_id,
            next_offset=offset,
            control_offset=0,
            bundle_sha=bundle_id,
            policy_sha=self.policy,
            partitions=(1,),
            rebuilt_from=rebuilt_from,
        )

    def journal(self, *entries: Entry) -> None:
        """Earlier owners wrote these entries."""
        self.producer.send(sends(self.config.journal_topic(STREAM), 0, entries))
        self.producer.flush()

    def state(
        self, offset: int, bundle_id: str | None = "bundle-1", topic_id: str = "topic-1"
    ) -> PartitionState:
        state = self.detector().fresh(topic_id, offset)
        state.counters.bins[0] = offset
        state.in_force = self.in_force(0, bundle_id, topic_id)
        if bundle_id is not None:
            state.adopt(FakeScorer(), bundle_id)
        return state

    def keep(self, offset: int, *, bundle_id: str | None = "bundle-1", topic_id: str = "topic-1") -> None:
        """An earlier owner stored its state at R."""
        state = self.state(offset, bundle_id, topic_id)
        owned = Owned(
            self.store.claim(AT), state, self.detector(), None, Past(), {}, 0, None, 0, 0.0, 0, 0.0
        )  # fmt: skip
        assert checkpoint(self.store, owned, 0.0) is PutResult.OK

    def copy(self, offset: int, topic_id: str = "topic-1") -> None:
        """An earlier owner left a snapshot."""
        state = self.state(offset, topic_id=topic_id)
        self.snapshots.save(AT, topic_id, offset, offset, state.pack(whole=True))

    def take(
        self,
        committed: int | None,
        *,
        first: int = 0,
        end: int = 1_000,
        topic_id: str = "topic-1",
        start: str = "earliest",
    ) -> Owned:
        return self.takeover(start).take(Assigned(AT, first, end, committed, topic_id), 50.0)

    def takeover(self, start: str = "earliest") -> Takeover:
        reader = self.broker.reader()
        control = ControlLog(reader, self.config.control_topic)
        shelf = Shelf("test", STREAM, control, self.desk.shelf)
        return Takeover(
            STREAM,
            start,
            self.store,
            self.snapshots,
            control,
            JournalLog(reader, self.config.journal_topic(STREAM)),
            shelf,
            self.notices.append,
        )


@pytest.fixture
def case(valkey_url: str, tmp_path: Path) -> Iterator[Case]:
    with Redis.from_url(valkey_url) as client:
        client.flushall()
    store = RedisStore(valkey_url, namespace="test", stream=STREAM)
    with closing(store), closing(SqliteBroker("sqlite://")) as broker:
        yield Case(store, broker, tmp_path)


def assert_rebuilt(owned: Owned, *, first: int, live_from: int) -> None:
    """Nothing of the stored state is left, here and in the store."""
    assert (owned.state.next_offset, owned.live_from) == (first, live_from)
    assert owned.state.counters.records_read == 0
    assert owned.stored_offset is None


def test_stored_state_is_brought_up_to_the_committed_offset_in_silence(case: Case) -> None:
    case.keep(100)

    owned = case.take(140)

    assert (owned.state.next_offset, owned.stored_offset, owned.live_from) == (100, 100, 140)
    assert owned.rereading
    assert owned.state.counters.records_read == 100
    assert case.notices == []


def test_stored_state_at_the_committed_offset_goes_on_at_once(case: Case) -> None:
    case.keep(140)

    owned = case.take(140)

    assert (owned.state.next_offset, owned.live_from, owned.rereading) == (140, 140, False)


def test_what_was_read_with_a_bundle_is_read_again_with_it_though_there_is_a_new_champion(
    case: Case,
) -> None:
    case.keep(100)
    case.desk.promote("bundle-2")

    owned = case.take(140)

    assert owned.state.bundle_id == "bundle-1"
    assert owned.scorer is case.desk.shelf.bundles["bundle-1"]


def test_what_was_read_without_a_bundle_is_read_again_without(case: Case) -> None:
    case.keep(100, bundle_id=None)

    owned = case.take(140)

    assert (owned.state.bundle_id, owned.scorer) == (None, None)


def test_a_bundle_that_is_gone_leaves_the_rows_to_fill_windows(case: Case) -> None:
    case.keep(100, bundle_id="bundle-of-old")

    owned = case.take(140)

    assert (owned.state.next_offset, owned.scorer) == (100, None)
    assert "bundle-of-old" in case.notices[0]


def test_nothing_stored_means_all_that_is_retained_in_silence_with_todays_champion(case: Case) -> None:
    owned = case.take(140, first=10)

    assert_rebuilt(owned, first=10, live_from=140)
    assert owned.state.bundle_id == "bundle-1"
    assert "reading 130 records again" in case.notices[0]


def test_no_more_is_read_again_than_it_takes(case: Case) -> None:
    owned = case.take(REBUILD_RECORDS + 700, end=REBUILD_RECORDS + 900)

    assert_rebuilt(owned, first=700, live_from=REBUILD_RECORDS + 700)


def test_without_a_usable_champion_windows_are_rebuilt_all_the_same(case: Case) -> None:
    case.desk.promote("bundle-of-nobody", missing=True)

    owned = case.take(140)

    assert_rebuilt(owned, first=0, live_from=140)
    assert owned.scorer is None
    assert "there is no bundle bundle-of-nobody" in " ".join(case.notices)


def test_a_group_that_was_set_back_has_its_state_rebuilt(case: Case) -> None:
    case.keep(100)

    owned = case.take(60)

    assert_rebuilt(owned, first=0, live_from=60)
    assert "the stored state is at 100, the group was set back to 60" in case.notices[0]
    assert case.store.peek(AT) is None


def test_a_state_that_retention_overtook_is_rebuilt(case: Case) -> None:
    case.keep(100)

    owned = case.take(140, first=120)

    assert_rebuilt(owned, first=120, live_from=140)
    assert "retention overtook the stored state at 100" in case.notices[0]


def test_a_state_of_a_policy_that_nobody_knows_is_rebuilt(case: Case) -> None:
    known, case.policy = case.policy, "f" * 64
    case.keep(100)
    case.policy = known

    owned = case.take(140)

    assert_rebuilt(owned, first=0, live_from=140)
    assert "of a policy that is not known" in case.notices[0]


def test_a_topic_made_again_is_read_from_its_first_record(case: Case) -> None:
    case.keep(100)

    owned = case.take(140, topic_id="topic-2")

    assert_rebuilt(owned, first=0, live_from=0)
    assert owned.state.topic_id == "topic-2"
    assert "made again" in case.notices[0]
    assert "a topic that was deleted" in case.notices[1]


def test_a_committed_offset_beyond_the_end_is_of_a_topic_that_was_made_again(case: Case) -> None:
    owned = case.take(140, first=3, end=20)

    assert_rebuilt(owned, first=3, live_from=3)
    assert "made again" in case.notices[0]


@pytest.mark.parametrize("stored", [True, False])
def test_records_that_retention_deleted_unread_are_named(case: Case, *, stored: bool) -> None:
    if stored:
        case.keep(100)

    owned = case.take(140, first=200)

    assert_rebuilt(owned, first=200, live_from=200)
    assert "retention deleted the records 140 to 199 before they were read" in case.notices[0]


@pytest.mark.parametrize(("start", "live_from"), [("earliest", 10), ("latest", 1_000)])
def test_a_group_that_is_new_begins_where_the_stream_says(case: Case, start: str, live_from: int) -> None:
    owned = case.take(None, first=10, start=start)

    assert_rebuilt(owned, first=10, live_from=live_from)


def test_a_policy_decided_since_the_control_topic_was_read_is_looked_up(case: Case) -> None:
    control = ControlLog(case.broker.reader(), case.config.control_topic)
    control.refresh()
    shelf = Shelf("test", STREAM, control, case.desk.shelf)

    later = case.desk.apply(settings(alerts={"recovery": 2}))

    assert shelf.detector(later).stream.alerts.recovery == 2


def test_few_scorers_are_kept_and_none_is_loaded_twice(case: Case) -> None:
    loads: list[str] = []

    class Counting:
        def scorer(self, bundle_id: str, settings: Stream) -> FakeScorer:  # noqa: ARG002
            loads.append(bundle_id)
            return FakeScorer()

    control = ControlLog(case.broker.reader(), case.config.control_topic)
    control.refresh()
    shelf = Shelf("test", STREAM, control, Counting())
    for bundle_id in ("a", "b", "c", "a", "c", "d", "b", "a"):
        shelf.scorer(bundle_id, case.policy)

    assert loads == ["a", "b", "c", "d", "a"]


# Snapshots and the journal


def test_without_stored_state_the_newest_snapshot_below_the_committed_offset_is_gone_on_from(
    case: Case,
) -> None:
    case.journal(case.in_force(0))
    for offset in (60, 100, 160):
        case.copy(offset)

    owned = case.take(140)

    assert (owned.state.next_offset, owned.live_from, owned.stored_offset) == (100, 140, None)
    assert (owned.rebuilt_from, owned.anew) == (None, False)
    assert "snapshot at 100, 40 records are read again" in case.notices[0]


@pytest.mark.parametrize("first", [0, 110])
def test_a_snapshot_that_retention_overtook_is_of_no_use(case: Case, first: int) -> None:
    case.journal(case.in_force(0))
    case.copy(100)

    owned = case.take(140, first=first)

    assert owned.state.next_offset == (first or 100)


def test_a_snapshot_of_a_deleted_topic_is_of_no_use(case: Case) -> None:
    case.copy(100, topic_id="topic-0")

    assert_rebuilt(case.take(140), first=0, live_from=140)


def test_a_group_that_was_set_back_goes_on_from_a_snapshot_and_drops_those_above(case: Case) -> None:
    case.journal(case.in_force(0), case.in_force(120))
    case.keep(130)
    case.copy(50)
    case.copy(120)

    owned = case.take(90)

    assert (owned.state.next_offset, owned.live_from) == (50, 90)
    assert owned.past.superseded
    assert case.snapshots.newest(AT, "topic-1", 1_000, lambda _: True) is not None
    assert case.take(1_000).state.next_offset == 50


def test_each_record_is_read_again_under_what_was_in_force_for_it(case: Case) -> None:
    case.desk.promote("bundle-2")
    case.keep(100)
    case.journal(case.in_force(0), case.in_force(120, "bundle-2"), case.in_force(130, None))

    owned = case.take(140)

    assert owned.state.bundle_id == "bundle-1"
    assert [(each.next_offset, each.bundle_sha) for each in owned.past.changes] == [
        (0, "bundle-1"),
        (120, "bundle-2"),
        (130, None),
    ]
    assert owned.past.boundary(100) == 120


# The owner was killed between the commit that brought a model into force and the checkpoint of that.
def test_what_came_into_force_at_the_stored_offset_is_brought_into_force(case: Case) -> None:
    case.desk.promote("bundle-2")
    case.keep(100)
    case.journal(case.in_force(0), case.in_force(100, "bundle-2"))

    owned = case.take(100)

    assert owned.state.bundle_id == "bundle-2"
    assert owned.scorer is case.desk.shelf.bundles["bundle-2"]


@pytest.mark.parametrize(
    ("begun", "rebuilt_from", "first", "exact"),
    [(0, None, 0, True), (40, None, 0, False), (40, 0, 0, False), (0, None, 10, False)],
)
def test_a_rebuilt_state_is_exact_where_it_rests_on_all_that_owners_had(
    case: Case, begun: int, rebuilt_from: int | None, first: int, *, exact: bool
) -> None:
    case.journal(case.in_force(begun, rebuilt_from=rebuilt_from))

    owned = case.take(140, first=first)

    assert (owned.rebuilt_from is None) == exact


# Written by a version that knew no journal.
def test_a_state_that_nothing_was_in_force_for_comes_under_what_the_journal_says(case: Case) -> None:
    state = case.state(100)
    state.in_force = None
    case.store.put(case.store.claim(AT), 0, 100, state.pack(whole=True), whole=True)
    case.journal(case.in_force(90, "bundle-1"))

    owned = case.take(140)
    case.takeover().settle(owned)

    assert (owned.state.next_offset, owned.state.bundle_id) == (100, "bundle-1")
    assert owned.state.in_force == case.in_force(90)
    assert owned.scorer is not None


def test_a_policy_that_only_the_journal_knows_is_named(case: Case) -> None:
    known, case.policy = case.policy, "f" * 64
    case.journal(case.in_force(0))
    case.policy = known

    with pytest.raises(OffbeatError, match="names the policy ffffffffffff, which the control topic does not"):
        case.take(140)


def test_a_stream_without_a_policy_is_not_taken_over(case: Case) -> None:
    case.config = case.config.model_copy(update={"namespace": "other"})
    case.broker.admin().create([TopicSpec(case.config.journal_topic(STREAM), 1)])
    Desk(case.broker, case.config)

    with pytest.raises(OffbeatError, match="has no policy on the control topic; `offbeat config apply`"):
        case.take(None)


# With workers


@pytest.fixture
def two(valkey_url: str) -> Iterator[Plant]:
    """A plant with two partitions."""
    with plant_at(valkey_url, partitions=2) as made:
        yield made


def test_the_next_owner_reads_again_in_silence_and_goes_on(two: Plant) -> None:
    two.produce(NORMAL, NORMAL)
    two.produce(NORMAL, NORMAL, partition=1)
    first = two.worker().read_all().later(5)
    two.produce(ODD, NORMAL, ODD)
    two.produce(ODD, partition=1)
    first.turn().leave()
    two.produce(NORMAL, ODD)
    two.produce(NORMAL, ODD, partition=1)

    second = two.worker().read_all()

    assert_exactly_once(two, 2)
    assert sum(second.status.bins.values()) == two.sent


# What was read before is read again with the bundle of then, what comes after is judged by today's champion.
def test_a_champion_found_at_a_takeover_judges_no_record_of_before(two: Plant) -> None:
    two.produce(*[NORMAL] * 4)
    first = two.worker().read_all().later(5)
    two.produce(NORMAL, ODD)
    first.turn().leave()
    two.desk.promote("bundle-2", FakeScorer(level=ODD))

    second = two.worker().read_all().later(1)
    two.produce(ODD, ODD, NORMAL)
    second.turn()

    assert [(alert.state, alert.source.offset, alert.bundle) for alert in two.alerts()] == [
        ("firing", 5, "bundle-1"),
        ("resolved", 6, "bundle-2"),
        ("firing", 8, "bundle-2"),
    ]


def test_a_partition_whose_state_cannot_be_asked_for_waits_and_the_others_go_on(two: Plant) -> None:
    two.produce(NORMAL, ODD)
    two.produce(NORMAL, ODD, partition=1)
    running = two.worker()
    running.store.down = {1}

    running.turn(3)

    assert running.status.doing == "waiting for Redis"
    assert (running.status.partitions, running.status.lag) == ((0,), 2)
    assert len(two.alerts()) == 1
    running.turn(3)
    assert len([notice for notice in running.notices if "taken over when it answers" in notice]) == 1
    assert running.store.tries == 1

    running.store.down.clear()
    running.later(1)
    assert (running.status.doing, running.status.partitions) == ("live", (0, 1))
    assert_exactly_once(two, 2)


def test_a_server_that_hangs_is_waited_for_and_never_taken_for_an_empty_one(
    two: Plant, tmp_path: Path
) -> None:
    with EmbeddedServer(tmp_path / "state") as server:
        with Redis.from_url(server.url) as client:
            pid = client.info("server")["process_id"]
        two.produce(NORMAL, NORMAL, NORMAL)
        two.worker(url=server.url).read_all().stop()
        two.produce(ODD)
        running = two.worker(url=server.url)
        os.kill(pid, signal.SIGSTOP)

        try:
            running.turn(3)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert running.status.doing == "waiting for Redis"
        assert (running.status.partitions, two.alerts()) == ((), [])

        running.later(1).read_all()
        assert running.bins == {"warming": 1, "scored": 3}
        assert not [notice for notice in running.notices if "no stored state" in notice]
        assert_exactly_once(two, 2)
