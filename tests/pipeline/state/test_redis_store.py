"""The contract of pipeline.ports.StateStore on a real Valkey."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from redis import Redis
from state_helpers import PARTITION, contents, held, many, packed, written

from pipeline.ports import PutResult
from pipeline.records import BUCKET_ROWS, PackedRows, TopicPartition
from pipeline.state.redis import RedisStore

NewStore = Callable[..., RedisStore]


def test_a_partition_never_written_has_nothing(store: RedisStore) -> None:
    assert store.peek(PARTITION) is None

    claim = store.claim(PARTITION)

    assert (claim.partition, claim.next_offset, claim.rows) == (PARTITION, None, None)


def test_what_is_written_whole_is_what_the_next_owner_gets(store: RedisStore, new_store: NewStore) -> None:
    rows = packed((4_001, "c", 3), (0, "a", 1), (2_000, "b\x1fsite", 2), header=b"\x00any bytes\xff")
    first = written(store, 100, rows)

    second = new_store().claim(PARTITION)

    assert second.epoch > first.epoch
    assert second.next_offset == 100
    assert second.rows is not None
    assert second.rows.header == rows.header
    assert second.rows.slots.tolist() == [0, 2_000, 4_001]
    assert second.rows.slots.dtype == rows.slots.dtype
    assert contents(second.rows) == contents(rows)


def test_a_state_without_rows_is_a_state(store: RedisStore) -> None:
    written(store, 7, packed(header=b"only a header"))

    claim = store.claim(PARTITION)

    assert claim.next_offset == 7
    assert claim.rows is not None
    assert (claim.rows.header, claim.rows.series) == (b"only a header", [])


def test_a_delta_changes_adds_and_removes_on_top_of_its_base(store: RedisStore) -> None:
    claim = written(store, 100, packed((0, "a", 1), (1, "b", 2), (2_000, "c", 3), (4_000, "d", 4)))

    delta = packed((0, "a", 9), (1, "e", 5), (6_000, "f", 6), removed=((1, "b"), (4_000, "d")), header=b"new")
    result = store.put(claim, 100, 110, delta, whole=False)

    assert result is PutResult.OK
    expected = packed((0, "a", 9), (1, "e", 5), (2_000, "c", 3), (6_000, "f", 6))
    assert held(store) == (110, contents(expected))
    assert store.claim(PARTITION).rows.header == b"new"


def test_a_delta_on_another_base_is_not_taken(store: RedisStore) -> None:
    claim = written(store, 100, packed((0, "a", 1)))

    result = store.put(claim, 90, 110, packed((0, "a", 2)), whole=False)

    assert result is PutResult.NEED_WHOLE
    assert held(store) == (100, contents(packed((0, "a", 1))))


def test_a_delta_needs_something_to_stand_on(store: RedisStore) -> None:
    claim = store.claim(PARTITION)

    assert store.put(claim, 0, 10, packed((0, "a", 1)), whole=False) is PutResult.NEED_WHOLE
    assert held(store) is None


@pytest.mark.parametrize("whole", [True, False])
def test_an_owner_of_before_writes_nothing(store: RedisStore, new_store: NewStore, whole: bool) -> None:  # noqa: FBT001
    earlier = written(store, 100, packed((0, "a", 1)))
    new_store().claim(PARTITION)

    result = store.put(earlier, 100, 110, packed((0, "a", 2)), whole=whole)

    assert result is PutResult.STALE_EPOCH
    assert held(store) == (100, contents(packed((0, "a", 1))))


@pytest.mark.parametrize("whole", [True, False])
def test_an_owner_never_goes_back_behind_its_own_write(store: RedisStore, whole: bool) -> None:  # noqa: FBT001
    claim = written(store, 100, packed((0, "a", 1)))

    result = store.put(claim, 100, 90, packed((0, "a", 2)), whole=whole)

    assert result is PutResult.STALE_OFFSET
    assert held(store) == (100, contents(packed((0, "a", 1))))


def test_a_new_owner_may_write_whole_at_an_earlier_offset(store: RedisStore) -> None:
    written(store, 100, packed((0, "a", 1)))
    claim = store.claim(PARTITION)

    assert store.put(claim, 0, 90, packed((0, "a", 2)), whole=True) is PutResult.OK
    assert held(store) == (90, contents(packed((0, "a", 2))))


@pytest.mark.parametrize("whole", [True, False])
def test_a_put_sent_again_is_ok_and_writes_nothing(store: RedisStore, whole: bool) -> None:  # noqa: FBT001
    claim = written(store, 100, packed((0, "a", 1)))
    assert store.put(claim, 100, 110, packed((0, "a", 2)), whole=whole) is PutResult.OK

    again = store.put(claim, 100, 110, packed((0, "a", 3)), whole=whole)

    assert again is PutResult.OK
    assert held(store) == (110, contents(packed((0, "a", 2))))


@pytest.mark.parametrize("whole", [True, False])
def test_the_offset_of_an_earlier_owner_is_written_all_the_same(store: RedisStore, whole: bool) -> None:  # noqa: FBT001
    written(store, 100, packed((0, "a", 1)))
    claim = store.claim(PARTITION)

    assert store.put(claim, 100, 100, packed((0, "a", 2)), whole=whole) is PutResult.OK
    assert held(store) == (100, contents(packed((0, "a", 2))))


def test_a_whole_write_leaves_nothing_of_before(store: RedisStore, redis: Redis) -> None:
    claim = written(store, 100, packed((0, "a", 1), (2_000, "b", 2)))

    store.put(claim, 0, 110, packed((4_000, "c", 3)), whole=True)

    assert held(store) == (110, contents(packed((4_000, "c", 3))))
    assert len(redis.keys()) == 2


def test_a_reset_drops_all_but_the_epoch(store: RedisStore, redis: Redis) -> None:
    earlier = written(store, 100, packed((0, "a", 1), (2_000, "b", 2)))

    claim = store.claim(PARTITION, reset=True)

    assert (claim.next_offset, claim.rows) == (None, None)
    assert claim.epoch > earlier.epoch
    assert len(redis.keys()) == 1
    assert store.put(earlier, 100, 110, packed((0, "a", 2)), whole=True) is PutResult.STALE_EPOCH
    assert store.put(claim, 100, 110, packed((0, "a", 2)), whole=False) is PutResult.NEED_WHOLE
    assert store.put(claim, 0, 50, packed((0, "a", 2)), whole=True) is PutResult.OK


def test_epochs_rise_even_over_a_flush(store: RedisStore, redis: Redis) -> None:
    before = written(store, 100, packed((0, "a", 1)))
    redis.flushall()

    assert store.claim(PARTITION).epoch > before.epoch
    assert store.put(before, 0, 110, packed((0, "a", 2)), whole=True) is PutResult.STALE_EPOCH


def test_after_a_flush_the_owner_is_asked_for_everything(store: RedisStore, redis: Redis) -> None:
    claim = written(store, 100, packed((0, "a", 1), (1, "b", 1)))
    redis.flushall()

    assert store.put(claim, 100, 110, packed((0, "a", 2)), whole=False) is PutResult.NEED_WHOLE
    assert held(store) is None
    assert store.put(claim, 100, 110, packed((0, "a", 2), (1, "b", 1)), whole=True) is PutResult.OK
    assert held(store) == (110, contents(packed((0, "a", 2), (1, "b", 1))))


@pytest.mark.parametrize("count", [0, 1, BUCKET_ROWS, 5_000, 20_000])
def test_whole_writes_of_every_size(store: RedisStore, redis: Redis, count: int) -> None:
    rows = many(count, seed=1)

    written(store, 100, rows)

    assert held(store) == (100, contents(rows))
    assert len(redis.keys()) == 1 + -(-count // BUCKET_ROWS)
    assert all(redis.ttl(key) == -1 for key in redis.scan_iter())


@pytest.mark.parametrize("count", [5_000, 20_000])
def test_a_large_delta_replaces_whole_buckets_and_keeps_the_others(
    store: RedisStore, redis: Redis, count: int
) -> None:
    claim = written(store, 100, many(count + 2_500, seed=1))
    delta = many(count, seed=2)

    assert store.put(claim, 100, 110, delta, whole=False) is PutResult.OK

    before = contents(many(count + 2_500, seed=1))
    last = max(delta.whole_buckets)
    kept = {key: cell for key, cell in before.items() if key[0] > last}
    assert held(store) == (110, kept | contents(delta))
    assert all(redis.ttl(key) == -1 for key in redis.scan_iter())


def test_a_whole_bucket_goes_along_with_changes_in_others(store: RedisStore, redis: Redis) -> None:
    claim = written(store, 100, packed((0, "a", 1), (1, "b", 1), (2_000, "c", 1), (2_001, "d", 1)))
    delta = packed(
        (0, "a", 2), (2_000, "c", 2), removed=((2_001, "d"), (1, "b")), whole_buckets=frozenset({0})
    )

    assert store.put(claim, 100, 110, delta, whole=False) is PutResult.OK

    assert held(store) == (110, contents(packed((0, "a", 2), (2_000, "c", 2))))
    assert len(redis.keys()) == 3


def test_a_whole_bucket_without_rows_is_dropped(store: RedisStore, redis: Redis) -> None:
    claim = written(store, 100, packed((0, "a", 1), (2_000, "b", 1)))

    assert store.put(claim, 100, 110, packed(whole_buckets=frozenset({1})), whole=False) is PutResult.OK

    assert held(store) == (110, contents(packed((0, "a", 1))))
    assert len(redis.keys()) == 2


def test_a_bucket_emptied_row_by_row_is_dropped_too(store: RedisStore, redis: Redis) -> None:
    claim = written(store, 100, packed((0, "a", 1), (2_000, "b", 1)))

    assert store.put(claim, 100, 110, packed(removed=((2_000, "b"),)), whole=False) is PutResult.OK

    assert held(store) == (110, contents(packed((0, "a", 1))))
    assert len(redis.keys()) == 2


def test_more_changes_than_one_script_may_carry_are_a_mistake(store: RedisStore) -> None:
    claim = written(store, 100, many(3_000, seed=1))
    rows = many(3_000, seed=2)
    loose = PackedRows(rows.header, rows.slots, rows.series, rows.rows)

    with pytest.raises(ValueError, match="more than 2000 rows"):
        store.put(claim, 100, 110, loose, whole=False)


def test_a_delta_of_a_full_bucket_goes_through_one_script(store: RedisStore) -> None:
    claim = written(store, 100, many(BUCKET_ROWS, seed=1))
    rows = many(BUCKET_ROWS, seed=2)
    loose = PackedRows(rows.header, rows.slots, rows.series, rows.rows)

    assert store.put(claim, 100, 110, loose, whole=False) is PutResult.OK
    assert held(store) == (110, contents(rows))


def test_streams_and_partitions_do_not_touch_each_other(store: RedisStore, new_store: NewStore) -> None:
    other = TopicPartition("machines", 30)
    elsewhere = new_store(stream="plant2")
    written(store, 100, packed((0, "a", 1)))
    store.claim(other)

    elsewhere.claim(PARTITION, reset=True)

    assert held(store) == (100, contents(packed((0, "a", 1))))
    assert store.partitions() == [PARTITION, other]
    assert elsewhere.partitions() == [PARTITION]


def test_looking_leaves_the_owner_its_claim(store: RedisStore, new_store: NewStore) -> None:
    claim = written(store, 100, packed((0, "a", 1)))

    seen = new_store().peek(PARTITION)

    assert seen is not None
    assert seen.epoch == claim.epoch
    assert store.put(claim, 100, 110, packed((0, "a", 2)), whole=False) is PutResult.OK


@pytest.mark.parametrize("whole", [True, False])
def test_a_refused_write_leaves_no_rows_behind(store: RedisStore, redis: Redis, whole: bool) -> None:  # noqa: FBT001
    earlier = written(store, 100, many(3_000, seed=1))
    store.claim(PARTITION)
    keys = set(redis.keys())

    assert store.put(earlier, 100, 110, many(3_000, seed=2), whole=whole) is PutResult.STALE_EPOCH

    assert set(redis.keys()) == keys


def test_a_server_that_forgot_the_scripts_gets_them_again(store: RedisStore, redis: Redis) -> None:
    claim = written(store, 100, packed((0, "a", 1)))
    redis.script_flush()

    assert store.put(claim, 100, 110, packed((0, "a", 2)), whole=False) is PutResult.OK


def test_the_server_says_what_it_is(store: RedisStore) -> None:
    info = store.ping()

    assert info.server == "valkey"
    assert info.version[0].isdigit()
    assert abs(info.clock_skew_s) < 0.5
    assert info.used_memory > 0
