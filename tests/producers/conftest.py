"""What the producers' tests share: a real bus in memory, and one driven by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from collecting import TOPIC, Collector, HandClock

from pipeline import bus
from pipeline.ports import Broker
from pipeline.records import TopicSpec


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def collector(clock: HandClock) -> Collector:
    return Collector(clock)


@pytest.fixture
def broker() -> Iterator[Broker]:
    opened = bus.connect("sqlite://")
    opened.admin().create([TopicSpec(TOPIC, 1)])
    yield opened
    opened.close()
