"""A producer that only collects, a clock driven by hand, and all of a topic read back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from pipeline.ports import Broker
from pipeline.records import Send, TopicPartition

TOPIC = "readings"


class Collector:
    """A producer that keeps what it is given, and the time of its clock at which it came."""

    def __init__(self, clock: HandClock | None = None) -> None:
        self.clock = clock
        self.sent: list[Send] = []
        self.sent_at: list[float] = []
        self.flushed = 0

    def send(self, sends: Iterable[Send]) -> None:
        before = len(self.sent)
        self.sent += sends
        if self.clock:
            self.sent_at += [self.clock()] * (len(self.sent) - before)

    def flush(self) -> None:
        self.flushed = len(self.sent)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(send.value or b"") for send in self.sent]


class HandClock:
    """A clock that only its own sleep moves."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.naps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.naps.append(seconds)
        self.now += seconds


def read_all(broker: Broker) -> list[tuple[bytes | None, dict[str, Any], int]]:
    """Key, event and timestamp of every record in the topic."""
    reader = broker.reader()
    partition = TopicPartition(TOPIC, 0)
    found = []
    offset, end = 0, reader.bounds(TOPIC)[0].end_offset
    while offset < end:
        batch = reader.read(partition, offset, 10_000, 1.0)
        offset = batch.next_offset
        found += [
            (batch.key(row), msgspec.json.decode(batch.value(row) or b""), int(batch.timestamp_ms[row]))
            for row in range(len(batch))
        ]
    return found
