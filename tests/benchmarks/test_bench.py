"""The benchmark runs in its smallest form, and its file has every figure that the design asks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "benchmarks" / "bench.py"
SCOPED = ("whole_path_ratio", "cpu_s_per_million", "p99_ms_at_50k", "core_at_5k")
COMPARED = ("x_bytewax", "x_quixstreams")
"""None where their environments were not made: the smallest form asks no index."""


def bench(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCH, "--smallest", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.kafka
@pytest.mark.timeout(600)  # five parts with real processes, some of which wait for a session to end
def test_the_smallest_form_measures_everything_and_writes_the_page(
    tmp_path: Path, kafka_bootstrap: str
) -> None:
    written, page = tmp_path / "bench.json", tmp_path / "performance.md"
    page.write_text("above\n<!-- written by make bench -->\nstale figures\n<!-- until here -->\nbelow\n")

    ran = bench("--output", written, "--page", page, KAFKA_BOOTSTRAP_SERVERS=kafka_bootstrap)

    # 1: a figure did not hold, which so short a run on a busy machine may say.
    assert ran.returncode in {0, 1}, ran.stderr
    report = json.loads(written.read_text())
    for key in SCOPED:
        assert set(report[key]) == {"shared", "stacked"}, key
    for key in COMPARED:
        assert report[key] is None or set(report[key]) == {"shared", "stacked"}, key
    assert set(report["takeover_s"]) == {
        "restarted_in_its_slot",
        "taken_over_by_another",
        "killed_mid_transaction",
    }
    assert {"shared"} < set(report["worker_bytes_per_series"])
    assert {"shared"} < set(report["redis_bytes_per_series"])
    assert report["skew_ratio"]["median"] > 0
    assert [len(stages) for stages in report["path"]["buses"].values()] == [7, 7]
    assert "killed mid-transaction" in ran.stdout
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "stale figures" not in text
    assert "| killed mid transaction |" in text


def test_without_a_broker_it_says_how_to_give_one(tmp_path: Path) -> None:
    if Path("/var/run/docker.sock").exists():
        pytest.skip("Docker brings a Kafka of its own")
    nothing = {"KAFKA_BOOTSTRAP_SERVERS": "", "KAFKA_HOME": "", "DOCKER_HOST": ""}

    ran = bench("--output", tmp_path / "bench.json", **nothing)

    assert ran.returncode == 2
    assert "KAFKA_HOME" in ran.stderr
