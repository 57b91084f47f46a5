"""The benchmark runs, and its file says what was measured and what was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_short_run_measures_every_stage_and_names_the_bus_it_skipped(tmp_path: Path) -> None:
    written = tmp_path / "bench.json"
    without_kafka = {
        name: value
        for name, value in os.environ.items()
        if name not in {"KAFKA_BOOTSTRAP_SERVERS", "KAFKA_HOME"}
    }
    command = [
        sys.executable,
        ROOT / "benchmarks" / "bench.py",
        "--records",
        "64000",
        "--kafka-records",
        "64000",
    ]

    ran = subprocess.run(
        [*command, "--rounds", "1", "--output", written],
        env=without_kafka,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    buses = json.loads(written.read_text())["buses"]
    stages = [(stage["stage"].split(", ")[-1], stage["models"]) for stage in buses["embedded"]["stages"]]
    assert stages == [
        ("consume", ""),
        ("decode", ""),
        ("windows", ""),
        ("score", "shared"),
        ("score", "stacked"),
        ("whole path", "shared"),
        ("whole path", "stacked"),
    ]
    assert all(stage["cpu_s_per_million"]["median"] > 0 for stage in buses["embedded"]["stages"])
    # Docker, where it answers, brings a Kafka of its own
    assert "KAFKA_HOME" in buses["kafka"].get("skipped", "KAFKA_HOME")
    assert "whole path" in ran.stdout
