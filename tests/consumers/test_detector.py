"""The detector role: from the first poll to an orderly end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from working import NORMAL, ODD, Plant, Running, assert_exactly_once, plant_at

from consumers import detector
from pipeline.errors import BusDown, BusError
from pipeline.loop import Parts
from pipeline.status import Status


@pytest.fixture
def plant(valkey_url: str) -> Iterator[Plant]:
    with plant_at(valkey_url) as made:
        yield made


@pytest.fixture
def two(valkey_url: str) -> Iterator[Plant]:
    """A plant with two partitions."""
    with plant_at(valkey_url, partitions=2) as made:
        yield made


def run(
    running: Running,
    *,
    turn_s: float = 0.1,
    turns: int = 2_000,
    on_turn: Callable[[int], object] = lambda _: None,
    **how: Any,  # noqa: ANN401 - as the role takes them
) -> tuple[list[Status], int]:
    """Let the role work with a worker's parts, for so many turns at most; what it told, and its turns."""
    parts: Parts = running.worker._parts
    told: list[Status] = []
    turned = 0

    def should_stop() -> bool:
        nonlocal turned
        if turned == turns:
            return True
        on_turn(turned)
        turned += 1
        running.clock.now_s += turn_s
        return False

    last = detector.run(parts, should_stop=should_stop, on_status=told.append, **how)
    assert told[-1] == last
    return told, turned


def test_it_works_until_it_is_asked_to_stop_and_ends_in_order(plant: Plant) -> None:
    plant.produce(NORMAL, ODD, NORMAL)

    told, turns = run(plant.worker(), turns=5)

    assert turns == 5
    assert told[-1].bins["scored"] == 2
    stored = plant.stored()
    assert stored is not None
    assert stored.next_offset == plant.committed() == 3
    assert_exactly_once(plant)


def test_asked_before_it_began_it_does_nothing(plant: Plant) -> None:
    told, _ = run(plant.worker(), turns=0)

    assert [status.doing for status in told] == ["standing by"]


def test_work_with_an_end_ends_when_all_is_read_and_nothing_comes(plant: Plant) -> None:
    plant.produce(NORMAL, ODD, NORMAL)

    told, turns = run(plant.worker(), until_idle_s=3.0)

    assert 30 <= turns <= 40
    assert (told[-1].lag, sum(told[-1].bins.values())) == (0, 3)
    assert_exactly_once(plant)


def test_what_comes_late_is_waited_for_again(plant: Plant) -> None:
    plant.produce(NORMAL)

    told, turns = run(
        plant.worker(), until_idle_s=3.0, on_turn=lambda turn: plant.produce(NORMAL) if turn == 25 else None
    )

    assert turns >= 55
    assert sum(told[-1].bins.values()) == 2


def test_reading_again_is_no_idleness(plant: Plant) -> None:
    for _ in range(100):
        plant.produce(NORMAL)
    plant.worker(max_records=1).read_all().later(1).leave()
    plant.flush_store()

    told, _ = run(plant.worker(max_records=1), until_idle_s=0.05)

    assert "reading again" in [status.doing for status in told]
    assert sum(told[-1].bins.values()) == 100


def test_a_partition_that_waits_for_redis_is_no_idleness(two: Plant) -> None:
    two.produce(NORMAL)
    two.produce(NORMAL, partition=1)
    running = two.worker()
    running.store.down = {1}

    told, turns = run(
        running, until_idle_s=1.0, on_turn=lambda turn: running.store.down.clear() if turn == 50 else None
    )

    assert turns > 50
    assert sum(told[-1].bins.values()) == 2


def test_standing_by_is_no_idleness(plant: Plant) -> None:
    plant.produce(NORMAL)
    first = plant.worker().turn()
    running = plant.worker()

    told, turns = run(running, until_idle_s=1.0, on_turn=lambda turn: first.leave() if turn == 50 else None)

    assert turns > 50
    assert sum(told[-1].bins.values()) == 1


def test_a_status_is_told_every_two_seconds_and_whenever_something_else_is_done(plant: Plant) -> None:
    running = plant.worker()

    def on_turn(turn: int) -> None:
        if turn == 50:
            running.bus.failing_polls = [BusDown("nobody answers")]

    told, _ = run(running, turns=101, on_turn=on_turn)

    doing = [status.doing for status in told]
    assert doing[:2] == ["standing by", "live"]
    assert doing.count("waiting for the bus") == 1
    assert doing[-1] == "live"
    # Ten seconds and the pause: five or six by time, four by what is done, one at the end.
    assert 9 <= len(told) <= 11


def test_what_cannot_be_mended_ends_it_with_nothing_stored(plant: Plant) -> None:
    plant.produce(NORMAL, ODD)
    running = plant.worker()
    running.bus.failing = [BusError("the record of 20 MB can never be written")]

    with pytest.raises(BusError, match="never be written"):
        run(running)

    assert (plant.committed(), plant.stored()) == (None, None)
