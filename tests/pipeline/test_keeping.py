"""What is written when it could not be written at once, or when others wrote meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
from working import AT, NORMAL, ODD, Plant, plant_at, settings

from pipeline.errors import BusDown
from pipeline.ownership import checkpoint
from pipeline.ports import PutResult, Reader
from pipeline.records import Bounds, Claim, TopicPartition
from pipeline.state.redis import RedisStore

WIDER = settings(model={"window": 3})
"""A policy under which rows are stored in another layout."""


@pytest.fixture
def plant(valkey_url: str) -> Iterator[Plant]:
    with plant_at(valkey_url) as made:
        yield made


# Rows of the old layout would stand among those of the new one, in one bucket.
@pytest.mark.parametrize("records", [0, 1])
def test_no_delta_is_put_on_rows_of_another_layout_when_the_store_is_back(plant: Plant, records: int) -> None:
    plant.produce(NORMAL, NORMAL, series="a")
    running = plant.worker().read_all().later(5)
    running.store.down = {0}
    plant.desk.apply(WIDER)
    running.later(1)
    running.store.down.clear()

    plant.produce(*[NORMAL] * records, series="b")
    running.later(5).later(5).leave()

    assert running.store.puts[1:] == [(0, 2 + records, True, PutResult.OK)]
    again = plant.worker().read_all()
    assert again.notices == []
    assert again.status.series == records
    assert sum(again.bins.values()) == 2 + records


# The owner was killed between the commit that brought the policy into force and the write of the state.
def test_an_owner_that_reads_again_over_a_change_of_layout_stores_all_of_the_new_one(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL, series="a")
    first = plant.worker().read_all().later(5)
    first.store.down = {0}
    plant.desk.apply(WIDER)
    first.later(1)
    plant.produce(NORMAL, series="b")
    first.later(1).leave()

    second = plant.worker().read_all()
    plant.produce(NORMAL, series="c")
    second.later(5).leave()

    assert second.store.puts == [(0, 4, True, PutResult.OK)]
    third = plant.worker().read_all()
    assert (third.notices, third.status.series) == ([], 2)


def test_states_that_take_long_to_write_are_written_less_often_but_when_handed_over(plant: Plant) -> None:
    plant.produce(NORMAL)
    running = plant.worker().read_all()
    running.store.takes_s = 3
    running.later(5)
    plant.produce(NORMAL)

    written = [len(running.later(seconds).store.puts) for seconds in (11, 1)]

    assert written == [1, 2]
    plant.produce(NORMAL)
    running.later(1).stop()
    assert [offset for _, offset, *_ in running.store.puts] == [1, 2, 3]


# Somebody who was evicted may have claimed the partition in passing.
def test_a_first_write_is_not_kept_from_the_store_by_a_claim_in_passing(plant: Plant) -> None:
    plant.produce(NORMAL)
    running = plant.worker().read_all()
    plant.new_store().claim(AT)

    running.later(5)

    assert running.store.puts == [(0, 1, True, PutResult.OK)]


class Contended:
    """A store on which somebody else claims whatever is claimed, right behind it."""

    def __init__(self, store: RedisStore) -> None:
        self._store, self.put = store, store.put

    def claim(self, partition: TopicPartition, *, reset: bool = False) -> Claim:
        claim = self._store.claim(partition, reset=reset)
        self._store.claim(partition)
        return claim


# Both may think that they own it for a moment; the bus lets only one of them commit.
def test_a_partition_that_others_claim_is_not_fought_for(plant: Plant) -> None:
    plant.produce(NORMAL)
    running = plant.worker().read_all()
    owned = running.worker._owned[AT]

    assert checkpoint(Contended(plant.new_store()), owned, 0.0) is PutResult.STALE_EPOCH

    assert (owned.stored_offset, owned.state.dirty.any()) == (None, True)
    assert running.later(5).store.puts == [(0, 1, True, PutResult.OK)]


class Mute:
    """A reader that the bus does not answer for a while."""

    def __init__(self, reader: Reader) -> None:
        self._reader, self.read, self.mute = reader, reader.read, False

    def bounds(self, topic: str) -> Mapping[int, Bounds]:
        if self.mute:
            raise BusDown("nobody answers")
        return self._reader.bounds(topic)


# The state is stored all the same; its successor reads entries that it has already, and takes none in twice.
def test_a_journal_that_does_not_say_its_end_keeps_no_state_from_the_store(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL, ODD)
    running = plant.worker().read_all()
    running.worker._journal._reader = reader = Mute(running.worker._journal._reader)
    reader.mute = True

    running.later(5).leave()

    assert running.store.puts == [(0, 3, True, PutResult.OK)]
    stored = plant.stored()
    assert stored is not None
    assert (stored.journal_offset, len(plant.journal())) == (0, 2)
    plant.produce(NORMAL, ODD)
    second = plant.worker().read_all()
    assert [alert.revision for alert in plant.alerts()] == [1, 2, 1]
    reader.mute = False
    second.later(5)
    stored = plant.stored()
    assert stored is not None
    assert stored.journal_offset == len(plant.journal()) == 3


def test_a_snapshot_that_could_not_be_written_is_told_once_and_detection_goes_on(plant: Plant) -> None:
    plant.produce(NORMAL, NORMAL)
    running = plant.worker().read_all()
    (plant.folder / "snapshots").write_bytes(b"")

    for bundle in ("bundle-2", "bundle-3"):
        plant.desk.promote(bundle)
        running.later(1)
    plant.produce(ODD)
    running.turn()

    assert len([one for one in running.notices if "goes on without this snapshot" in one]) == 1
    assert (running.status.doing, len(plant.alerts())) == ("live", 1)
    (plant.folder / "snapshots").unlink()
    plant.desk.promote("bundle-4")
    running.later(1)
    assert len(list((plant.folder / "snapshots").rglob("*.snapshot"))) == 1
