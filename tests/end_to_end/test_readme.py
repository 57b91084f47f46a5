"""The README's first ten minutes, and the guide's configurations, as a newcomer would try them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from pipeline import config
from producers.synthetic import read_labels

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def bash(folder: Path, commands: str) -> str:
    program = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{program}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euc", commands], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, commands + done.stdout + done.stderr
    return done.stdout


def test_the_first_ten_minutes(tmp_path: Path) -> None:
    """The commands run as they stand, and most of the faults that were put in are found."""
    for commands in blocks("README.md", "sh")[1:]:
        bash(tmp_path, commands)

    lines = bash(tmp_path, "offbeat alerts list --json --limit 1000").splitlines()
    found = {msgspec.json.decode(line)["series"] for line in lines}
    faults = {label.series for label in read_labels(tmp_path / "faults.jsonl") if label.fault != "silence"}
    assert len(found & faults) >= 0.7 * len(faults)
    assert found <= faults | {label.series for label in read_labels(tmp_path / "faults.jsonl")}


def test_the_stream_of_the_first_ten_minutes_is_judged_by_default() -> None:
    """What was measured and chosen as the default is what a newcomer sees."""
    stream = config.parse((ROOT / "offbeat" / "example.yaml").read_text(encoding="utf-8")).stream("sensors")

    assert (
        stream.threshold
        == stream.model_validate(
            {"topic": stream.topic, "events": stream.events.model_dump(by_alias=True)}
        ).threshold
    )
    assert stream.threshold.policy == "joint"


def test_a_stream_trains_itself_as_the_page_says(tmp_path: Path) -> None:
    """Whatever the gate says of the network, something watches the stream after the page's commands."""
    page = (ROOT / "docs" / "retraining.md").read_text(encoding="utf-8")
    [commands] = re.findall(r"## Try it\n.*?```sh\n(.*?)```", page, re.DOTALL)

    said = bash(tmp_path, commands)

    assert " of 11 models done, loss 0." in said
    assert "judging " in said
    assert re.search(r"bundle \w{12} is in use for stream 'sensors' now", said)
    assert re.search(r"\nfaults found +\d+ of \d+ ", said)
    assert "(champion)" in said


def test_the_first_block_is_of_make_targets() -> None:
    """Those are run by whoever runs this test."""
    assert set(re.findall(r"^make (\w+)", blocks("README.md", "sh")[0], re.MULTILINE)) == {"demo", "test"}


@pytest.mark.parametrize("text", [text for text in blocks("docs/guide.md", "yaml") if "streams:" in text])
def test_the_guide_shows_good_configurations(text: str) -> None:
    config.parse(text)


def test_the_guide_names_every_setting_of_a_stream() -> None:
    """And nothing that is no setting."""
    page = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE))))
    sections = (
        config.Events,
        config.Model,
        config.Training,
        config.Ewma,
        config.Quantile,
        config.Joint,
        config.AlertRules,
    )
    settings = {field.alias or name for section in sections for name, field in section.model_fields.items()}
    assert named == settings
