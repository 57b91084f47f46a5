"""``offbeat train`` on a stream that was watched: what its alerts and people said is left out, or is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from installation import STREAM, Installation

from offbeat.cli.meter import progress


def test_alerts_are_left_out_until_people_call_them_normal(watched: Installation) -> None:
    [first] = watched.json("train")
    told = watched.ok("train")
    alerts = {each["id"] for each in watched.json("alerts", "list")}
    watched.ok("alerts", "false-alarm", *alerts)
    [second] = watched.json("train")
    called = watched.ok("train")

    counts = first["counts"]
    assert counts["alerts"] > 0
    assert counts["rows"] == counts["learned"] + counts["alerts"]
    assert f"{counts['alerts']} rows of alerts" in told
    after = second["counts"]
    assert (after["alerts"], after["normal"]) == (0, counts["alerts"] + counts["over"])
    assert f"used although an alert was raised: {after['normal']} rows that people called normal" in called


def test_the_report_lies_where_it_says(installation: Installation) -> None:
    installation.ok("produce", "synthetic", "--series", "2", "--features", "2", "--rows", "600")

    told = installation.ok("train")
    [trained] = installation.json("train")

    [line] = [each for each in told.splitlines() if each.startswith("report: ")]
    page = Path(line.removeprefix("report: "))
    assert page.read_text().startswith("<!doctype html>")
    kept = json.loads((Path(trained["where"]) / "report.json").read_bytes())
    assert kept["series"] == trained["series"]
    assert "report.json" in installation.ok("models", "show", "sensors")


def test_training_reads_so_far_back_unless_it_is_told_otherwise(installation: Installation) -> None:
    installation.configure(STREAM.replace("training: {", "training: {history: 5h, "))
    installation.ok("produce", "synthetic", "--series", "1", "--features", "2", "--rows", "900")

    [recent] = installation.json("train")
    [all_of_it] = installation.json("train", "--from", "2000-01-01")
    [first] = installation.json("train", "--first", "0.5")

    assert recent["counts"]["rows"] == pytest.approx(300, abs=3)
    assert all_of_it["counts"]["rows"] == pytest.approx(900, abs=3)
    assert first["counts"]["rows"] == pytest.approx(450, abs=3)
    assert first["first_at"] == all_of_it["first_at"]


def test_what_a_person_should_know_is_noted(installation: Installation) -> None:
    file = installation.folder / "flat.csv"
    rows = [f"{1_700_000_000 + 60 * n},{20 + n % 7},1" for n in range(600)]
    file.write_text("\n".join(["time,temperature,pressure", *rows]))

    done = installation.run("train", "--files", str(file))

    assert done.exit_code == 0, done.output
    assert "note: pressure never changed in the rows learned from, in any series" in done.stderr


@pytest.mark.parametrize(
    ("fraction", "elapsed_s", "line"),
    [
        (0.25, 60.0, "training 25%: loss 0.1, about 3 min left"),
        (None, 60.0, "training: loss 0.1"),
        (0.0, 1.0, "training: loss 0.1"),
        (1.0, 60.0, "training 100%: loss 0.1"),
        (0.5, 0.0, "training 50%: loss 0.1"),
    ],
)
def test_progress_tells_how_long_it_takes_yet(fraction: float | None, elapsed_s: float, line: str) -> None:
    assert progress("training", fraction, "loss 0.1", elapsed_s) == line
