"""The table of stacks is made by the program's own training and scoring, at any size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "stacks.py"


def test_a_small_stack_is_measured_and_written(tmp_path: Path) -> None:
    written, page = tmp_path / "stacks.json", tmp_path / "performance.md"
    page.write_text("above\n<!-- written by make stacks -->\nstale\n<!-- until here -->\nbelow\n")
    small = ("--networks", "9", "--sample", "5", "--steps", "100", "--rounds", "2")

    done = subprocess.run(
        [sys.executable, BENCHMARK, *small, "--output", written, "--page", page],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    report = json.loads(written.read_text())
    training, scoring = report["training"], report["scoring"]
    assert max(training["loss_off"].values()) < 0.02
    assert training["all_s"]["alone"] == pytest.approx(9 * training["a_network"]["alone"]["wall_s"])
    assert 0 < training["products_s"] < training["a_network"]["alone_by_pytorch"]["cpu_s"]
    assert 0 < training["peak_gib"] < 4
    assert {"even", "skewed"} == set(scoring["to_products"])
    assert min(each["median"] for each in scoring["windows_per_s"].values()) > 0
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "stale" not in text
    assert text.count("\n| ") == 17
