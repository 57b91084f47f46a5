"""Fixtures that more than one folder of tests needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from servers import kafka_server

KAFKA_IMAGE = "confluentinc/cp-kafka:8.1.0"


def _docker_answers() -> bool:
    if not os.environ.get("DOCKER_HOST") and not Path("/var/run/docker.sock").exists():
        return False
    import docker  # noqa: PLC0415 - tests without a broker run without it
    from docker.errors import DockerException  # noqa: PLC0415

    try:
        client = docker.from_env()
    except DockerException:
        return False
    client.close()
    return True


@contextmanager
def _kafka_container() -> Iterator[str]:
    from testcontainers.kafka import KafkaContainer  # noqa: PLC0415 - only where Docker answers

    container = KafkaContainer(KAFKA_IMAGE).with_kraft()
    container.with_env("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1")
    container.with_env("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1")
    container.with_env("KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS", "500")
    container.with_env("KAFKA_TRANSACTION_ABORT_TIMED_OUT_TRANSACTION_CLEANUP_INTERVAL_MS", "500")
    with container as started:
        yield started.get_bootstrap_server()


@pytest.fixture(scope="session")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``host:port`` of a real Kafka broker; with pytest-xdist each worker starts its own.

    The first of: KAFKA_BOOTSTRAP_SERVERS, Docker, a distribution at KAFKA_HOME. Without any the test is
    skipped, or fails where OFFBEAT_REQUIRE_KAFKA=1.
    """
    if servers := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield servers
    elif _docker_answers():
        with _kafka_container() as bootstrap:
            yield bootstrap
    elif home := os.environ.get("KAFKA_HOME"):
        with kafka_server(Path(home), tmp_path_factory.mktemp("kafka")) as bootstrap:
            yield bootstrap
    else:
        reason = (
            "no Kafka broker: set KAFKA_BOOTSTRAP_SERVERS to one, or KAFKA_HOME to a distribution, "
            "or start Docker"
        )
        if os.environ.get("OFFBEAT_REQUIRE_KAFKA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
