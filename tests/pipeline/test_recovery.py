"""What is lost, set back, made again or added, and how work goes on from it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from working import AT, NORMAL, ODD, START_S, STREAM, TOPIC, Plant, assert_exactly_once, plant_at, settings

import pipeline.ownership
from pipeline.journal import InForce
from pipeline.partitioning import key_hash
from pipeline.records import Send, TopicSpec


@pytest.fixture
def plant(valkey_url: str) -> Iterator[Plant]:
    with plant_at(valkey_url) as made:
        yield made


@pytest.fixture
def on_file(valkey_url: str, tmp_path: Path) -> Iterator[Plant]:
    """A plant whose bus is a file that can be changed behind its back."""
    with plant_at(valkey_url, f"sqlite:///{tmp_path}/bus.db") as made:
        yield made


def ended(plant: Plant) -> list[tuple[str, int, str, str]]:
    """Each revision of each alert: series, revision, state and reason."""
    return [(each.series, each.revision, each.state, each.reason) for each in plant.alerts()]


# Redis is lost


def test_a_lost_store_is_made_good_by_the_newest_snapshot(plant: Plant) -> None:
    plant.produce(*[NORMAL] * 4)
    first = plant.worker().read_all()
    plant.desk.promote("bundle-2")
    first.later(1)  # a snapshot is taken where the model changes, at 4
    plant.produce(NORMAL, ODD, ODD)
    first.later(1).leave()
    plant.flush_store()
    plant.produce(NORMAL, ODD)

    second = plant.worker().read_all()

    assert any("going on from the snapshot at 4, 3 records are read again" in one for one in second.notices)
    assert [alert.source.offset for alert in plant.alerts()] == [5, 7, 8]
    assert second.bins == {"warming": 1, "scored": 8}
    assert "state lost" not in str(ended(plant))


def test_a_lost_store_without_a_snapshot_is_made_good_from_the_first_record(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL, ODD)
    plant.worker().read_all().later(5).leave()
    plant.flush_store()
    plant.produce(ODD, NORMAL, ODD)

    second = plant.worker().read_all()

    assert_exactly_once(plant)
    assert [entry.rebuilt_from for entry in plant.journal() if isinstance(entry, InForce)] == [None]
    assert second.bins == {"warming": 1, "scored": 5}


def test_with_neither_open_alerts_close_and_the_journal_says_from_where_on_the_state_is_new(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant.produce(NORMAL, NORMAL, ODD, ODD, ODD)
    plant.worker().read_all().later(5).leave()
    plant.flush_store()
    shutil.rmtree(plant.folder / "snapshots", ignore_errors=True)
    monkeypatch.setattr(pipeline.ownership, "REBUILD_RECORDS", 2)

    second = plant.worker().read_all().turn()

    assert ended(plant) == [
        ("a", 1, "firing", "error above its threshold"),
        ("a", 2, "resolved", "state lost"),
    ]
    assert [entry.rebuilt_from for entry in plant.journal() if isinstance(entry, InForce)] == [None, 3]
    plant.produce(NORMAL, NORMAL, ODD)
    second.turn()
    assert ended(plant)[2:] == [("a", 1, "firing", "error above its threshold")]
    second.leave()
    plant.worker().read_all()
    assert len(ended(plant)) == 3


def test_a_damaged_snapshot_is_passed_over(plant: Plant, caplog: pytest.LogCaptureFixture) -> None:
    plant.produce(NORMAL, NORMAL, ODD)
    first = plant.worker().read_all()
    for bundle in ("bundle-2", "bundle-3"):
        plant.desk.promote(bundle)
        first.later(1)
        plant.produce(NORMAL)
        first.turn()
    first.leave()
    plant.flush_store()
    newest = max((plant.folder / "snapshots").rglob("*.snapshot"))
    newest.write_bytes(newest.read_bytes()[:-1])

    second = plant.worker().read_all()

    assert "is damaged and is left out" in caplog.text
    assert any("from the snapshot at 3" in one for one in second.notices)
    assert second.status.bundle_id == "bundle-3"


def test_every_quarter_of_an_hour_of_events_a_snapshot_is_taken(plant: Plant) -> None:
    running = plant.worker().turn(2)
    taken = []
    for _ in range(40):
        plant.produce(NORMAL)
        plant.sent += 120
        running.later(31).later(5)
        taken.append(len(list((plant.folder / "snapshots").rglob("*.snapshot"))))

    assert taken[0] == 1
    assert taken[-1] == 5  # every eighth record, which are 121 s apart


# The group, the topic and the partitions are changed by somebody


def set_back(folder: Path, next_offset: int) -> None:
    with sqlite3.connect(folder / "bus.db") as file:
        file.execute("UPDATE positions SET next_offset = ?", (next_offset,))
    file.close()


def delete_topic(folder: Path) -> None:
    of_topic = "WHERE partition_row IN (SELECT partition_row FROM partitions WHERE topic = ?)"
    with sqlite3.connect(folder / "bus.db") as file:
        file.execute(f"DELETE FROM batches {of_topic}", (TOPIC,))  # noqa: S608
        file.execute(f"DELETE FROM positions {of_topic}", (TOPIC,))  # noqa: S608
        file.execute("DELETE FROM partitions WHERE topic = ?", (TOPIC,))
        file.execute("DELETE FROM topics WHERE name = ?", (TOPIC,))
    file.close()


def test_a_group_that_was_set_back_goes_through_its_records_again(on_file: Plant, tmp_path: Path) -> None:
    on_file.produce(NORMAL, NORMAL, ODD, NORMAL, ODD)
    on_file.worker().read_all().stop()
    before = ended(on_file)
    set_back(tmp_path, 2)

    running = on_file.worker().read_all()

    assert ended(on_file) == before * 2
    assert any("the group was set back to 2" in one for one in running.notices)
    assert running.bins == {"warming": 1, "scored": 4}
    running.later(5).leave()
    on_file.flush_store()
    on_file.produce(NORMAL)
    again = on_file.worker().read_all()
    assert len(ended(on_file)) == 2 * len(before) + 1
    assert again.bins == {"warming": 1, "scored": 5}


# Nothing was said of the records that were taken back, so nothing but the journal's order tells of it.
def test_a_snapshot_of_what_was_taken_back_is_not_gone_on_from(on_file: Plant, tmp_path: Path) -> None:
    on_file.produce(*[NORMAL] * 6)
    first = on_file.worker().read_all()
    first.later(31).later(5)  # a snapshot at 6
    on_file.produce(NORMAL)
    first.later(1).leave()
    set_back(tmp_path, 4)
    on_file.desk.promote("bundle-2")
    on_file.worker().read_all().later(1).leave()
    on_file.flush_store()
    on_file.produce(NORMAL, ODD)

    running = on_file.worker().read_all()

    assert any("from the snapshot at 4" in one for one in running.notices)
    state, expected = running.worker._owned[AT].state, on_file.as_journaled().state
    assert state.rows[state.index["a"]] == expected.rows[expected.index["a"]]


def test_a_topic_made_again_is_a_new_topic_and_alerts_of_the_old_one_close(
    on_file: Plant, tmp_path: Path
) -> None:
    on_file.produce(NORMAL, NORMAL, ODD)
    on_file.worker().read_all().stop()
    delete_topic(tmp_path)
    on_file.broker.admin().create([TopicSpec(TOPIC, 1)])
    on_file.new_producer()
    on_file.produce(NORMAL, NORMAL)

    running = on_file.worker().read_all().turn()

    assert ended(on_file)[-1] == ("a", 2, "resolved", "state lost")
    assert running.bins == {"warming": 1, "scored": 1}
    topics = [entry.topic_id for entry in on_file.journal() if isinstance(entry, InForce)]
    assert len(set(topics)) == 2


KEYED = {"events": {"features": ["x"], "silent_after": "60s"}}


def keyed(plant: Plant, series: str, value: float, partitions: int) -> None:
    """A record where Kafka's partitioner puts it among so many partitions."""
    event = json.dumps({"series": series, "time": START_S + plant.sent, "x": value}).encode()
    stamp_ms = 1_000 * (START_S + plant.sent)
    partition = key_hash(series.encode()) % partitions
    producer = plant.broker.producer()
    producer.send([Send(TOPIC, series.encode(), event, timestamp_ms=stamp_ms, partition=partition)])
    producer.flush()
    plant.sent += 1


def test_series_that_move_when_partitions_are_added_close_their_alerts_and_are_not_silent(
    valkey_url: str,
) -> None:
    names = [f"s{n}" for n in range(12)]
    moving = [name for name in names if key_hash(name.encode()) % 4 != key_hash(name.encode()) % 2]
    assert 2 <= len(moving) <= 10
    with plant_at(valkey_url, partitions=2, **KEYED) as plant:
        running = plant.worker().turn(2)
        for value in (NORMAL, NORMAL, ODD):
            for name in names:
                keyed(plant, name, value, 2)
        running.turn(3)
        assert len(plant.alerts()) == len(names)

        plant.broker.admin().grow(TOPIC, 4)
        running.later(1).later(1)
        for _ in range(20):
            for name in names:
                keyed(plant, name, NORMAL, 4)
        running.turn(3)

        reasons = {name: [] for name in names}
        for series, _, _, reason in ended(plant)[len(names) :]:
            reasons[series].append(reason)
        assert reasons == {name: ["moved" if name in moving else "recovered"] for name in names}
        assert sum(running.status.bins.values()) == plant.sent
        assert running.status.series == len(names)

        # The next owner comes to the same, also from the journal alone.
        running.leave()
        plant.flush_store()
        again = plant.worker().read_all()
        assert again.status.series == len(names)
        assert len(ended(plant)) == 2 * len(names)


# Redis is down: nothing is lost, and nothing is taken for lost


def test_a_change_of_model_while_the_store_is_down_is_known_to_the_next_owner(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL)
    first = plant.worker().read_all().later(5)
    first.store.down = {0}
    plant.desk.promote("bundle-2")
    first.later(1)
    plant.produce(NORMAL, ODD)
    first.later(1).leave()
    plant.produce(NORMAL, ODD)

    second = plant.worker().read_all()

    state = second.worker._owned[AT].state
    assert (state.bundle_id, second.bins) == ("bundle-2", {"warming": 1, "scored": 5})
    assert [alert.bundle for alert in plant.alerts()] == ["bundle-2"] * 3
    assert plant.committed() == 6
    assert STREAM in plant.config.streams


# Policies


def test_durations_of_a_new_policy_hold_for_series_that_are_quiet_already(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL, series="quiet")
    running = plant.worker().read_all()
    events = {"features": ["x"], "silent_after": "60s"}
    plant.desk.apply(settings(events=events))
    plant.sent += 100

    running.later(1)
    plant.produce(NORMAL, series="other")
    running.turn()

    assert ended(plant) == [("quiet", 1, "firing", "no events")]
    assert any("policy" in one and "from offset 2 on" in one for one in running.notices)


def test_a_row_made_otherwise_begins_every_series_anew(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL, ODD)
    running = plant.worker().read_all()
    features = {"x": {"transform": "log"}}
    plant.desk.apply(settings(events={"features": features}))

    running.later(1)
    plant.produce(NORMAL, NORMAL)
    running.turn()

    assert ended(plant)[1:] == [("a", 2, "resolved", "policy changed")]
    assert running.bins == {"warming": 2, "scored": 3}
    running.later(5).leave()
    assert plant.worker().turn(3).bins == {"warming": 2, "scored": 3}


# It was known to the journal alone until then: it closes once, and for the one reason.
def test_an_alert_that_a_policy_closes_at_a_takeover_is_not_lost_as_well(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL, ODD)
    plant.worker().read_all().leave()
    plant.desk.apply(settings(model={"window": 3}))

    plant.worker().read_all().turn()

    assert ended(plant)[1:] == [("a", 2, "resolved", "policy changed")]
