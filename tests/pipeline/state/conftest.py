"""Stores on the real Valkey of all tests, emptied before each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis import Redis
from state_helpers import Wire

from pipeline.state.redis import RedisStore


@pytest.fixture
def redis(valkey_url: str) -> Iterator[Redis]:
    """A plain client of the server, which is empty."""
    with Redis.from_url(valkey_url, protocol=2) as client:
        client.flushall()
        client.config_set("maxmemory", 0)
        yield client
        client.config_set("maxmemory", 0)


@pytest.fixture
def new_store(valkey_url: str, redis: Redis) -> Iterator[Callable[[], RedisStore]]:  # noqa: ARG001 - it empties the server
    """Makes stores of one stream, each as if in a worker of its own."""
    made = []

    def make(url: str = valkey_url, stream: str = "plant") -> RedisStore:
        made.append(RedisStore(url, namespace="offbeat", stream=stream))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(new_store: Callable[[], RedisStore]) -> RedisStore:
    return new_store()


@pytest.fixture
def wire(tmp_path: Path, valkey_url: str) -> Iterator[Wire]:
    wire = Wire(tmp_path, urlsplit(valkey_url).path)
    yield wire
    wire.close()
