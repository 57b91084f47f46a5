"""``offbeat explain`` on the embedded bus, with a trained model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from installation import Installation

from consumers.tracer import Trace
from pipeline.alerts import Alert


def asked(installation: Installation, *arguments: str) -> Trace:
    return Trace.model_validate_json(installation.ok("explain", *arguments, "--json"))


# With nothing but the files of the bus, the models and the snapshots: the state server is not running.
@pytest.fixture(scope="module")
def copied(watched: Installation, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    folder = tmp_path_factory.mktemp("copied") / "there"
    shutil.copytree(watched.folder, folder, ignore=shutil.ignore_patterns("state"))
    return Installation(folder).configure(state="redis://127.0.0.1:1/0")


@pytest.fixture(scope="module")
def fired(watched: Installation) -> Alert:
    lines = watched.ok("alerts", "tail", "-n", "1000", "--seconds", "0", "--json").splitlines()
    alerts = map(Alert.model_validate_json, lines)
    return next(each for each in alerts if (each.revision, each.kind) == (1, "anomaly"))


def test_the_row_of_an_alert_is_explained_as_the_alert_was_published(
    copied: Installation, fired: Alert
) -> None:
    trace = asked(copied, "sensors", fired.series, "--at", fired.at.isoformat())

    found = trace.judgement
    assert found is not None
    assert found.alert is not None
    assert (found.rule, found.alert.id, trace.exact, trace.bundle) == ("fires", fired.id, True, fired.bundle)
    assert found.score == pytest.approx(fired.score, rel=1e-5)
    assert found.error == pytest.approx(fired.error, rel=1e-5)
    assert found.line.value == pytest.approx(fired.threshold, rel=1e-5)
    assert [each.name for each in found.features] == [each.name for each in fired.features]
    assert len(found.features[0].window_observed) == trace.window_rows == trace.window_filled
    assert trace.source.model_dump() == fired.source.model_dump()


def test_a_person_reads_the_verdict_first_then_the_picture_and_the_facts(
    copied: Installation, fired: Alert
) -> None:
    told = copied.ok("explain", "sensors", fired.series, "--at", str(fired.at.timestamp())).splitlines()

    assert told[0].startswith(f"{fired.series} at {fired.at:%Y-%m-%d %H:%M:%S} UTC fired an alert: score ")
    assert "The window, newest row last; above as observed, below as expected:" in told
    heading = next(line for line in told if line.startswith("feature"))
    assert heading.split() == ["feature", "share", "observed", "expected", "window"]
    assert sum(set(line.split(" ")[-1]) <= set("▁▂▃▄▅▆▇█") for line in told if line) == 4
    facts = {line[:14].strip(): line[15:] for line in told[told.index(heading) + 6 :]}
    assert facts["record"] == f"sensors[0] offset {fired.source.offset}, bin scored"
    assert facts["threshold"].startswith("ewma: mean ")
    assert facts["alert"].startswith(fired.id)
    assert facts["rests on"] == "exact: from offset 0, where live work began"


def test_the_rows_that_teach_a_window_are_told_as_such(copied: Installation) -> None:
    told = copied.ok("explain", "sensors", "unit-1", "--at", "2026-01-01T00:04:30").splitlines()

    assert told[0] == (
        "unit-1 at 2026-01-01 00:04:00 UTC was not judged: its window held 5 of the 32 rows that it takes."
    )


def test_without_a_row_the_newest_before_is_explained_and_it_is_said(copied: Installation) -> None:
    told = copied.ok("explain", "sensors", "unit-1", "--at", "2027-01-01").splitlines()

    last = asked(copied, "sensors", "unit-1", "--at", "2027-01-01")
    assert told[0] == (
        "There is no row of 60 s of unit-1 at 2027-01-01 00:00:00 UTC; this is about its newest record "
        f"before, of {last.at:%Y-%m-%d %H:%M:%S}."
    )
    assert (last.found, last.bin) == (False, "pending")


@pytest.mark.parametrize(
    ("arguments", "code", "says", "way_out"),
    [
        (["nope", "unit-1", "--at", "0"], 2, "no stream 'nope'", "the configuration has: sensors"),
        (["sensors", "unit-9", "--at", "2026-01-02"], 3, "no series 'unit-9'", "it has unit-1, unit-2"),
        (["sensors", "unit-1", "--at", "noon"], 2, "--at is 'noon'", "ISO 8601"),
        (["sensors", "unit-1", "--at", "1767225600000"], 2, "milliseconds?", "Give seconds"),
        (
            ["sensors", "unit-1", "--at", "2025-12-31"], 3,
            "no record of series 'unit-1' at or before 2025-12-31", "its oldest is of 2026-01-01 00:00:00",
        ),
    ],
)  # fmt: skip
def test_a_mistake_ends_in_one_sentence(
    copied: Installation, arguments: list[str], code: int, says: str, way_out: str
) -> None:
    done = copied.run("explain", *arguments)

    sentence = done.stderr.strip().splitlines()[-1]
    assert done.exit_code == code
    assert "Traceback" not in done.output
    assert sentence.startswith("error: ")
    assert says in sentence
    assert way_out in sentence


def test_a_stream_that_nobody_watched_has_nothing_to_explain(tmp_path: Path) -> None:
    installation = Installation(tmp_path).configure()
    missing = installation.run("explain", "sensors", "unit-0", "--at", "0")
    installation.ok("produce", "synthetic", "--series", "1", "--features", "2", "--rows", "10")
    never = installation.run("explain", "sensors", "unit-0", "--at", "0")
    installation.ok("topics", "create")
    still = installation.run("explain", "sensors", "unit-0", "--at", "0")

    assert (missing.exit_code, never.exit_code, still.exit_code) == (3, 3, 3)
    assert "`offbeat topics create sensors`" in missing.stderr
    assert "stream 'sensors' was never watched" in never.stderr
    assert "no worker has read stream 'sensors' yet" in still.stderr


# Programs read it back.
def test_json_is_one_line_that_names_what_it_holds(copied: Installation) -> None:
    [line] = copied.ok("explain", "sensors", "unit-1", "--at", "2026-01-02T00:00", "--json").splitlines()

    found = json.loads(line)
    assert (found["schema_version"], found["stream"], found["bin"]) == (1, "sensors", "scored")
    assert found["judgement"]["line"]["policy"]["k"] == 8
