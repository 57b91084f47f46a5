"""The table of false alarms is made of what the program itself does, and comes out the same each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "false_alarms.py"


def measure(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCHMARK, "--series", "realTraffic/*_t4013.csv", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_each_rule_has_a_row_in_the_file_and_on_the_page(tmp_path: Path, recorded: Path) -> None:
    written, page = tmp_path / "false-alarms.json", tmp_path / "false-alarms.md"
    page.write_text("above\n<!-- written by make false-alarms -->\nstale\n<!-- until here -->\nbelow\n")

    done = measure("--output", written, "--page", page, OFFBEAT_DATA=str(recorded))
    again = measure("--output", tmp_path / "again.json", OFFBEAT_DATA=str(recorded))

    assert (done.returncode, again.returncode) == (0, 0), done.stderr + again.stderr
    assert written.read_text() == (tmp_path / "again.json").read_text()
    report = json.loads(written.read_text())
    assert (len(report["series"]), report["windows"]) == (2, 4)
    found = {(row["rule"], row["value"]): row for row in report["rows"]}
    assert found["as it comes", ""]["found"] >= 2
    assert found["`for`", "5"]["alerts"] < found["`recovery`", "1"]["alerts"]
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "stale" not in text
    assert text.count("\n| ") == len(report["rows"]) + 1


def test_without_data_it_says_what_to_set(tmp_path: Path) -> None:
    done = measure("--output", tmp_path / "false-alarms.json", OFFBEAT_DATA="")

    assert done.returncode == 2
    assert "OFFBEAT_DATA" in done.stderr
