"""Every mistake of a user ends in one clear sentence with the way out, never in a traceback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from installation import STREAM, Installation, offbeat

from offbeat.cli import errors, topics
from pipeline import errors as kinds

TWO_STREAMS = STREAM + STREAM.replace("sensors:", "others:")


def complaint(installation: Installation, *arguments: str) -> tuple[int, str]:
    """Exit code and sentence of a run that must fail."""
    done = installation.run(*arguments)
    assert "Traceback" not in done.output
    [sentence] = re.findall(r"^error: (.*)\Z", done.stderr.strip(), re.MULTILINE | re.DOTALL)
    return done.exit_code, sentence


@pytest.mark.parametrize(
    ("arguments", "code", "says", "way_out"),
    [
        (["detect", "nope"], 2, "no stream 'nope'", "the configuration has: sensors"),
        (["detect"], 3, "reads the topic 'sensors', which", "`offbeat topics create sensors`"),
        (["train"], 3, "reads the topic 'sensors', which", "`offbeat topics create sensors`"),
        (["train", "--first", "1.5"], 2, "--first is 1.5", "such as 0.15"),
        (["train", "--from", "noon"], 2, "--from is 'noon'", "ISO 8601"),
        (
            ["train", "--files", "x.csv", "--to", "2026-01-01"],
            2,
            "--from and --to choose from a topic",
            "leave",
        ),
        (["train", "--files", "none.csv"], 3, "none.csv: no such file", "give a file or a pattern"),
        (["produce", "host"], 2, "streams.sensors.events.series is 'series'", "set it to 'host'"),
        (["produce", "files", "none.csv"], 3, "none.csv: no such file", "give a file or a pattern"),
        (
            ["produce", "host", "--topic", "t", "--stream", "sensors"],
            2,
            "both --stream and --topic",
            "give one",
        ),
        (["produce", "host", "--bus", "sqlite://"], 2, "--bus goes with --topic", "name the topic"),
        (["produce", "host", "--topic", "t", "--bus", "amqp://x"], 2, "'amqp://x' has no scheme", "kafka://"),
        (["produce", "host", "--topic", "t", "--bus", "kafka://127.0.0.1:1"], 4, "127.0.0.1:1", "start it"),
        (["produce", "synthetic", "--rate", "1", "--speed", "1"], 2, "both --rate and --speed", "give one"),
        (["produce", "synthetic", "--kind", "x", "--topic", "t"], 2, "no such fault: x", "spike"),
        (["produce", "synthetic", "--features", "1"], 2, "reads 'pressure', which", "events.features"),
        (["produce", "synthetic", "--start", "noon"], 2, "--start is 'noon'", "ISO 8601"),
        (
            ["produce", "synthetic", "--features", "2", "--labels", "no/such/f"],
            2,
            "no/such/f",
            "another file",
        ),
        (["alerts", "list"], 3, "offbeat.alerts", "`offbeat detect`"),
        (
            ["thresholds", "show", "sensors", "x"],
            3,
            "nothing is stored of stream 'sensors'",
            "offbeat detect",
        ),
    ],
)
def test_a_mistake_ends_in_one_sentence(
    installation: Installation, arguments: list[str], code: int, says: str, way_out: str
) -> None:
    found, sentence = complaint(installation, *arguments)

    assert found == code
    assert says in sentence
    assert way_out in sentence
    assert "\n" not in sentence


def test_a_missing_configuration_says_how_to_get_one(tmp_path: Path) -> None:
    done = offbeat("config", "check", "--config", str(tmp_path / "none.yaml"))

    assert done.exit_code == 2
    assert f"`offbeat config example > {tmp_path / 'none.yaml'}`" in done.stderr


def test_every_mistake_of_a_configuration_is_told_with_its_line(installation: Installation) -> None:
    installation.config.write_text("bus: 3\nstreams:\n  a:\n    topic: t\n    evnts: {}\n")

    done = installation.run("config", "check")

    assert done.exit_code == 2
    assert f"{installation.config}:5: streams.a.evnts: no such setting" in done.stderr
    assert f"{installation.config}:1: bus:" in done.stderr


def test_one_of_several_streams_has_to_be_named(installation: Installation) -> None:
    installation.configure(TWO_STREAMS)

    assert complaint(installation, "detect") == (
        2,
        "which stream? The configuration has sensors, others; name one of them",
    )


# Work that has an end does not wait for servers that may never come.
def test_a_bounded_worker_says_that_redis_is_missing(installation: Installation) -> None:
    installation.configure(state="redis://127.0.0.1:1/0")
    installation.ok("topics", "create")

    code, sentence = complaint(installation, "detect", "--until-idle", "1")

    assert code == 5
    assert "127.0.0.1:1" in sentence


def test_too_little_history_is_told_in_numbers(installation: Installation) -> None:
    installation.ok("produce", "synthetic", "--series", "1", "--features", "2", "--rows", "101")

    code, sentence = complaint(installation, "train")

    assert code == 8
    assert "has 99 of 224 rows" in sentence


def test_a_taken_slot_names_who_has_it(installation: Installation) -> None:
    from offbeat import slots  # noqa: PLC0415
    from pipeline.config import load  # noqa: PLC0415

    with slots.hold(load(installation.config), "sensors", 3):
        code, sentence = complaint(installation, "detect", "--slot", "3")

    assert code == 2
    assert f"slot 3 of stream 'sensors' is taken on this machine by process {os.getpid()}" in sentence


def test_a_bundle_of_another_shape_is_named_with_both(watched: Installation, tmp_path: Path) -> None:
    other = Installation(tmp_path).configure(
        STREAM.replace("every: 1m", "every: 5m"),
        bus=f"sqlite:///{watched.folder}/bus.db",
        registry=f"{watched.folder}/models",
    )

    done = other.run("doctor")

    assert done.exit_code == 1
    assert (
        "rows made as 'mean of every 60 s'; stream 'sensors' is set to 'mean of every 300 s'" in done.stdout
    )
    assert "offbeat train sensors" in done.stdout


def test_a_bug_ends_in_a_sentence_that_says_where_its_traceback_is(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(_: Path) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(topics, "load_config", broken)
    monkeypatch.setattr(errors.tempfile, "tempdir", str(tmp_path))
    code, sentence = complaint(installation, "topics", "list")

    assert code == errors.UNEXPECTED
    assert "ZeroDivisionError: a bug" in sentence
    [log] = tmp_path.glob("offbeat-*.log")
    assert str(log) in sentence
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize("asked", [["--debug"], []], ids=["option", "environment"])
def test_the_traceback_is_shown_to_who_asks(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFBEAT_DEBUG", "" if asked else "1")

    done = offbeat(*asked, "config", "check", "--config", "none.yaml")

    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert "error: none.yaml: no such file" in done.stderr


def test_a_pipe_that_closes_early_ends_quietly() -> None:
    pipe = 'set -o pipefail; "$0" -m offbeat config schema | true'
    done = subprocess.run(["bash", "-c", pipe, sys.executable], capture_output=True, text=True, check=False)

    assert done.stderr == ""
    assert done.returncode == 0


# The page says what each code means; a class without a line there would be a number without a meaning.
def test_every_exit_code_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
    documented = {
        int(code)
        for codes in re.findall(r"^\| ([\d, ]+) \|", page, re.MULTILINE)
        for code in codes.split(",")
    }
    classes = [each for each in vars(kinds).values() if isinstance(each, type)]
    raised = {each.exit_code for each in classes if issubclass(each, kinds.OffbeatError)}

    assert documented - raised == {0, errors.UNEXPECTED, errors.INTERRUPTED, 143, 142}
    assert raised <= documented
