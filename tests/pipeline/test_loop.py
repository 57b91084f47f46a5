"""The worker's rules: what is committed when, what is stored when, and what it does when things fail."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from working import AT, NORMAL, ODD, START_S, Plant, Running, assert_exactly_once, plant_at, settings

from pipeline.errors import BusDown, BusError, BusFull, OffbeatError
from pipeline.journal import InForce
from pipeline.ports import PutResult
from pipeline.records import Assigned
from pipeline.silences import Matchers, Silence
from pipeline.state.embedded import EmbeddedServer
from pipeline.testing import FakeScorer
from pipeline.thresholds import CARRIED

BAD = b"not JSON"
OK, NEED_WHOLE, STALE_EPOCH = PutResult.OK, PutResult.NEED_WHOLE, PutResult.STALE_EPOCH


@pytest.fixture
def plant(valkey_url: str) -> Iterator[Plant]:
    with plant_at(valkey_url) as made:
        yield made


@pytest.fixture
def untrained(valkey_url: str) -> Iterator[Plant]:
    """A plant without a model."""
    with plant_at(valkey_url, champion=None) as made:
        yield made


@pytest.fixture
def two(valkey_url: str) -> Iterator[Plant]:
    """A plant with two partitions."""
    with plant_at(valkey_url, partitions=2) as made:
        yield made


@pytest.fixture
def impatient(valkey_url: str) -> Iterator[Plant]:
    """A plant with two partitions where a worker that stalls is soon replaced."""
    with plant_at(valkey_url, partitions=2, lease_s=0.02) as made:
        yield made


@pytest.fixture
def on_file(valkey_url: str, tmp_path: Path) -> Iterator[Plant]:
    """A plant whose bus is a file that can be damaged."""
    with plant_at(valkey_url, f"sqlite:///{tmp_path}/bus.db") as made:
        yield made


def change(folder: Path, statement: str) -> None:
    """Change the bus's file behind its back."""
    other = sqlite3.connect(folder / "bus.db")
    rows = other.execute(statement).rowcount
    other.commit()
    other.close()
    assert rows == 1


def damage(folder: Path, base_offset: int) -> None:
    """Damage the one stored batch that begins at an offset."""
    change(folder, f"UPDATE batches SET columns = x'00' WHERE base_offset = {base_offset}")  # noqa: S608


# Commits


def test_alerts_dead_letters_and_positions_are_one_commit(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL, ODD, BAD)

    running = plant.worker().read_all()

    assert running.bus.commits == [({0: 4}, 2)]
    assert [alert.state for alert in plant.alerts()] == ["firing"]
    assert [letter.offset for letter in plant.letters()] == [3]
    assert (running.status.alerts, running.status.dead_letters) == (1, 1)


def test_whoever_observes_a_batch_may_rely_on_its_outputs_being_there(plant: Plant) -> None:
    plant.produce(NORMAL, ODD)
    seen: list[tuple[int, int]] = []

    plant.worker(
        observe=lambda batch: seen.append((len(batch.outputs.alerts), len(plant.alerts())))
    ).read_all()

    assert seen == [(1, 1)]


def test_without_outputs_positions_wait_a_second(plant: Plant) -> None:
    running = plant.worker().turn(2)
    plant.produce(NORMAL, NORMAL)

    running.later(0.5)
    assert plant.committed() == 0

    running.later(0.5)
    assert plant.committed() == 2


def test_without_outputs_positions_wait_for_a_hundred_thousand_records(plant: Plant) -> None:
    for _ in range(2):
        plant.produce(*[NORMAL] * 50_000)
    running = plant.worker(max_records=50_000).turn(2)

    assert (sum(running.bins.values()), plant.committed()) == (50_000, 0)

    running.turn()
    assert (sum(running.bins.values()), plant.committed()) == (100_000, 100_000)


def test_a_worker_that_reads_nothing_commits_nothing(plant: Plant) -> None:
    plant.produce(NORMAL)
    running = plant.worker().read_all().later(5)

    assert running.later(5).later(5).bus.commits == [({0: 1}, 0)]


# Checkpoints. That each one is at a committed offset is asserted by the store in use.


def test_state_is_stored_every_five_seconds_of_work_whole_at_first_and_what_changed_after(
    plant: Plant,
) -> None:
    plant.produce(NORMAL, NORMAL)
    running = plant.worker().read_all()

    assert running.later(4.9).store.puts == []
    assert running.later(0.1).store.puts == [(0, 2, True, OK)]
    assert running.later(30).store.puts == [(0, 2, True, OK)]

    plant.produce(NORMAL)
    running.turn()
    assert running.store.puts[1:] == [(0, 3, False, OK)]
    plant.produce(ODD)
    assert running.later(4.9).store.puts[2:] == []
    assert running.later(0.1).store.puts[2:] == [(0, 4, False, OK)]
    assert_stored_as_read(plant)


def test_only_what_changed_is_written(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL, series="a")
    plant.produce(NORMAL, NORMAL, series="b")
    running = plant.worker().read_all().later(5)

    plant.produce(NORMAL, series="b")
    running.later(5)

    assert running.store.rows == [2, 1]
    assert_stored_as_read(plant)


def assert_stored_as_read(plant: Plant, partition: int = 0) -> None:
    """The store holds what an uninterrupted run would hold."""
    stored, (_, _, expected) = plant.stored(partition), plant.uninterrupted(partition)
    assert stored is not None
    assert stored.next_offset == expected.next_offset
    assert stored.counters.named() == expected.counters.named()
    for series, slot in expected.index.items():
        other = stored.index[series]
        assert stored.rows[other] == expected.rows[slot]
        assert np.array_equal(stored.series.tail[other], expected.series.tail[slot])


# Offsets have holes: what was read is told by them, as far as the store is concerned.
def test_a_million_records_are_stored_before_their_time(on_file: Plant, tmp_path: Path) -> None:
    on_file.produce(NORMAL, NORMAL)
    running = on_file.worker().read_all().later(5)
    change(tmp_path, f"UPDATE partitions SET end_offset = 1000000 WHERE topic = '{AT.topic}'")  # noqa: S608
    on_file.produce(NORMAL)
    running.turn()
    assert [put[1] for put in running.store.puts] == [2]

    on_file.produce(NORMAL)
    running.turn()

    assert [put[1] for put in running.store.puts] == [2, 1_000_002]


def test_a_refused_commit_stores_nothing(impatient: Plant) -> None:
    impatient.produce(NORMAL, NORMAL, ODD)
    running = impatient.worker().turn(1)
    running.bus.before_commit = lambda: joined(impatient.worker())

    running.later(60)

    assert impatient.stored() is None
    assert running.store.puts == []


def test_a_store_that_lost_everything_is_given_the_whole(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL)
    running = plant.worker().read_all().later(5)
    plant.flush_store()

    plant.produce(NORMAL)
    running.later(5)

    assert running.store.puts[1:] == [(0, 3, False, NEED_WHOLE), (0, 3, True, OK)]
    assert_stored_as_read(plant)
    (notice,) = running.notices
    assert "the state server does not hold what it last confirmed" in notice


def test_a_claim_in_passing_does_not_keep_the_owner_from_storing(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL)
    running = plant.worker().read_all().later(5)
    plant.new_store().claim(AT)

    plant.produce(NORMAL)
    running.later(5)

    assert running.store.puts[1:] == [(0, 3, False, STALE_EPOCH), (0, 3, True, OK)]
    assert running.store.claims == [0, 0, 0]
    assert_stored_as_read(plant)


# Redis


def test_redis_that_dies_delays_checkpoints_and_stops_nothing_else(plant: Plant, tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "state") as server:
        plant.produce(NORMAL, NORMAL)
        running = plant.worker(url=server.url).read_all().later(5)
        assert running.status.doing == "live"

    plant.produce(ODD, NORMAL, NORMAL)
    running.later(5)
    assert running.status.doing == "waiting for Redis"
    assert "detection goes on" in running.status.message
    assert len(plant.alerts()) == 2
    assert plant.committed() == 5
    plant.produce(ODD)
    running.later(5).later(5)
    assert len(plant.alerts()) == 3

    with EmbeddedServer(tmp_path / "state") as server:
        running.later(5)
        assert running.status.doing == "live"
        plant.url = server.url
        assert plant.new_store(server.url).peek(AT).next_offset == 6
    assert len([notice for notice in running.notices if "detection goes on" in notice]) == 1


# A server that hangs costs a time-out: not one a turn, whatever the reasons to store are.
def test_a_store_that_failed_is_left_alone_for_a_while(two: Plant) -> None:
    running = two.worker().turn(2)
    running.store.down = {0, 1}
    two.produce(NORMAL, partition=0)
    two.produce(NORMAL, partition=1)
    running.later(5)
    commits = len(running.bus.commits)

    running.store.down = {0}
    running.turn(5)

    assert running.store.puts == []
    assert len(running.bus.commits) == commits
    assert running.later(5).store.puts == [(1, 1, True, OK)]
    running.store.down.clear()
    assert (0, 1, True, OK) in running.later(5).store.puts


# Loss of ownership


def joined(running: Running) -> Running:
    """A worker that has taken the group over."""
    return running.until(lambda status: status.partitions)


def test_who_is_refused_drops_all_and_takes_over_afresh_without_loss_or_doubling(impatient: Plant) -> None:
    impatient.produce(NORMAL, NORMAL, ODD, BAD)
    impatient.produce(NORMAL, NORMAL, BAD, partition=1)
    first, second = impatient.worker().turn(), impatient.worker()
    first.bus.before_commit = lambda: deadline_join(second)

    first.turn()

    assert first.bus.commits == []
    assert (first.status.partitions, first.processed, first.status.alerts) == ((), [], 0)
    assert any("refused" in notice for notice in first.notices)
    second.read_all()
    assert first.turn(2).status.doing == "standing by"
    assert_exactly_once(impatient, 2)

    impatient.produce(NORMAL, ODD)
    second.leave()
    first.read_all()
    impatient.produce(NORMAL, ODD, partition=1)
    first.turn()
    assert_exactly_once(impatient, 2)
    assert sum(first.status.bins.values()) == impatient.sent


def deadline_join(running: Running) -> None:
    """Poll until the lease of the group's stalled member has run out."""
    for _ in range(100_000):
        running.turn()
        if running.status.partitions:
            return
    raise AssertionError("the stalled member was never replaced")


def test_a_partition_announced_again_is_taken_over_afresh(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL, ODD)
    running = plant.worker().read_all()
    plant.produce(NORMAL)
    bounds = plant.broker.reader().bounds(AT.topic)[0]
    running.bus.announcing = (Assigned(AT, 0, bounds.end_offset, 3, bounds.topic_id),)

    running.turn()
    assert (running.status.partitions, running.status.lag) == ((), 1)

    running.later(1).read_all()
    assert running.store.claims == [0, 0]
    assert_exactly_once(plant)
    assert running.bins == {"warming": 1, "scored": 3}


# What partition 0 reads again is below its committed offset: to commit that would set it back.
def test_a_commit_never_sets_a_position_back(two: Plant) -> None:
    for _ in range(8):
        two.produce(NORMAL)
    two.worker().read_all().later(1).leave()
    two.produce(NORMAL, ODD, partition=1)

    running = two.worker(max_records=1).turn(4)

    assert running.status.doing == "reading again"
    assert len(two.alerts()) == 1
    assert (two.committed(0), two.committed(1)) == (8, 2)


def test_after_a_refusal_no_other_partition_is_touched(impatient: Plant) -> None:
    running = impatient.worker().turn(2)
    impatient.desk.promote("bundle-2")
    second = impatient.worker()
    running.bus.before_commit = lambda: deadline_join(second)
    claims = list(running.store.claims)

    running.later(1)

    assert running.store.claims == claims
    assert running.store.puts == []
    assert running.status.partitions == ()


# The bus


@pytest.mark.parametrize("error", [BusFull("the disk is full"), BusDown("another process keeps it locked")])
def test_a_commit_that_finds_no_room_is_tried_until_there_is(plant: Plant, error: BusError) -> None:
    plant.produce(NORMAL, ODD, BAD)
    running = plant.worker().turn()
    running.bus.failing = [error] * 3
    seen = []
    running.clock.on_wait = lambda: seen.append((running.status.doing, running.status.message))

    running.turn()

    assert running.clock.waited == [1.0] * 3
    assert seen == [("waiting for the bus", str(error))] * 3
    assert running.notices.count(str(error)) == 1
    assert running.bus.commits == [({0: 3}, 2)]
    assert running.turn().status.doing == "live"
    assert_exactly_once(plant)


def test_who_is_asked_to_stop_waits_no_longer_and_loses_nothing(plant: Plant) -> None:
    plant.produce(NORMAL, ODD, BAD)
    running = plant.worker().turn()
    running.bus.failing = [BusFull("the disk is full")] * 100
    running.clock.stopping = True

    running.turn()
    running.stop()

    assert running.clock.waited == [1.0]
    assert (plant.alerts(), plant.committed(), plant.stored()) == ([], None, None)
    plant.worker().read_all()
    assert_exactly_once(plant)


@pytest.mark.parametrize("error", [BusFull("the disk is full"), BusDown("nobody answers")])
def test_a_bus_that_cannot_be_polled_is_waited_for(plant: Plant, error: BusError) -> None:
    plant.produce(NORMAL)
    running = plant.worker().turn()
    running.bus.failing_polls = [error] * 2

    running.turn(2)
    assert (running.status.doing, running.status.message) == ("waiting for the bus", str(error))
    assert running.clock.waited == [1.0, 1.0]
    assert running.notices.count(str(error)) == 1

    assert running.turn().status.doing == "live"
    assert running.bins == {"warming": 1}


def test_what_trying_again_cannot_mend_ends_the_worker(plant: Plant) -> None:
    plant.produce(NORMAL, ODD)
    running = plant.worker().turn()
    running.bus.failing = [BusError("the record of 20 MB can never be written")]

    with pytest.raises(BusError, match="never be written"):
        running.turn()


# Damage


@pytest.mark.parametrize("after", [(NORMAL, ODD, NORMAL), ()], ids=["in the middle", "at the tail"])
def test_a_damaged_range_is_counted_and_buried_once_and_silently_when_read_again(
    on_file: Plant, tmp_path: Path, after: tuple[float, ...]
) -> None:
    on_file.produce(NORMAL, NORMAL)
    on_file.produce(ODD, ODD, ODD)
    if after:
        on_file.produce(*after)
    damage(tmp_path, 2)
    expected = {"warming": 1, "scored": 1 + len(after), "corrupt": 3}

    running = on_file.worker().read_all()

    assert running.bins == expected
    (letter,) = on_file.letters()
    assert (letter.offset, letter.last_offset, letter.count) == (2, 4, 3)
    assert "damaged" in letter.reason
    assert len(on_file.alerts()) == (2 if after else 0)
    assert on_file.committed() == on_file.sent

    running.leave()
    again = on_file.worker().read_all()
    assert again.turn().bins == expected
    assert len(on_file.letters()) == 1


def test_of_a_damaged_range_only_what_nobody_committed_is_buried(on_file: Plant, tmp_path: Path) -> None:
    on_file.produce(NORMAL, NORMAL)
    on_file.produce(NORMAL, NORMAL, NORMAL)
    operator = on_file.worker().turn()
    operator.member.commit(operator.member.poll(1, 0).token, {AT: 4}, [])
    operator.leave()
    damage(tmp_path, 2)

    running = on_file.worker().read_all()

    assert running.bins == {"warming": 1, "scored": 1, "corrupt": 3}
    assert [(letter.offset, letter.last_offset, letter.count) for letter in on_file.letters()] == [(4, 4, 1)]


# Models


def test_without_a_model_the_rows_needed_and_the_time_left_are_said(untrained: Plant) -> None:
    plant = untrained
    running = plant.worker().turn()
    plant.produce(*[NORMAL] * 4)
    running.turn()
    assert running.status.doing == "waiting for a model"
    assert running.status.message == "waiting for a model: 4 of 14 rows a series, no rate yet"

    plant.produce(*[NORMAL] * 5)
    running.later(10)
    assert running.status.message == "waiting for a model: 9 of 14 rows a series, about 10 s left"

    plant.produce(*[NORMAL] * 5)
    running.later(10)
    assert running.status.message == "14 of 14 rows a series; train it: offbeat train pumps"
    assert running.bins == {"waiting_model": 14}


def test_the_control_topic_is_looked_at_once_a_second(plant: Plant) -> None:
    running = plant.worker().turn(3)
    plant.desk.promote("bundle-2")

    running.turn(9)
    assert running.status.bundle_id == "bundle-1"

    running.later(1)
    assert running.status.bundle_id == "bundle-2"


# The state was stored without a model; the worker that finds one misses no record by looking too late.
def test_a_model_is_taken_on_before_the_first_record_after_a_takeover(untrained: Plant) -> None:
    plant = untrained
    plant.produce(NORMAL, NORMAL)
    plant.worker().read_all().stop()
    plant.desk.promote("bundle-1")
    plant.produce(NORMAL, ODD)

    running = plant.worker().read_all()

    assert running.bins == {"waiting_model": 2, "scored": 2}


# A cell of series a closes by its neighbour's records, before a record of its own asks for its calibration.
def test_series_are_judged_by_their_calibration_from_a_takeover_on(valkey_url: str) -> None:
    with plant_at(valkey_url, events={"features": ["x"], "every": "5s"}) as plant:
        plant.produce(*[NORMAL] * 6, series="a")
        plant.worker().read_all().stop()
        plant.produce(*[NORMAL] * 12, series="b")

        running = plant.worker().read_all()

        assert running.bins["scored"] == 1
        assert plant.alerts() == []


def test_a_first_model_scores_from_then_on(untrained: Plant) -> None:
    plant = untrained
    plant.produce(NORMAL, NORMAL, ODD)
    running = plant.worker().read_all()

    plant.desk.promote("bundle-1")
    running.later(1)
    plant.produce(NORMAL, ODD)
    running.turn()

    assert running.bins == {"waiting_model": 3, "scored": 2}
    assert running.status.bundle_id == "bundle-1"
    assert [alert.source.offset for alert in plant.alerts()] == [3]


# The new bundle's errors are five times the old one's: by the old threshold they would be an alert.
def test_another_champion_starts_the_moments_anew_and_makes_no_alert(plant: Plant) -> None:
    plant.produce(*[NORMAL] * 20)
    running = plant.worker().read_all().later(5)
    assert row_count(running) > 0

    plant.desk.promote("bundle-2", FakeScorer(spread=0.2, normal_error=5.0))
    running.later(1)

    assert row_count(running) == CARRIED
    stored = plant.stored()
    assert stored is not None
    assert stored.bundle_id == running.status.bundle_id == "bundle-2"
    plant.produce(*[NORMAL] * 20)
    running.turn()
    assert plant.alerts() == []
    assert any("model bundle-2 from offset 20 on" in notice for notice in running.notices)


# A drift shows in the calibration's units, and begins anew with the model that was trained because of it.
def test_errors_far_from_their_calibration_are_a_drift_until_another_model_judges(plant: Plant) -> None:
    plant.produce(*[NORMAL] * 21)
    running = plant.worker().read_all()
    assert running.status.drift == 0

    plant.produce(*[ODD] * 20)
    running.turn()
    assert running.status.drift == pytest.approx(0.5, abs=0.02)

    plant.desk.promote("bundle-2", FakeScorer(level=ODD))
    running.later(1)
    plant.produce(ODD, ODD, ODD)
    running.turn()
    assert running.status.drift == 0


def test_frozen_rows_are_no_drift(plant: Plant) -> None:
    begin = datetime.fromtimestamp(START_S, UTC)
    end = begin + timedelta(hours=1)
    plant.desk.silence("works", Silence(matchers=Matchers(stream="*"), mode="freeze", start=begin, end=end))
    plant.produce(*[NORMAL] * 2, *[ODD] * 20)

    running = plant.worker().read_all()

    assert running.status.frozen >= 20
    assert running.status.drift == 0


def row_count(running: Running) -> float:
    """Rows that the moments of series ``a`` rest on."""
    state = running.worker._owned[AT].state
    return float(state.rows[state.index["a"]]["rows"])


def test_a_change_of_model_is_stored_though_nothing_comes(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL)
    running = plant.worker().read_all().later(5)
    plant.desk.promote("bundle-2")

    running.later(1)

    assert running.store.claims == [0, 0, 0]
    assert running.store.puts[1:] == [(0, 2, True, OK)]
    assert bundle_stored(plant) == "bundle-2"


def bundle_stored(plant: Plant) -> str | None:
    stored = plant.stored()
    assert stored is not None
    return stored.bundle_id


# The store has this very offset, so the same write under the same claim would be taken for a repetition.
def test_a_change_of_model_is_stored_though_the_reply_to_the_last_write_was_lost(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL)
    running = plant.worker().read_all()
    running.store.losing_replies = 1
    running.later(5)
    plant.desk.promote("bundle-2")

    running.later(1)

    assert bundle_stored(plant) == "bundle-2"


# The journal has it: whoever takes over changes at the same record.
def test_a_change_of_model_does_not_wait_for_redis(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL)
    running = plant.worker().read_all().later(5)
    running.store.down = {0}
    plant.desk.promote("bundle-2")

    running.later(1)
    assert running.status.doing == "waiting for Redis"
    assert (running.status.bundle_id, bundle_stored(plant)) == ("bundle-2", "bundle-1")
    plant.produce(ODD)
    assert len(running.turn() and plant.alerts()) == 1

    running.leave()
    assert plant.worker().read_all().status.bundle_id == "bundle-2"
    assert plant.alerts()[0].bundle == "bundle-2"


def test_a_champion_that_cannot_be_had_changes_nothing_and_is_said(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL)
    running = plant.worker().read_all()
    plant.desk.promote("bundle-of-nobody", missing=True)

    running.later(1).later(1)
    plant.produce(NORMAL, ODD)
    running.turn()

    assert (running.status.doing, running.status.bundle_id) == ("live", "bundle-1")
    assert "goes on as it is" in running.status.message
    assert [notice for notice in running.notices if "goes on as it is" in notice] == [running.status.message]
    assert len(plant.alerts()) == 1
    plant.desk.promote("bundle-3")
    running.later(1)
    assert (running.status.message, running.status.bundle_id) == ("scoring", "bundle-3")


# The second is promoted to mend the first: that it failed as well must not be silent.
def test_each_champion_in_a_row_that_cannot_be_had_is_told_of_once(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL)
    running = plant.worker().read_all()

    for bundle in ("nobodys-1", "nobodys-2", "nobodys-1"):
        plant.desk.promote(bundle, missing=True)
        running.later(1).later(1)

    told = [notice for notice in running.notices if "goes on as it is" in notice]
    assert [notice.partition(";")[0] for notice in told] == [
        f"there is no bundle {bundle}" for bundle in ("nobodys-1", "nobodys-2", "nobodys-1")
    ]
    assert (running.status.doing, running.status.bundle_id) == ("live", "bundle-1")


# The model in use was loaded for rows under the policy before.
def test_a_policy_that_no_model_can_be_had_for_waits_and_detection_goes_on(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL)
    running = plant.worker().read_all()
    model = plant.desk.shelf.bundles.pop("bundle-1")
    plant.desk.apply(settings(alerts={"recovery": 3}))

    running.later(1).later(1)
    plant.produce(ODD)
    running.turn()

    assert len(plant.alerts()) == 1
    assert "goes on as it is" in running.status.message
    assert [entry.next_offset for entry in plant.journal() if isinstance(entry, InForce)] == [0]
    assert len(running.notices) == 1

    plant.desk.shelf.bundles["bundle-1"] = model
    running.later(1)
    plant.produce(NORMAL, NORMAL, NORMAL)
    running.turn()
    assert [alert.source.offset for alert in plant.alerts()] == [2, 5]
    assert running.status.message == "scoring"


def test_a_first_model_that_is_missing_is_waited_for(untrained: Plant) -> None:
    plant = untrained
    plant.desk.promote("bundle-of-nobody", missing=True)
    plant.produce(NORMAL, NORMAL)

    running = plant.worker().read_all()

    assert running.status.doing == "waiting for a model"
    assert "there is no bundle bundle-of-nobody" in running.status.message
    assert running.bins == {"waiting_model": 2}


# Whoever goes on would judge the records of one topic by the rules of another.
def test_a_policy_that_reads_another_topic_ends_the_worker(plant: Plant) -> None:
    plant.produce(NORMAL)
    running = plant.worker().read_all()
    plant.desk.apply(settings(topic="basement"))

    with pytest.raises(
        OffbeatError, match="reads the topic 'basement', and this worker 'readings'; start it"
    ):
        running.later(1)

    assert [entry.next_offset for entry in plant.journal() if isinstance(entry, InForce)] == [0]


# The end, and a new beginning


def test_who_stops_before_it_began_leaves_nothing(plant: Plant) -> None:
    plant.produce(NORMAL)
    running = plant.worker()

    running.stop()

    assert (plant.committed(), plant.stored(), running.bus.commits) == (None, None, [])


def test_a_worker_that_stops_in_order_is_followed_without_reading_again(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL, ODD)
    plant.produce(NORMAL)
    first = plant.worker().read_all()
    bins = first.bins

    first.stop()

    assert plant.committed() == 4
    assert_stored_as_read(plant)
    second = plant.worker().turn(2)
    assert second.status.doing == "live"
    assert second.bins == bins
    assert sum(len(batch.outputs.scores) for batch in second.processed) == 0
    plant.produce(ODD, BAD)
    second.turn()
    assert_exactly_once(plant)


def test_what_cannot_be_committed_at_the_end_is_not_stored(plant: Plant) -> None:
    plant.produce(NORMAL)
    running = plant.worker().read_all()
    running.bus.failing = [BusFull("the disk is full")]
    running.clock.stopping = True

    running.stop()

    assert (plant.committed(), plant.stored()) == (0, None)


def test_nothing_is_stored_at_the_end_that_is_stored_already(plant: Plant) -> None:
    plant.produce(NORMAL)
    running = plant.worker().read_all().later(5)

    running.stop()

    assert running.store.puts == [(0, 1, True, OK)]


def test_the_bins_sum_to_the_records_read_and_with_the_lag_to_all_there_are(valkey_url: str) -> None:
    events = {"features": ["x"], "every": "5s", "late": "5s", "silent_after": "60s"}
    with plant_at(valkey_url, partitions=2, events=events) as plant:
        for n in range(40):
            plant.produce(NORMAL, BAD if n % 7 == 0 else NORMAL, series=f"s{n % 3}", partition=n % 2)
        running = plant.worker(max_records=1).turn(2)
        while running.status.lag:
            assert sum(running.status.bins.values()) + running.status.lag == plant.sent
            running.turn()

        assert sum(running.status.bins.values()) == plant.sent == 80
        assert {"merged", "pending", "dead_lettered"} <= running.bins.keys()
        assert (running.status.partitions, running.status.series) == ((0, 1), 3 * 2)
        running.stop()


def test_who_lost_what_it_waited_with_stands_by(impatient: Plant) -> None:
    running = impatient.worker()
    running.store.down = {0, 1}
    running.turn(2)
    assert running.status.doing == "waiting for Redis"
    deadline_join(impatient.worker())

    assert running.turn().status.doing == "standing by"


def test_who_has_no_partition_stands_by(plant: Plant) -> None:
    first = plant.worker().turn(2)

    second = plant.worker().turn(3)

    assert first.status.doing == "live"
    assert (second.status.doing, second.status.lag) == ("standing by", 0)


def test_records_to_read_again_are_said(plant: Plant) -> None:
    for _ in range(6):
        plant.produce(NORMAL)
    plant.worker().read_all().later(1).leave()

    running = plant.worker(max_records=1)
    states = []
    running.until(lambda status: states.append((status.doing, status.message)) or status.doing == "live")

    assert ("reading again", "5 records to read again before going live") in states
    assert plant.alerts() == []
