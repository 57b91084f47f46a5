"""A small installation in a folder, and the program used on it as from a shell."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from typer.testing import CliRunner, Result

from offbeat.app import output_topics
from offbeat.cli import cli
from pipeline.alerts import Alert, FeatureEvidence, Source
from pipeline.bus import connect
from pipeline.config import load

PATIENCE_S = 30.0
STREAM = """
  sensors:
    topic: sensors
    events: {series: series, features: [temperature, pressure], every: 1m}
    threshold: {k: 8}
    training: {steps: 150}
"""


@dataclass(frozen=True)
class Installation:
    """A folder with an ``offbeat.yaml``; all that it writes stays in there."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "offbeat.yaml"

    def configure(self, streams: str = STREAM, **places: str) -> Installation:
        """Write the configuration; ``places`` replace the embedded bus, state and registry."""
        chosen = {
            "bus": f"sqlite:///{self.folder}/bus.db",
            "state": f"embedded:///{self.folder}/state",
            "registry": f"{self.folder}/models",
            "snapshots": f"{self.folder}/snapshots",
        } | places
        lines = [f"{name}: {value}" for name, value in chosen.items()]
        self.config.write_text("\n".join([*lines, f"streams:{streams}"]))
        return self

    def run(self, *arguments: str) -> Result:
        """The program with this configuration."""
        return offbeat(*arguments, "--config", str(self.config))

    def ok(self, *arguments: str) -> str:
        """Standard output of a run that must succeed."""
        done = self.run(*arguments)
        assert done.exit_code == 0, done.output
        return done.stdout

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        """The JSON lines of a run that must succeed."""
        return [json.loads(line) for line in self.ok(*arguments, "--json").splitlines()]

    def publish(self, *alerts: Alert) -> None:
        """Alerts as a worker publishes them."""
        config = load(self.config)
        with closing(connect(config.bus)) as broker:
            broker.admin().create(output_topics(config))
            producer = broker.producer()
            producer.send(each.send(config.alerts_topic) for each in alerts)
            producer.flush()


def alert(number: int, *, hours_ago: float = 0.0, lasted_h: float | None = None, **fields: Any) -> Alert:  # noqa: ANN401
    """An alert that began so long ago, of an id that begins with ``number``; resolved where it lasted."""
    started = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=hours_ago)
    heat = FeatureEvidence(
        name="heat",
        unit="°C",
        observed=81,
        expected=20,
        contribution=1,
        window_observed=[],
        window_expected=[],
    )
    made: dict[str, Any] = {
        "id": f"{number:032x}"[::-1],
        "revision": 1 if lasted_h is None else 2,
        "kind": "anomaly",
        "state": "firing" if lasted_h is None else "resolved",
        "reason": "error above its threshold" if lasted_h is None else "recovered",
        "namespace": "offbeat",
        "stream": "sensors",
        "series": "unit-1",
        "labels": {},
        "started_at": started,
        "at": started + timedelta(hours=lasted_h or 0),
        "severity": "warning",
        "score": 1.5,
        "peak_score": 1.5,
        "error": 0.6,
        "threshold": 0.4,
        "features": [heat],
        "bundle": None,
        "source": Source(topic="sensors", partition=0, offset=number),
    }
    return Alert(**made | fields)


def offbeat(*arguments: str) -> Result:
    """The program as from a shell."""
    return CliRunner().invoke(cli, list(arguments))


class Program:
    """The program in a process of its own, its lines read as JSON."""

    def __init__(self, installation: Installation, *arguments: str) -> None:
        self.log = installation.folder / f"{arguments[0]}.log"
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "offbeat", *arguments, "--json", "--config", str(installation.config)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that a Ctrl-C of the terminal can be sent to it alone
            )
        self._seen: set[psutil.Process] = set()

    def lines(self) -> list[dict[str, Any]]:
        whole = self.log.read_text().split("\n")[:-1]
        return [json.loads(line) for line in whole]

    def said(self, **fields: object) -> list[dict[str, Any]]:
        return [line for line in self.lines() if fields.items() <= line.items()]

    def family(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            self._seen.update(psutil.Process(self.process.pid).children(recursive=True))
        return list(self._seen)

    def end(self) -> None:
        """Leave nothing behind, whatever the test found."""
        family = self.family()
        self.process.kill()
        self.process.wait()
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def wait_until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.05)
