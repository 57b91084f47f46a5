"""Fixtures that more than one folder of tests needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from disks import Disk, disk_broker
from servers import NO_KAFKA, kafka_broker, s3_server


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One real Valkey for all tests, which empty it before they begin."""
    from pipeline.state.embedded import EmbeddedServer  # noqa: PLC0415 - many tests do without it

    with EmbeddedServer(tmp_path_factory.mktemp("valkey")) as server:
        yield server.url


@pytest.fixture(scope="session")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``host:port`` of a real Kafka broker; with pytest-xdist each worker starts its own.

    The first of: KAFKA_BOOTSTRAP_SERVERS, Docker, a distribution at KAFKA_HOME. Without any the test is
    skipped, or fails where OFFBEAT_REQUIRE_KAFKA=1.
    """
    with kafka_broker(tmp_path_factory.mktemp("kafka")) as bootstrap:
        if bootstrap:
            yield bootstrap
        elif os.environ.get("OFFBEAT_REQUIRE_KAFKA") == "1":
            pytest.fail(NO_KAFKA)
        else:
            pytest.skip(NO_KAFKA)


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """A bucket on a server that speaks the protocol of S3, and the environment that leads there.

    Without the extra `s3` the test is skipped; `make setup` installs it.
    """
    pytest.importorskip("s3fs")
    with s3_server() as endpoint, pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", endpoint)
        environment.setenv("AWS_ACCESS_KEY_ID", "nobody")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        files, _ = fsspec.url_to_fs("s3://")
        files.mkdir("offbeat-tests")
        yield "s3://offbeat-tests"


@pytest.fixture(scope="session")
def recorded() -> Path:
    """The folder of recorded series, ``nab/`` and ``smd/``, at OFFBEAT_DATA.

    Without it the test is skipped, or fails where OFFBEAT_REQUIRE_DATA=1.
    """
    given = os.environ.get("OFFBEAT_DATA")
    if not given:
        reason = "no real data: set OFFBEAT_DATA to a folder with nab/ and smd/"
        (pytest.fail if os.environ.get("OFFBEAT_REQUIRE_DATA") == "1" else pytest.skip)(reason)
    return Path(given)


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """A real Kafka broker whose files may be damaged; only a distribution at KAFKA_HOME has files here."""
    home = os.environ.get("KAFKA_HOME")
    if home is None:
        pytest.skip("damage is done to the files of a broker from a distribution: set KAFKA_HOME")
    with disk_broker(Path(home), tmp_path_factory.mktemp("damaged")) as made:
        yield made
