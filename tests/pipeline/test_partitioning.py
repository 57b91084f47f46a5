"""A key's partition is where Kafka's own client puts it."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2

from pipeline.partitioning import UNKEYED, key_hash


@settings(derandomize=True, max_examples=300, deadline=None)
@given(key=st.binary(max_size=40))
@example(key=b"")
def test_a_key_is_hashed_as_by_the_client(key: bytes) -> None:
    assert key_hash(key) == murmur2(key) & 0x7FFFFFFF


# As the tests of Kafka's Java client have them.
@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    ],
)
def test_a_key_is_hashed_as_by_the_broker_s_own_tests(key: bytes, hashed: int) -> None:
    assert key_hash(key) == hashed & 0x7FFFFFFF


def test_a_record_without_a_key_belongs_to_no_partition() -> None:
    assert key_hash(None) == UNKEYED < 0 <= key_hash(b"")
