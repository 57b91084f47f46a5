"""A replay comes to what live work came to, wherever it begins and in whatever batches."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from working import AT, NORMAL, ODD, START_S, STREAM, TOPIC, Plant, Running, plant_at, revisions, settings

import pipeline.ownership
from consumers import replayer
from consumers.replayer import Comparison, Parts, Replay, Replayer, compare
from pipeline.alerts import Alert
from pipeline.errors import NotFound
from pipeline.ports import Errors, Reader, Windows
from pipeline.records import Bounds
from pipeline.testing import FakeScorer

BATCHES = [1, 7, 500, 20_000]
ALL = 1 << 40


@pytest.fixture
def plant(valkey_url: str) -> Iterator[Plant]:
    with plant_at(valkey_url) as made:
        yield made


def parts(plant: Plant, **others: Any) -> Parts:  # noqa: ANN401 - fields of Parts
    broker = plant.broker
    made = Parts(plant.config, STREAM, broker.reader(), broker.admin(), plant.snapshots(), plant.desk.shelf)
    return replace(made, **others)


def prepared(plant: Plant, first: int = 0, end: int = ALL, **others: Any) -> Replay:  # noqa: ANN401
    """The replay of a range of the one partition."""
    bounds = plant.broker.reader().bounds(TOPIC)[0]
    asked = replace(
        bounds,
        first_offset=max(first, bounds.first_offset),
        end_offset=min(end, bounds.end_offset),
    )
    [[found], _] = Replayer(parts(plant, **others)).prepare({0: asked})
    return found


def end_offset(plant: Plant, topic: str = TOPIC) -> int:
    return plant.broker.reader().bounds(topic)[0].end_offset


def run(replay: Replay, batch_records: int = 20_000) -> list[Alert]:
    return [alert for read in replay.run(batch_records) for alert in read.alerts]


def against_live(plant: Plant, *replays: Replay) -> Comparison:
    return compare(replays, plant.alerts())


# A story with all that can happen to a stream


WATCHED = {
    "events": {"features": ["x"], "silent_after": "60s", "forget_after": "200s"},
    "threshold": {"k": 5, "memory": "5m"},
}
JOINT = {"policy": "joint", "line": 0.6, "memory": "5m"}


def stricter(plant: Plant) -> None:
    plant.desk.apply(settings(**{**WATCHED, "threshold": JOINT, "alerts": {"for": 2, "recovery": 2}}))


def wider(plant: Plant) -> None:
    plant.desk.apply(settings(**WATCHED, model={"window": 3}))


def feed(plant: Plant, luck: random.Random, count: int) -> None:
    """Readings of three series: odd ones, late ones, ones told twice, and what nobody can read."""
    sent = []
    for number in range(count):
        second, series = plant.sent + number, luck.choice("aaabbbc")
        kind = luck.choices(["normal", "odd", "late", "again", "bad"], [60, 25, 4, 4, 1])[0]
        second -= {"late": 40, "again": 1}.get(kind, 0)
        value = luck.uniform(4, 9) if kind == "odd" else luck.uniform(0.7, 1.3)
        event = {"series": series, "time": START_S + second, "x": value}
        sent.append(b"not JSON" if kind == "bad" else json.dumps(event).encode())
    plant.produce(*sent)


def hours_pass(plant: Plant, running: Running) -> None:
    """Long enough for a snapshot, and for series to be silent and gone."""
    plant.sent += 1_000
    running.clock.now_s += 40


def story(plant: Plant, *, feeds: int = 60) -> None:
    """Live work with changes of model and policy, and owners that come and go; all of it is committed."""
    luck = random.Random(4)
    running = plant.worker(max_records=37).read_all()
    for step in range(12):
        feed(plant, luck, feeds)
        running.later(0.5)
        if step in {3, 8, 10}:
            running.leave()
            running = plant.worker(max_records=luck.choice([11, 100, 1_000])).read_all()
        if step == 2:
            plant.desk.promote("bundle-2", FakeScorer(level=0.2, normal_error=0.8))
        elif step == 5:
            stricter(plant)
        elif step == 6:
            hours_pass(plant, running)
        elif step == 7:
            plant.desk.promote("bundle-3", FakeScorer(level=0.1))
        elif step == 9:
            plant.produce(ODD, ODD, ODD)  # an alert is open when its rows end
            running.later(0.5)
            wider(plant)
        running.later(1)
    running.read_all().later(5).stop()


@pytest.fixture(scope="module")
def told(valkey_url: str) -> Iterator[Plant]:
    """The story, told once: replays change nothing."""
    with plant_at(valkey_url, **WATCHED) as made:
        story(made)
        yield made


def snapshots(plant: Plant) -> list[int]:
    """The offsets of all that there are."""
    found = (plant.folder / "snapshots").rglob("*.snapshot")
    return sorted(int(each.name.split("-")[0]) for each in found)


def stored_rows(plant: Plant) -> dict[str, bytes]:
    claim = plant._peeking.peek(AT)
    assert claim is not None
    assert claim.rows is not None
    packed = claim.rows
    return {series.decode(): row.tobytes() for series, row in zip(packed.series, packed.rows, strict=True)}


def rows(replay: Replay) -> dict[str, bytes]:
    packed = replay.state.pack(whole=True)
    return {series.decode(): row.tobytes() for series, row in zip(packed.series, packed.rows, strict=True)}


def test_the_story_has_all_that_it_should(told: Plant) -> None:
    alerts = told.alerts()

    assert {alert.bundle for alert in alerts} == {"bundle-1", "bundle-2", "bundle-3"}
    assert {alert.reason for alert in alerts} >= {"recovered", "gone", "no events", "policy changed"}
    assert len(alerts) > 60
    assert len(snapshots(told)) == 4
    assert told.letters()


@pytest.mark.parametrize("batch_records", BATCHES)
@pytest.mark.parametrize("begin", ["the beginning", "the first snapshot", "the middle"])
def test_a_replay_is_what_live_work_was_in_whatever_batches(
    told: Plant, batch_records: int, begin: str
) -> None:
    first = {"the beginning": 0, "the first snapshot": snapshots(told)[0], "the middle": 401}[begin]
    replay = prepared(told, first)

    alerts = run(replay, batch_records)

    live = told.alerts()
    assert replay.exact
    if begin == "the beginning":
        assert revisions(alerts) == revisions(live)
        assert {(a.id, a.revision): a.reason for a in alerts} == {(a.id, a.revision): a.reason for a in live}
        assert replay.dead_letters == len(told.letters())
    found = against_live(told, replay)
    assert found.differences == []
    assert found.same == len(alerts) > 30
    assert sum(replay.bins.values()) == replay.records == end_offset(told) - first
    assert rows(replay) == stored_rows(told)


def test_a_replay_begins_with_the_newest_snapshot_below_its_range(told: Plant) -> None:
    before, at = snapshots(told)[1:3]

    assert (prepared(told, at - 1).start_offset, prepared(told, at).start_offset) == (before, at)
    assert prepared(told, at).basis == f"from the snapshot at offset {at}"
    assert prepared(told, 5).basis == "from offset 0, where live work began"


# An edge of a range falls between an alert's first row and its last, between a commit and the next, and
# where something else comes into force.
def test_two_ranges_that_meet_have_each_alert_once_and_neither_differs_from_live(told: Plant) -> None:
    whole = revisions(told.alerts())
    changes = [entry.next_offset for entry in prepared(told).past.changes[1:]]

    for meeting in [*changes, *range(1, end_offset(told), 23)]:
        before, after = prepared(told, 0, meeting), prepared(told, meeting)
        found = revisions(run(before, 64)) + revisions(run(after, 64))
        assert found == whole, meeting
        assert against_live(told, before, after).differences == [], meeting
        assert before.records + after.records == end_offset(told)


# On a grid a row is made by a record that comes later: which one, a commit of live work does not tell.
def test_ranges_on_a_grid_meet_as_well(valkey_url: str) -> None:
    events = {"features": ["x"], "every": "2s", "late": "4s", "silent_after": "20s", "forget_after": "60s"}
    with plant_at(valkey_url, events=events) as plant:
        luck, running = random.Random(7), plant.worker().read_all()
        for step in range(8):
            feed(plant, luck, 25)
            plant.sent += 70 if step == 4 else 0
            running.later(1)
        running.later(1).stop()
        whole = revisions(plant.alerts())
        assert {alert.reason for alert in plant.alerts()} >= {"recovered", "no events", "gone"}

        for meeting in range(1, end_offset(plant), 9):
            before, after = prepared(plant, 0, meeting), prepared(plant, meeting)
            assert revisions(run(before, 64)) + revisions(run(after, 5)) == whole, meeting
            assert against_live(plant, before, after).differences == [], meeting
            assert sum(before.bins.values()) + sum(after.bins.values()) == end_offset(plant)
            assert after.state.removed == []  # nobody is ever told which series are gone


def test_the_end_of_a_range_says_what_was_in_force_behind_it(told: Plant) -> None:
    change = prepared(told).past.changes[-1]
    replay = prepared(told, 0, change.next_offset)

    ended = [alert for alert in run(replay) if alert.reason == "policy changed"]

    assert ended
    assert replay.state.in_force == change
    after = prepared(told, change.next_offset)
    assert "policy changed" not in {alert.reason for alert in run(after)}


def everything(plant: Plant) -> tuple[object, ...]:
    """All that a bus, a store and the snapshots hold."""
    topics = plant.broker.admin().describe().topics
    bounds = {topic: dict(plant.broker.reader().bounds(topic)) for topic in topics}
    with Redis.from_url(plant.url) as client:
        kept = {key: client.dump(key) for key in client.scan_iter()}
    return bounds, plant.committed(), kept, snapshots(plant)


def test_a_replay_writes_nothing(told: Plant) -> None:
    before = everything(told)

    replay = prepared(told)
    run(replay)

    assert replay.revisions == len(told.alerts())
    assert everything(told) == before


# Back to the model of before while no record comes: the thresholds began anew all the same.
def test_what_came_and_went_between_two_records_is_followed(plant: Plant) -> None:
    running = plant.worker().turn()
    plant.produce(*[1.2] * 300)
    running.later(1)
    for bundle in ("bundle-2", "bundle-1"):
        plant.desk.promote(bundle)
        running.later(1)
    plant.produce(NORMAL, ODD, NORMAL, NORMAL)
    running.later(1)
    replay = prepared(plant)

    run(replay)

    assert [change.bundle_sha for change in replay.past.changes] == ["bundle-1", "bundle-2", "bundle-1"]
    found = against_live(plant, replay)
    assert (found.same, found.differences) == (2, [])


def test_what_came_into_force_where_a_replay_begins_holds_for_its_first_record(plant: Plant) -> None:
    running = plant.worker().turn(2)
    plant.desk.promote("bundle-2", FakeScorer(level=ODD))
    running.later(1)
    plant.produce(*[ODD] * 5, NORMAL)
    running.later(1)
    shutil.rmtree(plant.folder / "snapshots")
    replay = prepared(plant)

    run(replay)

    assert [change.next_offset for change in replay.past.changes] == [0, 0]
    found = against_live(plant, replay)
    assert (found.same, found.differences) == (1, [])


# Ties


class Wobbling(FakeScorer):
    """As a matrix product of other batches rounds otherwise."""

    def score(self, windows: Windows) -> Errors:
        found, wobble = super().score(windows), 1 + 1e-7 * (1 if len(windows) > 1 else -1)
        return Errors(found.window * wobble, found.last * wobble)


@pytest.fixture
def at_the_line(valkey_url: str) -> Iterator[Plant]:
    """Rows at the line of 5, now and then; live work read them in one batch."""
    static = {"policy": "static", "value": 5}
    with plant_at(valkey_url, champion=None, threshold=static) as made:
        made.desk.promote("wobbling", Wobbling())
        made.produce(*[NORMAL, 5.0, 5.0, NORMAL] * 10)
        made.worker().read_all().stop()
        yield made


@pytest.mark.parametrize("batch_records", BATCHES)
def test_rows_at_the_line_are_judged_as_they_were_and_counted(at_the_line: Plant, batch_records: int) -> None:
    replay = prepared(at_the_line)

    alerts = run(replay, batch_records)

    assert revisions(alerts) == revisions(at_the_line.alerts())
    assert replay.fired == 10
    assert against_live(at_the_line, replay).differences == []
    assert replay.tie_count == len(replay.ties) == 20
    assert {(tie.series, round(tie.last_score, 5)) for tie in replay.ties} == {("a", 1.0)}
    assert replay.ties[0].time_ns == (START_S + 1) * 1_000_000_000


def test_without_the_journals_judgement_they_would_be_judged_otherwise(at_the_line: Plant) -> None:
    replay = prepared(at_the_line)
    replay.imposed_to = 0

    alerts = run(replay, 1)

    assert alerts == []
    assert [each.kind for each in against_live(at_the_line, replay).differences] == ["missing"] * 20


def test_few_ties_are_kept_and_all_are_counted(at_the_line: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replayer, "KEPT_TIES", 3)
    replay = prepared(at_the_line)

    run(replay, 7)

    assert (len(replay.ties), replay.tie_count) == (3, 20)


# What is not exact says so


@pytest.fixture
def from_the_end(valkey_url: str) -> Iterator[Plant]:
    """Live work began behind 50 records, which taught it, and left no snapshot."""
    with plant_at(valkey_url, start="latest") as made:
        made.produce(*[NORMAL] * 50)
        running = made.worker().read_all()
        made.produce(*[NORMAL, ODD] * 20)
        running.later(1).stop()
        shutil.rmtree(made.folder / "snapshots")
        yield made


def test_without_a_snapshot_some_records_before_the_range_are_read_and_it_is_approximate(
    from_the_end: Plant,
) -> None:
    replay = prepared(from_the_end, 60, rewind_records=8)

    run(replay)

    assert not replay.exact
    assert (replay.start_offset, replay.first_offset, replay.records) == (52, 60, 30)
    assert "from an empty state at offset 52, 8 records before the range" in replay.basis
    assert replay.bins["warming"] == 0
    assert replay.alerts.keys() == revisions(from_the_end.alerts()[9:]).keys()


def forget(folder: Path, first_offset: int) -> None:
    """Retention deletes the oldest records."""
    with sqlite3.connect(folder / "bus.db") as file:
        of_topic = "partition_row IN (SELECT partition_row FROM partitions WHERE topic = ?)"
        file.execute(f"DELETE FROM batches WHERE {of_topic} AND base_offset < ?", (TOPIC, first_offset))  # noqa: S608
        file.execute("UPDATE partitions SET first_offset = ? WHERE topic = ?", (first_offset, TOPIC))
    file.close()


def test_a_snapshot_and_a_beginning_that_retention_overtook_are_of_no_use(
    valkey_url: str, tmp_path: Path
) -> None:
    with plant_at(valkey_url, f"sqlite:///{tmp_path}/bus.db") as plant:
        running = plant.worker().turn(2)
        for bundle in ("bundle-2", "bundle-3", "bundle-4"):
            plant.produce(*[NORMAL] * 4)
            running.later(1)
            plant.desk.promote(bundle)
            running.later(1)
        running.stop()
        forget(tmp_path, 4)
        assert (prepared(plant, 6).start_offset, prepared(plant, 6).exact) == (4, True)
        for each in (plant.folder / "snapshots").rglob("*8-*.snapshot"):
            each.unlink()
        plant.produce(*[NORMAL] * 4)
        forget(tmp_path, 8)

        replay = prepared(plant, 10)

        assert (replay.start_offset, replay.exact) == (8, False)
        assert replay.state.in_force == replay.past.changes[2]


# Nothing is taken for judged that this state might have judged otherwise.
def test_an_approximate_replay_judges_by_itself(from_the_end: Plant) -> None:
    from_the_end.desk.shelf.bundles["bundle-1"] = FakeScorer(level=ODD)

    replay = prepared(from_the_end, 60, rewind_records=8)
    run(replay)

    kinds = Counter(each.kind for each in against_live(from_the_end, replay).differences)
    assert kinds["missing"] > 10


def test_records_that_live_work_never_read_are_left_out(from_the_end: Plant) -> None:
    replay = prepared(from_the_end, 30)

    assert replay.first_offset == 50
    assert replay.notes == ["live work began at offset 50; the records before it are left out"]
    with pytest.raises(NotFound, match=r"began behind the range, at offset 50; choose another range"):
        prepared(from_the_end, 30, 50)


def test_a_state_that_live_work_had_rebuilt_is_told_with_its_offset(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant.produce(NORMAL, NORMAL, ODD, ODD, ODD)
    plant.worker().read_all().later(5).leave()
    plant.flush_store()
    monkeypatch.setattr(pipeline.ownership, "REBUILD_RECORDS", 2)
    second = plant.worker().read_all()
    plant.produce(ODD, NORMAL, ODD)
    second.later(1).stop()

    replay = prepared(plant)
    run(replay)

    assert not replay.exact
    [note] = replay.notes
    assert note.startswith(
        "from offset 5 on live work rested on a state that was rebuilt from the records of 3"
    )
    found = against_live(plant, replay)
    [lost] = [each for each in found.differences if "state lost" in each.says]
    assert (lost.kind, lost.revision) == ("changed", 2)
    assert lost.says.startswith("reason recovered, live state lost; at ")
    # The snapshot that was taken there is of the state that live work went on with.
    after = prepared(plant, 5)
    run(after)
    assert (after.exact, after.notes) == (True, [])
    assert against_live(plant, after).differences == []


def test_records_that_nobody_has_committed_are_judged_anew_and_compared_with_nothing(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL, ODD, NORMAL)
    plant.worker().read_all().stop()
    plant.produce(NORMAL, ODD, NORMAL)

    replay = prepared(plant)
    alerts = run(replay)

    assert [alert.source.offset for alert in alerts] == [2, 3, 5, 6]
    assert replay.exact
    assert replay.notes == [
        "live work has come to offset 4; the records behind it are judged as it would next"
    ]
    found = against_live(plant, replay)
    assert (found.same, found.differences) == (2, [])
    assert (replay.revisions, len(replay.alerts)) == (4, 2)


def test_a_partition_that_no_worker_has_read_is_left_out(valkey_url: str) -> None:
    with plant_at(valkey_url) as plant:
        plant.produce(NORMAL, NORMAL, ODD)
        plant.worker().read_all().stop()
        plant.broker.admin().grow(TOPIC, 3)
        plant.new_producer()
        plant.produce(NORMAL, partition=1)
        bounds = plant.broker.reader().bounds(TOPIC)

        found, left_out = Replayer(parts(plant)).prepare(bounds)

        assert [each.partition.partition for each in found] == [0]
        assert left_out == ["no worker has read readings[1] yet", "readings[2] has no record in the range"]


def test_a_stream_that_nobody_watched_has_nothing_to_replay(plant: Plant) -> None:
    plant.produce(NORMAL)

    with pytest.raises(NotFound, match=r"no worker has read readings\[0\] yet; .*`offbeat detect pumps`"):
        prepared(plant)


def test_a_model_that_is_gone_is_told(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL)
    running = plant.worker().read_all()
    plant.desk.promote("bundle-2")
    running.later(1)
    plant.produce(NORMAL)
    running.later(1).stop()
    del plant.desk.shelf.bundles["bundle-2"]

    with pytest.raises(NotFound, match="bundle-2"):
        run(prepared(plant))


# Against live


def test_alerts_that_are_published_no_more_are_known_from_the_journal(told: Plant) -> None:
    replay = prepared(told)
    run(replay)

    found = compare([replay], told.alerts()[10:])

    assert (found.same, found.unpublished, found.differences) == (len(told.alerts()), 10, [])


def test_other_figures_and_other_words_are_changes(told: Plant) -> None:
    replay, live = prepared(told), told.alerts()
    run(replay)
    at = next(number for number, alert in enumerate(live) if alert.score is not None)
    score = live[at].score
    assert score is not None

    def with_score(factor: float) -> Comparison:
        other = live[at].model_copy(update={"score": score * factor})
        return compare([replay], [*live[:at], other, *live[at + 1 :]])

    assert with_score(1 + 0.9e-5).differences == []
    [changed] = with_score(1 + 1.2e-5).differences
    assert (changed.kind, changed.id, changed.revision) == ("changed", live[at].id, live[at].revision)
    assert changed.says.startswith(f"score {score}, live ")
    moved = live[at].model_copy(update={"reason": "moved", "bundle": None})
    [changed] = compare([replay], [*live, moved]).differences
    assert "reason error above its threshold, live moved; bundle bundle-1, live None" in changed.says


def test_an_alert_that_live_work_did_not_raise_is_new(told: Plant) -> None:
    replay = prepared(told)
    run(replay)
    first = replay.past.alerts.pop(0)

    found = against_live(told, replay)

    assert {each.kind for each in found.differences} == {"new"}
    assert len(found.differences) == len(first.changes)


# The row is from before the range, and the commit that tells of it begins where the range does.
def test_what_is_surely_of_the_range_is_missed_and_what_may_be_of_another_is_not(told: Plant) -> None:
    silent = next(alert for alert in told.alerts() if alert.kind == "silent")
    replay = prepared(told, silent.source.offset + 1)
    assert replay.first_offset in {entry.through for entry in replay.past.alerts}
    run(replay)

    del replay.alerts[silent.id, silent.revision]
    [missing] = against_live(told, replay).differences

    assert (missing.kind, missing.id, missing.says) == ("missing", silent.id, "no events")
    replay.first_offset += 1
    assert against_live(told, replay).differences == []


# A live worker may be in the middle of a commit when its journal is read.


class Unsettled:
    """A reader of a bus on which the journal's last commits are being settled, for so many looks."""

    def __init__(self, reader: Reader, topic: str, looks: int) -> None:
        self._reader, self._topic, self.looks = reader, topic, looks
        self.offset_at, self.read = reader.offset_at, reader.read

    def bounds(self, topic: str) -> Mapping[int, Bounds]:
        found = self._reader.bounds(topic)
        if topic != self._topic or self.looks == 0:
            return found
        self.looks -= 1
        return {number: replace(each, written_offset=each.end_offset + 1) for number, each in found.items()}


def test_a_commit_that_is_being_settled_is_waited_for(told: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replayer, "_LOOK_S", 0.001)
    reader = Unsettled(told.broker.reader(), told.config.journal_topic(STREAM), 3)

    replay = prepared(told, reader=reader)

    assert reader.looks == 0
    assert revisions(run(replay)) == revisions(told.alerts())
