"""The buses that the contract suite runs against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from bus_contract import Log

from pipeline.bus import connect
from pipeline.bus.sqlite import SqliteBroker

BUSES = ["sqlite-memory", "sqlite-file", pytest.param("kafka", marks=pytest.mark.kafka)]


@pytest.fixture(params=BUSES)
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    """A bus as users have it."""
    with ExitStack() as closing:
        yield _log(request, tmp_path, closing)


@pytest.fixture(params=BUSES)
def impatient_log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    """A bus whose members are soon replaced when they stall."""
    with ExitStack() as closing:
        yield _log(request, tmp_path, closing, lease_s=0.3)


def _log(request: pytest.FixtureRequest, folder: Path, closing: ExitStack, **sqlite: float) -> Log:
    def opened(url: str):  # noqa: ANN202 - whatever broker the URL names
        broker = SqliteBroker(url, **sqlite) if url.startswith("sqlite") else connect(url)
        closing.callback(broker.close)
        return broker

    if request.param == "sqlite-memory":
        broker = opened("sqlite://")
        return Log(broker, lambda: broker)
    if request.param == "sqlite-file":
        url = f"sqlite:///{folder / 'bus.db'}"
        return Log(opened(url), partial(opened, url))
    url = f"kafka://{request.getfixturevalue('kafka_bootstrap')}"
    return Log(opened(url), partial(opened, url), rebalances=True)
