"""From events to alerts with the program alone, on the embedded bus and a real Valkey."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from installation import Installation

from models import Registry
from producers.synthetic import read_labels


def write_csv(path: Path, rows: int, *, column: str = "temperature") -> Path:
    lines = [f"{1_700_000_000 + 60 * row},{20 + row % 7},{5 + row % 5}" for row in range(rows)]
    path.write_text("\n".join([f"time,{column},pressure", *lines]))
    return path


# The point of it all: what was broken on purpose is what the alerts name.
def test_every_fault_is_alerted_with_its_series_and_its_feature_first(watched: Installation) -> None:
    listed = watched.json("alerts", "list")

    for label in read_labels(watched.folder / "faults.jsonl"):
        during = [
            alert["id"]
            for alert in listed
            if alert["series"] == label.series
            and label.start - 60 <= _epoch(alert["started_at"]) <= label.end  # a cell is told by its start
        ]
        shown = [each for alert in during for each in watched.json("alerts", "show", alert)]
        revisions = [revision for each in shown for revision in each["revisions"]]
        assert {each["features"][0]["name"] for each in revisions} & set(label.features), label


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_listed_alerts_are_the_newest_revision_of_each(watched: Installation) -> None:
    listed = watched.json("alerts", "list")

    ids = [alert["id"] for alert in listed]
    assert len(ids) == len(set(ids))
    assert {alert["state"] for alert in listed} <= {"resolved", "firing"}
    assert [alert["started_at"] for alert in listed] == sorted(alert["started_at"] for alert in listed)
    resolved = [alert for alert in listed if alert["state"] == "resolved"]
    assert resolved
    assert all(alert["revision"] > 1 for alert in resolved)


def test_filters_choose_alerts(watched: Installation) -> None:
    everything = watched.json("alerts", "list")
    series = everything[0]["series"]

    assert watched.json("alerts", "list", "--series", series) == [
        alert for alert in everything if alert["series"] == series
    ]
    assert watched.json("alerts", "list", "--kind", "anomaly", "--stream", "sensors") == everything
    for none in (["--kind", "silent"], ["--stream", "other"]):
        assert watched.json("alerts", "list", *none) == []
    assert watched.json("alerts", "list", "--limit", "1") == everything[-1:]


def test_an_alert_is_shown_with_its_evidence_and_a_picture(watched: Installation) -> None:
    alert = watched.json("alerts", "list")[0]

    shown = watched.ok("alerts", "show", alert["id"][:10])

    assert alert["id"] in shown
    assert f"{alert['source']['topic']}[0] offset" in shown
    for feature in ("temperature", "pressure"):
        assert feature in shown
    pictures = [line.split()[-1] for line in shown.splitlines()[-4:]]
    assert all(len(picture) == 32 and set(picture) <= set("▁▂▃▄▅▆▇█") for picture in pictures)


def test_the_tail_begins_with_the_last_revisions(watched: Installation) -> None:
    lines = watched.ok("alerts", "tail", "--lines", "2", "--seconds", "0").splitlines()
    objects = watched.json("alerts", "tail", "-n", "1000", "--seconds", "0")

    assert len(lines) == 2
    assert objects[-1]["id"][:12] == lines[-1].split()[-1]
    assert any(alert["state"] == "firing" for alert in objects)


def test_thresholds_are_shown_as_stored(watched: Installation) -> None:
    rows = watched.json("thresholds", "show", "sensors")

    assert [row["series"] for row in rows] == ["unit-1", "unit-2", "unit-3", "unit-4"]
    for row in rows:
        assert row["window_filled"] == row["window_rows"] == 32
        assert row["rows"] > 1_000
        assert abs(row["threshold"] - (row["mean"] + 8 * row["sd"])) < 0.05 * row["threshold"]
        assert row["next_offset"] == 12_000
    table = watched.ok("thresholds", "show", "sensors").splitlines()
    assert len(table) == 5
    one = watched.ok("thresholds", "show", "sensors", "unit-2")
    assert "threshold" in one
    assert "newest row     temperature" in one


def test_the_doctor_finds_a_watched_stream_well(watched: Installation) -> None:
    done = watched.run("doctor")

    assert done.exit_code == 0, done.output
    assert "0 to mend" in done.stdout
    for good in ("SQLite", "Valkey", "clock", "0 records behind", "keys fit", "is sound and fits"):
        assert good in done.stdout


def test_topics_are_listed_with_what_they_are_for(watched: Installation) -> None:
    found = {topic["topic"]: topic for topic in watched.json("topics", "list")}

    assert found["sensors"]["role"] == "input of sensors"
    assert found["sensors"]["records"] == 12_000
    assert found["offbeat.alerts"]["role"] == "alerts"
    assert found["offbeat.dead-letters"]["role"] == "dead letters"


# A bundle says where it comes from, so that it can be trained again.
def test_a_bundle_names_the_offsets_it_was_trained_on(watched: Installation) -> None:
    registry = Registry(watched.folder / "models")
    [bundle_id] = registry.bundles("sensors")

    source = registry.load("sensors", bundle_id).manifest.source

    assert source["topic"] == "sensors"
    assert source["topic_id"]
    assert source["partitions"] == {"0": {"first_offset": 0, "next_offset": 12_000}}
    assert source["first"] == 0.6


def test_training_tells_what_it_learned_and_replaces_the_bundle(installation: Installation) -> None:
    file = write_csv(installation.folder / "unit-a.csv", 600)
    installation.ok("produce", "files", str(file))

    [first] = installation.json("train")
    [second] = installation.json("train", "--rows", "300")
    told = installation.ok("train", "--rows", "400")

    assert first["counts"]["learned"] == 598  # the last two cells are still open
    assert first["series"][0]["series"] == "unit-a"
    assert (first["series"][0]["model"], first["own_models"], first["cohorts"]) == ("own", 1, 0)
    assert second["predecessor"] == first["bundle_id"]
    assert second["counts"]["learned"] == second["rows_limit"] == 300
    assert "400 rows of 1 series (600 records)" in told
    assert f"(before: {second['bundle_id'][:12]})" in told


# Files and the topic made from them are the same events, so they teach the same.
def test_training_from_files_equals_training_from_their_topic(installation: Installation) -> None:
    file = str(write_csv(installation.folder / "unit-a.csv", 600))
    installation.ok("produce", "files", file)

    [topic] = installation.json("train", "--first", "0.8")
    [files] = installation.json("train", "--first", "0.8", "--files", file)

    assert files["series"] == topic["series"]
    assert files["counts"]["learned"] == topic["counts"]["learned"] == 478


def test_training_takes_a_range_of_record_times(installation: Installation) -> None:
    installation.ok("produce", "files", str(write_csv(installation.folder / "unit-a.csv", 900)))

    [part] = installation.json("train", "--from", "2023-11-15T00:00", "--to", "2023-11-15T08:20:00+00:00")

    assert part["records"] == 500


def test_events_can_go_to_a_bare_topic(installation: Installation) -> None:
    bus = f"sqlite:///{installation.folder}/other.db"
    sent = installation.json(
        "produce", "synthetic", "--bus", bus, "--topic", "bare", "--events", "7", "--partitions", "3"
    )

    assert sent == [{"topic": "bare", "partitions": 3, "sent": 7, "seconds": sent[0]["seconds"]}]


def test_this_machine_is_read_until_the_bound(installation: Installation) -> None:
    sent = installation.json("produce", "host", "--topic", "host", "--per-second", "50", "--events", "3")

    assert sent[0]["sent"] == 3


def test_topics_are_made_once(installation: Installation) -> None:
    first = installation.json("topics", "create", "--partitions", "4")
    again = installation.json("topics", "create", "sensors", "--partitions", "8")

    shared = ["offbeat.control", "offbeat.alerts", "offbeat.notifications", "offbeat.dead-letters"]
    made = ["sensors", *shared, "offbeat.sensors.journal"]
    assert first == [{"made": made, "there_already": []}]
    assert again == [{"made": [], "there_already": made}]
    assert {topic["topic"]: topic["partitions"] for topic in installation.json("topics", "list")} == {
        "sensors": 4,
        "offbeat.sensors.journal": 4,
        "offbeat.control": 1,
        "offbeat.alerts": 1,
        "offbeat.notifications": 1,
        "offbeat.dead-letters": 1,
    }


# A worker without a model counts records and says what it waits for; it does not fail.
def test_a_worker_waits_for_a_model(installation: Installation) -> None:
    installation.ok("produce", "files", str(write_csv(installation.folder / "unit-a.csv", 100)))

    lines = installation.json("detect", "--until-idle", "0.3")

    waiting = [line for line in lines if line.get("doing") == "waiting for a model"]
    assert waiting
    assert " of 224 rows" in waiting[0]["message"]
    assert lines[-1]["doing"] == "stopped"
    assert sum(lines[-1]["bins"].values()) == 100


def test_bad_rows_are_skipped_when_asked(installation: Installation) -> None:
    file = write_csv(installation.folder / "unit-a.csv", 200)
    file.write_text(file.read_text() + "\nbroken,x,y\n")

    stopped = installation.run("produce", "files", str(file))
    skipped = installation.run("produce", "files", str(file), "--on-error", "skip", "--json")

    assert stopped.exit_code == 7
    assert f"{file}, line 202" in stopped.stderr
    assert skipped.exit_code == 0
    assert json.loads(skipped.stdout)["sent"] == 200
    assert f"skipped {file}, line 202" in skipped.stderr
