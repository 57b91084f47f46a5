"""What is stored where something else came into force, and could not be stored at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from working import AT, NORMAL, Plant, plant_at, settings

from pipeline.ports import PutResult

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


# Somebody who was evicted may have claimed the partition in passing.
def test_a_first_write_is_not_kept_from_the_store_by_a_claim_in_passing(plant: Plant) -> None:
    plant.produce(NORMAL)
    running = plant.worker().read_all()
    plant.new_store().claim(AT)

    running.later(5)

    assert running.store.puts == [(0, 1, True, PutResult.OK)]
