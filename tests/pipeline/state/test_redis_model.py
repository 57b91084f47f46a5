"""Two owners and any order of events: the store does what a plain model says, and leaves no garbage."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis
from state_helpers import PARTITION, contents, held, packed

from pipeline.ports import PutResult
from pipeline.records import BUCKET_ROWS, Claim
from pipeline.state.redis import RedisStore

SLOTS = (0, 1, 1_999, 2_000, 2_001, 4_000)
NAMES = "abc"
OWNERS = st.integers(0, 1)
ROWS = st.lists(
    st.tuples(st.sampled_from(SLOTS), st.sampled_from(NAMES), st.integers(0, 255)),
    max_size=6,
    unique_by=lambda row: (row[0] // BUCKET_ROWS, row[1]),
)
REMOVED = st.lists(st.tuples(st.sampled_from(SLOTS), st.sampled_from(NAMES)), max_size=3)
Row = tuple[int, str, int]


class TwoOwners(RuleBasedStateMachine):
    """The model: rows by bucket and name, the offset and who wrote it, the epoch, buckets that got lost."""

    def __init__(self, redis: Redis, new_store: Callable[[], RedisStore]) -> None:
        super().__init__()
        redis.flushall()
        self.redis = redis
        self.stores = [new_store(), new_store()]
        self.claims = [store.claim(PARTITION) for store in self.stores]
        self.highest = self.epoch = self.claims[1].epoch
        self.forget()

    def teardown(self) -> None:
        for store in self.stores:
            store.close()

    def forget(self) -> None:
        self.offset: int | None = None
        self.writer = 0
        self.rows: dict[tuple[int, str], Row] = {}
        self.lost: set[int] = set()

    @rule(owner=OWNERS, reset=st.booleans())
    def claim(self, owner: int, reset: bool) -> None:  # noqa: FBT001 - Hypothesis hands it over
        if reset:
            self.forget()
        claim = self.stores[owner].claim(PARTITION, reset=reset)

        assert claim.epoch > self.highest
        assert claim.next_offset == self.readable_offset()
        assert contents(claim.rows) == self.readable()
        self.claims[owner], self.highest, self.epoch = claim, claim.epoch, claim.epoch

    @rule(
        owner=OWNERS,
        base_from_stored=st.sampled_from([0, 0, 0, -1, 1]),
        step=st.integers(-1, 3),
        rows=ROWS,
        removed=REMOVED,
        whole_buckets=st.frozensets(st.integers(0, 2)),
        whole=st.booleans(),
        times=st.integers(1, 2),
    )
    def put(
        self,
        owner: int,
        base_from_stored: int,
        step: int,
        rows: list[Row],
        removed: list[tuple[int, str]],
        whole_buckets: frozenset[int],
        whole: bool,  # noqa: FBT001 - Hypothesis hands it over
        times: int,
    ) -> None:
        """A put, once or (the reply was lost) twice."""
        stored = 10 if self.offset is None else self.offset
        base, offset = stored + base_from_stored, max(stored + step, 0)
        packed_rows = packed(*rows, removed=tuple(removed), whole_buckets=whole_buckets)
        for _ in range(times):
            expected = self.expected(self.claims[owner], base, offset, whole_buckets, whole=whole)
            if expected is PutResult.OK and not self.is_stored(self.claims[owner], offset):
                self.write(self.claims[owner], offset, rows, removed, whole_buckets, whole=whole)

            result = self.stores[owner].put(self.claims[owner], base, offset, packed_rows, whole=whole)

            assert result is expected

    def is_stored(self, claim: Claim, offset: int) -> bool:
        return self.epoch == claim.epoch == self.writer and self.offset == offset

    def expected(
        self, claim: Claim, base: int, offset: int, whole_buckets: frozenset[int], *, whole: bool
    ) -> PutResult:
        if claim.epoch < self.epoch:
            return PutResult.STALE_EPOCH
        if self.is_stored(claim, offset):
            return PutResult.OK
        if self.writer == claim.epoch and self.offset is not None and self.offset > offset:
            return PutResult.STALE_OFFSET
        if not whole and (self.offset != base or claim.epoch != self.epoch or self.lost - whole_buckets):
            return PutResult.NEED_WHOLE
        return PutResult.OK

    def write(
        self,
        claim: Claim,
        offset: int,
        rows: list[Row],
        removed: list[tuple[int, str]],
        whole_buckets: frozenset[int],
        *,
        whole: bool,
    ) -> None:
        replaced = {0, 1, 2} if whole else whole_buckets
        self.rows = {key: row for key, row in self.rows.items() if key[0] not in replaced}
        self.lost -= replaced
        for slot, name in removed:
            self.rows.pop((slot // BUCKET_ROWS, name), None)
        self.rows |= {(row[0] // BUCKET_ROWS, row[1]): row for row in rows}
        self.epoch = self.writer = claim.epoch
        self.offset = offset

    @rule()
    def flush(self) -> None:
        self.redis.flushall()
        self.forget()
        self.epoch = 0

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        buckets = sorted({bucket for bucket, _ in self.rows} - self.lost)
        if buckets:
            bucket = data.draw(st.sampled_from(buckets))
            self.redis.delete(*self.redis.keys(f"*}}:b{bucket}:*"))
            self.lost.add(bucket)

    def readable_offset(self) -> int | None:
        return None if self.lost else self.offset

    def readable(self) -> dict[tuple[int, bytes], tuple[int, bytes]] | None:
        return None if self.readable_offset() is None else contents(packed(*self.rows.values()))

    @invariant()
    def everybody_reads_what_the_model_holds(self) -> None:
        expected = None if self.readable_offset() is None else (self.offset, self.readable())
        assert held(self.stores[0]) == expected

    @invariant()
    def no_key_is_left_over_and_none_will_vanish(self) -> None:
        keys = self.redis.keys()
        buckets = {bucket for bucket, _ in self.rows} - self.lost
        assert len(keys) == (self.epoch > 0) + len(buckets)
        assert all(self.redis.ttl(key) == -1 for key in keys)


def test_the_store_does_what_the_model_says(redis: Redis, new_store: Callable[[], RedisStore]) -> None:
    run_state_machine_as_test(
        lambda: TwoOwners(redis, new_store),
        settings=settings(
            max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
