"""The walk through real data in docs/real-data.md: its commands run, and both buses give the same alerts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "real-data.md"


@pytest.fixture(scope="session")
def data(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's folder of data: NAB as it is, and a quarter of one SMD machine as CSV."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "nab").symlink_to(recorded / "nab")
    (folder / "smd").mkdir()
    rows = np.load(recorded / "smd" / "machine-1-6.npz")["test"][:7_000].astype(float)
    lines = [",".join(["timestamp", *(f"m{i}" for i in range(rows.shape[1]))])]
    lines += [f"{1_600_000_000 + 60 * i}," + ",".join(map(repr, row)) for i, row in enumerate(rows.tolist())]
    (folder / "smd" / "machine.csv").write_text("\n".join(lines))
    return folder


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def walk(folder: Path, data: Path, bus: str | None) -> list[dict[str, object]]:
    """Follow the page in ``folder``; returns the alerts as they stand at its end."""
    configuration = blocks("yaml")[0]
    if bus:
        configuration = f"namespace: {folder.name}\n" + configuration.replace("sqlite:///offbeat.db", bus)
        configuration = re.sub("topic: ", f"topic: {folder.name}-", configuration)
    (folder / "offbeat.yaml").write_text(configuration)
    program = Path(sys.executable).parent
    environment = os.environ | {"OFFBEAT_DATA": str(data), "PATH": f"{program}:{os.environ['PATH']}"}
    for commands in [*blocks("sh"), "offbeat alerts list --limit 10000 --json >alerts.jsonl"]:
        done = subprocess.run(
            ["bash", "-euc", commands],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, commands + done.stdout + done.stderr
    return [msgspec.json.decode(line) for line in (folder / "alerts.jsonl").read_bytes().splitlines()]


def told(alerts: list[dict[str, object]]) -> list[tuple[object, ...]]:
    """What an alert says, without what names the place."""
    what = ("stream", "series", "kind", "state", "revision", "started_at", "at")
    return sorted(tuple(alert[key] for key in what) for alert in alerts)


@pytest.fixture(scope="session")
def embedded(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    return walk(tmp_path_factory.mktemp("embedded"), data, None)


def test_the_walk_finds_anomalies(embedded: list[dict[str, object]]) -> None:
    """Both streams raise alerts, and not one a day and series."""
    streams = [alert["stream"] for alert in embedded]
    assert streams.count("servers") >= 1
    assert 10 <= streams.count("tweets") <= 10 * 55


@pytest.mark.kafka
@pytest.mark.timeout(300)
def test_kafka_gives_the_same_alerts(
    embedded: list[dict[str, object]],
    data: Path,
    kafka_bootstrap: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The same series through a real broker end in the same alerts."""
    on_kafka = walk(tmp_path_factory.mktemp("kafka-walk"), data, f"kafka://{kafka_bootstrap}")
    assert told(on_kafka) == told(embedded)
