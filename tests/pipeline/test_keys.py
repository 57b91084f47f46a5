"""The table of keys: what it says is so, whatever was added and forgotten."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pipeline.keys import KeyTable

KEYS = st.binary(max_size=3) | st.sampled_from([b"unit-%d" % number for number in range(200)])


def asked(table: KeyTable, *keys: bytes) -> list[int]:
    length = np.array([len(key) for key in keys], np.int32)
    begin = np.cumsum(length, dtype=np.int64) - length
    return table.find(np.frombuffer(b"".join(keys), np.uint8), begin, length).tolist()


class Keys(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = KeyTable()
        self.slots: dict[bytes, int] = {}

    @rule(slots=st.dictionaries(KEYS, st.integers(0, 10_000), max_size=60))
    def add(self, slots: dict[bytes, int]) -> None:
        self.table.add(slots)
        self.slots |= slots

    @rule()
    def clear(self) -> None:
        self.table.clear()
        self.slots.clear()

    @rule(keys=st.lists(KEYS, min_size=1, max_size=20))
    def find(self, keys: list[bytes]) -> None:
        assert asked(self.table, *keys) == [self.slots.get(key, -1) for key in keys]

    @invariant()
    def all_that_was_added_is_found(self) -> None:
        assert asked(self.table, *self.slots) == list(self.slots.values())


TestKeys = Keys.TestCase
TestKeys.settings = settings(deadline=None, derandomize=True, max_examples=30, stateful_step_count=15)


def test_a_key_that_is_not_there_is_not_looked_for() -> None:
    table = KeyTable()
    table.add({b"": 3})

    found = table.find(np.zeros(0, np.uint8), np.zeros(2, np.int64), np.array([-1, 0], np.int32))

    assert found.tolist() == [-1, 3]
