"""``offbeat bench`` measures a user's own bus, and leaves nothing on it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from installation import Installation, offbeat

from offbeat.app import open_bus

PREFIX = "offbeat-bench-"
DEADLINE_S = 60.0


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/bus.db"
    return f"kafka://{request.getfixturevalue('kafka_bootstrap')}"


def own_topics(bus: str) -> list[str]:
    with open_bus(bus) as broker:
        return [name for name in broker.admin().describe().topics if name.startswith(PREFIX)]


def wait_until_gone(bus: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while own_topics(bus):  # Kafka deletes in its own time
        assert time.monotonic() < deadline, own_topics(bus)
        time.sleep(0.1)


@pytest.mark.timeout(300)  # ten seconds of live readings, and six workers before them
def test_it_measures_rates_and_latency_and_deletes_its_topics(bus: str, tmp_path: Path) -> None:
    installation = Installation(tmp_path).configure(bus=bus)

    ran = installation.run("bench", "--records", "64000", "--json")

    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert found["bus"] == bus
    assert found["records"] == 64_000
    for figures in (found["consume"], *found["whole_path"].values()):
        assert figures["records_per_s"] > 0
        assert figures["cpu_s_per_million"] > 0
    assert set(found["whole_path"]) == {"shared", "stacked"}
    latency = found["latency"]
    assert latency["alerts"] > 0
    assert 0 < latency["p50_ms"] <= latency["p99_ms"] <= latency["max_ms"]
    assert f"topics {PREFIX}" in ran.stderr
    wait_until_gone(bus)
    assert not (tmp_path / "models").exists()
    assert not (tmp_path / "state").exists()


# Who has seen enough does not have to clean up.
def test_interrupted_it_deletes_what_it_made(bus: str, tmp_path: Path) -> None:
    number = signal.SIGINT if bus.startswith("kafka") else signal.SIGTERM
    installation = Installation(tmp_path).configure(bus=bus)
    command = [sys.executable, "-m", "offbeat", "bench", "--config", str(installation.config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert any("training" in line for line in running.stderr)
        assert own_topics(bus)

        running.send_signal(number)
        _, told = running.communicate(timeout=DEADLINE_S)

    assert running.returncode == 130
    assert "deleted the" in told
    wait_until_gone(bus)


def test_a_bus_that_is_down_is_told_before_anything_is_made(tmp_path: Path) -> None:
    installation = Installation(tmp_path).configure(bus="kafka://127.0.0.1:9")

    ran = installation.run("bench")

    assert ran.exit_code == 4
    assert "no Kafka broker answers at 127.0.0.1:9" in ran.stderr


def test_a_bus_of_one_process_is_refused(tmp_path: Path) -> None:
    installation = Installation(tmp_path).configure(bus="sqlite://")

    ran = installation.run("bench")

    assert ran.exit_code == 2
    assert "lives in one process" in ran.stderr


def test_fewer_records_than_fill_the_windows_are_refused() -> None:
    assert offbeat("bench", "--records", "10").exit_code == 2
