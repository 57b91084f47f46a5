"""The SQLite bus against a model of plain lists: whatever is done in whatever order, both say the same."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from bus_contract import rows
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline.bus.sqlite import SqliteBroker
from pipeline.errors import Refused
from pipeline.records import Send, Token, TopicPartition, TopicSpec

PARTITIONS = 3
parts = st.none() | st.binary(max_size=8)
numbers = st.integers(0, PARTITIONS - 1)
records = st.lists(st.tuples(numbers, parts, parts, st.integers(0, 50)), max_size=12)
Record = tuple[bytes | None, bytes | None, int]


class SqliteLogModel(RuleBasedStateMachine):
    """One group over one topic; now and then everything is closed and opened again."""

    @initialize()
    def make(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.log: list[list[Record]] = [[] for _ in range(PARTITIONS)]
        self.committed: dict[int, int] = {}
        self.open()
        self.broker.admin().create([TopicSpec("t", PARTITIONS)])
        self.join()

    def open(self) -> None:
        self.broker = SqliteBroker(f"sqlite:///{Path(self.folder.name) / 'bus.db'}")
        self.reader = self.broker.reader()
        self.admin = self.broker.admin()
        self.producer = self.broker.producer()

    def join(self) -> None:
        self.bus = self.broker.bus(group="g", topics=["t"], transactional_id="x")
        polled = self.bus.poll(1, 0)
        self.token = polled.token
        self.check_assignment(polled)

    def check_assignment(self, polled) -> None:  # noqa: ANN001
        found = {a.partition.partition: (a.end_offset, a.committed_offset) for a in polled.assigned}
        assert found == {n: (len(self.log[n]), self.committed.get(n)) for n in range(PARTITIONS)}
        self.positions: dict[int, int | None] = dict.fromkeys(range(PARTITIONS))

    def sends(self, new: list[tuple[int, bytes | None, bytes | None, int]]) -> list[Send]:
        return [Send("t", key, value, (), time_ms, number) for number, key, value, time_ms in new]

    def append(self, new: list[tuple[int, bytes | None, bytes | None, int]]) -> None:
        for number, *record in new:
            self.log[number].append(tuple(record))

    @rule(new=records)
    def produce(self, new: list[tuple[int, bytes | None, bytes | None, int]]) -> None:
        self.producer.send(self.sends(new))
        self.producer.flush()
        self.append(new)

    @rule(number=numbers, part=st.floats(0, 1))
    def seek(self, number: int, part: float) -> None:
        self.positions[number] = round(part * len(self.log[number]))
        self.bus.seek(TopicPartition("t", number), self.positions[number])

    @rule(max_records=st.integers(1, 30))
    def poll(self, max_records: int) -> None:
        polled = self.bus.poll(max_records, 0)
        self.token = polled.token
        assert not any(batch.corrupt for batch in polled.batches)
        assert not polled.revoked
        for batch in polled.batches:
            number = batch.partition.partition
            at = self.positions[number]
            assert [(row.offset, row[1:]) for row in rows(batch)] == list(
                enumerate(self.log[number][at : batch.next_offset], at)
            )
            assert len(batch) > 0
            self.positions[number] = batch.next_offset
        behind = any(at is not None and at < len(self.log[n]) for n, at in self.positions.items())
        assert polled.batches or not behind

    @rule(new=records)
    def commit(self, new: list[tuple[int, bytes | None, bytes | None, int]]) -> None:
        positions = {n: at for n, at in self.positions.items() if at is not None}
        self.bus.commit(
            self.token, {TopicPartition("t", n): at for n, at in positions.items()}, self.sends(new)
        )
        self.committed |= positions
        self.append(new)

    @rule(new=records)
    def commit_under_an_old_token(self, new: list[tuple[int, bytes | None, bytes | None, int]]) -> None:
        with pytest.raises(Refused):
            self.bus.commit(Token(-1), {TopicPartition("t", 0): 0}, self.sends(new))
        polled = self.bus.poll(1, 0)
        assert {partition.partition for partition in polled.revoked} == set(range(PARTITIONS))
        polled = self.bus.poll(1, 0)
        self.token = polled.token
        self.check_assignment(polled)

    @rule()
    def reopen(self) -> None:
        self.broker.close()
        self.open()
        self.join()

    @precondition(lambda self: any(self.log))
    @rule(number=numbers, time_ms=st.integers(0, 51))
    def find_a_time(self, number: int, time_ms: int) -> None:
        expected = next((i for i, r in enumerate(self.log[number]) if r[2] >= time_ms), len(self.log[number]))
        assert self.reader.offset_at(TopicPartition("t", number), time_ms) == expected

    @invariant()
    def what_is_stored_is_the_model(self) -> None:
        assert self.admin.committed("g", "t") == self.committed
        for number, bounds in self.reader.bounds("t").items():
            assert (bounds.first_offset, bounds.end_offset) == (0, len(self.log[number]))
            batch = self.reader.read(TopicPartition("t", number), 0, 10_000, 0)
            assert [row[1:] for row in rows(batch)] == self.log[number]

    def teardown(self) -> None:
        if hasattr(self, "broker"):
            self.broker.close()
            self.folder.cleanup()


TestSqliteLogModel = SqliteLogModel.TestCase
TestSqliteLogModel.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
