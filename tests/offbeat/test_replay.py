"""``offbeat replay`` on the embedded bus, with a trained model."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import uuid
from pathlib import Path

import pytest
from installation import STREAM, Installation

from consumers.replayer import Replayer, compare
from offbeat import app
from pipeline.alerts import Alert, Transition
from pipeline.config import load
from pipeline.journal import Transitions, sends


def revisions(installation: Installation) -> dict[tuple[str, int], Alert]:
    """What live work published."""
    lines = installation.ok("alerts", "tail", "-n", "1000", "--seconds", "0", "--json").splitlines()
    alerts = map(Alert.model_validate_json, lines)
    return {(alert.id, alert.revision): alert for alert in alerts}


# With nothing but the files of the bus, the models and the snapshots: the state server is not running.
@pytest.fixture(scope="module")
def copied(watched: Installation, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    folder = tmp_path_factory.mktemp("copied") / "there"
    shutil.copytree(watched.folder, folder, ignore=shutil.ignore_patterns("state"))
    return Installation(folder).configure(state="redis://127.0.0.1:1/0")


def test_a_replay_alerts_as_live_work_did(watched: Installation, copied: Installation) -> None:
    file = copied.folder / "replayed.jsonl"

    [summary] = copied.json("replay", "sensors", "--against", "live", "--out", str(file))

    published = revisions(watched)
    replayed = [Alert.model_validate_json(line) for line in file.read_text().splitlines()]
    assert len(published) > 5
    assert {(alert.id, alert.revision) for alert in replayed} == published.keys()
    assert all(alert.features for alert in replayed if alert.state == "firing")
    assert summary["exact"] is True
    assert summary["records"] == sum(summary["bins"].values()) == 12_000
    assert summary["revisions"] == summary["against"]["same"] == len(published)
    assert summary["fired"] == sum(revision == 1 for _, revision in published)
    assert summary["against"]["differences"] == []
    assert summary["partitions"][0]["live_to"] == 12_000


def test_a_range_is_chosen_by_the_times_of_its_records(copied: Installation) -> None:
    done = copied.run("replay", "--from", "2026-01-02T10:00", "--to", "2026-01-03T00:00:00Z")

    assert done.exit_code == 0
    alerts = [Alert.model_validate_json(line) for line in done.stdout.splitlines()]
    during = [
        key for key, alert in revisions(copied).items() if 4 * 60 * 34 <= alert.source.offset < 4 * 60 * 48
    ]
    assert alerts
    assert {(alert.id, alert.revision) for alert in alerts} >= set(during)
    assert "replayed 3,360 records of stream 'sensors'" in done.stderr
    assert "sensors[0]: offsets 8,160 to 11,519, from offset 0, where live work began" in done.stderr


def test_the_summary_tells_a_person_what_they_want_to_know(copied: Installation) -> None:
    told = copied.ok("replay", "--against", "live", "--out", str(copied.folder / "told.jsonl")).splitlines()

    assert re.fullmatch(r"replayed 12,000 records of stream 'sensors' in [\d.]+ s: exact", told[0])
    assert told[2].startswith("bins: 11,")
    assert re.fullmatch(r"alerts: \d+ fired, \d+ revisions in all; dead letters: 0", told[3])
    assert told[4] == "rows within 1e-05 of the line: 0"
    assert re.fullmatch(r"against live: \d+ same, 0 missing, 0 new, 0 changed", told[5])


# Matrix products of other batches round otherwise: the figures agree, the alerts are the same.
@pytest.mark.parametrize("batch_records", [1, 7, 500])
def test_a_trained_model_gives_the_same_alerts_in_other_batches(
    watched: Installation, copied: Installation, batch_records: int
) -> None:
    config = load(copied.config)
    with app.open_replay(config, "sensors") as parts:
        bounds = parts.reader.bounds("sensors")[0]
        [[replay], _] = Replayer(parts).prepare({0: dataclasses.replace(bounds, end_offset=9_000)})
        for _ in replay.run(batch_records):
            pass

    found = compare([replay], revisions(watched).values())
    assert found.same == replay.revisions > 2
    assert (found.unpublished, found.differences) == (0, [])


def test_what_only_live_work_has_is_told_and_exits_with_1(copied: Installation, tmp_path: Path) -> None:
    other = Installation(shutil.copytree(copied.folder, tmp_path / "other")).configure()
    config = load(other.config)
    closed = Transition(
        id="f" * 32, revision=2, alert="anomaly", state="resolved", series="unit-1", labels={},
        started_ns=1, at_ns=2, offset=11_000, judged=False,
    )  # fmt: skip
    with app.open_bus(config.bus) as broker:
        producer = broker.producer()
        entry = Transitions(through=12_000, changes=[closed])
        producer.send(sends(config.journal_topic("sensors"), 0, [entry]))
        producer.flush()

    done = other.run("replay", "--against", "live", "--from", "2026-01-02", "--out", "/dev/null")

    assert done.exit_code == 1
    assert ", 1 missing, 0 new, 0 changed" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last == "  missing: unit-1 resolved, partition 0 offset 11000, ffffffffffff: published no more"
    done = other.run("replay", "--against", "live", "--from", "2026-01-02", "--json")
    [difference] = json.loads(done.stderr)["against"]["differences"]
    assert (done.exit_code, difference["kind"], difference["revision"]) == (1, "missing", 2)
    assert other.run("replay", "--out", "/dev/null").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says", "way_out"),
    [
        (["nope"], 2, "no stream 'nope'", "the configuration has: sensors"),
        (["--from", "noon"], 2, "--from is 'noon'", "ISO 8601"),
        (["--to", "noon"], 2, "--to is 'noon'", "ISO 8601"),
        (["--from", "2026-01-02", "--to", "2026-01-01"], 2, "is not before --to 2026-01-01", "give a range"),
        (["--from", "2030-01-01"], 3, "sensors[0] has no record in the range", "choose another range"),
        (["--out", "no/such/file"], 2, "no/such/file: the alerts cannot be written", "another file"),
        (["--out", "/dev/full"], 2, "/dev/full: the alerts cannot be written", "another file"),
    ],
)
def test_a_mistake_ends_in_one_sentence(
    copied: Installation, arguments: list[str], code: int, says: str, way_out: str
) -> None:
    done = copied.run("replay", *arguments)

    sentence = done.stderr.strip().splitlines()[-1]
    assert done.exit_code == code
    assert "Traceback" not in done.output
    assert sentence.startswith("error: ")
    assert says in sentence
    assert way_out in sentence


def test_a_stream_that_nobody_watched_has_nothing_to_replay(installation: Installation) -> None:
    missing = installation.run("replay")
    installation.ok("produce", "synthetic", "--series", "1", "--features", "2", "--rows", "10")
    never = installation.run("replay")
    installation.ok("topics", "create")
    still = installation.run("replay")

    assert (missing.exit_code, never.exit_code, still.exit_code) == (3, 3, 3)
    assert "`offbeat topics create sensors`" in missing.stderr
    assert "stream 'sensors' was never watched" in never.stderr
    assert "no worker has read sensors[0] yet" in still.stderr


def test_a_model_that_is_gone_is_told(copied: Installation, tmp_path: Path) -> None:
    shutil.copy(copied.folder / "bus.db", tmp_path / "bus.db")
    other = Installation(tmp_path).configure(STREAM, state="redis://127.0.0.1:1/0")

    done = other.run("replay")

    assert done.exit_code in {3, 6}
    assert "Traceback" not in done.output
    assert done.stderr.startswith("error: ")
    assert str(tmp_path / "models") in done.stderr


# Offsets have holes there, commits have markers, and a journal is settled a moment after its commit.
@pytest.mark.kafka
def test_a_replay_from_kafka_alerts_as_live_work_did(
    installation: Installation, kafka_bootstrap: str
) -> None:
    topic = f"sensors-{uuid.uuid4().hex}"
    stream = STREAM.replace("topic: sensors", f"topic: {topic}").replace("k: 8", "k: 3")
    installation.configure(stream, bus=f"kafka://{kafka_bootstrap}", namespace=f"n{uuid.uuid4().hex}")
    faults = ["--faults", "2", "--kind", "level_shift", "--clean-rows", "400"]
    shape = ["--series", "8", "--features", "2", "--rows", "700", "--partitions", "2"]
    installation.ok("produce", "synthetic", *shape, *faults)
    installation.ok("train", "--first", "0.5")
    installation.ok("detect", "--until-idle", "2")

    [summary] = installation.json("replay", "--against", "live", "--out", str(installation.folder / "out"))

    assert (summary["exact"], summary["records"]) == (True, 5_600)
    assert len(summary["partitions"]) == 2
    assert summary["against"]["same"] == len(revisions(installation)) > 1
    assert summary["against"]["differences"] == []
